# SPDX-License-Identifier: Apache-2.0
"""Events: which there are of what happens to VMs, and who reads them late."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import pytest

from hypemand.errors import HypemandError, InvalidRequest
from hypemand.manager.events import CAPACITY, Events
from hypemand.model.events import (
    Cursor,
    Event,
    EventKind,
    Exit,
    Failure,
    FailureReason,
    Missed,
    Noted,
    Pull,
    Ready,
    Restart,
    Since,
    Start,
    StartKind,
    StateChange,
)
from hypemand.model.exits import ExitKind
from hypemand.model.images import PullStatus
from hypemand.model.state import State
from hypemand.vm.exitrecord import REBOOTED
from tests.fakes.host import FakeHost, drive
from tests.unit.manager.test_restarts import SOON, crash

ALL = Since(kept=True)


async def read(events: Events, since: Since = ALL) -> list[Noted]:
    """Those that are kept."""
    return [noted async for noted in events.read(since, follow=False)]


async def list_details(host: FakeHost, vm: str = "web") -> list[Any]:
    """Of the events of a VM."""
    return [n.event.details for n in await read(host.parts.events) if n.event.vm == vm]


def make_events(count: int, capacity: int = CAPACITY) -> Events:
    events = Events(capacity)
    for number in range(1, count + 1):
        events.tell(Event(Missed(number), str(number), at=float(number)))
    return events


def words(noted: list[Noted]) -> list[str]:
    return [one.event.message for one in noted]


# what there is of VMs


def test_a_run_is_told_from_its_start_to_its_end() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run()
        run = host.vmm().run_id
        await host.manager.stop_vm("web")
        found = await list_details(host)
        states = [(d.old, d.new) for d in found if isinstance(d, StateChange)]
        assert states[0][0] is State.STOPPED
        assert (State.INITIALIZING, State.RUNNING) in states or (State.CREATED, State.RUNNING) in states
        assert states[-1][1] is State.STOPPED
        assert all(one[1] is other[0] for one, other in pairwise(states))
        others = [d for d in found if not isinstance(d, StateChange)]
        start, ready, end = others
        assert start == Start(StartKind.REQUEST, run)
        assert isinstance(ready, Ready)
        assert (ready.start, ready.run) == (StartKind.REQUEST, run)
        assert ready.ready is not None
        assert ready.initializing is not None
        assert 0 < ready.initializing < ready.ready < 8
        assert end == Exit(ExitKind.REQUESTED, 0, success=True, run=run)
        events = [n.event for n in await read(host.parts.events)]
        assert {(e.vm, e.vm_id) for e in events} == {("web", host.vm().record.id)}

    drive(scenario)


def test_a_crash_is_an_exit_and_a_restart_and_no_failed_start() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run(restart="on-failure", unit=SOON)
        first = host.vmm().run_id
        host.vmm().exit(3)
        await crash(host, 2)
        found = [d for d in await list_details(host) if not isinstance(d, StateChange)]
        second = host.vmm().run_id
        assert found[2:4] == [
            Exit(ExitKind.FAILURE, 3, success=False, run=first),
            Restart(1, "exited with code 3", second),
        ]
        assert isinstance(found[4], Ready)
        assert (found[4].start, found[4].run) == (StartKind.RESTARTED, second)
        assert len(found) == 5

    drive(scenario)


def test_a_guest_that_reboots_is_started_again_for_that() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run(mode="systemd", cmd=["/sbin/init"])
        host.vmm().exit(0, REBOOTED)
        await crash(host, 2)
        found = [d for d in await list_details(host) if isinstance(d, Exit | Start | Restart)]
        assert [type(d) for d in found] == [Start, Exit, Start]
        assert isinstance(found[1], Exit)
        assert isinstance(found[2], Start)
        assert (found[1].exit, found[2].start) == (ExitKind.REBOOT, StartKind.REBOOT)

    drive(scenario)


def test_a_start_that_fails_says_why_and_so_does_one_that_is_refused() -> None:
    async def scenario(host: FakeHost) -> None:
        host.guest().boots = False
        await host.create(boot_timeout="1s")
        await host.manager.start_vm("web")
        await host.until_ended()
        run = host.vm().runs.ended[0].run
        found = [d for d in await list_details(host) if isinstance(d, Failure)]
        assert found == [Failure(FailureReason.BOOT_TIMEOUT, "HYPEMAN-PROGRAM-START", run)]
        await host.create("fat", memory="1T")
        with pytest.raises(HypemandError):
            await host.manager.start_vm("fat")
        assert await list_details(host, "fat") == [Failure(FailureReason.RESOURCES)]

    drive(scenario)


def test_a_new_daemon_tells_nothing_of_what_was_before_it() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run()
        await host.restart_daemon()
        await host.until(State.RUNNING)
        assert await read(host.parts.events) == []
        host.vmm().exit(0)
        await host.until_ended()
        kinds = [d.kind for d in await list_details(host)]
        assert kinds[0] is EventKind.EXIT or EventKind.EXIT in kinds
        assert EventKind.START not in kinds

    drive(scenario)


def test_a_pull_is_told_at_its_beginning_and_its_end() -> None:
    async def scenario(host: FakeHost) -> None:
        with pytest.raises(HypemandError):
            await host.parts.images.pulls.get("registry.example/none")
        begun, ended = [n.event for n in await read(host.parts.events)]
        assert isinstance(begun.details, Pull)
        assert isinstance(ended.details, Pull)
        assert (begun.details.status, begun.details.seconds) == (PullStatus.PENDING, None)
        assert ended.details.status is PullStatus.FAILED
        assert ended.details.seconds is not None
        assert (begun.vm, begun.details.image) == ("", ended.details.image)

    drive(scenario)


# reading


def test_all_that_are_kept_are_read_and_those_behind_a_cursor_or_since_a_time() -> None:
    async def scenario() -> None:
        events = make_events(5)
        found = await read(events)
        assert words(found) == ["1", "2", "3", "4", "5"]
        cursor = Cursor.parse(str(found[2].cursor))
        assert words(await read(events, Since(cursor))) == ["4", "5"]
        assert words(await read(events, Since(found[4].cursor))) == []
        assert words(await read(events, Since(at=3.5))) == ["4", "5"]
        assert words(await read(events, Since(at=9.0))) == []
        assert words(await read(events, Since())) == []
        # a number that is not there yet is none of a place far ahead
        assert words(await read(events, Since(Cursor(cursor.key, 99)))) == []
        events.tell(Event(Missed(6), "6"))
        assert words(await read(events, Since(found[4].cursor))) == ["6"]

    asyncio.run(scenario())


@pytest.mark.parametrize("text", ["", "1", "xyz", "0123abcd", "0123abcd-", "0123abcd-1x", "0123ABCD-1"])
def test_what_is_no_cursor_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="is not a cursor"):
        Cursor.parse(text)


def test_no_more_than_so_many_are_kept_and_who_is_late_is_told_how_many_he_missed() -> None:
    async def scenario() -> None:
        events = make_events(2, capacity=3)
        cursor = (await read(events))[0].cursor
        for number in range(3, 8):
            events.tell(Event(Missed(number), str(number)))
        first, *others = await read(events, Since(cursor))
        assert first.event.details == Missed(3)
        assert words(others) == ["5", "6", "7"]
        # behind what was missed is where the others begin
        assert words(await read(events, Since(first.cursor))) == ["5", "6", "7"]

    asyncio.run(scenario())


def test_a_cursor_of_another_daemon_has_missed_who_knows_how_many() -> None:
    async def scenario() -> None:
        cursor = (await read(make_events(3)))[1].cursor
        first, *others = await read(make_events(2), Since(cursor))
        assert first.event.details == Missed(None)
        assert words(others) == ["1", "2"]

    asyncio.run(scenario())


def test_who_follows_gets_each_as_it_comes_and_who_is_slow_a_count() -> None:
    async def scenario() -> None:
        events = make_events(2, capacity=4)
        reader = events.read(Since(), follow=True)
        coming = asyncio.ensure_future(anext(reader))
        await asyncio.sleep(0)
        events.tell(Event(Missed(3), "3"))
        assert (await coming).event.message == "3"
        for number in range(4, 6):
            events.tell(Event(Missed(number), str(number)))
        assert (await anext(reader)).event.message == "4"
        # while this one was sent the ring has gone round
        for number in range(6, 16):
            events.tell(Event(Missed(number), str(number)))
        missed = (await anext(reader)).event.details
        assert missed == Missed(7)
        assert [(await anext(reader)).event.message for _ in range(4)] == ["12", "13", "14", "15"]
        await reader.aclose()  # type: ignore[attr-defined]

    asyncio.run(scenario())
