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


def has_note(runtime: Path, name: str, run: str) -> bool:
    """Is there a note of this name that is of this run? Its text is the run's id. A VMM that was taken over
    may write one, or remove it."""
    found = _read_file(runtime, name)
    return found is not None and found[0] == run.encode()


def _read(runtime: Path, run: str) -> tuple[str, float] | None:
    found = _read_file(runtime, RUN_RECORD)
    record = None if found is None else _RECORD.fullmatch(found[0])
    if found is None or record is None or record[1].decode() != run:
        return None
    return record[2].decode(), found[1]


def _read_file(runtime: Path, name: str) -> tuple[bytes, float] | None:
    """What a file of the VMM's begins with, and when that was written."""
    try:
        fd = os.open(runtime / name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        found = os.fstat(fd)
        is_own = stat.S_ISREG(found.st_mode) and found.st_uid == runtime.stat().st_uid
        return (os.read(fd, _LENGTH + 1), found.st_mtime) if is_own else None
    except OSError:
        return None
    finally:
        os.close(fd)
