# SPDX-License-Identifier: Apache-2.0
"""Limits of the work that the guest or the VMM of one VM can cause in the daemon.

One budget per run, in milliseconds of the daemon's work at nominal prices. Whoever reads what a VM sends
pays here for what came of it, and reads on only while there is enough left: the sender waits then, others do
not wait for it. Reading is stopped while there is something left for what follows from it, so that a flood on
one way in leaves the others usable.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from enum import Enum

BURST = 4000.0
"""What a VM has to begin with, and at most: ms. A boot has some tens of sentinels and of changes."""
PER_SECOND = 50.0
"""What it gets each second: ms, which is a twentieth of the daemon's time."""


class Price(float, Enum):
    """What something costs that a VM sends or causes, in ms; about ten times what it takes on a slow host."""

    FRAME = 0.02
    """Of the agent channel. What is in it is for a client, who sets the pace by flow control."""
    LINE = 0.5
    """Of the report port."""
    EVENT = 1.0
    """Of QMP."""
    CHANGE = 50.0
    """Of what is known of the VM: a new state with its log line, a STATUS= to systemd, notes to write."""


class Reserve(float, Enum):
    """What has to be left before more is read, in ms."""

    LINES = 2000.0
    FRAMES = 500.0
    EVENTS = 250.0
    CHANGES = 0.0


class Budget:
    """A bucket that fills with PER_SECOND up to BURST. It may be overdrawn by what was not known before."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._left = BURST
        self._at = clock()

    def spend(self, cost: float) -> None:
        """Something was done for `cost` ms."""
        self._fill()
        self._left -= cost

    def grant(self, cost: float) -> None:
        """The daemon itself is about to cause that much, by an order to the VM: that is not the VM's to pay.
        It is given before what follows of the order is known, so that it bounds that; up to BURST."""
        self._fill()
        self._left = min(BURST, self._left + cost)

    def wait_time(self, reserve: Reserve) -> float:
        """Seconds until more than the reserve is left; 0.0 if it is."""
        self._fill()
        return max(reserve - self._left, 0.0) / PER_SECOND

    async def wait(self, reserve: Reserve) -> None:
        """Wait until more than the reserve should be left."""
        seconds = self.wait_time(reserve)
        if seconds > 0:
            await asyncio.sleep(seconds)

    def _fill(self) -> None:
        now = self._clock()
        self._left = min(BURST, self._left + (now - self._at) * PER_SECOND)
        self._at = now


class Turn:
    """Shares the event loop: work on what has come yields to others whenever it has taken SLICE seconds.
    A read from a socket that finds bytes does not yield by itself."""

    SLICE = 0.005

    def __init__(self) -> None:
        self._began = time.monotonic()

    @property
    def is_over(self) -> bool:
        """Has it taken its time?"""
        return time.monotonic() - self._began >= self.SLICE

    async def pause(self) -> None:
        """Let others work, if it is their turn."""
        if self.is_over:
            await asyncio.sleep(0)
            self._began = time.monotonic()
