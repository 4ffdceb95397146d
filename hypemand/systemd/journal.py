# SPDX-License-Identifier: Apache-2.0
"""Reading the journal of one boot of a VM.

Low-level on purpose: `systemd.journal.Reader` turns every field of every entry into Python objects, at
30 times the cost, and a guest can write 100,000 lines while it boots.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

from systemd import id128
from systemd._reader import _Reader

_VARLINK = "/run/systemd/journal/io.systemd.journal"
JOURNAL_SOCKET = Path("/run/systemd/journal/socket")
"""Where journald receives entries by its native protocol (systemd-journald.service(8))."""
STAGE_FIELD = "HYPEMAN_STAGE"
"""The field that a stage of a boot has in place of MESSAGE, so that journalctl does not show it
(guest/console/journal.h)."""
# of what we look for nothing is longer than 4 KiB
_FIELD_LIMIT = 8192
# lines between two looks for files that were removed, and lines in a row that cannot be read
_LOOK_EVERY = 32
_MAX_FRUITLESS = 100


@dataclass(frozen=True, slots=True)
class JournalLine:
    """One entry: its MESSAGE, or the stage that it has in place of it, and when journald took it (seconds,
    CLOCK_MONOTONIC and since the epoch)."""

    message: bytes
    monotonic: float
    realtime: float


class LogReader(Protocol):
    """What is used of sd-journal's reader (systemd.journal.Reader without its conversions). Matches on one
    field are alternatives, those on several have to hold together."""

    data_threshold: int

    def add_match(self, match: str, /) -> None:
        """FIELD=VALUE."""

    def seek_head(self) -> None:
        """Before the first line."""

    def seek_tail(self) -> None:
        """Behind the last line."""

    def seek_realtime(self, microseconds: int, /) -> None:
        """Before the first line from that time on, since the epoch."""

    def seek_cursor(self, cursor: str, /) -> None:
        """Before the line of that cursor, or where that would be."""

    def _get_cursor(self) -> str:
        """That of the line."""

    def test_cursor(self, cursor: str, /) -> bool:
        """Is it that of the line?"""

    def _next(self) -> bool:
        """To the next line; False: there is none."""

    def _previous(self) -> bool:
        """To the one before; False: there is none."""

    def _get(self, field: str, /) -> bytes:
        """A field of the line. KeyError."""

    def _get_realtime(self) -> int:
        """Microseconds since the epoch."""

    def fileno(self) -> int:
        """Readable when the journal has changed."""

    def process(self) -> object:
        """Take notice of that."""

    def close(self) -> None:
        """Close the journal's files."""


class LogJournal(Protocol):
    """The journal, as logs are read from it."""

    def open(self) -> LogReader:
        """All of it. Blocks."""

    def synchronize(self) -> None:
        """Wait, not for long, until all that journald has been sent can be read. Blocks."""


def seek_behind(reader: LogReader, cursor: str | None) -> None:
    """Have the line behind the one of that cursor come next, even where that one is gone; None: the first.

    Who follows the journal does so before each look that comes after one that found nothing. sd-journal looks
    for a matching entry when the number of entries in the file has changed, and no more until it changes
    again; and journald counts an entry before it links it to the fields that are matched. A look in between
    finds nothing, and the entry would be seen with the next one, whenever that comes.
    """
    if cursor is None:
        reader.seek_head()
        return
    reader.seek_cursor(cursor)
    # another line than that, which is gone, has not been read
    if reader._next() and not reader.test_cursor(cursor) and not reader._previous():
        reader.seek_head()


class SystemLogJournal:
    """Implements LogJournal: of this host."""

    def open(self) -> LogReader:
        """See LogJournal."""
        reader: LogReader = _Reader()
        return reader

    def synchronize(self) -> None:
        """See LogJournal."""
        synchronize_journal()


