# SPDX-License-Identifier: Apache-2.0
"""Removes the connection tracking entries of an address.

A stopped VM's address may be another's a moment later: packets of old connections would be led to it, and a
published port would go on leading to where it led.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address

from hypemand.config.network import Publish, Transport
from hypemand.network.netlink import (
    NESTED,
    NETLINK_NETFILTER,
    Netlink,
    pack_attribute,
    parse_attributes,
)
from hypemand.network.sysctl import find_sysctl

_SUBSYSTEM = 1 << 8  # NFNL_SUBSYS_CTNETLINK
_GET, _DELETE = _SUBSYSTEM | 1, _SUBSYSTEM | 2
_HEADER = struct.Struct(">BBH")  # nfgenmsg: family, version, resource
# enum ctattr_type and its nested kinds, linux/netfilter/nfnetlink_conntrack.h
_TUPLE_ORIGINAL, _TUPLE_REPLY, _ID, _ZONE, _FILTER = 1, 2, 12, 18, 25
_TUPLE_IP, _TUPLE_PROTOCOL = 1, 2
_SOURCE4, _TARGET4, _SOURCE6, _TARGET6 = 1, 2, 3, 4
_NUMBER, _TARGET_PORT = 1, 3
_EVERYTHING = _HEADER.pack(socket.AF_UNSPEC, 0, 0)
_UDP = pack_attribute(_NUMBER, bytes([socket.IPPROTO_UDP]))
_FILTER_FLAGS = {_TUPLE_ORIGINAL: 1, _TUPLE_REPLY: 2}
_MATCH_SOURCE, _MATCH_PROTOCOL, _MATCH_TARGET_PORT = 1 << 0, 1 << 3, 1 << 5  # enum ctattr_tuple_filter
# Each walk of the kernel through its table takes milliseconds, however little is in it; with much in it, more
# walks that give only what is looked for take less.
_MANY, _MANY_WALKS = 5000, 8


def forget_connections(addresses: Iterable[IPv4Address | IPv6Address]) -> int:
    """Delete the entries of connections from and to these addresses, translated or not; their number.
    Without connection tracking there is nothing to forget."""
    there = find_sysctl("netfilter/nf_conntrack_count")
    if there in (None, "0"):
        return 0
    packed = frozenset(address.packed for address in addresses)
    count = 0
    with Netlink(NETLINK_NETFILTER) as netlink:
        for header, identity in set(_find(netlink, packed, filtered=int(there or 0) > _MANY)):
            try:
                netlink.request(_DELETE, header + identity)
                count += 1
            except OSError as error:
                if error.errno != errno.ENOENT:  # it has ended meanwhile
                    raise
    return count


def forget_published(publishes: Iterable[Publish]) -> int:
    """`forget_early` of what these publish."""
    return forget_early(frozenset(one.host_port for one in publishes if one.transport is Transport.UDP))


def forget_early(ports: frozenset[int]) -> int:
    """Delete the entries of what has been sent to these UDP ports of the host before they were published;
    their number. An entry leads all packets of its kind to where the first was led, as long as they keep
    coming. Those of TCP end with the refusal of the connection."""
    there = find_sysctl("netfilter/nf_conntrack_count")
    if not ports or there in (None, "0"):
        return 0
    wanted = {struct.pack(">H", port) for port in ports}
    count = 0
    with Netlink(NETLINK_NETFILTER) as netlink:
        for pattern in _derive_port_patterns(wanted) if int(there or 0) > _MANY else [_EVERYTHING]:
            for entry in netlink.dump(_GET, pattern):
                attributes = parse_attributes(entry[_HEADER.size :])
                if not _is_early(attributes, wanted):
                    continue
                with suppress(FileNotFoundError):  # it has ended meanwhile
                    netlink.request(_DELETE, entry[: _HEADER.size] + _identify(attributes))
                    count += 1
    return count


def _derive_port_patterns(ports: Collection[bytes]) -> Iterator[bytes]:
    """What has been sent to each of these UDP ports, or if that are many, all of UDP."""
    flags, protocols = _MATCH_PROTOCOL, [_UDP]
    if len(ports) <= _MANY_WALKS:
        flags |= _MATCH_TARGET_PORT
        protocols = [_UDP + pack_attribute(_TARGET_PORT, port) for port in ports]
    for family in (socket.AF_INET, socket.AF_INET6):
        for protocol in protocols:
            yield _make_pattern(family, _TUPLE_ORIGINAL, _TUPLE_PROTOCOL, protocol, flags)


def _make_pattern(family: int, direction: int, kind: int, wanted: bytes, flags: int) -> bytes:
    """Have a walk give nothing but what has, of one of its tuples, what is wanted."""
    matched = pack_attribute(_FILTER_FLAGS[direction], struct.pack("=I", flags))
    wanted = pack_attribute(direction | NESTED, pack_attribute(kind | NESTED, wanted))
    return _HEADER.pack(family, 0, 0) + wanted + pack_attribute(_FILTER | NESTED, matched)


def _is_early(attributes: Mapping[int, bytes], ports: Collection[bytes]) -> bool:
    """Is it of UDP, to one of these ports, and answered by the host's own address that was asked?"""
    original = parse_attributes(attributes[_TUPLE_ORIGINAL])
    protocol = parse_attributes(original[_TUPLE_PROTOCOL])
    if protocol.get(_NUMBER) != bytes([socket.IPPROTO_UDP]) or protocol.get(_TARGET_PORT) not in ports:
        return False
    asked = parse_attributes(original[_TUPLE_IP])
    answers = parse_attributes(parse_attributes(attributes[_TUPLE_REPLY])[_TUPLE_IP])
    address = asked.get(_TARGET4) or asked.get(_TARGET6) or b""
    return address in (answers.get(_SOURCE4), answers.get(_SOURCE6)) and _is_local(address)


