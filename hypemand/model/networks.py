# SPDX-License-Identifier: Apache-2.0
"""Networks, and the addresses of VMs in them."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface

from hypemand.config.network import Bandwidth, Egress, HostPort, Publish
from hypemand.model.counters import Counters

# The group of all VMs that are not isolated: no name of a group has such a character.
OPEN_GROUP = "*"


@dataclass(frozen=True, slots=True)
class VmNetwork:
    """A VM's place in its network. Addresses are None until it was started for the first time, unless its
    definition has them, and from when its network has them no more until its next start.

    `group`: see PortPlan. `interface`: the TAP device, while there is one; `counters` of it, as they were
    read last.
    """

    name: str
    ipv4: IPv4Address | None
    ipv6: IPv6Address | None
    mac: str | None
    group: str | None
    publish: tuple[Publish, ...]
    bandwidth: Bandwidth
    interface: str | None
    counters: Counters | None


@dataclass(frozen=True, slots=True)
class Member:
    """A VM that has addresses in a network. `attached`: it has its TAP device now. VMs of one network with
    the same `group` reach each other; None: it reaches none. `publish`: as it has it, or would have it.
    `short_name`: the host knows it by its name alone, and not only by NAME.hypeman."""

    vm: str
    vm_id: str
    network: str
    mac: str
    ipv4: IPv4Address | None
    ipv6: IPv6Address | None
    group: str | None
    attached: bool
    publish: tuple[Publish, ...] = ()
    short_name: bool = True


@dataclass(frozen=True, slots=True)
class NetworkInfo:
    """A network as it is on the host now.

    `problem` "": VMs can be on it. `pending`: the host config has it otherwise, or not at all, and so it will
    be as soon as no VM is on it any more. `dns`: the name servers that VMs get. `addresses` and
    `free_addresses`: of IPv4, or of IPv6 in a network that has that alone; 0 unless it is `managed`."""

    name: str
    bridge: str
    ipv4: IPv4Interface | None
    ipv6: IPv6Interface | None
    mtu: int
    dns: tuple[IPv4Address | IPv6Address, ...]
    nat: bool
    managed: bool
    dhcp: bool
    isolation: bool
    host_ports: tuple[HostPort, ...]
    connections: int
    egress: tuple[Egress, ...] | None
    link_local: bool
    problem: str
    warnings: tuple[str, ...]
    pending: bool
    addresses: int
    free_addresses: int
    members: tuple[Member, ...]
