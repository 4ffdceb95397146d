# SPDX-License-Identifier: Apache-2.0
"""sd_notify(3) where python3-sdnotify does not serve: for another process, and for text that is not Latin-1.
`hypemand.service` uses that package."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable

_DEADLINE = 5.0

Ancillary = Iterable[tuple[int, int, bytes]]


def notify(*assignments: str, wait: bool = False) -> bool:
    """Send assignments to the manager that $NOTIFY_SOCKET names, and return whether they were sent: not
    where there is none, nor where its queue is full, for which `wait` waits up to 5 s."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    try:
        send(
            "\0" + address[1:] if address.startswith("@") else address,
            assignments,
            wait=_DEADLINE if wait else 0,
        )
    except OSError:
        return False
    return True


def send(address: str, assignments: Iterable[str], ancillary: Ancillary = (), *, wait: float) -> None:
    """Send assignments to the socket at `address`. OSError when that fails: BlockingIOError when its queue is
    full, or TimeoutError when it has been for `wait` seconds."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.settimeout(wait)
        try:
            sock.sendmsg(["\n".join(assignments).encode(errors="replace")], ancillary, 0, address)
        except TimeoutError:
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)) from None
