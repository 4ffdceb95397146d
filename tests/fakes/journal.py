# SPDX-License-Identifier: Apache-2.0
"""The journal: of boots (`hypemand.vm.console.Journal`), and for logs (`LogJournal`)."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Mapping
from typing import NamedTuple

from hypemand.systemd.journal import JournalLine


class Entry(NamedTuple):
    """A line with its fields."""

    fields: Mapping[str, bytes]
    realtime: float


class FakeJournal:
    """What units have printed. `broken`: boots cannot be read; `failure`: raised to who reads a log on;
    `unlinked`: the entries from there on are counted, and not yet linked to the fields that are matched."""

    def __init__(self) -> None:
        self.broken = False
        self.failure: Exception | None = None
        self.unlinked: int | None = None
        self.entries: list[Entry] = []
        self.open_logs: set[FakeLogReader] = set()
        self._lines: dict[str, list[JournalLine]] = {}

    def add(self, invocation: str, text: str | bytes, **fields: str) -> None:
        """A line of a unit's run. `fields`: what journald knows of it beside."""
        message = text if isinstance(text, bytes) else text.encode()
        line = JournalLine(message, time.monotonic(), time.time())
        self._lines.setdefault(invocation, []).append(line)
        self.add_entry(message, {"_SYSTEMD_INVOCATION_ID": invocation, **fields})

    def add_entry(
        self, message: bytes | None, fields: Mapping[str, str], realtime: float | None = None
    ) -> None:
        """A line of anything else."""
        values = {key: value.encode() for key, value in fields.items()}
        if message is not None:
            values["MESSAGE"] = message
        self.entries.append(Entry(values, time.time() if realtime is None else realtime))
        self.wake()

    def wake(self) -> None:
        """Have those who follow a log notice that it has changed."""
        for reader in tuple(self.open_logs):
            reader.wake()

    def lines(self, invocation: str) -> list[JournalLine]:
        """All of a run, oldest first."""
        return self._lines.get(invocation, [])

    def open_boot(self, invocation: str) -> _Reader:
        """See OpenJournal."""
        return _Reader(self, invocation)

    def open(self) -> FakeLogReader:
        """See LogJournal."""
        return FakeLogReader(self)

    def synchronize(self) -> None:
        """See LogJournal. What is added can be read at once."""


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


class FakeLogReader:
    """Implements LogReader. It stands on a line, or before the first one, or behind the last one."""

    def __init__(self, journal: FakeJournal) -> None:
        self.data_threshold = 0
        self._journal = journal
        self._matches: dict[str, set[bytes]] = {}
        self._at = -1
        self._is_at_end = False
        # of the entries, at the end; it looks no further while there are no more
        self._counted: int | None = None
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lock = threading.Lock()
        journal.open_logs.add(self)

    def wake(self) -> None:
        """The journal has changed."""
        with self._lock:
            if self in self._journal.open_logs:
                os.eventfd_write(self._fd, 1)

    def add_match(self, match: str, /) -> None:
        """See LogReader."""
        field, _, value = match.partition("=")
        self._matches.setdefault(field, set()).add(value.encode())

    @property
    def is_blind(self) -> bool:
        """Does it look no further before there is another entry?"""
        return self._counted == len(self._journal.entries)

    def _seek(self, at: int) -> None:
        self._at, self._counted = at, None

    def seek_head(self) -> None:
        """See LogReader."""
        self._seek(-1)

    def seek_tail(self) -> None:
        """See LogReader."""
        self._seek(len(self._journal.entries))

    def seek_realtime(self, microseconds: int, /) -> None:
        """See LogReader."""
        times = [round(entry.realtime * 1e6) for entry in self._journal.entries]
        self._seek(next((at for at, time in enumerate(times) if time >= microseconds), len(times)) - 1)

    def seek_cursor(self, cursor: str, /) -> None:
        """See LogReader."""
        self._seek(int(cursor) - 1)

    def _get_cursor(self) -> str:
        return str(self._at)

    def test_cursor(self, cursor: str, /) -> bool:
        """See LogReader."""
        return int(cursor) == self._at

    def _fits(self, at: int) -> bool:
        if self._journal.unlinked is not None and at >= self._journal.unlinked:
            return False
        fields = self._journal.entries[at].fields
        return all(fields.get(field) in values for field, values in self._matches.items())

    def _next(self) -> bool:
        count = len(self._journal.entries)
        for at in range(self._at + 1, count if count != self._counted else 0):
            if self._fits(at):
                self._at = at
                return True
        self._counted = count
        if self._is_at_end and self._journal.failure is not None:
            raise self._journal.failure
        self._is_at_end = True
        return False

    def _previous(self) -> bool:
        for at in range(self._at - 1, -1, -1):
            if self._fits(at):
                self._at = at
                return True
        return False

    def _get(self, field: str, /) -> bytes:
        return self._journal.entries[self._at].fields[field]

    def _get_realtime(self) -> int:
        return round(self._journal.entries[self._at].realtime * 1e6)

    def fileno(self) -> int:
        """See LogReader."""
        return self._fd

    def process(self) -> None:
        """See LogReader."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._fd)

    def close(self) -> None:
        """See LogReader."""
        with self._lock:
            self._journal.open_logs.discard(self)
            os.close(self._fd)
