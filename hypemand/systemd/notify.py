# SPDX-License-Identifier: Apache-2.0
"""Notifies systemd of a VM's readiness with the pid of its VMM, as sd_pid_notify(3)."""

from __future__ import annotations

import os
import socket
import struct

from hypemand.notify import send

_NOTIFY_SOCKET = "/run/systemd/notify"
_DEADLINE = 30.0  # a host that shuts down has many units that are stopped at once


def notify_for(pid: int, *assignments: str, wait: bool = False) -> None:
    """Send assignments such as ``READY=1`` to the service manager as if process `pid` had.

    The unit's NotifyAccess= is judged by `pid`. Needs CAP_SYS_ADMIN, since the credentials are not our
    own. A manager that does not read for so long that its queue is full raises BlockingIOError, or
    TimeoutError after 30 s with `wait`. Other failures are OSError.
    """
    credentials = struct.pack("iII", pid, os.geteuid(), os.getegid())
    ancillary = [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, credentials)]
    send(_NOTIFY_SOCKET, assignments, ancillary, wait=_DEADLINE if wait else 0)
