# SPDX-License-Identifier: Apache-2.0
"""The journal, by invocation: `hypemand.vm.console.Journal`."""

from __future__ import annotations

import time

from hypemand.systemd.journal import JournalLine


class FakeJournal:
    """What units have printed. `broken`: it cannot be read."""

    def __init__(self) -> None:
        self.broken = False
        self._lines: dict[str, list[JournalLine]] = {}

    def add(self, invocation: str, text: str) -> None:
        """A line of a unit's run."""
        line = JournalLine(text.encode(), time.monotonic(), time.time())
        self._lines.setdefault(invocation, []).append(line)

    def lines(self, invocation: str) -> list[JournalLine]:
        """All of a run, oldest first."""
        return self._lines.get(invocation, [])

    def open(self, invocation: str) -> _Reader:
        """See OpenJournal."""
        return _Reader(self, invocation)


class _Reader:
    def __init__(self, journal: FakeJournal, invocation: str) -> None:
        self._journal = journal
        self._invocation = invocation
        self._at = 0

    def read(self, limit: int) -> list[JournalLine]:
        if self._journal.broken:
            raise OSError(74, "Bad message")
        lines = self._journal.lines(self._invocation)[self._at : self._at + limit]
        self._at += len(lines)
        return lines

    def reopen(self) -> None:
        """It has no files."""

    def close(self) -> None:
        """It has no files."""
