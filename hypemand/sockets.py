# SPDX-License-Identifier: Apache-2.0
"""Sockets: those that our services listen on, and those in folders that are not ours."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FIRST_SOCKET = 3  # SD_LISTEN_FDS_START


@contextmanager
def hold_socket(path: Path, uid: int) -> Iterator[str]:
    """A path by which the socket at `path` can be connected to while the block runs, and nothing else.

    A VMM owns the folder of its sockets: whoever has taken it over could put a link to the socket of
    another process there. OSError when there is no socket, or not one that belongs to `uid`.
    """
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        if not stat.S_ISSOCK(found.st_mode) or found.st_uid != uid:
            raise PermissionError(f"{path} is not a socket of user {uid}")
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def take_socket() -> socket.socket | None:
    """The one socket that systemd listens on for us, or None."""
    return next(iter(take_sockets().values()), None)


def take_sockets() -> dict[str, socket.socket]:
    """The sockets that systemd listens on for us, by their names (sd_listen_fds_with_names(3))."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return {}
    count = int(os.environ.get("LISTEN_FDS", "0"))
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    sockets = {}
    for number in range(count):
        listener = socket.socket(fileno=_FIRST_SOCKET + number)
        listener.setblocking(False)
        sockets[names[number] if number < len(names) else ""] = listener
    return sockets


def open_socket(path: Path, backlog: int, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """A socket of our own, for a service that no socket unit has started. Its user alone may connect."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, kind | socket.SOCK_CLOEXEC)
    listener.setblocking(False)
    old = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(old)
    listener.listen(backlog)
    return listener
