# SPDX-License-Identifier: Apache-2.0
"""Addresses that an interface gives itself from its MAC address: EUI-64, RFC 4291 appendix A."""

from __future__ import annotations

from ipaddress import IPv6Address, IPv6Network

PREFIX_LENGTH = 64
"""The longest prefix that leaves room for an interface identifier."""

LINK_LOCAL = IPv6Network("fe80::/64")


def derive_eui64(mac: str, network: IPv6Network) -> IPv6Address:
    """The address in `network`, of at most PREFIX_LENGTH, of an interface with that MAC address."""
    octets = bytes.fromhex(mac.replace(":", ""))
    identifier = bytes([octets[0] ^ 0x02]) + octets[1:3] + b"\xff\xfe" + octets[3:]
    return IPv6Address(int(network.network_address) | int.from_bytes(identifier, "big"))
