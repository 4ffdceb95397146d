# SPDX-License-Identifier: Apache-2.0
"""Polls while VMs boot, and is idle otherwise.

There is no event for a VMM's sockets being made, so they are looked for every few milliseconds. The guest's
markers then arrive on one of them. The journal has them too, whatever becomes of that socket; journald
reports new entries up to 440 ms late, so it is polled, less often: what is read first is usually the
socket, and VMs that boot at once leave little CPU to spare.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol
from weakref import WeakSet

_log = logging.getLogger(__name__)


SOON = 0.005
LATER = 0.1


class Booting(Protocol):
    """Something that is polled until it has booted."""

    def poll(self) -> float | None:
        """Look once, without waiting. Seconds until the next look; None: no more until it is added again."""


class BootWatcher:
    """Polls what boots, on the event loop. `close` when the daemon ends."""

    def __init__(self) -> None:
        self._timers: dict[Booting, asyncio.TimerHandle] = {}
        self._broken: WeakSet[Booting] = WeakSet()
        self._is_closed = False

    def add(self, booting: Booting) -> None:
        """Poll this, from now on."""
        if not self._is_closed:
            self._look_in(0.0, booting)

    def _look_in(self, seconds: float, booting: Booting) -> None:
        before = self._timers.get(booting)
        if before is not None:
            before.cancel()
        loop = asyncio.get_running_loop()
        self._timers[booting] = loop.call_later(seconds, self._look, booting)

    def _look(self, booting: Booting) -> None:
        del self._timers[booting]
        try:
            seconds = booting.poll()
        except Exception:
            # one that is given up would be killed at its deadline, so it is looked at again
            seconds = LATER
            if booting not in self._broken:
                self._broken.add(booting)
                _log.exception("cannot watch a boot, retrying")
        if seconds is not None:
            self._look_in(seconds, booting)

    def close(self) -> None:
        """Look no more, also at what is added yet: what a poll begins then has no owner left."""
        self._is_closed = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