class BootJournal:
    """The lines of one invocation of a unit, oldest first, and the newer ones as they come.

    Matches on `_SYSTEMD_INVOCATION_ID`, which journald takes from the cgroup: nothing outside the unit
    can write such a line. `close` it.

    That journald has begun another file is seen by the folders' times. sd-journal itself would watch them by
    inotify(7), and to close that takes the kernel 8 to 16 ms in which Python stands still.
    """

    def __init__(self, invocation_id: str) -> None:
        self._match = f"_SYSTEMD_INVOCATION_ID={invocation_id}"
        self._cursor: str | None = None
        self._is_at_end = False
        self._open()

    def _open_files(self) -> None:
        self._folders = _read_folder_times()
        self._reader = _Reader()
        self._reader.data_threshold = _FIELD_LIMIT
        self._reader.add_match(self._match)

    def _open(self) -> None:
        self._open_files()
        seek_behind(self._reader, self._cursor)

    def reopen(self) -> None:
        """Open the journal's files anew, and go on behind the line that was read last."""
        self._reader.close()
        self._open()

    def read(self, limit: int) -> list[JournalLine]:
        """At most `limit` lines that have not been read; empty when there is none now. Never waits.

        What journald removes it truncates too, and to read that by its map would be SIGBUS: files are looked
        for anew first.
        """
        if _read_folder_times() != self._folders:
            self.reopen()
        elif self._is_at_end:
            seek_behind(self._reader, self._cursor)
        return self._read(limit)

    def _read(self, limit: int) -> list[JournalLine]:
        lines: list[JournalLine] = []
        while len(lines) < limit and self._reader._next():
            lines.append(self._line())
        if lines:
            self._cursor = self._reader._get_cursor()
        self._is_at_end = len(lines) < limit
        return lines

    def read_backwards(self, limit: int) -> Iterator[JournalLine]:
        """The newest `limit` lines, newest first. Moves the position that `read` goes on from.

        Files that journald removes meanwhile take their lines with them, and no others: what cannot be read
        any more is looked for anew, behind the line that was given last. A line that is there and cannot be
        read counts as one.
        """
        self._reader.seek_tail()
        last: str | None = None
        is_at_next, look, fruitless = False, False, 0
        for number in range(limit):
            try:
                if (look or number % _LOOK_EVERY == 0) and _read_folder_times() != self._folders:
                    is_at_next = self._reopen_before(last)
                look = False
                if not is_at_next and not self._reader._previous():
                    return
                is_at_next = False
                line, last = self._line(), self._reader._get_cursor()
            except OSError:
                look = True
                fruitless += 1
                if fruitless > _MAX_FRUITLESS:
                    return
                continue
            fruitless = 0
            yield line

    def _reopen_before(self, last: str | None) -> bool:
        """Open the files anew, and go to where the line before `last` is the previous one; None: to the end.
        True: `last` is gone, and that line is the present one."""
        self._reader.close()
        self._open_files()
        if last is None:
            self._reader.seek_tail()
            return False
        self._reader.seek_cursor(last)
        return bool(self._reader._previous()) and not self._reader.test_cursor(last)

    def _line(self) -> JournalLine:
        message = get_field(self._reader, "MESSAGE") or get_field(self._reader, STAGE_FIELD)
        monotonic, _boot = self._reader._get_monotonic()
        return JournalLine(message, monotonic / 1e6, self._reader._get_realtime() / 1e6)

    def close(self) -> None:
        """Close the journal's files."""
        self._reader.close()


def get_field(reader: LogReader, name: str) -> bytes:
    """A field of the line that the reader stands on; empty if it has none."""
    try:
        return reader._get(name)
    except KeyError:
        return b""


@cache
def _find_folders() -> tuple[str, ...]:
    machine = id128.get_machine().hex
    return (f"/var/log/journal/{machine}", f"/run/log/journal/{machine}")


def _read_folder_times() -> list[int]:
    """When a file of the journal was last made, renamed or removed, in each place that it may have."""
    times = []
    for folder in _find_folders():
        with contextlib.suppress(OSError):
            times.append(os.stat(folder).st_mtime_ns)
    return times


def synchronize_journal(deadline: float = 2.0) -> bool:
    """Wait until journald has written all that it was sent before. False when it did not answer."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as link:
            link.settimeout(deadline)
            link.connect(_VARLINK)
            link.sendall(json.dumps({"method": "io.systemd.Journal.Synchronize"}).encode() + b"\0")
            return bool(link.recv(4096))
    except OSError:
        return False
