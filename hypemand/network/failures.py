# SPDX-License-Identifier: Apache-2.0
"""Errors of the kernel as errors for users."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from pyroute2.netlink.exceptions import NetlinkError

from hypemand.errors import HostNotReady


@contextmanager
def told_by_kernel(about: str) -> Iterator[None]:
    """Raise HostNotReady, with what it was about, for what the kernel refuses."""
    try:
        yield
    except (NetlinkError, OSError) as error:
        number = error.code if isinstance(error, NetlinkError) else error.errno
        hint = "the network service needs CAP_NET_ADMIN" if number in (errno.EPERM, errno.EACCES) else ""
        told = os.strerror(number) if number else str(error)
        raise HostNotReady(f"{about}: rejected by the kernel: {told}", hint=hint) from error
