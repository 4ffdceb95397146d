# SPDX-License-Identifier: Apache-2.0
"""Tables for awk(1): as many words in each line as the header has, but for the last column."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path
from typing import Any

import pytest

from hypemand import recordfile
from hypemand.model.state import State
from tests.fakes.api import Client
from tests.fakes.host import FakeHost
from tests.unit.cli.canned import Canned
from tests.unit.cli.conftest import Cli
from tests.unit.cli.test_over_manager import SMALL, Run, drive

TABLES = (
    ("list",),
    ("history", "web"),
    ("top", "--once"),
    ("image", "list"),
    ("network", "list"),
    ("volume", "list"),
    ("snapshot", "list"),
    ("snapshot", "list", "-o", "wide"),
    ("df",),
)


def check(table: str) -> None:
    """Each row has the header's columns; the last one may have any number of words."""
    header, *rows = table.partition("\n\n")[0].splitlines()
    for row in rows:
        # of the last column, what stands below its title
        words = len(row[: header.rindex(" ") + 1].split())
        assert words == len(header.split()) - 1, f"{header}\n{row}"
    assert rows


def test_every_cell_is_a_word() -> None:
    async def scenario(host: FakeHost, api: Client, run: Run) -> None:
        for name in ("data", "more"):
            assert (await run("volume", "create", name, "--size", "16M")).returncode == 0
        await host.create("off", volumes=[{"volume": "data", "mount_path": "/a"}])
        await host.run(volumes=[{"volume": "more", "mount_path": "/a", "readonly": True}])
        host.vmm().exit(3)
        await host.until_ended()
        await host.manager.start_vm("web")
        await host.until(State.RUNNING)
        assert (await run("snapshot", "create", "web")).returncode == 0
        for words in TABLES:
            done = await run(*words)
            assert done.returncode == 0, done.stderr
            check(done.stdout)

    drive(scenario)


def test_so_are_those_of_what_takes_long_or_has_expired(daemon: Canned, cli: Cli) -> None:
    started: dict[str, Any] = {
        "started_at": "2026-03-01T10:00:00.000Z",
        "cpu_seconds": 12345.6,
        "invocation_id": "a",
    }
    daemon.add("web", ready_ms=125_000.0, **started)
    token = {"name": "ci", "scope": "read", "prefix": "hm_", "created_at": "2026-03-01T10:00:00.000Z"}
    ended = {"expires_at": "2026-03-02T10:00:00.000Z", "expired": True, "vms": ["a", "b"], "tags": {}}
    daemon.answers["GET /tokens"] = [token | ended | {"last_used_at": None}]
    for words in (("list",), ("top", "--once"), ("token", "list")):
        check(cli.run(*words).stdout)


# --- full disks ---


def fill(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on no record can be written, whichever file system it is on."""

    def refuse(path: Path, data: bytes, *, mode: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(recordfile, "write_file", refuse)


def test_a_full_disk_is_named_by_start_and_run(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(host: FakeHost, api: Client, run: Run) -> None:
        await host.create()
        fill(monkeypatch)
        start = await run("start", "web")
        create = await run("run", "-d", "--name", "new", *SMALL, "builtin:app", "x")
        assert (start.returncode, create.returncode) == (9, 125)
        for done, what in ((start, "start VM web"), (create, "create VM new")):
            assert f"no space left to {what}: the file system /" in done.stderr
            assert "is full" in done.stderr
        assert host.parts.fleet.find("new") is None

    drive(scenario)


def test_the_result_of_a_run_is_known_though_it_could_not_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(host: FakeHost, api: Client, run: Run) -> None:
        host.guest().code = 7
        await host.run()
        await host.vm().runs.files.flush_notes()
        fill(monkeypatch)
        done = await run("stop", "--result", "web")
        assert done.returncode == 1
        assert "web failed: exited with 7: stopped on request" in done.stderr

    drive(scenario)


def test_a_run_of_whose_end_nothing_is_known_is_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(host: FakeHost, api: Client, run: Run) -> None:
        host.guest().heeds = False
        await host.run()
        fill(monkeypatch)
        stop = asyncio.create_task(run("stop", "--result", "web"))
        await host.until_true(lambda: host.unit() == "deactivating/stop")
        host.vmm().ended.set()  # without a word
        done = await stop
        assert done.returncode == 1
        assert "how could not be written down" in done.stderr

    drive(scenario)
