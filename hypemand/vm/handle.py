# SPDX-License-Identifier: Apache-2.0
"""The control unit of a VM, hypeman@NAME.service: active while the VM is, whoever has started that."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from hypemand.systemd.bus import BusError
from hypemand.systemd.units import Units, UnitStatus
from hypemand.tasks import Tasks
from hypemand.unitnames import handle_name
from hypemand.workers import Pool, run_in

_log = logging.getLogger(__name__)
_DEADLINE = 10.0


class Handle:
    """The handle of a VM. `releasing`: the VM has ended, and the handle is being stopped. `following`: the
    folder of a file for each that follows a VM which was started in another way (units/handle)."""

    def __init__(self, vm: str, units: Units, tasks: Tasks, following: Path) -> None:
        self.releasing = False
        self._vm = vm
        self._unit = handle_name(vm)
        self._units = units
        self._tasks = tasks
        self._following = following / vm
        self._later: asyncio.Task[None] | None = None

    async def follow(self) -> None:
        """Start it for a VM that was started in another way. It starts no VM then."""
        try:
            if (await self._units.status(self._unit)).active_state in ("active", "activating"):
                return
            await run_in(Pool.RECORDS, self._mark)
            await self._units.start(self._unit)
        except (BusError, OSError) as error:
            await run_in(Pool.RECORDS, self._unmark)
            _log.warning("VM %s: cannot start %s: %s", self._vm, self._unit, error)

    def _mark(self) -> None:
        self._following.parent.mkdir(mode=0o700, exist_ok=True)
        self._following.touch()

    def _unmark(self) -> None:
        with suppress(OSError):
            self._following.unlink(missing_ok=True)

    async def release(self, is_held: Callable[[], bool]) -> None:
        """Stop it, unless it is stopped, or `is_held`: the VM's unit is live again, or is about to be. One
        that is being started is stopped as soon as it is active, which is not waited for: it may itself wait
        for this."""
        if self._later is not None:
            self._later.cancel()
        try:
            status = await self._units.status(self._unit)
            starts = status.active_state == "activating"
            follows = starts and await run_in(Pool.RECORDS, self._following.exists)
            if (status.active_state == "active" or follows) and not is_held():
                await self._stop(status.invocation_id)
            elif starts:
                self._later = self._tasks.start("handle", self._release_later(is_held))
        except BusError as error:
            _log.warning("VM %s: cannot end %s: %s", self._vm, self._unit, error)
        except TimeoutError:
            _log.warning("VM %s: %s has not ended in %g s", self._vm, self._unit, _DEADLINE)

    async def _release_later(self, is_held: Callable[[], bool]) -> None:
        """Its start has seen the VM run, perhaps, which has ended since: then nothing else would stop it."""
        try:
            status = await self._wait(lambda status: status.active_state != "activating")
            if status.active_state == "active" and not is_held():
                await self._stop(status.invocation_id)
        except (BusError, TimeoutError) as error:
            _log.warning("VM %s: cannot end %s: %s", self._vm, self._unit, error)

    async def _stop(self, invocation_id: str | None) -> None:
        """Stop it and wait for that: its end asks for a stop of the VM, which must not meet its next start.

        That start may come from the handle itself, which somebody has started again by then; it waits for
        this, and is another invocation.
        """
        self.releasing = True
        try:
            await self._units.stop(self._unit)
            async with asyncio.timeout(_DEADLINE):
                await self._wait(lambda status: not status.is_live or status.invocation_id != invocation_id)
        finally:
            self.releasing = False

    async def _wait(self, condition: Callable[[UnitStatus], bool]) -> UnitStatus:
        """Its status, as soon as that is so."""
        changed = asyncio.Event()
        self._units.watch(self._unit, changed.set)
        try:
            while not condition(status := await self._units.status(self._unit)):
                await changed.wait()
                changed.clear()
            return status
        finally:
            self._units.unwatch(self._unit)
