# SPDX-License-Identifier: Apache-2.0
"""Makes the snapshots that schedules of VMs ask for, and deletes those that these keep no more.

There is one task for all of them, which makes one snapshot after the other, and one timer, for the slot that
comes first. Slots that are over, because no daemon was there or another snapshot took so long, are left out.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace

from hypemand.config.tags import check_tags
from hypemand.errors import HypemandError, InUse, NotFound
from hypemand.manager.parts import Parts
from hypemand.manager.snapshotends import remove_snapshot
from hypemand.manager.snapshots import ApiSnapshots
from hypemand.manager.walltimer import WallTimer
from hypemand.model.caller import CALLER
from hypemand.model.events import SnapshotAction, SnapshotCause, SnapshotChange
from hypemand.model.schedules import ScheduleWanted, SnapshotSchedule, begin_schedule
from hypemand.model.snapshots import SnapshotWanted
from hypemand.model.state import State
from hypemand.systemd.log import MessageId
from hypemand.tasks import Tasks
from hypemand.vm.record import VmRecord
from hypemand.vm.vm import Vm

_log = logging.getLogger(__name__)
# of which one snapshot is given up: the next VM waits for it
_DEADLINE = 3600.0
# characters of an error in the record of a VM, part of which may be the guest's words
_LONGEST_ERROR = 1000
_SOURCES = (State.RUNNING, State.STOPPED)


class SnapshotSchedules:
    """Implements `hypemand.model.services.ScheduleService`; makes snapshots from `begin` to `close`."""

    def __init__(
        self,
        parts: Parts,
        snapshots: ApiSnapshots,
        clock: Callable[[], float] = time.time,
        deadline: float = _DEADLINE,
    ) -> None:
        self._parts = parts
        self._snapshots = snapshots
        self._clock = clock
        self._deadline = deadline
        self._tasks = Tasks("the snapshot schedules")
        self._changed = asyncio.Event()
        self.timer = WallTimer("scheduled snapshots", self._changed.set, clock)
        # by the id of the VM: its next slot, where that could not be written
        self._later: dict[str, float] = {}

    def begin(self) -> None:
        """The VMs are known."""
        self._tasks.start("snapshots", self._run())

    async def close(self) -> None:
        """Make no more; one that is being made is given up."""
        await self._tasks.close()
        self.timer.set(None)

    # for the API

    async def get_schedule(self, ref: str) -> tuple[str, SnapshotSchedule]:
        """See `ScheduleService`."""
        vm = self._parts.fleet.get(ref)
        if vm.record.schedule is None:
            raise _refuse_missing(vm)
        return vm.record.id, vm.record.schedule

    async def set_schedule(self, ref: str, wanted: ScheduleWanted) -> tuple[str, SnapshotSchedule]:
        """See `ScheduleService`."""
        vm, now = self._parts.fleet.get(ref), self._clock()
        wanted.check()
        check_tags(wanted.tags)

        def change(record: VmRecord) -> VmRecord:
            if record.schedule is None:
                return replace(record, schedule=begin_schedule(wanted, record.id, now))
            return replace(record, schedule=record.schedule.change(wanted, record.id, now))

        record = await self._parts.records.change(vm.name, change)
        self._later.pop(record.id, None)
        self._changed.set()
        assert record.schedule is not None, "it was set"
        return record.id, record.schedule

    async def remove_schedule(self, ref: str) -> None:
        """See `ScheduleService`."""
        vm = self._parts.fleet.get(ref)
        if vm.record.schedule is None:
            raise _refuse_missing(vm)
        await self._parts.records.change(vm.name, lambda record: replace(record, schedule=None))
        self._changed.set()

    # the task

    async def _run(self) -> None:
        CALLER.set("its snapshot schedule")
        for vm in self._list_due():
            await self._leave_out(vm)
        while True:
            self._changed.clear()
            for vm in self._list_due():
                await self._take_slot(vm)
            self.timer.set(min(map(self._find_time, self._list_scheduled()), default=None))
            await self._changed.wait()

    def _list_scheduled(self) -> list[Vm]:
        return [vm for vm in self._parts.fleet if vm.record.schedule is not None]

    def _find_time(self, vm: Vm) -> float:
        assert vm.record.schedule is not None, "it has one"
        return self._later.get(vm.record.id, vm.record.schedule.next_run_at)

    def _list_due(self) -> list[Vm]:
        """Those whose slot has come; after a clock that was set back, those that would wait for too long."""
        now, due = self._clock(), []
        for vm in self._list_scheduled():
            schedule, slot = vm.record.schedule, self._find_time(vm)
            if schedule is not None and (slot <= now or schedule.derive_next_slot(vm.record.id, now) < slot):
                due.append(vm)
        return sorted(due, key=self._find_time)

    async def _leave_out(self, vm: Vm) -> None:
        """Its slot came while no daemon was there."""
        is_over = self._find_time(vm) <= self._clock()
        if await self._advance(vm, None) is not None and is_over:
            vm.log(
                logging.INFO, f"VM {vm.name}: a scheduled snapshot was left out, since hypemand did not run"
            )

    async def _take_slot(self, vm: Vm) -> None:
        schedule = vm.record.schedule
        if vm.operations.closed or schedule is None:
            return
        if self._find_time(vm) > self._clock():
            await self._advance(vm, None)
        elif vm.state not in _SOURCES:
            vm.log(logging.INFO, f"VM {vm.name}: a scheduled snapshot was left out, since it is {vm.state}")
            await self._advance(vm, None)
        else:
            await self._make(vm, schedule)

    async def _make(self, vm: Vm, schedule: SnapshotSchedule) -> None:
        now = self._clock()
        wanted = SnapshotWanted(
            name=schedule.derive_name(now), tags=schedule.wanted.tags, cause=SnapshotCause.SCHEDULE
        )
        try:
            async with asyncio.timeout(self._deadline):
                made = await self._snapshots.make_snapshot(vm.record.id, wanted)
        except TimeoutError:
            await self._fail(vm, wanted, now, f"it was not made in {self._deadline:.0f} s")
        except Exception as error:
            if vm.operations.closed:
                return  # it was deleted meanwhile
            if not isinstance(error, HypemandError | OSError):
                _log.exception("a scheduled snapshot of VM %s", vm.name)
            await self._fail(vm, wanted, now, (str(error) or type(error).__name__)[:_LONGEST_ERROR])
        else:
            after = await self._advance(vm, (now, made.id, None))
            if after is not None:
                await self._delete_surplus(vm, after)

    async def _fail(self, vm: Vm, wanted: SnapshotWanted, now: float, error: str) -> None:
        text = f"VM {vm.name}: the scheduled snapshot {wanted.name} was not made: {error}"
        vm.log(logging.ERROR, text, MessageId.SCHEDULE_FAILED)
        details = SnapshotChange(SnapshotAction.FAILED, wanted.cause, None, wanted.name)
        vm.tell(details, f"the snapshot {wanted.name} was not made: {error}")
        await self._advance(vm, (now, None, error))

    async def _advance(
        self, vm: Vm, result: tuple[float, str | None, str | None] | None
    ) -> SnapshotSchedule | None:
        """Have it wait for its next slot. `result` of this one: when it was, the snapshot, or the error;
        None: it was left out. What the schedule is then; None: there is none any more."""
        before, now = vm.record.schedule, self._clock()

        def change(record: VmRecord) -> VmRecord:
            schedule = record.schedule
            if schedule is None or record.id != vm.record.id:
                return record
            if before is not None and schedule.next_run_at == before.next_run_at:
                schedule = replace(schedule, next_run_at=schedule.derive_next_slot(record.id, now))
            if result is not None:
                at, made, error = result
                last = made or schedule.last_snapshot_id
                schedule = replace(schedule, last_run_at=at, last_snapshot_id=last, last_error=error)
            return replace(record, schedule=schedule)

        try:
            record = await self._parts.records.change(vm.name, change)
        except NotFound:
            return None
        except OSError as error:
            vm.log(logging.ERROR, f"VM {vm.name}: its snapshot schedule cannot be written: {error}")
            if before is not None:
                self._later[vm.record.id] = before.derive_next_slot(vm.record.id, now)
            return vm.record.schedule
        self._later.pop(record.id, None)
        return record.schedule

    async def _delete_surplus(self, vm: Vm, schedule: SnapshotSchedule) -> None:
        """After a snapshot was made: of those that a schedule has made, no others."""
        store = self._parts.snapshots
        made = [(one, one.created_at) for one in store if one.vm_id == vm.record.id and one.is_scheduled]
        for snapshot in schedule.wanted.retention.find_surplus(made, self._clock()):
            try:
                await remove_snapshot(self._parts, snapshot, SnapshotCause.RETENTION)
            except NotFound:
                continue
            except (HypemandError, OSError) as error:
                level = logging.INFO if isinstance(error, InUse) else logging.ERROR
                vm.log(level, f"the snapshot {snapshot.shown} is kept until the next one: {error}")


def _refuse_missing(vm: Vm) -> NotFound:
    hint = f"hypemanctl snapshot schedule set --interval 1h --max-count 24 {vm.name}"
    return NotFound(f"VM {vm.name} has no snapshot schedule", hint=hint)
