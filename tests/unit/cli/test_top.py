# SPDX-License-Identifier: Apache-2.0
"""top and token, against the real API server."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

from hypemand.model.state import State
from hypemand.model.tokens import Scope
from tests.unit.api.harness import Api
from tests.unit.cli.test_against_server import Run, run_both


async def burn(api: Api, name: str, per_second: float) -> None:
    """Let a VM use CPU time."""
    start = time.monotonic()
    while True:
        used = (time.monotonic() - start) * per_second
        await api.manager.set_state(name, State.RUNNING, cpu_seconds=used)
        await asyncio.sleep(0.02)


def test_top_shows_the_busiest_first_and_what_it_uses(tmp_path: Path) -> None:
    async def scenario(api: Api, run: Run) -> None:
        for name in ("idle", "busy"):
            api.manager.add(
                name, state=State.RUNNING, main_pid=5, invocation_id="ab" * 16, memory_current=150 * 1024**2,
                cpu_seconds=7.0, started_at=time.time() - 65,
            )  # fmt: skip
        api.manager.add("off")
        burning = asyncio.create_task(burn(api, "busy", 0.5))
        try:
            done = await run("top", "--json", "-d", "500ms")
            table = await run("top", "-d", "300ms")
            named = await run("top", "--once", "-d", "100ms", "off")
        finally:
            burning.cancel()
        rows = json.loads(done.stdout)
        assert [row["name"] for row in rows] == ["busy", "idle", "off"]
        assert 40 < rows[0]["cpu_percent"] < 60
        assert (rows[1]["cpu_percent"], rows[1]["cpu_seconds"], rows[1]["memory"]) == (0.0, 7.0, "1G")
        assert 65 <= rows[1]["up_seconds"] < 90
        assert (rows[2]["cpu_percent"], rows[2]["memory_current"], rows[2]["up_seconds"]) == (
            None,
            None,
            None,
        )
        lines = [line.split() for line in table.stdout.splitlines()]
        assert lines[0][:4] == ["NAME", "STATE", "CPU%", "MEMORY"]
        assert [line[0] for line in lines[1:]] == ["busy", "idle", "off"]
        assert lines[2][2:5] == ["0.0", "150M", "1G"]
        assert "\x1b" not in table.stdout
        assert [line.split()[0] for line in named.stdout.splitlines()] == ["NAME", "off"]
        assert (await run("top", "nobody")).returncode == 4
        assert (await run("top", "-d", "1ms")).returncode == 8

    run_both(tmp_path, scenario)


def test_a_vm_that_was_started_anew_has_used_nothing_before(tmp_path: Path) -> None:
    async def scenario(api: Api, run: Run) -> None:
        api.manager.add("web", state=State.RUNNING, main_pid=5, invocation_id="a" * 32, cpu_seconds=100.0)
        looking = asyncio.create_task(run("top", "--json", "-d", "1s"))
        await api.manager.listed.wait()
        await api.manager.set_state("web", State.RUNNING, invocation_id="b" * 32, cpu_seconds=0.1)
        (row,) = json.loads((await looking).stdout)
        assert 5 < row["cpu_percent"] < 20

    run_both(tmp_path, scenario)


def test_tokens_are_made_listed_and_revoked(tmp_path: Path) -> None:
    async def scenario(api: Api, run: Run) -> None:
        made = await run(
            "token",
            "create",
            "ci",
            "--expires",
            "30d",
            "--scope",
            "operate",
            "--vm",
            "web",
            "--tag",
            "a=b",
            "--tag",
            "c=d",
        )
        assert (made.returncode, made.stderr) == (0, "")
        text = made.stdout.strip()
        found = await api.services.tokens.find(text)
        assert found is not None
        assert (found.name, found.scope, found.vms) == ("ci", Scope.OPERATE, ("web",))
        assert found.expires_at is not None
        assert abs(found.expires_at - time.time() - 30 * 86400) < 60
        whole = json.loads((await run("token", "create", "all", "--expires", "infinity", "--json")).stdout)
        assert (whole["expires_at"], whole["scope"]) == (None, "admin")
        listed = (await run("token", "list")).stdout
        assert text not in listed
        lines = [line.split() for line in listed.splitlines()]
        assert [line[0] for line in lines] == ["NAME", "all", "ci"]
        assert lines[2][1:3] == ["operate", text[:8]]
        assert (lines[2][-2:], lines[1][-1]) == (["web", "a=b,c=d"], "all")
        assert len(json.loads((await run("token", "list", "--json")).stdout)) == 2
        assert (await run("token", "create", "ci")).returncode == 5
        assert json.loads((await run("token", "revoke", "ci", "all", "--json")).stdout) == ["ci", "all"]
        assert await api.services.tokens.find(text) is None
        assert (await run("token", "revoke", "ci")).returncode == 4
        assert (await run("token", "list")).stdout == ""

    run_both(tmp_path, scenario)
