# SPDX-License-Identifier: Apache-2.0
"""Detects iterations of the event loop that take too long: logs their cause, and counts them.

A turn is what happens between two waits for events: all callbacks that were ready. While one goes on, no
client is answered. asyncio's debug mode reports slow callbacks, at a cost too high for production, and by
the callback's name only. Here a thread samples the stack of the loop's own thread while it is blocked.
"""

from __future__ import annotations

import asyncio
import logging
import selectors
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Self

from hypemand.histogram import Histogram

SLOW = 0.1  # seconds
# Lines in the journal: one for so many seconds, with the count of the others.
LOG_SECONDS = 10.0
_FRAMES = 6
_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TurnCounts:
    """The slow turns so far, and in seconds what the longest of them took, and the CPU time of the one that
    took most of that: it is what the daemon itself did, the rest is the machine's."""

    slow: int = 0
    longest: float = 0.0
    longest_cpu: float = 0.0


def make_durations() -> Histogram:
    """Durations of turns."""
    return Histogram(_BOUNDS)


class TurnWatch:
    """Watches the loop that `make_loop` makes, in the thread that enters this. `durations`: of all turns."""

    def __init__(self, slow: float = SLOW, clock: Callable[[], float] = time.monotonic) -> None:
        self.counts = TurnCounts()
        self.durations = make_durations()
        self._slow = slow
        self._clock = clock
        self._thread_id = threading.get_ident()
        # when the turn under way began, and the CPU time of the loop's thread then; None: the loop waits
        self._turn: tuple[float, float] | None = None
        self._place = ""
        self._logged_at: float | None = None
        self._unlogged = 0
        # set by a turn, so that nothing is looked for while there are none
        self._is_due = threading.Event()
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="turns", daemon=True)

    def make_loop(self) -> asyncio.AbstractEventLoop:
        """A new event loop that is watched; to be used in the thread that made this."""
        return asyncio.SelectorEventLoop(_WatchedSelector(self))

    def __enter__(self) -> Self:
        self._thread_id = threading.get_ident()
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._is_due.set()
        self._watcher.join()

    def begin(self) -> None:
        """A turn begins."""
        self._turn = (self._clock(), time.thread_time())
        if not self._is_due.is_set():
            self._is_due.set()

    def end(self) -> None:
        """The turn has ended."""
        if self._turn is None:
            return
        (began, cpu), self._turn = self._turn, None
        seconds = self._clock() - began
        self.durations.observe(seconds)
        if seconds >= self._slow:
            self._note(seconds, time.thread_time() - cpu)

    def _note(self, seconds: float, cpu: float) -> None:
        before = self.counts
        self.counts = TurnCounts(before.slow + 1, max(before.longest, seconds), max(before.longest_cpu, cpu))
        place, self._place = self._place, ""
        now = self._clock()
        if self._logged_at is not None and now - self._logged_at < LOG_SECONDS:
            self._unlogged += 1
            return
        others = f", {self._unlogged} of them not logged" if self._unlogged else ""
        _log.warning(
            "the event loop was blocked for %.2f s, %.2f of them on the CPU, in %s (the %d. time%s)",
            seconds, cpu, place or "code that was not seen", self.counts.slow, others,
        )  # fmt: skip
        self._logged_at, self._unlogged = now, 0

    def _watch(self) -> None:
        while True:
            self._is_due.wait()
            self._is_due.clear()
            if self._ended.wait(self._slow / 2):
                return
            turn = self._turn
            if turn is None:
                continue
            self._is_due.set()
            if self._clock() - turn[0] >= self._slow:
                place = _describe(sys._current_frames().get(self._thread_id))
                # only if that turn still goes on, or another one would be blamed
                if self._turn is turn:
                    self._place = place


class _WatchedSelector(selectors.DefaultSelector):
    def __init__(self, watch: TurnWatch) -> None:
        super().__init__()
        self._watch = watch

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._watch.end()
        try:
            return super().select(timeout)
        finally:
            self._watch.begin()


def _describe(frame: FrameType | None) -> str:
    """The innermost frames, innermost first, up to where asyncio calls a callback."""
    places: list[str] = []
    while frame is not None and len(places) < _FRAMES:
        code = frame.f_code
        if "/asyncio/" in code.co_filename:
            break
        name = "/".join(code.co_filename.rsplit("/", 2)[-2:])
        places.append(f"{code.co_qualname} ({name}:{frame.f_lineno})")
        frame = frame.f_back
    return " < ".join(places)
