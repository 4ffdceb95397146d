# SPDX-License-Identifier: Apache-2.0
"""Lines of consoles that did not come into the journal, by what hypeman-console has written there of them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping

from hypemand.manager.logs import NOTICE
from hypemand.systemd.journal import LogJournal, LogReader, get_field
from hypemand.systemd.units import SLICE
from hypemand.unitnames import vm_of_unit

_AT_ONCE = 1000
_MAX_DIGITS = 15


class DroppedLines:
    """Counts from when it was made. `read` and `close` block, and are called by one thread at a time."""

    def __init__(self, journal: LogJournal) -> None:
        self._journal = journal
        self._since = time.time()
        self._reader: LogReader | None = None
        self._counts: Counter[str] = Counter()

    def read(self) -> Mapping[str, int]:
        """Lines by the VM's name. Of very many notices it takes the rest the next time. OSError."""
        if self._reader is None:
            self._reader = self._open()
        reader = self._reader
        reader.process()
        for _ in range(_AT_ONCE):
            if not reader._next():
                break
            # journald itself says of which unit an entry is
            vm = vm_of_unit(get_field(reader, "_SYSTEMD_UNIT").decode("ascii", "replace"))
            number = get_field(reader, "HYPEMAN_DROPPED")
            is_notice = number.isdigit() and len(number) <= _MAX_DIGITS
            if vm is not None and is_notice and get_field(reader, "MESSAGE").startswith(NOTICE):
                self._counts[vm] += int(number)
        return dict(self._counts)

    def _open(self) -> LogReader:
        reader = self._journal.open()
        # notices are warnings: of all that VMs print, journald looks at these alone
        for match in ("PRIORITY=4", "_TRANSPORT=journal", f"_SYSTEMD_SLICE={SLICE}"):
            reader.add_match(match)
        reader.fileno()  # from now on it is known when journald begins another file
        reader.seek_realtime(round(self._since * 1e6))
        return reader

    def close(self) -> None:
        """Close the journal's files."""
        if self._reader is not None:
            self._reader.close()
