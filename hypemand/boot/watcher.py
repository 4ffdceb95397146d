# SPDX-License-Identifier: Apache-2.0
"""What polls while VMs boot, and costs nothing when none does.

A VMM makes its sockets without telling anybody, so they are looked for every few milliseconds. The guest's
markers then arrive on one of them. The journal shows them too, whatever becomes of that socket; journald
tells of new entries up to 440 ms late, so it is looked into, less often: what is read first is usually the
socket, and VMs that boot at once leave little CPU to spare.
"""

from __future__ import annotations

import asyncio
import logging
from enum import Enum
from typing import Protocol

_log = logging.getLogger(__name__)


class Look(Enum):
    """When to look again, in seconds from the last look."""

    SOON = 0.005
    LATER = 0.1
    NEVER = None


class Booting(Protocol):
    """Something that is looked at until it has booted."""

    def poll(self) -> Look:
        """Look once, without waiting. How soon to look again."""


class BootWatcher:
    """Polls what boots, on the event loop. `close` when the daemon ends."""

    def __init__(self) -> None:
        self._timers: dict[Booting, asyncio.TimerHandle] = {}

    def add(self, booting: Booting) -> None:
        """Poll this, from now on."""
        self._look_in(0.0, booting)

    def _look_in(self, seconds: float, booting: Booting) -> None:
        loop = asyncio.get_running_loop()
        self._timers[booting] = loop.call_later(seconds, self._look, booting)

    def _look(self, booting: Booting) -> None:
        del self._timers[booting]
        try:
            look = booting.poll()
        except Exception:
            _log.exception("cannot watch a boot")
            return
        if look.value is not None:
            self._look_in(look.value, booting)

    def close(self) -> None:
        """Look no more."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
