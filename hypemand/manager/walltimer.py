# SPDX-License-Identifier: Apache-2.0
"""A timer by the host's clock: it follows that where it is set."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from hypemand.clocksteps import ClockSteps

_log = logging.getLogger(__name__)
# asyncio waits for no timer that is further ahead than epoll(7) can
_LONGEST_TIMER = 10 * 86400.0


class WallTimer:
    """Calls `on_time` in the running event loop when the time has come that was set last, and when the clock
    was set meanwhile. Nothing wakes up where none is set. `what`: what would be late, for the log."""

    def __init__(
        self, what: str, on_time: Callable[[], None], clock: Callable[[], float] = time.time
    ) -> None:
        self._what = what
        self._on_time = on_time
        self._clock = clock
        self._at: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._steps: ClockSteps | None = None

    @property
    def is_set(self) -> bool:
        """Will it wake the daemon?"""
        return self._timer is not None or self._steps is not None

    def set(self, at: float | None) -> None:
        """In seconds since the epoch; it may be over. None: no time."""
        self._at = at
        self._follow_clock(at is not None)
        self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._at is not None:
            delay = min(max(self._at - self._clock(), 0.0), _LONGEST_TIMER)
            self._timer = asyncio.get_running_loop().call_later(delay, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._at is not None and self._at <= self._clock():
            self._at = None
            self._on_time()
        else:
            self._arm()

    def _follow_clock(self, wanted: bool) -> None:
        if self._steps is not None and not wanted:
            self._steps.close()
            self._steps = None
        elif self._steps is None and wanted:
            try:
                self._steps = ClockSteps(self._on_time)
            except OSError as error:
                _log.warning("%s are late when this host's clock is set forward: %s", self._what, error)
