# SPDX-License-Identifier: Apache-2.0
"""Which addresses of a network a machine may have: one rule for the host config, definitions and leases."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network

Address = IPv4Address | IPv6Address
Interface = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network


def find_range(network: Network) -> tuple[int, int]:
    """The first and last address that a machine may have: not the network's first (of IPv6 RFC 4291, 2.6.1),
    and not IPv4's last. Networks are of /30 or /126 at least (netparse)."""
    last = int(network.broadcast_address)
    return int(network.network_address) + 1, last - 1 if network.version == 4 else last


def count_addresses(gateway: Interface) -> int:
    """How many VMs a network has addresses for: the gateway has one too."""
    first, last = find_range(gateway.network)
    return last - first


def describe_special(address: Address, network: Network) -> str:
    """The special meaning of an address in a network, as "the gateway"; "": an address of a host."""
    first, last = find_range(network)
    if int(address) < first:
        return "the network address" if network.version == 4 else "the routers' anycast address"
    return "the broadcast address" if int(address) > last else ""


def find_misfit(address: Address, gateway: Interface | None, name: str) -> str:
    """Why no VM can have an address on the network of that name; "" if one can. `gateway` None: the network
    has no addresses of that family."""
    if gateway is None:
        return f"is of a family that network {name} has not"
    if address not in gateway.network:
        return f"is not in {gateway.network}, the subnet of network {name}"
    if address == gateway.ip:
        return f"is the gateway's address in network {name}"
    special = describe_special(address, gateway.network)
    return f"is {special} of network {name}" if special else ""


def suggest_address(gateway: Interface | None, *, chosen: bool = True) -> str:
    """What to write instead of an address that does not fit. `chosen`: one can be left out."""
    if gateway is None:
        return "remove it, or name another network"
    first, last = map(type(gateway.ip), find_range(gateway.network))
    but = "" if gateway.ip in (first, last) else f" but {gateway.ip}"
    first, last = first + (gateway.ip == first), last - (gateway.ip == last)
    found = f"write one of {first} to {last}{but}"
    return f"{found}, or leave it out to have one chosen" if chosen else f"{found} that nobody else has"
