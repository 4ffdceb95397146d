# SPDX-License-Identifier: Apache-2.0
"""Sockets in folders that are not ours."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def hold_socket(path: Path, uid: int) -> Iterator[str]:
    """A path by which the socket at `path` can be connected to while the block runs, and nothing else.

    A VMM owns the folder of its sockets: whoever has taken it over could put a link to somebody else's
    socket there. OSError when there is no socket, or not one that belongs to `uid`.
    """
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        if not stat.S_ISSOCK(found.st_mode) or found.st_uid != uid:
            raise PermissionError(f"{path} is not a socket of user {uid}")
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)
