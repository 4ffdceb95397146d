# SPDX-License-Identifier: Apache-2.0
"""Frames, made byte by byte: honest ones and ones that claim what is not so. Each function is pure."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

BROADCAST = "ff:ff:ff:ff:ff:ff"
ALL_NODES = "ff02::1"
ALL_NODES_MAC = "33:33:00:00:00:01"
IPV4, IPV6, ARP, VLAN = 0x0800, 0x86DD, 0x0806, 0x8100
ICMP, UDP, ICMP6, HOP_BY_HOP, FRAGMENT, DESTINATION = 1, 17, 58, 0, 44, 60
ROUTER_ADVERTISEMENT, NEIGHBOUR_SOLICITATION, NEIGHBOUR_ADVERTISEMENT, REDIRECT = 134, 135, 136, 137
ECHO6 = 128


@dataclass(frozen=True)
class End:
    """Who an end of a wire is, or claims to be."""

    mac: str
    ip4: str = "0.0.0.0"
    ip6: str = "::"

    @property
    def packed4(self) -> bytes:
        """The IPv4 address as packets have it."""
        return IPv4Address(self.ip4).packed

    @property
    def packed6(self) -> bytes:
        """The IPv6 address as packets have it."""
        return IPv6Address(self.ip6).packed

    @property
    def link_local(self) -> str:
        """The address that the kernel derives from its MAC address (RFC 4291, appendix A)."""
        octets = _mac(self.mac)
        identifier = bytes((octets[0] ^ 2, *octets[1:3], 0xFF, 0xFE, *octets[3:]))
        return str(IPv6Address(b"\xfe\x80" + bytes(6) + identifier))


def ethernet(source: str, target: str, kind: int, payload: bytes, vlan: int | None = None) -> bytes:
    """A frame, padded to the least length."""
    tag = struct.pack("!HH", VLAN, vlan) if vlan is not None else b""
    return (_mac(target) + _mac(source) + tag + struct.pack("!H", kind) + payload).ljust(60, b"\0")


def arp(
    operation: int, sender_mac: str, sender: str, target: str, target_mac: str = "00:00:00:00:00:00"
) -> bytes:
    """An ARP packet; operation 1 asks, 2 answers."""
    head = struct.pack("!HHBBH", 1, IPV4, 6, 4, operation)
    return (
        head + _mac(sender_mac) + IPv4Address(sender).packed + _mac(target_mac) + IPv4Address(target).packed
    )


def ip(source: str, target: str, protocol: int, payload: bytes, *, hops: int = 64) -> bytes:
    """An IPv4 or IPv6 packet, by its addresses."""
    a, b = ip_address(source).packed, ip_address(target).packed
    if len(a) == 16:
        return struct.pack("!IHBB", 6 << 28, len(payload), protocol, hops) + a + b + payload
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0, hops, protocol, 0) + a + b
    return head[:10] + _checksum(head) + head[12:] + payload


def udp(source: str, target: str, ports: tuple[int, int], data: bytes) -> bytes:
    """A UDP packet in an IP one."""
    length = 8 + len(data)
    head = struct.pack("!HHHH", *ports, length, 0)
    check = _checksum(_pseudo(source, target, UDP, length) + head + data)
    return ip(source, target, UDP, head[:6] + check + data)


def ping(source: str, target: str, data: bytes) -> bytes:
    """An echo request of either family."""
    if ip_address(source).version == 6:
        return icmp6(source, target, ECHO6, data=b"\0\1\0\1" + data)
    head = struct.pack("!BBHHH", 8, 0, 0, 1, 1)
    return ip(source, target, ICMP, head[:2] + _checksum(head + data) + head[4:] + data)


def icmp6(
    source: str, target: str, kind: int, *, data: bytes, extension: int | None = None, hops: int = 255
) -> bytes:
    """An ICMPv6 packet of a type and what follows its checksum; `extension`: behind an empty header of this
    kind, which those that look for it at a fixed place overlook."""
    length = 4 + len(data)
    head = struct.pack("!BBH", kind, 0, 0)
    body = head[:2] + _checksum(_pseudo(source, target, ICMP6, length) + head + data) + data
    if extension is None:
        return ip(source, target, ICMP6, body, hops=hops)
    # a fragment header says that it is the only one; the others hold an option of padding
    empty = (
        struct.pack("!BBHI", ICMP6, 0, 0, 1) if extension == FRAGMENT else bytes((ICMP6, 0, 1, 4, *bytes(4)))
    )
    return ip(source, target, extension, empty + body, hops=hops)


def neighbour_advertisement(source: str, target: str, claimed: str, mac: str, token: bytes) -> bytes:
    """`claimed` is said to be at `mac`, overriding what others remember: so say the token's first bits, the
    others stand where nobody looks."""
    assert (len(token), token[0] >> 5) == (4, 1)
    data = token + IPv6Address(claimed).packed + b"\2\1" + _mac(mac)
    return icmp6(source, target, NEIGHBOUR_ADVERTISEMENT, data=data)


def neighbour_solicitation(source: str, target: str, wanted: str, mac: str, token: bytes) -> bytes:
    """Asks for `wanted`, and says by the way that `source` is at `mac`."""
    assert len(token) == 4
    data = token + IPv6Address(wanted).packed + b"\1\1" + _mac(mac)
    return icmp6(source, target, NEIGHBOUR_SOLICITATION, data=data)


def router_advertisement(source: str, token: bytes, extension: int | None = None) -> bytes:
    """A router that offers itself and the prefix 2001:db8:bad::/64 for addresses to be made of."""
    prefix = struct.pack("!BBBBIII", 3, 4, 64, 0xC0, 86400, 14400, 0) + IPv6Address("2001:db8:bad::").packed
    data = struct.pack("!BBHI", 64, 0, 1800, 0) + token + prefix
    return icmp6(source, ALL_NODES, ROUTER_ADVERTISEMENT, data=data, extension=extension)


def _pseudo(source: str, target: str, protocol: int, length: int) -> bytes:
    return ip_address(source).packed + ip_address(target).packed + struct.pack("!II", length, protocol)


def _checksum(data: bytes) -> bytes:
    """The Internet checksum (RFC 1071)."""
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF or 0xFFFF)


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))
