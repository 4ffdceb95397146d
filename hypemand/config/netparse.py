# SPDX-License-Identifier: Apache-2.0
"""Texts that networks are written in: addresses, gateways, ports.

Each parser raises ValueError that says what is wrong and, after a semicolon, what would be right.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from enum import StrEnum
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_network,
)

from hypemand.config.addresses import describe_special
from hypemand.config.network import Egress, HostPort, Publish, Transport

NONE = "none"
# Of one VM. Each is a socket that the network service holds, and an element of its rules.
MAX_PUBLISHED = 64

_PORTS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_PREFIX = re.compile(r"[0-9]{1,3}")
_PUBLISH_FORM = "write HOST_PORT:PORT, such as 8080:80, 127.0.0.1:53:53/udp or [2001:db8::1]:8080:80"
_EGRESS_FORM = (
    "write a network, optionally with a port or port range, such as 10.0.0.0/8, 192.0.2.7 443 or ::/0 53/udp"
)
_THIS_HOST = IPv4Network("0.0.0.0/8")


class NetworkText(StrEnum):
    """Kinds of texts, as the schemas name them in `x-network`."""

    ADDRESS = "address"
    ADDRESS4 = "address4"
    ADDRESS6 = "address6"
    EGRESS = "egress"
    GATEWAY4 = "gateway4"
    GATEWAY6 = "gateway6"
    MAC = "mac"
    PORT = "port"
    PUBLISH = "publish"

    @property
    def words(self) -> str:
        """What it is, for the reference."""
        return _WORDS[self]


_WORDS = {
    NetworkText.ADDRESS: "IP address",
    NetworkText.ADDRESS4: "IPv4 address",
    NetworkText.ADDRESS6: "IPv6 address",
    NetworkText.EGRESS: "network, optionally with a port",
    NetworkText.GATEWAY4: "IPv4 address with prefix, or `none`",
    NetworkText.GATEWAY6: "IPv6 address with prefix, or `none`",
    NetworkText.MAC: "MAC address",
    NetworkText.PORT: "port",
    NetworkText.PUBLISH: "published port",
}


def parse_network_text(kind: str, value: str | int) -> object:
    """The value of a text of this kind of `NetworkText`."""
    return _PARSERS[NetworkText(kind)](str(value))


def parse_address4(text: str) -> IPv4Address:
    """An IPv4 address."""
    try:
        return IPv4Address(text)
    except ValueError:
        raise ValueError(f"{text[:60]!r} is not an IPv4 address; write one such as 10.83.112.20") from None


def parse_address6(text: str) -> IPv6Address:
    """An IPv6 address, without a zone, and no IPv4 address in its clothes."""
    try:
        address = IPv6Address(text)
    except ValueError:
        address = None
    if address is None or address.scope_id is not None:
        raise ValueError(f"{text[:60]!r} is not an IPv6 address; write one such as fd00:1:2:3::20")
    if address.ipv4_mapped is not None:
        raise ValueError(f"{text} is an IPv4 address; write it as {address.ipv4_mapped}")
    return address


def parse_server(text: str) -> IPv4Address | IPv6Address:
    """The address of a name server that VMs can ask."""
    try:
        address = parse_address6(text) if ":" in text else parse_address4(text)
    except ValueError:
        raise ValueError(
            f"{text[:60]!r} is not an IP address; write one such as 9.9.9.9 or 2620:fe::fe"
        ) from None
    if address.is_loopback:
        raise ValueError(f"{text} is local to the guest; write an address that VMs can reach")
    _check_unicast(address)
    return address


def parse_gateway4(text: str) -> IPv4Interface | None:
    """The host's address in a network, with the network's prefix: 10.83.112.1/20. None for `none`."""
    found = _split_gateway(text, parse_address4, "10.83.112.1/20", 8, 30)
    if found is None:
        return None
    gateway = IPv4Interface(found)
    _check_unicast(gateway.ip)
    _check_host_address(gateway.ip, gateway.network)
    return gateway


def parse_gateway6(text: str) -> IPv6Interface | None:
    """As parse_gateway4, of IPv6: fd00:1:2:3::1/64."""
    found = _split_gateway(text, parse_address6, "fd00:1:2:3::1/64", 64, 126)
    if found is None:
        return None
    gateway = IPv6Interface(found)
    _check_unicast(gateway.ip)
    _check_host_address(gateway.ip, gateway.network)
    return gateway


def _split_gateway(
    text: str, parse: Callable[[str], object], example: str, low: int, high: int
) -> tuple[str, int] | None:
    """Address and length of the prefix."""
    if text == NONE:
        return None
    address, slash, prefix = text.partition("/")
    try:
        parse(address)
    except ValueError as error:
        raise ValueError(
            f"{str(error).partition('; ')[0]}; write one with a prefix length, such as {example}"
        ) from None
    if not slash:
        raise ValueError(f"{text} has no prefix length; write one, such as {example}")
    if _PREFIX.fullmatch(prefix) is None or not low <= int(prefix) <= high:
        raise ValueError(
            f"/{prefix[:20]} is not a valid prefix length for a network; write /{low} to /{high}"
        )
    return address, int(prefix)


def _check_unicast(address: IPv4Address | IPv6Address) -> None:
    """Can it be the address of one machine in a network that is routed?"""
    is_strange = address.version == 4 and (address.is_reserved or address in _THIS_HOST)
    for is_so, what in (
        (address.is_unspecified, "is the unspecified address"),
        (address.is_loopback, "is a loopback address"),
        (address.is_multicast, "is a multicast address"),
        (address.is_link_local, "is a link-local address"),
        (is_strange, "is reserved"),
    ):
        if is_so:
            raise ValueError(f"{address} {what}; write the address of a single host")


def _check_host_address(address: IPv4Address | IPv6Address, network: IPv4Network | IPv6Network) -> None:
    if what := describe_special(address, network):
        hint = f"write another, such as {network.network_address + 1}/{network.prefixlen}"
        raise ValueError(f"{address} is {what} of {network}; {hint}")


def parse_mac(text: str) -> str:
    """A MAC address that one machine can have, in lower case."""
    mac = text.lower()
    if _MAC.fullmatch(mac) is None:
        raise ValueError(f"{text[:40]!r} is not a MAC address; write one such as 52:54:00:12:34:56")
    first = int(mac[:2], 16)
    if first & 1:
        hint = f"write an even first byte, such as {first & 0xFE:02x}{mac[2:]}"
        raise ValueError(f"{text} is a multicast address; {hint}")
    if mac == "00:00:00:00:00:00":
        raise ValueError(f"{text} is not a valid address; write one such as 52:54:00:12:34:56")
    return mac


def parse_host_port(text: str) -> HostPort:
    """`53/udp`; `80` is of TCP."""
    ports, transport = _split_transport(text, "write a port from 1 to 65535, such as 80 or 53/udp")
    numbers = _parse_ports(ports, "write a port from 1 to 65535, such as 80 or 53/udp")
    if len(numbers) != 1:
        raise ValueError(f"{text} is a range; write each port separately")
    return HostPort(transport, numbers[0])


def format_host_port(port: HostPort) -> str:
    """As parse_host_port reads it."""
    return f"{port.port}{_suffix(port.transport)}"


def parse_egress(text: str) -> Egress:
    """`10.0.0.0/8`, `192.0.2.7 443`, `2001:db8::/32 8000-8999/tcp`, `0.0.0.0/0 53/udp`."""
    where, space, what = text.partition(" ")
    network = _parse_network(where)
    if not space:
        return Egress(network)
    ports, transport = _split_transport(what, _EGRESS_FORM)
    first, last = _parse_range(ports, _EGRESS_FORM)
    return Egress(network, transport, first, last)


def _parse_network(text: str) -> IPv4Network | IPv6Network:
    """`10.0.0.0/8`, or the address of one machine."""
    address, slash, prefix = text.partition("/")
    try:
        parse_address6(address) if ":" in address else parse_address4(address)
        if slash and _PREFIX.fullmatch(prefix) is None:
            raise ValueError(prefix)
        network = ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{text[:60]!r} is not a network; {_EGRESS_FORM}") from None
    if str(network.network_address) != str(ip_address(address)):
        raise ValueError(f"{text} has host bits set; write {network}")
    return network


def format_egress(egress: Egress) -> str:
    """As parse_egress reads it."""
    if egress.transport is None:
        return str(egress.network)
    ports = str(egress.first) if egress.first == egress.last else f"{egress.first}-{egress.last}"
    return f"{egress.network} {ports}{_suffix(egress.transport)}"


def parse_publish(text: str) -> tuple[Publish, ...]:
    """`8080:80`, `127.0.0.1:53:53/udp`, `[fd00::1]:8080:80`; ranges, as 8000-8009:80-89, give one a port."""
    rest, transport = _split_transport(text, _PUBLISH_FORM)
    address: IPv4Address | IPv6Address | None = None
    head, colon, guest = rest.rpartition(":")
    before, between, host = head.rpartition(":")
    if not colon:
        raise ValueError(f"{text[:80]!r} has no host port; {_PUBLISH_FORM}")
    if between:
        address = _parse_publish_address(before)
    hosts, guests = _parse_ports(host, _PUBLISH_FORM), _parse_ports(guest, _PUBLISH_FORM)
    if len(hosts) != len(guests):
        raise ValueError(
            f"{host} has {len(hosts)} ports, {guest} has {len(guests)}; write ranges of the same length"
        )
    return tuple(Publish(address, h, g, transport) for h, g in zip(hosts, guests, strict=True))


def format_publish(publish: Publish) -> str:
    """As parse_publish reads it."""
    address = publish.address
    where = "" if address is None else f"[{address}]:" if address.version == 6 else f"{address}:"
    return f"{where}{publish.host_port}:{publish.guest_port}{_suffix(publish.transport)}"


def _parse_publish_address(text: str) -> IPv4Address | IPv6Address:
    is_bracketed = text.startswith("[") and text.endswith("]")
    if not is_bracketed and ":" in text:
        raise ValueError(f"{text[:60]!r} is an IPv6 address without brackets; {_PUBLISH_FORM}")
    address = parse_address6(text[1:-1]) if is_bracketed else parse_address4(text)
    if address.is_unspecified:
        raise ValueError(f"{address} means all addresses; omit it, which has the same effect")
    if address.version == 6 and address.is_loopback:
        raise ValueError(f"{address} is reserved by the kernel; write 127.0.0.1, or omit it")
    if not address.is_loopback:
        _check_unicast(address)
    return address


def _split_transport(text: str, hint: str) -> tuple[str, Transport]:
    rest, slash, word = text.partition("/")
    if not slash:
        return text, Transport.TCP
    if word not in (Transport.TCP, Transport.UDP):
        raise ValueError(f"{word[:20]!r} is neither tcp nor udp; {hint}")
    return rest, Transport(word)


def _suffix(transport: Transport) -> str:
    return "" if transport is Transport.TCP else f"/{transport}"


def _parse_ports(text: str, hint: str) -> range:
    first, last = _parse_range(text, hint)
    if last - first >= MAX_PUBLISHED:
        raise ValueError(f"{text} has {last - first + 1} ports; write at most {MAX_PUBLISHED}")
    return range(first, last + 1)


def _parse_range(text: str, hint: str) -> tuple[int, int]:
    found = _PORTS.fullmatch(text)
    if found is None:
        raise ValueError(f"{text[:60]!r} is not a port; {hint}")
    first, last = int(found[1]), int(found[2] or found[1])
    if not 1 <= first <= 65535 or not 1 <= last <= 65535:
        raise ValueError(f"{text} is not from 1 to 65535; {hint}")
    if first > last:
        raise ValueError(f"{text} ends before it begins; write {last}-{first}")
    return first, last


_PARSERS: Mapping[NetworkText, Callable[[str], object]] = {
    NetworkText.ADDRESS: parse_server,
    NetworkText.ADDRESS4: parse_address4,
    NetworkText.ADDRESS6: parse_address6,
    NetworkText.EGRESS: parse_egress,
    NetworkText.GATEWAY4: parse_gateway4,
    NetworkText.GATEWAY6: parse_gateway6,
    NetworkText.MAC: parse_mac,
    NetworkText.PORT: parse_host_port,
    NetworkText.PUBLISH: parse_publish,
}
