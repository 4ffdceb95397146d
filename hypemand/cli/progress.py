# SPDX-License-Identifier: Apache-2.0
"""Progress of a copy, shown on a terminal only."""

from __future__ import annotations

import os
import shutil
import sys
import time

from hypemand.cli.values import escape_controls, format_bytes

_TICK = 0.1
_BAR = 24


class Progress:
    """Counts bytes. `total` None: not known. The line is cleared at the end."""

    def __init__(self, what: str, total: int | None) -> None:
        self._what = escape_controls(what)
        self._total = total
        self._done = 0
        self._started = time.monotonic()
        # What is over at once leaves no flicker.
        self._drawn = self._started
        self._active = wants_progress()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._active:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def count(self, size: int) -> None:
        """So many bytes more."""
        self._done += size
        now = time.monotonic()
        if self._active and now - self._drawn >= _TICK:
            self._drawn = now
            line = self._format(now - self._started)[: max(shutil.get_terminal_size().columns - 1, 10)]
            sys.stderr.write(f"\r\x1b[K{line}")
            sys.stderr.flush()

    def _format(self, seconds: float) -> str:
        done, speed = format_bytes(self._done), format_bytes(int(self._done / seconds))
        if not self._total:
            return f"{self._what}  {done}  {speed}/s"
        share = format_bar(self._done / self._total)
        return f"{share}  {done} of {format_bytes(self._total)}  {speed}/s  {self._what}"


def format_bar(share: float) -> str:
    """`[####....]  50%`, of a share from 0 to 1."""
    share = min(share, 1.0)
    return f"[{('#' * int(share * _BAR)).ljust(_BAR, '.')}] {share:4.0%}"


def wants_progress() -> bool:
    """Is there a terminal to show it on?"""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
