# SPDX-License-Identifier: Apache-2.0
"""Requests and responses of the network service: values, and their JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from typing import Protocol

from hypemand.config.network import DEFAULT_CONNECTIONS, Bandwidth, Egress, HostPort, Publish
from hypemand.model.counters import Connections, Counters

TAP_PREFIX = "hv"


def tap_name(uid: int) -> str:
    """The TAP device of the VM whose VMM runs under `uid`: every VM has a uid of its own, so no two VMs have
    one name."""
    return f"{TAP_PREFIX}{uid}"


@dataclass(frozen=True, slots=True)
class BridgePlan:
    """A network as it is to be on the host, or with `managed` False as it is expected there. See
    `hypemand.config.network.NetworkConfig`."""

    network: str
    bridge: str
    ipv4: IPv4Interface | None
    ipv6: IPv6Interface | None
    mtu: int
    nat: bool
    host_ports: frozenset[HostPort]
    egress: tuple[Egress, ...] | None = None
    link_local: bool = False
    managed: bool = True
    dhcp: bool = False


# What of a network cannot change while VMs are on it; all else can.
_SHAPE = ("bridge", "ipv4", "ipv6", "mtu", "managed", "dhcp")


def has_same_shape(one: BridgePlan, other: BridgePlan) -> bool:
    """Can one become the other without a VM on it noticing?"""
    return all(getattr(one, key) == getattr(other, key) for key in _SHAPE)


def adapt_bridge(bridge: BridgePlan, wanted: BridgePlan) -> BridgePlan:
    """A network that VMs are on, with what of it can change under them."""
    return replace(wanted, network=bridge.network, **{key: getattr(bridge, key) for key in _SHAPE})


@dataclass(frozen=True, slots=True)
class PortPlan:
    """A VM's place on a bridge. `group`: VMs of one network with the same group reach each other; None: it
    reaches none. `connections`: how many conntrack may know of it. `egress`: narrower than the bridge's."""

    vm: str
    uid: int
    bridge: BridgePlan
    mac: str
    ipv4: IPv4Address | None
    ipv6: IPv6Address | None
    group: str | None
    publish: tuple[Publish, ...]
    bandwidth: Bandwidth
    connections: int = DEFAULT_CONNECTIONS
    egress: tuple[Egress, ...] | None = None

    @property
    def tap(self) -> str:
        """The name of its TAP device."""
        return tap_name(self.uid)

    @property
    def is_free4(self) -> bool:
        """Does it get its IPv4 address from the LAN, which nobody here knows?"""
        return self.bridge.dhcp and self.ipv4 is None

    @property
    def is_free6(self) -> bool:
        """Does it get its IPv6 addresses from the LAN?"""
        return self.bridge.dhcp and self.ipv6 is None


def derive_plans(bridges: Iterable[BridgePlan], ports: Iterable[PortPlan]) -> dict[str, BridgePlan]:
    """By the bridges' names, how each is to be: as it is for the VMs that are on it, but for what can change
    under them."""
    wished: dict[str, BridgePlan] = {}
    for plan in bridges:
        wished.setdefault(plan.bridge, plan)
    plans: dict[str, BridgePlan] = {}
    for port in ports:
        kept = port.bridge
        new = wished.get(kept.bridge)
        if new is not None and new.network == kept.network:
            kept = adapt_bridge(kept, new)
        plans[kept.bridge] = kept
    # those with VMs first: when two networks cannot be together, the one that is there stays
    return plans | {bridge: plan for bridge, plan in wished.items() if bridge not in plans}


@dataclass(frozen=True, slots=True)
class NetworkStatus:
    """A network on the host. `problem` "": it is as it is to be; otherwise why no VM can be on it now.
    `warnings`: what works less well than asked for, as forwarding that another firewall drops."""

    network: str
    problem: str
    warnings: tuple[str, ...] = ()


class NetworkHost(Protocol):
    """The host's networks. What it raises: HostNotReady when the service cannot be asked, the kernel lacks
    something or refuses a rule; InvalidDefinition, InUse or InsufficientResources for what is not
    available."""

    async def apply(
        self, bridges: tuple[BridgePlan, ...], ports: tuple[PortPlan, ...], *, prune: bool
    ) -> tuple[NetworkStatus, ...]:
        """Make the host be so: bridges, TAP devices, rules, limits and port reservations, whatever is there
        now. With `prune`, what is ours and not named is removed; without, it is left as it is. A network with
        a problem keeps nobody from the others."""

    async def attach(self, port: PortPlan) -> int:
        """Make a VM's TAP device with all that belongs to it; the index of the interface. When it fails
        nothing of it is left. One that is there already is made anew."""

    async def detach(self, port: PortPlan) -> None:
        """Remove it, with rules, limits, reservations and what conntrack remembers of its addresses. What is
        not there is no error."""

    async def counters(self) -> Mapping[str, Counters]:
        """Counters of every TAP device of hypemand, by its name."""

    async def connections(self) -> Mapping[str, Connections]:
        """New connections of each VM, by its TAP device."""
