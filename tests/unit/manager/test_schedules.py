# SPDX-License-Identifier: Apache-2.0
"""Snapshots by schedule over the real manager, with a clock that is set."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from systemd import journal

from hypemand import recordfile
from hypemand.errors import InvalidRequest, NotFound
from hypemand.manager.schedules import SnapshotSchedules
from hypemand.model.events import Since, SnapshotAction, SnapshotCause, SnapshotChange
from hypemand.model.schedules import Retention, ScheduleWanted, SnapshotSchedule
from hypemand.model.snapshots import SnapshotKind, SnapshotView
from hypemand.model.state import State
from tests.fakes.host import FakeHost, drive

HOUR = 3600.0
HOURLY = ScheduleWanted(HOUR, Retention(max_count=2), "nightly", {"team": "a"})


class Clock:
    """That of the host, as far as schedules are concerned."""

    def __init__(self, host: FakeHost, **keys: float) -> None:
        self.now = time.time()
        self.host = host
        self.schedules = SnapshotSchedules(host.parts, host.daemon.snapshots, lambda: self.now, **keys)

    async def step(self) -> None:
        """It was set."""
        await self.host.until_true(lambda: self.schedules.timer._steps is not None)
        steps = self.schedules.timer._steps
        assert steps is not None
        steps._on_step()

    async def reach(self, name: str = "web") -> None:
        """The next slot of a VM, until that is over."""
        before = self.schedule(name).next_run_at
        self.now = max(self.now, before)
        await self.step()
        await self.host.until_true(lambda: self.schedule(name).next_run_at != before)
        # with what follows: it waits for the next one
        await self.host.until_true(lambda: self.schedules.timer._at == self.schedule(name).next_run_at)

    def schedule(self, name: str = "web") -> SnapshotSchedule:
        found = self.host.vm(name).record.schedule
        assert found is not None
        return found


@asynccontextmanager
async def setting_clock(host: FakeHost, **keys: float) -> AsyncIterator[Clock]:
    """Instead of those of the daemon that is there now."""
    await host.daemon.schedules.close()
    clock = Clock(host, **keys)
    clock.schedules.begin()
    try:
        yield clock
    finally:
        await clock.schedules.close()


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the journal gets of scheduled snapshots."""
    texts: list[str] = []

    def send(text: str, **_: Any) -> None:
        if "scheduled snapshot" in text or "retention" in text:
            texts.append(text)

    monkeypatch.setattr(journal, "send", send)
    return texts


async def kept(host: FakeHost) -> list[SnapshotView]:
    return list(await host.daemon.snapshots.list_snapshots())


async def events(host: FakeHost) -> list[tuple[SnapshotAction, SnapshotCause]]:
    found = [noted.event.details async for noted in host.parts.events.read(Since(kept=True), follow=False)]
    return [(one.action, one.cause) for one in found if isinstance(one, SnapshotChange)]


def test_a_vm_that_runs_and_one_that_has_stopped_are_kept_and_the_oldest_go(sent: list[str]) -> None:
    async def scenario(host: FakeHost) -> None:
        async with setting_clock(host) as clock:
            assert not clock.schedules.timer.is_set
            await host.run()
            own = await host.daemon.snapshots.create_snapshot("web", None, "nightly-mine", {})
            vm_id, made = await clock.schedules.set_schedule("web", HOURLY)
            assert vm_id == host.vm().record.id
            assert clock.now + HOUR <= made.next_run_at <= clock.now + 1.1 * HOUR
            run = host.vm().run
            await clock.reach()
            await host.until(State.RUNNING)
            assert host.vm().run == run, "it runs on"
            first = (await kept(host))[1]
            assert (first.kind, first.tags, first.is_scheduled) == (SnapshotKind.STANDBY, {"team": "a"}, True)
            assert (first.name or "").startswith("nightly-2")
            after = clock.schedule()
            assert after.next_run_at == made.next_run_at + HOUR
            assert (after.last_run_at, after.last_snapshot_id) == (made.next_run_at, first.id)
            await host.manager.stop_vm("web")
            await clock.reach()
            await clock.reach()
            views = await kept(host)
            assert [view.kind for view in views[1:]] == [SnapshotKind.STOPPED] * 2
            assert views[0] == own, "it was not made by a schedule"
            created = (SnapshotAction.CREATED, SnapshotCause.SCHEDULE)
            assert (await events(host))[1:] == [
                created, created, created, (SnapshotAction.DELETED, SnapshotCause.RETENTION)
            ]  # fmt: skip
            assert sent == [
                f"the snapshot {first.name} of VM web was deleted, as the retention of its schedule says"
            ]
            await clock.schedules.remove_schedule("web")
            await host.until_true(lambda: not clock.schedules.timer.is_set)
            assert len(await kept(host)) == 3

    drive(scenario)


def test_a_vm_in_another_state_is_left_out_with_a_line(sent: list[str]) -> None:
    async def scenario(host: FakeHost) -> None:
        async with setting_clock(host) as clock:
            await host.run()
            await host.manager.standby_vm("web")
            await clock.schedules.set_schedule("web", HOURLY)
            await clock.reach()
            assert (await kept(host), await events(host)) == ([], [])
            assert sent == ["VM web: a scheduled snapshot was left out, since it is Standby"]
            assert clock.schedule().last_run_at is None
            await host.manager.restore_vm("web")
            await host.until(State.RUNNING)
            await clock.reach()
            assert len(await kept(host)) == 1

    drive(scenario)


