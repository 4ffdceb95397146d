# SPDX-License-Identifier: Apache-2.0
"""Which boot a run carries.

A run is one time that systemd starts the VMM; its id is the unit's invocation id, the host's own. A
boot is one boot of the guest's kernel; its id is on the kernel's command line, and the guest signs its lines
with it. A cold start gives new ids for both. The launcher makes the boot id and writes it down
(launcher/bootid.h) before it executes the VMM, so before there is a line or a connection of that boot.
"""

from __future__ import annotations

import os
import re
import stat
import time
from pathlib import Path

RUN_RECORD = "run"
"""The record's name in the VM's runtime folder: "RUN BOOT" and a newline."""

_RECORD = re.compile(rb"([0-9a-f]{32}) ([0-9a-f]{32})\n")
_LENGTH = 66


def find_boot_id(runtime: Path, run: str) -> str | None:
    """The id of the boot that this run carries; None while the launcher has not written it, and for a record
    that is not whole. The folder is the VMM's own: a VMM that was taken over may put anything there, and
    gains no more than markers that do not count."""
    found = _read(runtime, run)
    return None if found is None else found[0]


def find_start(runtime: Path, run: str) -> float | None:
    """When the launcher has written the record of this run, in seconds since the epoch, and never after now.
    A VMM that was taken over may lie about that too, of itself alone."""
    found = _read(runtime, run)
    return None if found is None else min(max(found[1], 0.0), time.time())


def _read(runtime: Path, run: str) -> tuple[str, float] | None:
    try:
        fd = os.open(runtime / RUN_RECORD, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        found = os.fstat(fd)
        is_own = stat.S_ISREG(found.st_mode) and found.st_uid == runtime.stat().st_uid
        record = _RECORD.fullmatch(os.read(fd, _LENGTH + 1)) if is_own else None
    except OSError:
        return None
    finally:
        os.close(fd)
    if record is None or record[1].decode() != run:
        return None
    return record[2].decode(), found.st_mtime
