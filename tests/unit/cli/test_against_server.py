# SPDX-License-Identifier: Apache-2.0
"""hypemanctl against the real API server: both sides mean the same contract."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from hypemand.model.state import State
from tests.unit.api.harness import Api, drive
from tests.unit.cli.conftest import DEADLINE, Cli

Run = Callable[..., Coroutine[Any, Any, "subprocess.CompletedProcess[str]"]]


def run_both(folder: Path, scenario: Callable[[Api, Run], Coroutine[Any, Any, None]]) -> None:
    """Run a scenario with a server and a hypemanctl of it."""
    cli = Cli(folder / "api.sock")

    async def run(*words: str, input: bytes | None = None) -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(cli.run, *words, input=input)

    async def with_server(api: Api) -> None:
        await scenario(api, run)

    drive(folder, with_server)


def test_a_bad_definition_shows_its_problems(tmp_path: Path) -> None:
    async def scenario(_: Api, run: Run) -> None:
        done = await run("run", "-d", "--name", "Web!", "-m", "lots", "builtin:busybox")
        assert done.returncode == 125
        assert "memory: " in done.stderr
        assert "Web!" in done.stderr

    run_both(tmp_path, scenario)


def test_a_run_ends_as_its_program(tmp_path: Path) -> None:
    async def scenario(api: Api, _: Run) -> None:
        words = ("run", "--rm", "--name", "job", "--disk", "64M", "-m", "96M", "--network", "none")
        process = Cli(api.path).start(*words, "builtin:busybox")
        assert process.stdout is not None
        api.host.guest("job").prints = ("one",)
        assert await asyncio.to_thread(process.stdout.readline) == b"one\n"
        vmm = api.host.vmm("job")
        for text in ("two", "last"):
            vmm.print(text)
        vmm.exit(3)
        output, errors = await asyncio.to_thread(process.communicate, timeout=DEADLINE)
        assert (output, errors, process.returncode) == (b"two\nlast\n", b"", 3)
        assert not list(api.host.parts.fleet)

    run_both(tmp_path, scenario)


def test_stop_kill_and_restart_reach_the_manager(tmp_path: Path) -> None:
    async def scenario(api: Api, run: Run) -> None:
        for name in ("a", "b", "c"):
            await api.host.put(name, State.RUNNING)
        vmm, first = api.host.vmm("a"), api.host.vmm("c").run_id
        stopped = json.loads((await run("stop", "--timeout", "1min", "--json", "a")).stdout)
        assert (stopped[0]["exit_message"], vmm.graces) == ("stopped on request", [60])
        assert (await run("kill", "-s", "TERM", "b")).returncode == 0
        await api.host.until(State.STOPPED, "b")
        assert (await run("restart", "c")).returncode == 0
        await api.host.until(State.RUNNING, "c")
        assert api.host.vmm("c").run_id != first
        assert (await run("kill", "a")).returncode == 11

    run_both(tmp_path, scenario)


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["logs", "web"], "one\ntwo\n"),
        (["logs", "--all", "-n", "2", "web"], "HYPEMAN-AGENT-READY ts=x boot=y\ntwo\n"),
        (["logs", "--source", "vmm", "web"], "qemu-system-x86_64: vmm line\n"),
        (["logs", "--timestamps", "-n", "1", "web"], "2023-11-14T22:13:20.250+00:00 two\n"),
    ],
)
def test_logs_are_those_of_the_manager(tmp_path: Path, words: list[str], shown: str) -> None:
    async def scenario(api: Api, run: Run) -> None:
        await api.host.put("web")
        for text in ("qemu-system-x86_64: vmm line", "one", "HYPEMAN-AGENT-READY ts=x boot=y", "two"):
            api.host.log("web", text, realtime=1_700_000_000.25)
        done = await run(*words)
        assert (done.stdout, done.stderr, done.returncode) == (shown, "", 0)

    run_both(tmp_path, scenario)


def test_exec_runs_in_the_guest(tmp_path: Path) -> None:
    async def scenario(api: Api, run: Run) -> None:
        await api.host.put("web", State.RUNNING)
        done = await run("exec", "web", "--", "both")
        assert (done.stdout, done.stderr, done.returncode) == ("out", "err", 3)
        done = await run("exec", "-i", "web", "-e", "A=1", "--", "cat", input=b"x" * 500_000)
        assert (len(done.stdout), done.returncode) == (500_000, 0)
        assert api.host.vmm("web").commands[-1].env["A"] == "1"
        lost = await run("exec", "web", "lost")
        assert lost.returncode == 125
        assert "the VMM closed the agent channel" in lost.stderr

    run_both(tmp_path, scenario)


def test_images_reload_and_timeline_are_understood(tmp_path: Path) -> None:
    async def scenario(api: Api, run: Run) -> None:
        name = "example.org/team/app:v1"
        for image in (name, "spare"):
            api.host.add_image(image)
        await api.host.put("web", State.RUNNING, image=name)
        assert "builtin:busybox" in (await run("image", "list", "-q")).stdout
        assert json.loads((await run("image", "inspect", name)).stdout)["name"] == name
        assert (await run("image", "rm", name)).returncode == 11
        assert (await run("image", "rm", "spare")).returncode == 0
        assert (await run("image", "rm", "spare")).returncode == 10
        api.host.write("a", memory="lots")
        reload = await run("reload")
        assert reload.returncode == 8
        assert "a.yaml:1:" in reload.stderr
        assert "memory: " in reload.stderr
        assert "kernel" in (await run("analyze", "web")).stdout

    run_both(tmp_path, scenario)
