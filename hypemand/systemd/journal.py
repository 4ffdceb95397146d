# SPDX-License-Identifier: Apache-2.0
"""Reading the journal of one boot of a VM.

Low-level on purpose: `systemd.journal.Reader` turns every field of every entry into Python objects, at
30 times the cost, and a guest can write 100,000 lines while it boots.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass

from systemd._reader import _Reader

_VARLINK = "/run/systemd/journal/io.systemd.journal"
# journald cuts lines at 48 KiB; of what we look for none is longer than 4 KiB
_FIELD_LIMIT = 8192


@dataclass(frozen=True, slots=True)
class JournalLine:
    """One entry: its MESSAGE, and when journald took it (seconds, CLOCK_MONOTONIC and since the epoch)."""

    message: bytes
    monotonic: float
    realtime: float


class BootJournal:
    """The lines of one invocation of a unit, oldest first, and the newer ones as they come.

    Matches on `_SYSTEMD_INVOCATION_ID`, which journald takes from the cgroup: nothing outside the unit
    can write such a line. Costs two file descriptors; `close` it.
    """

    def __init__(self, invocation_id: str) -> None:
        self._reader = _Reader()
        self._reader.data_threshold = _FIELD_LIMIT
        self._reader.add_match(f"_SYSTEMD_INVOCATION_ID={invocation_id}")
        # from now on files that journald adds or rotates are noticed by process()
        self._reader.fileno()
        self._reader.seek_head()

    def read(self, limit: int) -> list[JournalLine]:
        """At most `limit` lines that have not been read; empty when there is none now. Never waits."""
        lines: list[JournalLine] = []
        while len(lines) < limit and self._reader._next():
            lines.append(self._line())
        if not lines:
            self._reader.process()
        return lines

    def read_backwards(self, limit: int) -> Iterator[JournalLine]:
        """The newest `limit` lines, newest first. Moves the position that `read` goes on from."""
        self._reader.seek_tail()
        while limit > 0 and self._reader._previous():
            limit -= 1
            yield self._line()

    def _line(self) -> JournalLine:
        try:
            message = self._reader._get("MESSAGE")
        except KeyError:
            message = b""
        monotonic, _boot = self._reader._get_monotonic()
        return JournalLine(message, monotonic / 1e6, self._reader._get_realtime() / 1e6)

    def close(self) -> None:
        """Let go of the journal's files."""
        self._reader.close()


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
