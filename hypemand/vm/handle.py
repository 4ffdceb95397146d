# SPDX-License-Identifier: Apache-2.0
"""The control unit of a VM, hypeman@NAME.service, which is active while the VM is.

Its process (launcher/handle) follows the VM, ends with it, and stops it when it is itself stopped. Here it is
started for a VM that was started in another way. It must not start the VM then, however late systemd executes
it: a note says so, which is written before systemd is asked. Note and lock are files in a folder of all VMs:

- NAME.follow is written by the daemon alone, under the lock, and removed by the unit's process, or by the
  daemon where the unit has neither a process nor a job;
- NAME.starting and NAME.process are the process' own, and NAME.again is for it, of a start that came while it
  ended;
- NAME.lock is held by the daemon while it writes the note and asks systemd, and while it restarts the VM; the
  process takes it (shared) before it ends, and holds it until it has.

So a start that the daemon has asked for finds the note, and one that it has not asked for finds none that is
left of another.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from hypemand.systemd.bus import BusError
from hypemand.systemd.units import Units
from hypemand.tasks import Tasks
from hypemand.unitnames import handle_name
from hypemand.workers import Pool, run_in

_log = logging.getLogger(__name__)
# for its process to see that the VM has ended, and to end
_DEADLINE = 10.0
# for a process that ends to release the lock, and between two attempts
_LOCK_DEADLINE, _LOCK_PAUSE = 2.0, 0.02
# between two starts of a unit that ends at once
_LEAST_PAUSE = 1.0
# what does not wait for it yet ignores it: ask for the VM's state; and the same, where that has ended with
# success, which need not be asked for
_LOOK, _HAS_ENDED = signal.SIGURG, signal.SIGWINCH
# files that may be left when neither the VM nor its handle is there
_LEFT = ("lock", "starting", "process", "again")


def find_notes(folder: Path) -> set[str]:
    """The VMs for whose handles there is a note. Blocks."""
    try:
        return {path.stem for path in folder.iterdir() if path.suffix == ".follow"}
    except FileNotFoundError:
        return set()


class Handle:
    """The handle of a VM. `is_needed`: is the VM's unit live, so that this is to be active? `refresh` has
    systemd asked for that first. `is_held`: it stays active, since the VM is being restarted."""

    def __init__(
        self,
        vm: str,
        units: Units,
        tasks: Tasks,
        folder: Path,
        is_needed: Callable[[], bool],
        refresh: Callable[[], Awaitable[None]],
    ) -> None:
        self.is_held = False
        self._vm = vm
        self._unit = handle_name(vm)
        self._units = units
        self._tasks = tasks
        self._folder = folder
        self._is_needed = is_needed
        self._refresh = refresh
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()
        # what was signalled last
        self._seen: tuple[str, str] | None = None
        # it has ended since `release` was called last
        self._is_over = False
        # it was started here, and has not settled since
        self._follows = False
        self._started_at = 0.0

    def _file(self, what: str) -> Path:
        """One of its files. (Not kept: of a thousand VMs that only are defined these were 2 MiB.)"""
        return self._folder / f"{self._vm}.{what}"

    def attach(self) -> None:
        """Begin to watch it."""
        self._units.watch_state(self._unit, self._take_state)

    def detach(self) -> None:
        """Watch it no more."""
        self._units.unwatch(self._unit)

    def _take_state(self, active_state: str, invocation_id: str) -> None:
        was, self._seen = self._seen, (active_state, invocation_id)
        self._changed.set()
        is_over = self._is_over = active_state in ("inactive", "failed")
        if is_over and (was is None or (was[0] in ("inactive", "failed") and was[1] == invocation_id)):
            return  # it has a job
        if is_over and not invocation_id:
            return  # it was loaded
        if active_state != "activating":
            self._follows = False
        if is_over:
            self._tasks.start("handle", self._follow_again())

    async def _follow_again(self) -> None:
        """It has ended. If the VM has not, as when its process was killed, start it again."""
        await self._refresh()
        if self._is_needed():
            await asyncio.sleep(self._started_at + _LEAST_PAUSE - time.monotonic())
            await self.follow()

    async def follow(self) -> None:
        """Have it active, for a VM that was started in another way. It starts no VM then."""
        try:
            async with self._turn, self._locked():
                status = await self._units.status(self._unit)
                if status.active_state in ("active", "activating") or not self._is_needed():
                    return
                await run_in(Pool.RECORDS, self._file("follow").touch)
                self._follows, self._started_at = True, time.monotonic()
                await self._units.start(self._unit)
        except BusError as error:
            self._follows = False
            # it is being stopped, or the host is
            level = logging.DEBUG if error.number == errno.EDEADLK else logging.WARNING
            _log.log(level, "VM %s: cannot start %s: %s", self._vm, self._unit, error)
        except OSError as error:
            _log.warning("VM %s: cannot start %s: %s", self._vm, self._unit, error)

    async def look(self) -> None:
        """Have its process ask for the VM's state now, which has changed."""
        await self._signal(_LOOK)

    async def _signal(self, number: signal.Signals) -> None:
        try:
            await self._units.kill(self._unit, number)
        except BusError as error:
            _log.debug("VM %s: cannot signal %s: %s", self._vm, self._unit, error)

    async def end(self) -> None:
        """The VM's run is about to end, with success: have this end beside it."""
        if not self.is_held:
            await self._signal(_HAS_ENDED)

    async def release(self, *, succeeded: bool = False) -> None:
        """The VM has ended: wait until this has too, so that it can be started again. Not for a start or stop
        of it that was asked for elsewhere: that may itself wait for this. `succeeded`: its unit is inactive,
        and has not failed."""
        if self.is_held:
            return
        try:
            async with self._turn:
                if self._follows or not self._is_over:
                    async with asyncio.timeout(_DEADLINE):
                        await self._await_end(_HAS_ENDED if succeeded else _LOOK)
                self._is_over = False
                await self._remove_note()
        except (BusError, OSError) as error:
            if isinstance(error, TimeoutError):
                error = TimeoutError(f"it has not ended in {_DEADLINE:g} s")
            _log.warning("VM %s: %s: %s", self._vm, self._unit, error)

    async def _await_end(self, number: signal.Signals) -> None:
        run = None
        await self._signal(number)
        while True:
            self._changed.clear()
            status = await self._units.status(self._unit)
            # one that still waits for its turn does nothing then
            is_ours = status.sub_state != "queued" and status.active_state == "activating" and self._follows
            if not (status.active_state == "active" or is_ours) or status.invocation_id != (
                run := run or status.invocation_id
            ):
                return
            await self._changed.wait()

    async def _remove_note(self) -> None:
        """Of a start that never got as far as a process."""
        if not await run_in(Pool.RECORDS, self._file("follow").exists):
            return
        async with self._locked():
            if not (await self._units.status(self._unit)).is_live:
                await run_in(Pool.RECORDS, self._file("follow").unlink, missing_ok=True)

    async def remove_files(self) -> None:
        """The VM is deleted. Where a start of this is still queued, the note is needed until that is over."""
        await run_in(Pool.RECORDS, self._remove_files)

    def _remove_files(self) -> None:
        if not self._file("follow").exists():
            for what in _LEFT:
                self._file(what).unlink(missing_ok=True)

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Keep it active in the block, in which the VM ends and is started again. Not where it is ending
        anyway."""
        # from before the first wait on: `release` would wait for the turn, and the block for it
        self.is_held = True
        try:
            async with self._turn:
                fd = await self._acquire()
                try:
                    yield
                finally:
                    if fd is not None:
                        os.close(fd)
        finally:
            self.is_held = False

    @asynccontextmanager
    async def _locked(self) -> AsyncIterator[None]:
        """OSError if it is not available for long."""
        fd = await self._acquire()
        if fd is None:
            raise TimeoutError("its process does not end")
        try:
            yield
        finally:
            os.close(fd)

    async def _acquire(self) -> int | None:
        """A descriptor with the lock, or None. Raises OSError."""
        fd = await run_in(Pool.RECORDS, self._open)
        try:
            until = time.monotonic() + _LOCK_DEADLINE
            while not _lock(fd):
                if time.monotonic() > until:
                    os.close(fd)
                    return None
                await asyncio.sleep(_LOCK_PAUSE)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _open(self) -> int:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        return os.open(self._file("lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
