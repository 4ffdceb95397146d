# SPDX-License-Identifier: Apache-2.0
"""Output: colours on a terminal, tables, JSON, and the progress line while waiting."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, TextIO

from hypemand.cli.values import escape_controls, format_seconds

GREEN, YELLOW, RED, BOLD, DIM = "32", "33", "31", "1", "2"
TICK_SECONDS = 0.1


def wants_colour(stream: TextIO) -> bool:
    """Only on a terminal that can, and unless NO_COLOR is set to something."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(text: str, colour: str | None, stream: TextIO) -> str:
    """`text` in a colour where `stream` shows colours."""
    return f"\x1b[{colour}m{text}\x1b[0m" if colour and wants_colour(stream) else text


def print_json(value: Any) -> None:
    """One document on standard output. ASCII only, so that no terminal is driven by it."""
    print(json.dumps(value, indent=2))


def print_error(text: str) -> None:
    """One message on standard error, with the program's name."""
    stream = sys.stderr
    name = paint("hypemanctl:", RED, stream)
    lines = [escape_controls(line) for line in text.split("\n")]
    with contextlib.suppress(OSError):  # there is nowhere else to say so
        print(name, "\n".join(lines), file=stream)


def print_table(
    header: Sequence[str] | None, rows: Sequence[Sequence[str]], colours: Sequence[str | None]
) -> None:
    """Columns as wide as they must be. `colours`: of each row's second column. Cells are words, for awk(1)
    and its like; only those of the last column may have blanks, or be empty."""
    everything = [header, *rows] if header else list(rows)
    widths = [max(map(len, column)) for column in zip(*everything, strict=True)]
    if header:
        print("  ".join(cell.ljust(width) for cell, width in zip(header, widths, strict=True)).rstrip())
    for row, colour in zip(rows, colours, strict=True):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        if len(cells) > 1:
            cells[1] = paint(cells[1], colour, sys.stdout)
        print("  ".join(cells).rstrip())


def write_raw(data: bytes) -> None:
    """Write what a guest wrote as it is."""
    sys.stdout.buffer.write(data)


class LiveLine:
    """On a terminal: one line on standard error with the current progress and the elapsed time, cleared at
    the end. In a unit with $NOTIFY_SOCKET the text is sent as STATUS= (sd_notify(3)) for systemctl status."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._started = time.monotonic()
        self._active = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._notifies = "NOTIFY_SOCKET" in os.environ
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._tick, name="live-line", daemon=True)

    @property
    def is_active(self) -> bool:
        """Is there anybody to show it to?"""
        return self._active or self._notifies

    def update(self, text: str) -> None:
        """Show another text, with the time since the start as before."""
        if self._notifies and text != self._text:
            from hypemand.notify import notify

            notify(f"STATUS={escape_controls(text)}")
        self._text = text

    def __enter__(self) -> LiveLine:
        if self._active:
            self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._active:
            self._end.set()
            self._thread.join()
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def _tick(self) -> None:
        # What is over at once leaves no flicker.
        while not self._end.wait(TICK_SECONDS):
            self._draw()

    def _draw(self) -> None:
        elapsed = time.monotonic() - self._started
        clock = f"{elapsed:.1f} s" if elapsed < 60 else format_seconds(elapsed)
        width = shutil.get_terminal_size().columns
        line = f"{escape_controls(self._text)} ({clock})"[: max(width - 1, 10)]
        sys.stderr.write(f"\r\x1b[K{line}")
        sys.stderr.flush()
