# SPDX-License-Identifier: Apache-2.0
"""Detects that another program removes what hypemand has made, or changes what VMs depend on, by netlink(7).

A reload of nftables.service flushes the ruleset, ours too, and VMs would be without the rules that keep them
apart until the next `apply`. A bridge that is deleted by hand leaves them on no network at all. A firewall
that is started later keeps them from all others.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from collections.abc import Callable, Iterable, Iterator

from hypemand.network.netlink import NETLINK_NETFILTER, parse_attributes
from hypemand.network.rules import TABLE

_GROUP_NFTABLES = 7  # NFNLGRP_NFTABLES, linux/netfilter/nfnetlink.h
_NFTABLES = 10 << 8  # NFNL_SUBSYS_NFTABLES
_TABLE_REMOVED = _NFTABLES | 2  # NFT_MSG_DELTABLE
# NFT_MSG_*TABLE, *CHAIN, *RULE; in all of them the name of the table is the first attribute
_RULES = frozenset(_NFTABLES | kind for kind in (0, 2, 3, 5, 6, 8))
_NFGENMSG_SIZE, _TABLE_NAME = 4, 1
_GROUPS_LINKS = (1, 5, 9)  # RTNLGRP_LINK, _IPV4_IFADDR, _IPV6_IFADDR, linux/rtnetlink.h
_NEW_LINK, _LINK_REMOVED, _ADDRESS_REMOVED = 16, 17, 21  # RTM_NEWLINK, _DELLINK, _DELADDR
# RTNLGRP_IPV4_IFADDR, _IPV4_ROUTE, _IPV6_IFADDR, _IPV6_ROUTE, _IPV4_NETCONF, _IPV6_NETCONF
_GROUPS_ROUTES = (5, 7, 9, 11, 24, 25)
_ROUTES = frozenset({24, 25})  # RTM_NEWROUTE, _DELROUTE
_RTMSG_SIZE, _OUTPUT = 12, 4  # RTA_OIF
_ADDRESSES = frozenset({20, _ADDRESS_REMOVED})
_SETTINGS = 80  # RTM_NEWNETCONF
_NETCONFMSG_SIZE, _SETTINGS_OF = 4, 1  # NETCONFA_IFINDEX
_OF_ALL = struct.pack("=i", -1)  # NETCONFA_IFINDEX_ALL
_IFF_UP = 1
_IFNAME = 3  # IFLA_IFNAME
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_HEADER = struct.Struct("=IHHII")
_LINK = struct.Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, change
_ADDRESS = struct.Struct("=BBBBI")  # ifaddrmsg: family, prefix, flags, scope, index
_BUFFER = 64 * 1024


class Watch:
    """Calls back from the event loop after an event that `matters`, and after events were lost. An event is
    its kind and its payload."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        protocol: int,
        groups: Iterable[int],
        matters: Callable[[int, bytes], bool],
        changed: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._matters = matters
        self._changed = changed
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        self._socket = socket.socket(socket.AF_NETLINK, kind, protocol)
        self._socket.bind((0, 0))
        for group in groups:
            self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
        loop.add_reader(self._socket, self._read)

    def close(self) -> None:
        """Watch no more."""
        self._loop.remove_reader(self._socket)
        self._socket.close()

    def _read(self) -> None:
        found = False
        while True:
            try:
                data = self._socket.recv(_BUFFER)
            except BlockingIOError:
                break
            except OSError:  # ENOBUFS: more events than the socket holds
                found = True
                continue
            found |= any(self._matters(kind, payload) for kind, payload in _split(data))
        if found:
            self._changed()


def watch_rules(loop: asyncio.AbstractEventLoop, changed: Callable[[], None]) -> Watch:
    """Tables of nftables were removed, by whomever."""
    return Watch(loop, NETLINK_NETFILTER, (_GROUP_NFTABLES,), lambda kind, _: kind == _TABLE_REMOVED, changed)


def watch_links(
    loop: asyncio.AbstractEventLoop, is_ours: Callable[[int], bool], changed: Callable[[], None]
) -> Watch:
    """A device was removed or taken down, or has lost an address; `is_ours`: is the device of that index one
    to watch? All others come and go with every VM."""

    def matters(kind: int, payload: bytes) -> bool:
        index = _find_loser(kind, payload)
        return index is not None and is_ours(index)

    return Watch(loop, socket.NETLINK_ROUTE, _GROUPS_LINKS, matters, changed)


def watch_names(
    loop: asyncio.AbstractEventLoop, is_watched: Callable[[str], bool], changed: Callable[[set[str]], None]
) -> Watch:
    """Something of devices with such names is not as it was; after events were lost, an empty set."""
    names: set[str] = set()

    def matters(kind: int, payload: bytes) -> bool:
        if kind != _NEW_LINK:
            return False
        name = (
            parse_attributes(payload[_LINK.size :]).get(_IFNAME, b"").rstrip(b"\0").decode("ascii", "replace")
        )
        if is_watched(name):
            names.add(name)
            return True
        return False

    def tell() -> None:
        changed(set(names))
        names.clear()

    return Watch(loop, socket.NETLINK_ROUTE, _GROUPS_LINKS[:1], matters, tell)


def watch_firewalls(loop: asyncio.AbstractEventLoop, changed: Callable[[], None]) -> Watch:
    """Rules of others have changed."""

    def matters(kind: int, payload: bytes) -> bool:
        if kind not in _RULES:
            return False
        name = parse_attributes(payload[_NFGENMSG_SIZE:]).get(_TABLE_NAME, b"")
        return name.rstrip(b"\0") != TABLE.encode()

    return Watch(loop, NETLINK_NETFILTER, (_GROUP_NFTABLES,), matters, changed)


def watch_routes(
    loop: asyncio.AbstractEventLoop, is_ours: Callable[[int], bool], changed: Callable[[], None]
) -> Watch:
    """What the host reaches by which way has changed, or whether it forwards; but for what devices that are
    ours have to do with it, which changes with their VMs."""

    def matters(kind: int, payload: bytes) -> bool:
        if kind in _ADDRESSES and len(payload) >= _ADDRESS.size:
            return not is_ours(int(_ADDRESS.unpack_from(payload)[4]))
        if kind == _SETTINGS:  # of each new device too
            return parse_attributes(payload[_NETCONFMSG_SIZE:]).get(_SETTINGS_OF) == _OF_ALL
        if kind in _ROUTES:
            device = parse_attributes(payload[_RTMSG_SIZE:]).get(_OUTPUT)
            return device is None or not is_ours(int.from_bytes(device, sys.byteorder))
        return False

    return Watch(loop, socket.NETLINK_ROUTE, _GROUPS_ROUTES, matters, changed)


def _find_loser(kind: int, payload: bytes) -> int | None:
    """The index of the device that has gone, or that has something no more."""
    if kind in (_NEW_LINK, _LINK_REMOVED) and len(payload) >= _LINK.size:
        _, _, index, flags, _ = _LINK.unpack_from(payload)
        return int(index) if kind == _LINK_REMOVED or not flags & _IFF_UP else None
    if kind == _ADDRESS_REMOVED and len(payload) >= _ADDRESS.size:
        return int(_ADDRESS.unpack_from(payload)[4])
    return None


def _split(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The messages of a datagram."""
    while len(data) >= _HEADER.size:
        length, kind, _, _, _ = _HEADER.unpack_from(data)
        if length < _HEADER.size:
            break
        yield kind, data[_HEADER.size : length]
        data = data[(length + 3) & ~3 :]