def test_a_failure_is_told_once_deletes_nothing_and_the_next_slot_goes_on(sent: list[str]) -> None:
    async def scenario(host: FakeHost) -> None:
        async with setting_clock(host) as clock:
            await host.run()
            await clock.schedules.set_schedule("web", ScheduleWanted(HOUR, Retention(max_count=1)))
            await clock.reach()
            (first,) = await kept(host)
            host.vmm().monitor.failure = "no room"
            await clock.reach()
            assert len(sent) == 1
            assert sent[0].startswith("VM web: the scheduled snapshot scheduled-")
            assert "no room" in sent[0]
            assert (await events(host))[-1] == (SnapshotAction.FAILED, SnapshotCause.SCHEDULE)
            failed = clock.schedule()
            assert (failed.last_snapshot_id, "no room" in (failed.last_error or "")) == (first.id, True)
            assert await kept(host) == [first]
            host.vmm().monitor.failure = ""
            await host.until(State.RUNNING)
            await clock.reach()
            (second,) = await kept(host)
            assert (clock.schedule().last_snapshot_id, clock.schedule().last_error) == (second.id, None)

    drive(scenario)


def test_a_snapshot_that_takes_too_long_is_given_up_and_holds_up_no_other_vm_for_ever(
    sent: list[str],
) -> None:
    async def scenario(host: FakeHost) -> None:
        async with setting_clock(host, deadline=0.5) as clock:
            for name in ("web", "db"):
                await host.run(name)
                await clock.schedules.set_schedule(name, HOURLY)
            host.vmm().monitor.holds_save = True
            clock.now += 2 * HOUR
            await clock.step()
            await host.until_true(lambda: bool(clock.schedule().last_error))
            assert "it was not made in 0 s" in sent[0]
            await host.until_true(lambda: clock.schedule("db").last_snapshot_id is not None)
            await host.until(State.RUNNING)
            assert [view.vm for view in await kept(host)] == ["db"]

    drive(scenario)


def test_a_daemon_that_starts_goes_on_with_the_next_slot(sent: list[str]) -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run()
        await host.daemon.schedules.set_schedule("web", HOURLY)
        path = host.config.state_dir / "vms/web/vm.json"

        async def wait() -> None:
            """For a bit more than two slots."""
            record = json.loads(path.read_text())
            record["snapshot_schedule"]["next_run_at"] -= 3.5 * HOUR
            path.write_text(json.dumps(record))

        await host.restart_daemon(wait)
        schedule = host.vm().record.schedule
        assert schedule is not None
        assert schedule.wanted == HOURLY
        await host.until_true(lambda: len(sent) == 1)
        assert sent == ["VM web: a scheduled snapshot was left out, since hypemand did not run"]
        now, after = time.time(), host.vm().record.schedule
        assert after is not None
        assert now < after.next_run_at <= now + HOUR
        assert (after.next_run_at - schedule.next_run_at) % HOUR == pytest.approx(0, abs=0.001)
        assert await kept(host) == []
        await host.restart_daemon()
        assert host.vm().record.schedule == after
        assert len(sent) == 1

    drive(scenario)


def test_a_schedule_follows_its_vm_and_goes_with_it() -> None:
    async def scenario(host: FakeHost) -> None:
        async with setting_clock(host) as clock:
            await host.run()
            await clock.schedules.set_schedule("web", HOURLY)
            await host.manager.stop_vm("web")
            await host.manager.rename_vm("web", "new")
            await clock.reach("new")
            assert [view.vm for view in await kept(host)] == ["new"]
            await host.manager.delete_vm("new", kill=True)
            clock.now += 2 * HOUR
            await clock.step()
            await host.until_true(lambda: not clock.schedules.timer.is_set)
            assert len(await kept(host)) == 1

    drive(scenario)


def test_a_vm_of_a_file_keeps_its_schedule_when_the_file_is_read_again() -> None:
    async def scenario(host: FakeHost) -> None:
        host.write()
        await host.reload()
        await host.daemon.schedules.set_schedule("web", HOURLY)
        host.write(memory="128M")
        await host.reload()
        _, schedule = await host.daemon.schedules.get_schedule("web")
        assert schedule.wanted == HOURLY

    drive(scenario)


def test_what_cannot_be_written_is_no_reason_to_make_one_snapshot_after_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario(host: FakeHost) -> None:
        async with setting_clock(host) as clock:
            await host.run()
            await clock.schedules.set_schedule("web", HOURLY)
            before = clock.schedule()

            def refuse(*_: object, **__: object) -> None:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            with monkeypatch.context() as full:
                full.setattr(recordfile, "write_file", refuse)
                clock.now = before.next_run_at
                await clock.step()
                await host.until_true(lambda: clock.schedules._later != {})
            assert clock.schedule() == before
            assert clock.schedules._later == {host.vm().record.id: before.next_run_at + HOUR}
            assert len(await events(host)) == 1
            clock.now += HOUR
            await clock.step()
            await host.until_true(lambda: clock.schedule().last_snapshot_id is not None)
            assert clock.schedule().next_run_at == before.next_run_at + 2 * HOUR

    drive(scenario)


def test_what_is_wrong_or_not_there_is_refused() -> None:
    async def scenario(host: FakeHost) -> None:
        schedules = host.daemon.schedules
        await host.create()
        for work in (schedules.get_schedule("web"), schedules.remove_schedule("web")):
            with pytest.raises(NotFound, match="VM web has no snapshot schedule"):
                await work
        with pytest.raises(NotFound):
            await schedules.set_schedule("nothing", HOURLY)
        for wanted in (
            ScheduleWanted(30.0, Retention(1)),
            ScheduleWanted(HOUR, Retention()),
            ScheduleWanted(HOUR, Retention(1), tags={"?": "x"}),
        ):
            with pytest.raises(InvalidRequest):
                await schedules.set_schedule("web", wanted)
        assert host.vm().record.schedule is None

    drive(scenario)
