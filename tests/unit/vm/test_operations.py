# SPDX-License-Identifier: Apache-2.0
"""The operation that is under way on a VM: shown, and named where something is refused."""

from __future__ import annotations

import asyncio
import errno
import time

import pytest

from hypemand.errors import HypemandError, WrongState
from hypemand.manager import service
from hypemand.manager.guestops import GuestOps
from hypemand.model.caller import CALLER
from hypemand.model.exec import ExecRequest
from hypemand.model.state import Operation, State
from hypemand.systemd.bus import BusError
from tests.fakes.host import FakeHost, drive
from tests.unit.manager.test_races import hold_start


def test_it_is_shown_with_its_owner_while_it_lasts() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.create()
        CALLER.set("uid 7")
        began = time.time()
        start, go_on = await hold_start(host)
        CALLER.set("somebody else")
        (view,) = await host.manager.list_vms()
        assert view.operation is not None
        assert (view.operation.name, view.operation.owner) == (Operation.START, "uid 7")
        assert began <= view.operation.since <= time.time()
        go_on.set()
        await start
        assert (await host.manager.get_vm("web")).operation is None

    drive(scenario)


def test_who_watches_sees_it_begin_and_end() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.create()
        seen: list[Operation | None] = []

        async def watch() -> None:
            async for view in host.manager.watch_vm("web"):
                name = None if view.operation is None else view.operation.name
                if seen[-1:] != [name]:
                    seen.append(name)

        watcher = asyncio.create_task(watch())
        await asyncio.sleep(0)
        start, go_on = await hold_start(host)
        await host.until_true(lambda: seen == [None, Operation.START])
        go_on.set()
        await start
        await host.until_true(lambda: seen == [None, Operation.START, None])
        watcher.cancel()

    drive(scenario)


def test_a_command_is_refused_with_its_name() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.create()
        start, go_on = await hold_start(host)
        guests = GuestOps(host.parts.fleet, host.parts.images)
        with pytest.raises(WrongState, match=r"web is \w+ \(starting since \d s, by hypemand\)"):
            await guests.exec_vm("web", ExecRequest(("true",), {}, None, None, None))
        go_on.set()
        await start

    drive(scenario)


def test_what_is_no_start_and_no_end_waits_for_it_only_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(host: FakeHost) -> None:
        await host.create()
        start, go_on = await hold_start(host)
        monkeypatch.setattr(service, "_PATIENCE", 0.05)
        with pytest.raises(WrongState, match=r"cannot pause VM web: it is starting since \d s, by hypemand"):
            await host.manager.pause_vm("web")
        with pytest.raises(WrongState, match="cannot resume VM web: it is starting"):
            await host.manager.resume_vm("web")
        go_on.set()
        await start
        await host.until(State.RUNNING)
        monkeypatch.setattr(service, "_PATIENCE", 10.0)
        assert (await host.manager.pause_vm("web")).state is State.PAUSED

    drive(scenario)


def test_a_restart_that_comes_to_nothing_leaves_no_handle_active() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.create()
        await host.start_handle("web")
        await host.until(State.RUNNING)
        handle = "hypeman@web.service"
        await host.until_true(lambda: host.systemd.units[handle].active == "active")
        host.systemd.refuse["StartTransientUnit"] = BusError("no", errno.EINVAL)
        with pytest.raises((HypemandError, OSError)):
            await host.manager.restart_vm("web")
        assert host.traces() == []
        await host.until_true(
            lambda: handle not in host.systemd.units or host.systemd.units[handle].active != "active"
        )

    drive(scenario)
