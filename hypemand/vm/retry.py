# SPDX-License-Identifier: Apache-2.0
"""Delays of retries."""

from __future__ import annotations

import time
from collections.abc import Callable

FIRST = 0.005
LONGEST = 1.0
STEADY = 10.0


class Backoff:
    """`first` seconds after the first failure, twice as long after each more, `longest` at most. What has
    worked for `steady` seconds begins anew; what worked for less does not, or it could fail as often as it
    likes."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        *,
        first: float = FIRST,
        longest: float = LONGEST,
        steady: float = STEADY,
    ) -> None:
        self._clock = clock
        self._first, self._longest, self._steady = first, longest, steady
        self._wait = first
        self._due = clock()
        self._works_since: float | None = None

    @property
    def has_failed(self) -> bool:
        """Has it not worked since the last failure?"""
        return self._works_since is None and self._wait > self._first

    @property
    def is_working(self) -> bool:
        """Has it worked, and was no failure seen since?"""
        return self._works_since is not None

    @property
    def wait_time(self) -> float:
        """Seconds until the next try is due; 0.0 if it is."""
        return max(self._due - self._clock(), 0.0)

    def succeed(self) -> None:
        """It works now. Again: it still does."""
        if self._works_since is None:
            self._works_since = self._clock()

    def fail(self) -> None:
        """It did not work, or does not any more."""
        now = self._clock()
        if self._works_since is not None and now - self._works_since >= self._steady:
            self._wait = self._first
        self._works_since = None
        self._due = now + self._wait
        self._wait = min(self._wait * 2, self._longest)