def _is_local(address: bytes) -> bool:
    """Does the host have it? Nothing else can be bound."""
    family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
            probe.bind((socket.inet_ntop(family, address), 0))
    except OSError:
        return False
    return True


def _find(netlink: Netlink, packed: frozenset[bytes], *, filtered: bool) -> Iterator[tuple[bytes, bytes]]:
    """Header and identity of the entries."""
    patterns = [pattern for one in packed for pattern in _derive_patterns(one)] if filtered else [_EVERYTHING]
    for pattern in patterns:
        for entry in netlink.dump(_GET, pattern):
            if not any(one in entry for one in packed):
                continue
            attributes = parse_attributes(entry[_HEADER.size :])
            if any(_has_source(attributes, direction, packed) for direction in _FILTER_FLAGS):
                yield entry[: _HEADER.size], _identify(attributes)


def _derive_patterns(packed: bytes) -> Iterator[bytes]:
    """Whoever speaks for the address is the source of one of the two directions: of the first, if the VM made
    the connection, of the answers otherwise, whatever the first packet's destination was made into."""
    family, source = (socket.AF_INET, _SOURCE4) if len(packed) == 4 else (socket.AF_INET6, _SOURCE6)
    for direction in _FILTER_FLAGS:
        yield _make_pattern(family, direction, _TUPLE_IP, pack_attribute(source, packed), _MATCH_SOURCE)


def _has_source(attributes: Mapping[int, bytes], direction: int, packed: frozenset[bytes]) -> bool:
    ip = parse_attributes(parse_attributes(attributes[direction])[_TUPLE_IP])
    return ip.get(_SOURCE4) in packed or ip.get(_SOURCE6) in packed


def _identify(attributes: Mapping[int, bytes]) -> bytes:
    """What names one entry."""
    identity = pack_attribute(_TUPLE_ORIGINAL | NESTED, attributes[_TUPLE_ORIGINAL])
    identity += pack_attribute(_ID, attributes[_ID])
    if _ZONE in attributes:
        identity += pack_attribute(_ZONE, attributes[_ZONE])
    return identity
