# SPDX-License-Identifier: Apache-2.0
"""Finds the program on the host that uses a port: sock_diag(7) with its control group, which is its unit."""

from __future__ import annotations

import os
import pwd
import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from hypemand.config.network import Transport
from hypemand.network.netlink import NETLINK_SOCK_DIAG, Netlink, parse_attributes

_SOCK_DIAG_BY_FAMILY = 20
_REQUEST = struct.Struct("=BBBxI48x")  # inet_diag_req_v2 without what names one socket
_MESSAGE = struct.Struct("=BBBBHH")  # the start of inet_diag_msg: family, state, timer, retrans; ports
_MESSAGE_SIZE = 72
_UID = struct.Struct("=I")
_UID_OFFSET = 64
_PORT_OFFSET = 4
_ADDRESS_OFFSET = 8
_V6ONLY = 11  # INET_DIAG_SKV6ONLY
_CGROUP_ID = 21  # INET_DIAG_CGROUP_ID, Linux 5.9
_PROTOCOLS = {Transport.TCP: socket.IPPROTO_TCP, Transport.UDP: socket.IPPROTO_UDP}
# Of these states is what the kernel still remembers of a connection that a program has closed: FIN-WAIT-1 and
# -2, TIME-WAIT, LAST-ACK, CLOSING (net/tcp_states.h). BOUND_INACTIVE, which Linux 6.8 and later tell, is what
# is bound and does not listen: our own reservations.
_CLOSED = frozenset({4, 5, 6, 9, 11})
_INACTIVE = 13
_STATES = 0xFFFFFFFF & ~sum(1 << state for state in (*_CLOSED, _INACTIVE))
_CGROUPS = (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup"))


@dataclass(frozen=True, slots=True)
class _Holder:
    """A socket that has a port of an address; an unspecified one: of all addresses."""

    uid: int
    cgroup: int
    address: IPv4Address | IPv6Address


def has_holder(transport: Transport, address: IPv4Address | IPv6Address, port: int) -> bool:
    """Is there a socket that gets what comes to this port of this address (or of any, if that is what it is),
    and is more than what is remembered of one? One that is bound and does not listen is not seen."""
    return any(_list_holders(transport, address, port))


def leaves_addresses(transport: Transport, address: IPv4Address | IPv6Address, port: int) -> bool:
    """Has a program the port of some addresses alone, so that others of what `address` means are free?"""
    bound = [holder.address for holder in _list_holders(transport, address, port)]
    return bool(bound) and address.is_unspecified and not any(one.is_unspecified for one in bound)


def find_holder(transport: Transport, address: IPv4Address | IPv6Address, port: int) -> str:
    """The unit whose process has the port, or else its user; "" when that cannot be found."""
    with suppress(OSError):
        for holder in _list_holders(transport, address, port):
            if unit := _find_unit(holder.cgroup):
                return unit
            with suppress(KeyError):
                return f"a program of user {pwd.getpwuid(holder.uid).pw_name}"
    return ""


def _list_holders(transport: Transport, address: IPv4Address | IPv6Address, port: int) -> Iterator[_Holder]:
    with Netlink(NETLINK_SOCK_DIAG) as netlink:
        for family in (socket.AF_INET, socket.AF_INET6):
            request = _REQUEST.pack(family, _PROTOCOLS[transport], 0, _STATES)
            for message in netlink.dump(_SOCK_DIAG_BY_FAMILY, request):
                (source,) = struct.unpack_from(">H", message, _PORT_OFFSET)
                if source != port or message[1] in _CLOSED:
                    continue
                attributes = parse_attributes(message[_MESSAGE_SIZE:])
                if _gets(message, attributes, address):
                    (uid,) = _UID.unpack_from(message, _UID_OFFSET)
                    cgroup = int.from_bytes(attributes.get(_CGROUP_ID, b""), "little")
                    yield _Holder(uid, cgroup, _read_address(message))


def _gets(message: bytes, attributes: Mapping[int, bytes], address: IPv4Address | IPv6Address) -> bool:
    """Is a socket one of this address? One of any IPv6 address gets IPv4 too, unless it says no."""
    bound = _read_address(message)
    if isinstance(bound, IPv6Address) and address.version == 4:
        if bound.is_unspecified:
            return attributes.get(_V6ONLY, b"\0")[0] == 0
        bound = bound.ipv4_mapped or bound
    if bound.version != address.version:
        return False
    return bound == address or bound.is_unspecified or address.is_unspecified


def _read_address(message: bytes) -> IPv4Address | IPv6Address:
    size = 4 if message[0] == socket.AF_INET else 16
    return ip_address(message[_ADDRESS_OFFSET : _ADDRESS_OFFSET + size])


def _find_unit(cgroup: int) -> str:
    """The unit of a control group by its id, which is its folder's inode."""
    root = next((path for path in _CGROUPS if (path / "cgroup.procs").exists()), None)
    if root is None or not cgroup:
        return ""
    for folder, names, _ in os.walk(root):
        for name in names:
            with suppress(OSError):
                path = Path(folder, name)
                if path.stat().st_ino == cgroup:
                    units = [part for part in path.parts if part.endswith((".service", ".scope", ".socket"))]
                    return units[-1] if units else ""
    return ""
