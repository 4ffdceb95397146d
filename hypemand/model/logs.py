# SPDX-License-Identifier: Apache-2.0
"""Lines of a VM's log."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class LogSource(StrEnum):
    """app: the guest's console; vmm: QEMU's own words; hypeman: the daemon's entries on the VM."""

    APP = "app"
    VMM = "vmm"
    HYPEMAN = "hypeman"


MAX_LINE = 128 * 1024
"""Bytes. Of a line that is longer the journal has pieces of that size (guest/console/queue.h: ENTRY_MAX)."""


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line, without its end. `time` is seconds since the epoch as journald stamped it.

    `partial`: the end is not the end of the line. It continues in the next one, since it is longer than an
    entry of the journal may be, or the program has ended without a newline.
    `missing`: nobody wrote it; it says that so many lines are missing in its place.
    """

    time: float
    data: bytes
    invocation_id: str | None
    partial: bool = False
    missing: int = 0

    @property
    def text(self) -> str:
        """The line as text. What is not UTF-8 in it becomes U+FFFD."""
        return self.data.decode("utf-8", "replace")
