# SPDX-License-Identifier: Apache-2.0
"""Notices when tables of nftables are removed.

A reload of nftables.service flushes the ruleset, ours too, and VMs would be without the rules that keep them
apart until the next `apply`.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Callable

from hypemand.network.netlink import NETLINK_NETFILTER

_log = logging.getLogger(__name__)
_GROUP_NFTABLES = 7  # NFNLGRP_NFTABLES, linux/netfilter/nfnetlink.h
_TABLE_REMOVED = 10 << 8 | 2  # NFNL_SUBSYS_NFTABLES, NFT_MSG_DELTABLE
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_HEADER = struct.Struct("=IHHII")
_BUFFER = 64 * 1024


class RulesetWatch:
    """Calls back from the event loop after tables were removed, by whomever, and after events were lost."""

    def __init__(self, loop: asyncio.AbstractEventLoop, changed: Callable[[], None]) -> None:
        self._loop = loop
        self._changed = changed
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, NETLINK_NETFILTER
        )
        self._socket.bind((0, 0))
        self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _GROUP_NFTABLES)
        loop.add_reader(self._socket, self._read)

    def close(self) -> None:
        """Watch no more."""
        self._loop.remove_reader(self._socket)
        self._socket.close()

    def _read(self) -> None:
        removed = False
        while True:
            try:
                data = self._socket.recv(_BUFFER)
            except BlockingIOError:
                break
            except OSError:  # ENOBUFS: more events than the socket holds
                removed = True
                continue
            removed |= _has_removal(data)
        if removed:
            self._changed()


def _has_removal(data: bytes) -> bool:
    while len(data) >= _HEADER.size:
        length, kind, _, _, _ = _HEADER.unpack_from(data)
        if kind == _TABLE_REMOVED:
            return True
        if length < _HEADER.size:
            break
        data = data[(length + 3) & ~3 :]
    return False
