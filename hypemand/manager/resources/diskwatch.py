# SPDX-License-Identifier: Apache-2.0
"""Watches the file systems of the VMs' disks: warns before one is full, and resumes VMs that were paused by
a full one when there is free space again.

Checked when the daemon's watchdog is fed, and when the daemon itself has removed something: there is no event
for free space.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext, suppress
from enum import IntEnum
from pathlib import Path

from hypemand.config.host import HostConfig
from hypemand.config.sizes import format_size
from hypemand.errors import HypemandError
from hypemand.fulldisk import find_mount_point
from hypemand.manager.fleet import Fleet
from hypemand.model.space import Room
from hypemand.model.state import Operation
from hypemand.storage.room import read_room
from hypemand.tasks import Tasks
from hypemand.vm.pause import resume
from hypemand.vm.retry import Backoff
from hypemand.vm.session import Session
from hypemand.vm.vm import Vm
from hypemand.workers import Pool, run_in

_log = logging.getLogger(__name__)
_MIB = 1024 * 1024
# what is warned of where the host keeps nothing for itself, and what lets a VM go on there
_LEAST_MARGIN = 64 * _MIB
_LEAST_ROOM = _MIB
# A file system may have free space and refuse it nevertheless (a quota): seconds until a VM that went on and
# was paused again has its next try, at first and at most; and after which it counts as one that runs.
_FIRST_WAIT = 10.0
_LONGEST_WAIT = 600.0
_STEADY = 60.0
_CURE = "hypemanctl df shows the usage, hypemanctl image prune may help"


class Level(IntEnum):
    """How full a file system is: LOW comes before SHORT, which is less than the reserve."""

    FREE = 0
    LOW = 1
    SHORT = 2


def derive_level(free: int, reserve: int, before: Level) -> Level:
    """The level with so many free bytes. A better level needs an eighth more than its limit, so that space
    which is written and freed all the time is reported once."""

    def is_below(limit: int, level: Level) -> bool:
        return free < limit + (limit // 8 if before >= level else 0)

    if reserve and is_below(reserve, Level.SHORT):
        return Level.SHORT
    return Level.LOW if is_below(reserve + max(reserve, _LEAST_MARGIN), Level.LOW) else Level.FREE


class DiskWatch:
    """Checks on request; `close` when the daemon ends. `config` gives the host config in force; `on_removal`
    is called when the daemon has removed something that used space."""

    def __init__(
        self,
        config: Callable[[], HostConfig],
        fleet: Fleet,
        on_removal: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._fleet = fleet
        self._clock = clock
        self._on_removal = on_removal
        self._read_rooms: Callable[[Iterable[Path], Iterable[Path]], dict[Path, Room]] = read_rooms
        self._levels: dict[Path, Level] = {}
        self._tries: dict[Session, Backoff] = {}
        self._wanted = False
        self._tasks = Tasks("the disk watch")
        self._task: asyncio.Task[None] | None = None

    def look_soon(self) -> None:
        """Look, in the background. Orders that come while one look is under way are one more look."""
        self._wanted = True
        if self._task is None or self._task.done():
            self._task = self._tasks.start("look", self._run())

    def note_removal(self) -> None:
        """The daemon has removed something that took space."""
        self._on_removal()
        self.look_soon()

    async def close(self) -> None:
        """Look no more."""
        await self._tasks.close()

    async def _run(self) -> None:
        while self._wanted:
            self._wanted = False
            try:
                await self.look()
            except Exception:
                _log.exception("cannot check the file systems of disks")

    async def look(self) -> None:
        """Look once."""
        for vm in self._fleet:
            vm.hold_deadline()
        config = self._config()
        folders = [config.state_dir / "vms", config.state_dir / "volumes"]
        # that of a shared pool may hang, and is others' to watch as well
        folders += [pool.directory for pool in config.pools.values() if not pool.shared]
        waiting = self._list_waiting()
        mounts = {drive.mount for _, session in waiting for drive in session.full}
        # one that hangs takes a thread, and holds up nothing but this
        rooms = await run_in(Pool.TOOLS, self._read_rooms, folders, mounts)
        self._warn(rooms)
        tries = (self._consider(vm, session, rooms) for vm, session in waiting)
        for error in await asyncio.gather(*tries, return_exceptions=True):
            if isinstance(error, Exception):
                _log.error("cannot resume a VM", exc_info=error)

    # warnings

    def _warn(self, rooms: Mapping[Path, Room]) -> None:
        reserve = self._config().disk.reserve
        known, self._levels = self._levels, {}
        for mount, room in rooms.items():
            before = known.get(mount, Level.FREE)
            level = self._levels[mount] = derive_level(room.free, reserve, before)
            if level < before:
                _log.info("the file system %s has %s free again", mount, _shown(room.free))
            elif level > before:
                _log.warning(
                    "the file system %s has %s free, and %s %s (disk.reserve) nothing is created or started;"
                    " VMs that write are paused when it is full; %s",
                    mount,
                    _shown(room.free),
                    "with less than the" if level is Level.SHORT else "below",
                    _shown(reserve),
                    _CURE,
                )

    # what waits

    def _list_waiting(self) -> list[tuple[Vm, Session]]:
        """The VMs that stand still since a file system is full."""
        waiting = [(vm, vm.session) for vm in self._fleet if vm.session is not None and vm.session.full]
        live = {vm.session for vm in self._fleet}
        self._tries = {session: tries for session, tries in self._tries.items() if session in live}
        return waiting

    async def _consider(self, vm: Vm, session: Session, rooms: Mapping[Path, Room]) -> None:
        """Let a VM go on if there is free space, unless it was paused again just now."""
        tries = self._tries.setdefault(
            session, Backoff(self._clock, first=_FIRST_WAIT, longest=_LONGEST_WAIT, steady=_STEADY)
        )
        if tries.is_working:
            tries.fail()
        needed = max(self._config().disk.reserve, _LEAST_ROOM)
        mounts = {drive.mount for drive in session.full}
        has_room = all(mount in rooms and rooms[mount].free > needed for mount in mounts)
        if not has_room or tries.wait_time > 0:
            return
        # what holds a VM may last; a stop is to end in order, and nobody pauses a VM that is being stopped
        if vm.operations.closed or (vm.operations.is_busy and not vm.is_ending):
            return
        async with nullcontext() if vm.is_ending else vm.operations.hold(Operation.RESUME):
            await vm.refresh()
            if vm.session is not session or not session.full:
                return
            vm.log(logging.INFO, f"VM {vm.name} resumes: there is free space in {_join(mounts)} again")
            tries.succeed()
            try:
                await resume(vm)
            except HypemandError as error:
                vm.log(logging.WARNING, f"VM {vm.name} cannot be resumed: {error}")


def read_rooms(folders: Iterable[Path], mounts: Iterable[Path]) -> dict[Path, Room]:
    """Free space of the file systems of folders, and of those at mount points; by mount point. Those that
    cannot be queried are left out. Blocks."""
    rooms = {}
    for mount in mounts:
        with suppress(OSError):
            rooms[mount] = read_room(mount)
    for folder in folders:
        with suppress(OSError):
            mount = find_mount_point(folder)
            rooms[mount] = read_room(mount)
    return rooms


def _join(mounts: Iterable[Path]) -> str:
    return ", ".join(sorted(map(str, mounts)))


def _shown(size: int) -> str:
    return format_size(size // _MIB * _MIB)
