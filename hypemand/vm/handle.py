# SPDX-License-Identifier: Apache-2.0
"""The control unit of a VM, hypeman@NAME.service: it becomes inactive with the VM."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from hypemand.systemd.bus import BusError
from hypemand.systemd.units import Units, UnitStatus
from hypemand.tasks import Tasks
from hypemand.unitnames import handle_name

_log = logging.getLogger(__name__)
_DEADLINE = 10.0


class Handle:
    """The handle of a VM. `releasing`: the VM has ended, and the handle is being stopped."""

    def __init__(self, vm: str, units: Units, tasks: Tasks) -> None:
        self.releasing = False
        self._vm = vm
        self._unit = handle_name(vm)
        self._units = units
        self._tasks = tasks
        self._later: asyncio.Task[None] | None = None

    async def release(self, is_held: Callable[[], bool]) -> None:
        """Stop it, unless it is stopped, or `is_held`: the VM's unit is live again, or is about to be. One
        that is being started is stopped as soon as it is active, which is not waited for: it may itself wait
        for this."""
        if self._later is not None:
            self._later.cancel()
        try:
            status = await self._units.status(self._unit)
            if status.active_state == "active" and not is_held():
                await self._stop(status.invocation_id)
            elif status.active_state == "activating":
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
