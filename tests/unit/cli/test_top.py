# SPDX-License-Identifier: Apache-2.0
"""top and token, against the real API server."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

from hypemand.api.render import derive_instance
from hypemand.cli.top import _compare, _format_row
from hypemand.model.answers.instance import Instance
from hypemand.model.state import State
from hypemand.model.tokens import Scope
from tests.unit.api.harness import Api
from tests.unit.api.values import make_view
from tests.unit.cli.test_against_server import Run, run_both


def make_instance(**changes: object) -> Instance:
    """One that runs."""
    values: dict[str, object] = {
        "main_pid": 5, "invocation_id": "ab" * 16, "memory_current": 150 * 1024**2, "cpu_seconds": 7.0,
        "started_at": time.time() - 65,
    }  # fmt: skip
    return derive_instance(make_view("web", **{"state": State.RUNNING, **values, **changes}))


def test_what_was_used_between_two_looks_is_a_share_of_the_time() -> None:
    before = make_instance()
    busy = _compare(make_instance(cpu_seconds=7.25), before, 0.5)
    assert (busy.cpu_percent, busy.cpu_seconds, busy.memory) == (50.0, 7.25, "1G")
    assert busy.up_seconds is not None
    assert 65 <= busy.up_seconds < 90
    assert _compare(before, before, 0.5).cpu_percent == 0.0
    assert _format_row(busy) == ["web", "Running", "50.0", "150M", "1G", "2", "7.2s", "1min5s"]
    off = _compare(derive_instance(make_view()), None, 0.5)
    assert (off.cpu_percent, off.memory_current, off.up_seconds) == (None, None, None)


def test_a_vm_that_was_started_anew_has_used_nothing_before() -> None:
    before = make_instance(invocation_id="a" * 32, cpu_seconds=100.0)
    row = _compare(make_instance(invocation_id="b" * 32, cpu_seconds=0.1), before, 1.0)
    assert row.cpu_percent == 10.0


def test_top_shows_the_busiest_first_and_what_it_uses(tmp_path: Path) -> None:
    async def scenario(api: Api, run: Run) -> None:
        idle = await asyncio.create_subprocess_exec("sleep", "infinity")
        busy = await asyncio.create_subprocess_exec(sys.executable, "-c", "while True: pass")
        try:
            for name, process in (("idle", idle), ("busy", busy)):
                await api.host.put(name, State.RUNNING)
                api.host.vmm(name).process.pid = process.pid
            await api.host.put("off")
            done = await run("top", "--json", "-d", "100ms")
            table = await run("top", "-d", "100ms")
            named = await run("top", "--once", "-d", "100ms", "off")
        finally:
            for process in (idle, busy):
                process.kill()
                await process.wait()
        rows = json.loads(done.stdout)
        assert [row["name"] for row in rows] == ["busy", "idle", "off"]
        assert rows[0]["cpu_percent"] > 0 == rows[1]["cpu_percent"]
        assert rows[0]["cpu_seconds"] > 0
        assert rows[1]["memory"] == "96M"
        lines = [line.split() for line in table.stdout.splitlines()]
        assert lines[0][:4] == ["NAME", "STATE", "CPU%", "MEMORY"]
        assert [line[0] for line in lines[1:]] == ["busy", "idle", "off"]
        assert lines[2][2:5] == ["0.0", "64M", "96M"]
        assert "\x1b" not in table.stdout
        assert [line.split()[0] for line in named.stdout.splitlines()] == ["NAME", "off"]
        assert (await run("top", "nobody")).returncode == 10
        assert (await run("top", "-d", "1ms")).returncode == 8

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
        assert (await run("token", "create", "ci")).returncode == 11
        assert json.loads((await run("token", "revoke", "ci", "all", "--json")).stdout) == ["ci", "all"]
        assert await api.services.tokens.find(text) is None
        assert (await run("token", "revoke", "ci")).returncode == 10
        assert (await run("token", "list")).stdout == ""

    run_both(tmp_path, scenario)
