# SPDX-License-Identifier: Apache-2.0
"""Open file description locks (fcntl(2), F_OFD_SETLK), for which Python 3.11 has no names: they end with the
process that holds them, and on a network file system they are known to all hosts that have it."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from typing import Final

from hypemand.errors import HypemandError

# fcntl.h
_OFD_GETLK, _OFD_SETLK = 36, 37
# struct flock: l_type, l_whence, l_start, l_len, l_pid, and padding to its alignment
_FLOCK = struct.Struct("@hhqqi4x")
_HELD = (errno.EAGAIN, errno.EACCES)
WHOLE: Final = (0, 0)
"""All of a file. Parts are (first byte, how many)."""


def take_lock(fd: int, kind: int, part: tuple[int, int]) -> bool:
    """Lock that part of a file, by F_RDLCK or F_WRLCK. False where another process has it; OSError."""
    try:
        fcntl.fcntl(fd, _OFD_SETLK, _flock(kind, part))
    except OSError as error:
        if error.errno not in _HELD:
            raise
        return False
    return True


def is_locked(fd: int, part: tuple[int, int]) -> bool:
    """Has another process a lock there? Which one is not known: the kernel says -1 for all. OSError."""
    found = fcntl.fcntl(fd, _OFD_GETLK, _flock(fcntl.F_WRLCK, part))
    return bool(_FLOCK.unpack(found)[0] != fcntl.F_UNLCK)


def explain_no_locks(what: str, error: OSError) -> HypemandError:
    """The error to show for a file system that knows none of these. `what`: cannot be done."""
    return HypemandError(
        f"{what}: {error.strerror}", hint="use a file system that supports locks (fcntl(2), F_OFD_SETLK)"
    )


def _flock(kind: int, part: tuple[int, int]) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, *part, 0)
