# SPDX-License-Identifier: Apache-2.0
"""Sets a guest's clock to the host's time."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from hypemand.errors import HypemandError, TimedOut
from hypemand.tasks import Tasks

_log = logging.getLogger(__name__)
LATE = 0.1
"""Seconds: by so much a clock may be wrong that was set."""
# Between two attempts: what a guest or a host is busy with may last.
_PAUSES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)


class GuestClock:
    """`vm`: its name; `tasks`: of the owner. `order` sets it to the host's time, once; HypemandError.
    `may_set`: can that be done now? `clock`: by which the time of an order is measured.

    An order has the time at which it was sent, and a guest may read it much later, on a busy host by seconds:
    not later than its answer comes. So one whose answer has taken long is repeated.
    """

    def __init__(
        self,
        vm: str,
        tasks: Tasks,
        order: Callable[[], Awaitable[None]],
        may_set: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._vm, self._tasks, self._order, self._may_set, self._clock = vm, tasks, order, may_set, clock
        self._due = asyncio.Event()
        self._setting: asyncio.Task[None] | None = None

    def keep(self) -> None:
        """Set it, or have the next call do so if that cannot be done now."""
        self._due.set()
        if self._may_set() and (self._setting is None or self._setting.done()):
            self._setting = self._tasks.start("clock", self._set())

    async def set_by(self, order: Callable[[], Awaitable[None]]) -> None:
        """Have it set by an order that does more than that; what this raises is the caller's."""
        self._due.clear()
        if not await self._is_in_time(order):
            self.keep()

    async def _set(self) -> None:
        pauses = iter(_PAUSES)
        try:
            while self._due.is_set() and self._may_set():
                self._due.clear()
                with suppress(TimedOut):
                    if await self._is_in_time(self._order):
                        continue
                pause = next(pauses, None)
                if pause is None:
                    _log.warning("VM %s: its clock may be wrong: its agent takes long to answer", self._vm)
                    return
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._due.wait(), pause)
                self._due.set()
        except HypemandError as error:
            self._due.set()
            _log.warning("VM %s: its clock may be wrong: %s", self._vm, error)

    async def _is_in_time(self, order: Callable[[], Awaitable[None]]) -> bool:
        """Has the answer come before what was set is wrong?"""
        began = self._clock()
        await order()
        return self._clock() - began <= LATE
