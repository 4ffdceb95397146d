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
from hypemand.model.vm import ExitReport
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
        process = Cli(api.path).start("run", "--rm", "--name", "job", "builtin:busybox")
        assert process.stdout is not None
        assert await asyncio.to_thread(process.stdout.readline) == b"one\n"
        await api.manager.set_state("job", State.STOPPED, exit=ExitReport(3, "exited", success=False))
        output, errors = await asyncio.to_thread(process.communicate, timeout=DEADLINE)
        assert (output, errors, process.returncode) == (b"two\nlast\n", b"", 3)
        assert api.manager.vms == {}

    run_both(tmp_path, scenario)


def test_stop_kill_and_restart_reach_the_manager(tmp_path: Path) -> None:
    async def scenario(api: Api, run: Run) -> None:
        for name in ("a", "b", "c"):
            api.manager.add(name, state=State.RUNNING)
        stopped = json.loads((await run("stop", "--timeout", "1min", "--json", "a")).stdout)
        assert stopped[0]["exit_message"] == "stopped on request, timeout 60.0"
        assert (await run("stop", "--result", "a")).returncode == 0
        assert (await run("kill", "-s", "TERM", "b")).returncode == 0
        assert api.manager.killed == [("b", 15)]
        assert (await run("restart", "c")).returncode == 0
        assert api.manager.vms["c"].view.state is State.INITIALIZING
        assert (await run("kill", "a")).returncode == 5

    run_both(tmp_path, scenario)


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["logs", "web"], "one\ntwo\n"),
        (["logs", "--all", "-n", "2", "web"], "HYPEMAN-AGENT-READY ts=x boot=y\ntwo\n"),
        (["logs", "--source", "vmm", "web"], "vmm line\n"),
        (["logs", "--timestamps", "-n", "1", "web"], "2023-11-14T22:13:20.250+00:00 two\n"),
    ],
)
def test_logs_are_those_of_the_manager(tmp_path: Path, words: list[str], shown: str) -> None:
    async def scenario(api: Api, run: Run) -> None:
        api.manager.add("web")
        done = await run(*words)
        assert (done.stdout, done.stderr, done.returncode) == (shown, "", 0)

    run_both(tmp_path, scenario)


def test_exec_runs_in_the_guest(tmp_path: Path) -> None:
    async def scenario(api: Api, run: Run) -> None:
        api.manager.add("web", state=State.RUNNING)
        done = await run("exec", "web", "--", "both")
        assert (done.stdout, done.stderr, done.returncode) == ("out", "err", 3)
        done = await run("exec", "-i", "web", "-e", "A=1", "--", "cat", input=b"x" * 500_000)
        assert (len(done.stdout), done.returncode) == (500_000, 0)
        assert api.manager.sessions[-1].request.env == {"A": "1"}
        lost = await run("exec", "web", "lost")
        assert lost.returncode == 125
        assert "the exit status of the command is not known" in lost.stderr

    run_both(tmp_path, scenario)


def test_images_reload_and_timeline_are_understood(tmp_path: Path) -> None:
    async def scenario(api: Api, run: Run) -> None:
        api.manager.add("web", ready_ms=612.5)
        assert "builtin:busybox" in (await run("image", "list", "-q")).stdout
        name = "example.org/team/app:v1"
        assert json.loads((await run("image", "inspect", name)).stdout)["name"] == name
        assert (await run("image", "rm", name)).returncode == 5
        assert (await run("image", "rm", "spare")).returncode == 0
        assert (await run("image", "rm", "spare")).returncode == 4
        reload = await run("reload")
        assert reload.returncode == 8
        assert "a.yaml:3:1: memory: is no size; write 1G" in reload.stderr
        assert "kernel" in (await run("analyze", "web")).stdout

    run_both(tmp_path, scenario)
