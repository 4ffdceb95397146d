# SPDX-License-Identifier: Apache-2.0
"""A running QEMU as a `Vmm` (`driver`), by QMP: QEMU's QMP Reference Manual, of 7.2 and 10."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from hypemand.budget import Budget
from hypemand.model.evidence import RunState
from hypemand.model.limits import DiskLimits
from hypemand.tasks import Tasks
from hypemand.vmm.commandline import MEMORY_BLOCK, THROTTLE_GROUP, find_drive, is_limited
from hypemand.vmm.driver import Drive, Ending, OnEvent, RunStateChanged, VmmError, VmmTimeout
from hypemand.vmm.intake import PROGRAM, Intake, Target
from hypemand.vmm.qmp import Qmp
from hypemand.vmm.shutdown import Shutdown
from hypemand.vmm.template import PLACEHOLDER, SECTOR

_log = logging.getLogger(__name__)
RUN_STATES = {
    "prelaunch": RunState.NOT_STARTED,
    "inmigrate": RunState.NOT_STARTED,
    "restore-vm": RunState.NOT_STARTED,
    "running": RunState.RUNNING,
    "paused": RunState.PAUSED,
    "suspended": RunState.HALTED,
    "debug": RunState.HALTED,
    "save-vm": RunState.HALTED,
    "finish-migrate": RunState.HALTED,
    "postmigrate": RunState.HALTED,
    "io-error": RunState.IO_ERROR,
    "watchdog": RunState.WATCHDOG,
    "shutdown": RunState.SHUTDOWN,
    "guest-panicked": RunState.PANICKED,
    "internal-error": RunState.INTERNAL_ERROR,
}
"""RunState in QAPI. One that is not here (`colo`) comes of nothing that hypemand does."""
STATE_EVENTS = frozenset(("STOP", "RESUME", "RESET", "GUEST_PANICKED", "SUSPEND", "WAKEUP", "BLOCK_IO_ERROR"))
_SHUTDOWN_EVENT, _MIGRATION_EVENT = "SHUTDOWN", "MIGRATION"
# at most one a second, QEMU says
_BALLOON_EVENT = "BALLOON_CHANGE"
# of block_set_io_throttle and BlockDeviceInfo, by the fields of DiskLimits; 0: no limit
_THROTTLES = {"bps_rd": "read", "bps_wr": "write", "bps": "total", "iops": "iops"}
_OTHER_THROTTLES = {"iops_rd": 0, "iops_wr": 0}
# of MigrationStatus, those after which no other comes; "none" is that of a VMM that was never saved
_COMPLETED = "completed"
_LAST = (_COMPLETED, "failed", "cancelled")
_IDLE = (*_LAST, "none", None)
# to stop the guest, QEMU waits for the requests to disks that are under way
_PAUSE_DEADLINE = 10.0
_QUIT_DEADLINE = 10.0
# for a save to be given up: its thread in QEMU looks up between two writes
_CANCEL_DEADLINE = 10.0
# for the process that could not write, to say so
_CAUSE_DEADLINE = 1.0
# of drives; a VM has less than half of that
_MOST_DRIVES = 64
# bytes a second; QEMU saves for a network, and no more than 128 MiB, by itself
_UNLIMITED = 2**60
_SAVE_FD = "save"
# milliseconds; a switch may have lost the first one, as a guest's port comes up
_ANNOUNCEMENTS = {"initial": 50, "step": 100, "max": 550, "rounds": 5}


class _Events:
    """What QMP's events come to. `saved`: of the save that is under way, its last status; `ballooned`: the
    memory of the guest is another one."""

    def __init__(self, on_event: OnEvent) -> None:
        self._on_event = on_event
        self.saved: asyncio.Future[str] | None = None
        self.ballooned = asyncio.Event()

    def take(self, name: str, data: Mapping[str, object]) -> None:
        """See `qmp.OnEvent`."""
        if name == _SHUTDOWN_EVENT:
            reason = data.get("reason")
            self._on_event(Ending(next((known for known in Shutdown if known == reason), None)))
        elif name in STATE_EVENTS:
            self._on_event(RunStateChanged())
        elif name == _BALLOON_EVENT:
            self.ballooned.set()
        elif name == _MIGRATION_EVENT:
            self._take_migration(data.get("status"))

    def _take_migration(self, status: object) -> None:
        if status not in _LAST:
            return
        if self.saved is None:
            # it has loaded one that was saved
            self._on_event(RunStateChanged())
        elif not self.saved.done():
            self.saved.set_result(str(status))


class Qemu:
    """See `Vmm`. Use `connect_qemu`."""

    def __init__(self, qmp: Qmp, events: _Events, program: Path) -> None:
        self._qmp = qmp
        self._events = events
        self._program = program

    @property
    def is_closed(self) -> bool:
        """See `Vmm`."""
        return self._qmp.closed.is_set()

    async def wait_closed(self) -> None:
        """See `Vmm`."""
        await self._qmp.closed.wait()

    async def close(self) -> None:
        """See `Vmm`."""
        await self._qmp.close()

    async def query_run_state(self) -> RunState:
        """See `Vmm`."""
        try:
            answer = await self._qmp.execute("query-status", deadline=None)
        except VmmTimeout:
            return RunState.NO_ANSWER
        except VmmError:
            return RunState.ABSENT
        word = answer.get("status") if isinstance(answer, dict) else None
        return RUN_STATES.get(word, RunState.UNRECOGNISED) if isinstance(word, str) else RunState.UNRECOGNISED

    async def list_full_drives(self) -> tuple[Drive, ...]:
        """See `Vmm`."""
        drives = await self._query_drives()
        full = (name for name, drive in drives if drive.get("io-status") == "nospace")
        found = (find_drive(name) for name in full)
        return tuple(drive for drive in found if drive is not None)

    async def _query_drives(self) -> list[tuple[str, Mapping[str, Any]]]:
        """Their names, and what QEMU says of each."""
        answer = await self._qmp.execute("query-block")
        if not isinstance(answer, list):
            raise VmmError("the VMM does not report the state of its disks")
        drives = [drive for drive in answer[:_MOST_DRIVES] if isinstance(drive, dict)]
        return [(drive["device"], drive) for drive in drives if isinstance(drive.get("device"), str)]

    async def query_memory(self) -> int:
        """See `Vmm`."""
        answer = await self._qmp.execute("query-balloon")
        size = answer.get("actual") if isinstance(answer, dict) else None
        if not isinstance(size, int):
            raise VmmError("the VMM does not report the memory of the guest")
        return size

    async def set_memory(self, size: int, deadline: float) -> int:
        """See `Vmm`."""
        has = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline):
                await self._qmp.execute("balloon", {"value": size})
                while True:
                    self._events.ballooned.clear()
                    if (has := await self.query_memory()) == size:
                        break
                    await self._events.ballooned.wait()
        return has or await self.query_memory()

    async def query_disk_limits(self) -> DiskLimits:
        """See `Vmm`."""
        drives = await self._query_drives()
        limited = (drive.get("inserted") for name, drive in drives if is_limited(name))
        first = next((info for info in limited if isinstance(info, dict)), {})
        found = {field: first.get(word) for word, field in _THROTTLES.items()}
        return DiskLimits(
            **{field: value for field, value in found.items() if isinstance(value, int) and value}
        )

    async def set_disk_limits(self, limits: DiskLimits) -> None:
        """See `Vmm`. Members of a throttle group have one configuration."""
        values = {word: getattr(limits, field) or 0 for word, field in _THROTTLES.items()}
        for name, _ in await self._query_drives():
            if not is_limited(name):
                continue
            arguments = {"device": name, **values, **_OTHER_THROTTLES, "group": THROTTLE_GROUP}
            await self._qmp.execute("block_set_io_throttle", arguments)

    async def announce(self) -> None:
        """See `Vmm`. By VIRTIO_NET_F_GUEST_ANNOUNCE; a guest that is restored is asked by QEMU itself."""
        await self._qmp.execute("announce-self", dict(_ANNOUNCEMENTS))

    async def pause(self) -> None:
        """See `Vmm`."""
        await self._qmp.execute("stop", deadline=_PAUSE_DEADLINE)

    async def resume(self) -> None:
        """See `Vmm`."""
        await self._qmp.execute("cont", deadline=_PAUSE_DEADLINE)

    async def save(
        self,
        memory: int,
        state: int,
        *,
        size: int,
        user: int,
        deadline: float,
        ready: Awaitable[object] | None = None,
    ) -> None:
        """See `Vmm`. By a socket, since the VMM can open no file and execute no program, and is not to fill
        the host's disks. (It would not take the descriptor of a file for long: QEMU 9.1 warns of that.)"""
        if self._events.saved is not None:
            raise VmmError("the VMM is being saved already")
        saved = self._events.saved = asyncio.get_running_loop().create_future()
        intake = Intake()
        try:
            async with asyncio.timeout(deadline):
                await intake.start(self._program, Target(memory, state, MEMORY_BLOCK, size, user))
                await self._prepare_save(intake)
            if ready is not None:
                await ready
            async with asyncio.timeout(deadline):
                await self._qmp.execute("migrate", {"uri": f"fd:{_SAVE_FD}"}, deadline=None)
                await self._await_saved(saved, intake)
        except BaseException as error:
            await self._give_up_save(saved, intake)
            if isinstance(error, TimeoutError):
                raise VmmTimeout(f"the VMM was not saved in {deadline:g} s") from None
            raise
        finally:
            self._events.saved = None
            await intake.close()

    async def renew_disks(self) -> None:
        """See `Vmm`. Another size raises the interrupt at which the guest looks at its disk anew: since its
        CPUs stand still, that is saved with the guest, which gets it when it goes on, with another disk."""
        for name, _ in await self._query_drives():
            await self._qmp.execute("block_resize", {"device": name, "size": PLACEHOLDER - SECTOR})

    async def _prepare_save(self, intake: Intake) -> None:
        events = {"capability": "events", "state": True}
        await self._qmp.execute("migrate-set-capabilities", {"capabilities": [events]})
        await self._qmp.execute("migrate-set-parameters", {"max-bandwidth": _UNLIMITED})
        await self._qmp.execute("getfd", {"fdname": _SAVE_FD}, fd=intake.theirs.fileno())
        intake.theirs.close()

    async def _await_saved(self, saved: asyncio.Future[str], intake: Intake) -> None:
        """Until the VMM has said that it is saved, and all of that is on the disk."""
        async with Tasks("a VM that is saved") as tasks:
            closed = tasks.start("end of the VMM", self._qmp.closed.wait(), awaited=True)
            await asyncio.wait((saved, closed, intake.ended), return_when=asyncio.FIRST_COMPLETED)
            intake.check()
            await asyncio.wait((saved, closed), return_when=asyncio.FIRST_COMPLETED)
        if not saved.done():
            raise VmmError("the VMM ended while it was being saved")
        if saved.result() != _COMPLETED:
            await self._raise_failure(intake)
        await asyncio.shield(intake.ended)

    async def _raise_failure(self, intake: Intake) -> NoReturn:
        """Why a save has failed: most often since a file could not be written."""
        intake.cut()
        await asyncio.wait((intake.ended,), timeout=_CAUSE_DEADLINE)
        intake.check()
        words = await self._query_migrate("error-desc")
        raise VmmError(f"the VMM could not be saved: {str(words or 'it does not report why')[:500]}")

    async def _give_up_save(self, saved: asyncio.Future[str], intake: Intake) -> None:
        """Have the VMM end a save, and close the descriptor if it was not taken up. Logged if it does not."""
        # While a reader keeps it waiting, a VMM at the end of a save obeys no order
        intake.cut()
        try:
            await self._qmp.execute("migrate_cancel", deadline=_CANCEL_DEADLINE)
            with contextlib.suppress(VmmError):
                # most often it is gone: a save that has begun has it
                await self._qmp.execute("closefd", {"fdname": _SAVE_FD})
            if await self._query_migrate("status") not in _IDLE:
                await asyncio.wait((saved,), timeout=_CANCEL_DEADLINE)
        except VmmError as error:
            _log.warning("cannot end the save of a VMM: %s", error)

    async def _query_migrate(self, key: str) -> object:
        answer = await self._qmp.execute("query-migrate")
        return answer.get(key) if isinstance(answer, dict) else None

    async def hold_end(self, hold: bool) -> None:
        """See `Vmm`."""
        await self._qmp.execute("set-action", {"shutdown": "pause" if hold else "poweroff"})

    async def quit(self) -> None:
        """See `Vmm`."""
        try:
            async with asyncio.timeout(_QUIT_DEADLINE):
                await self._quit()
        except TimeoutError:
            raise VmmTimeout(f"the VMM did not end in {_QUIT_DEADLINE:g} s") from None

    async def _quit(self) -> None:
        try:
            await self._qmp.execute("quit", deadline=None)
        except VmmError:
            # it may have ended before its answer was out
            if not self.is_closed:
                raise
        await self.wait_closed()


async def connect_qemu(
    path: str, on_event: OnEvent, name: str, budget: Budget, *, program: Path = PROGRAM
) -> Qemu:
    """Connect to a QEMU that listens there. See `driver.Connect`. `program` takes in a VM that is saved."""
    events = _Events(on_event)
    return Qemu(await Qmp.connect(path, events.take, name, budget), events, program)
