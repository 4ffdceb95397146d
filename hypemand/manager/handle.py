# SPDX-License-Identifier: Apache-2.0
"""The control unit of a VM, hypeman@NAME.service: it becomes inactive with the VM."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from hypemand.systemd.bus import BusError
from hypemand.systemd.units import Units, handle_name

_log = logging.getLogger(__name__)
_DEADLINE = 10.0


class Handle:
    """The handle of a VM. `releasing`: the VM has ended, and the handle is being stopped."""

    def __init__(self, vm: str, units: Units) -> None:
        self.releasing = False
        self._vm = vm
        self._unit = handle_name(vm)
        self._units = units

    async def release(self, is_live: Callable[[], bool]) -> None:
        """Stop it, unless it is stopped, or the VM's unit is live again."""
        try:
            status = await self._units.status(self._unit)
            if status.active_state == "active" and not is_live():
                await self._stop(status.invocation_id)
        except BusError as error:
            _log.warning("VM %s: cannot end %s: %s", self._vm, self._unit, error)
        except TimeoutError:
            _log.warning("VM %s: %s has not ended in %g s", self._vm, self._unit, _DEADLINE)

    async def _stop(self, invocation_id: str | None) -> None:
        """Stop it and wait for that: its end asks for a stop of the VM, which must not meet its next start.

        That start may come from the handle itself, which somebody has started again by then; it waits for
        this, and is another invocation.
        """
        changed = asyncio.Event()
        self._units.watch(self._unit, lambda _active_state: changed.set())
        self.releasing = True
        try:
            await self._units.stop(self._unit)
            async with asyncio.timeout(_DEADLINE):
                while True:
                    status = await self._units.status(self._unit)
                    if not status.is_live or status.invocation_id != invocation_id:
                        return
                    await changed.wait()
                    changed.clear()
        finally:
            self.releasing = False
            self._units.unwatch(self._unit)
