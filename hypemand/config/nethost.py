# SPDX-License-Identifier: Apache-2.0
"""The key `networks` of the host config, and the network that there is without it."""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Iterator, Mapping
from ipaddress import IPv4Interface, IPv6Address, IPv6Interface
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hypemand.config.netparse import (
    NONE,
    parse_egress,
    parse_gateway4,
    parse_gateway6,
    parse_host_port,
    parse_server,
)
from hypemand.config.network import DEFAULT_NETWORK, NetworkConfig
from hypemand.config.source import KeyPath
from hypemand.errors import Problem

MACHINE_ID = Path("/etc/machine-id")
DEFAULT_BRIDGE = "hypeman0"
# Nobody's default that is known: docs/host-config.md names whose ranges lie where. 4093 VMs have room in it.
DEFAULT_IPV4 = IPv4Interface("10.83.112.1/20")
# What the kernel wants before a device may speak IPv6.
MIN_MTU_IPV6 = 1280

# Keys the machine's id, which machine-id(5) wants to be kept to the machine, for this one use.
_ULA_KEY = b"hypemand: prefix of the default network"

Say = Callable[[KeyPath, str, str], Problem]


def read_machine_id(path: Path = MACHINE_ID) -> str:
    """The machine's id, 32 hexadecimal digits; "" where there is none."""
    try:
        text = path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
    return text if re.fullmatch("[0-9a-f]{32}", text) else ""


def derive_default_ipv6(machine_id: str) -> IPv6Interface | None:
    """The gateway in the default network's /64 of unique local addresses (RFC 4193), which stays the same on
    one machine and differs between machines. None without an id."""
    if not machine_id:
        return None
    digest = hmac.digest(bytes.fromhex(machine_id), _ULA_KEY, "sha256")
    return IPv6Interface((IPv6Address(b"\xfd" + digest[:5] + bytes(9) + b"\x01"), 64))


def make_networks(data: Mapping[str, Any], machine_id: str) -> Mapping[str, NetworkConfig]:
    """The networks by name, of `networks` that can be read; the default one first."""
    named = {DEFAULT_NETWORK: {}} | dict(data)
    return MappingProxyType(
        {name: _make_network(name, keys, machine_id) for name, keys in named.items() if keys != NONE}
    )


def _make_network(name: str, data: Mapping[str, Any], machine_id: str) -> NetworkConfig:
    managed = data.get("managed", True)
    is_default = name == DEFAULT_NETWORK and managed
    values: dict[str, Any] = {
        "bridge": DEFAULT_BRIDGE if is_default else "",
        "ipv4": DEFAULT_IPV4 if is_default else None,
        "ipv6": derive_default_ipv6(machine_id) if is_default else None,
        # what is on a LAN reaches it as it is, and who else is there
        "nat": managed,
        "isolation": managed,
    }
    for key, value in data.items():
        match key:
            case "ipv4":
                values[key] = parse_gateway4(value)
            case "ipv6":
                values[key] = parse_gateway6(value)
            case "dns":
                values[key] = tuple(parse_server(text) for text in value)
            case "host_ports":
                values[key] = frozenset(parse_host_port(str(port)) for port in value)
            case "egress":
                values[key] = tuple(parse_egress(text) for text in value)
            case "mtu" | "connections":
                values[key] = int(value)
            case _:
                values[key] = value
    return NetworkConfig(name, **values)


def find_networks_problems(networks: Mapping[str, NetworkConfig], say: Say) -> Iterator[Problem]:
    """What does not go together in the networks of all files."""
    before: list[NetworkConfig] = []
    for network in networks.values():
        path = ("networks", network.name)
        if not network.bridge:
            example = f"{network.name[:12]}br0" if network.managed else "br0"
            yield say((*path, "bridge"), "is missing", f"write for example bridge: {example}")
        if network.ipv4 is None and network.ipv6 is None and not network.dhcp:
            hint = "write ipv4: 10.20.30.1/24, or ipv6, or both"
            yield say(path, "has no addresses", hint if network.managed else f"{hint}, or dhcp: true")
        yield from _find_kind_problems(network, say)
        if network.ipv6 is not None and network.mtu < MIN_MTU_IPV6:
            hint = f"write {MIN_MTU_IPV6} or more, or ipv6: none"
            yield say((*path, "mtu"), f"{network.mtu} is too small for IPv6", hint)
        for other in before:
            yield from _find_clashes(network, other, say)
        before.append(network)


def _find_kind_problems(network: NetworkConfig, say: Say) -> Iterator[Problem]:
    """What a network has that is only for those of hypemand's own bridges, or only for others."""
    path = ("networks", network.name)
    if network.managed and network.dhcp:
        what = "is for networks with managed: false: hypemand gives VMs on its own bridges their addresses"
        yield say((*path, "dhcp"), what, "remove it")
    if not network.managed and network.nat:
        what = "is not possible with managed: false: hypemand is no router on a bridge of others"
        yield say((*path, "nat"), what, "remove it")
    if not network.managed and network.egress is not None:
        what = "is not possible with managed: false: what VMs send to the LAN passes no firewall of this host"
        yield say((*path, "egress"), what, "remove it, and restrict them at the LAN's gateway")


def _find_clashes(network: NetworkConfig, other: NetworkConfig, say: Say) -> Iterator[Problem]:
    path = ("networks", network.name)
    if network.bridge and network.bridge == other.bridge:
        what = f"{network.bridge} is already the bridge of network {other.name}"
        yield say((*path, "bridge"), what, "write a bridge for each")
    for key, mine, theirs in (("ipv4", network.ipv4, other.ipv4), ("ipv6", network.ipv6, other.ipv6)):
        if mine is not None and theirs is not None and mine.network.overlaps(theirs.network):
            what = f"{mine} overlaps {theirs} of network {other.name}"
            yield say((*path, key), what, "write a subnet that shares no address with it")


def find_default_problems(
    default: str | None, networks: Mapping[str, NetworkConfig], say: Say
) -> Iterator[Problem]:
    """Is what `defaults.network` names there?"""
    if default is not None and default not in networks:
        hint = f"write {', '.join(networks)}{' or ' if networks else ''}{NONE}"
        yield say(("defaults", "network"), f"{default} is not among networks", hint)
