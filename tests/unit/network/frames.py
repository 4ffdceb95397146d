# SPDX-License-Identifier: Apache-2.0
"""Ethernet frames, as a guest that means no good would write them. Checksums of ICMPv6 and UDP are left out:
nobody has to take these frames, they only have to come through or not."""

import struct
from ipaddress import IPv4Address, IPv6Address

BROADCAST = "ff:ff:ff:ff:ff:ff"
ALL_NODES = "33:33:00:00:00:01"
ARP, IPV4, IPV6 = 0x0806, 0x0800, 0x86DD
UDP, FRAGMENT, ICMPV6, DESTINATION_OPTIONS = 17, 44, 58, 60


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def ethernet(source: str, target: str, kind: int, payload: bytes, vlan: int | None = None) -> bytes:
    tag = struct.pack(">HH", 0x8100, vlan) if vlan is not None else b""
    return mac(target) + mac(source) + tag + struct.pack(">H", kind) + payload


def arp(
    sender_mac: str,
    sender: IPv4Address,
    target: IPv4Address,
    *,
    operation: int = 1,
    hardware: int = 1,
    protocol: int = IPV4,
    lengths: tuple[int, int] = (6, 4),
) -> bytes:
    head = struct.pack(">HHBBH", hardware, protocol, *lengths, operation)
    return head + mac(sender_mac) + sender.packed + bytes(6) + target.packed


def udp(source: int, target: int, data: bytes = b"data") -> bytes:
    return struct.pack(">HHHH", source, target, 8 + len(data), 0) + data


def ipv4(source: IPv4Address, target: IPv4Address, payload: bytes, protocol: int = UDP) -> bytes:
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0, 64, protocol, 0)
    words = struct.unpack(">10H", head + source.packed + target.packed)
    total = sum(words)
    total = (total & 0xFFFF) + (total >> 16)
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    return head[:10] + struct.pack(">H", checksum) + source.packed + target.packed + payload


def ipv6(source: IPv6Address, target: IPv6Address, payload: bytes, following: int = ICMPV6) -> bytes:
    head = struct.pack(">IHBB", 0x60000000, len(payload), following, 255)
    return head + source.packed + target.packed + payload


def behind_options(following: int, payload: bytes) -> bytes:
    """An extension header that says nothing, before what follows."""
    return bytes([following, 0, 1, 4, 0, 0, 0, 0]) + payload


def fragment(following: int, payload: bytes) -> bytes:
    """The first fragment of more."""
    return struct.pack(">BBHI", following, 0, 1, 7) + payload


def icmp6(kind: int, body: bytes = bytes(4)) -> bytes:
    return struct.pack(">BBH", kind, 0, 0) + body


def option(kind: int, address: str) -> bytes:
    return bytes([kind, 1]) + mac(address)


def solicitation(target: IPv6Address, options: bytes = b"") -> bytes:
    return icmp6(135, bytes(4) + target.packed + options)


def advertisement(target: IPv6Address, options: bytes = b"") -> bytes:
    return icmp6(136, struct.pack(">I", 0x20000000) + target.packed + options)
