# SPDX-License-Identifier: Apache-2.0
"""Who has which place in the host's networks: worked out of the host config, the VMs' definitions and leases,
and what VMs have while they run. Nothing here waits, asks the host, or reads and writes files: the content of
files is passed in, and what is to be written is left in `unwritten`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import replace
from itertools import chain

from hypemand.config.netdef import find_lan_misfits
from hypemand.config.network import NetworkConfig, NetworkUse
from hypemand.errors import InvalidDefinition, Problem
from hypemand.manager.net.leases import AddressUse, allocate, derive_address_uses, is_lease_of, keep_fitting
from hypemand.manager.net.names import Hosts, derive_guest_names
from hypemand.manager.net.ports import (
    FoundPort,
    check_publish,
    derive_connections,
    derive_group,
    make_bridge,
    make_port,
)
from hypemand.manager.plan import Connection
from hypemand.model.counters import Counters
from hypemand.model.networks import Member, VmNetwork
from hypemand.network.port import BridgePlan, PortPlan, adapt_bridge, has_same_shape
from hypemand.network.resolvers import Address, choose_servers
from hypemand.protocol.configdisk import GuestInterface
from hypemand.vm.networkmember import NetworkMember
from hypemand.vm.record import Lease

_INTERFACE = "eth0"


class AddressAllocation:
    """Asked each time, since it may have changed: the networks of the host config, and all VMs. On a host
    without IPv6 (`has_ipv6`) its networks have IPv4 alone, if they have that.

    `host_servers`: the host's own name servers, as they were learned last. `ports`: of VMs that have a TAP
    device, or may have one; `reserved`: of those that were let through and have none yet; `unwritten`: those
    whose port.json is to be written anew. All three by the VM's name.
    """

    def __init__(
        self,
        config: Callable[[], Mapping[str, NetworkConfig]],
        network_members: Callable[[], Iterable[NetworkMember]],
        *,
        has_ipv6: bool = True,
    ) -> None:
        self.host_servers: tuple[Address, ...] = ()
        self.ports: dict[str, PortPlan] = {}
        self.reserved: dict[str, PortPlan] = {}
        self._configured = config
        self._has_ipv6 = has_ipv6
        self.unwritten: dict[str, PortPlan] = {}
        self._network_members = network_members

    def _config(self) -> Mapping[str, NetworkConfig]:
        """The networks as this host can have them."""
        networks = self._configured()
        if self._has_ipv6:
            return networks
        return {name: network.without_ipv6() for name, network in networks.items()}

    def lacks_ipv6(self, name: str) -> bool:
        """Has a network no IPv6 only since the host has none?"""
        network = self._configured().get(name)
        return network is not None and network != self._config()[name]

    # a VM that is to start

    def plan(self, member: NetworkMember) -> Connection | None:
        """What a VM gets if it is started now; None for one without a network. InvalidDefinition, InUse,
        InsufficientResources."""
        use = member.use
        if use is None:
            return None
        network = self._get_config(use.name)
        if found := list(find_lan_misfits(use, network)):
            raise InvalidDefinition(
                [Problem("", 0, 0, f"network.{key}", what, hint) for key, what, hint in found]
            )
        bridge = self._bridge(network)
        uses = list(self._address_uses(member.vm, use.name))
        lease = allocate(member.vm, member.vm_id, use, bridge, member.lease, uses)
        port = make_port(member.vm, member.uid, use, lease, bridge, network)
        check_publish(port, (*self.ports.values(), *self.reserved.values()))
        dns = self.servers(network, lease)
        hosts = self._names(member, port)
        return Connection(lease, port, _make_interface(port), tuple(map(str, dns)), hosts)

    def lacks_servers(self, member: NetworkMember) -> bool:
        """Would a VM get no name server, since the host knows none yet?"""
        network = None if member.use is None else self.find_config(member.use.name)
        if network is None or network.dns is not None or network.dhcp:
            return False
        return not self.servers(network, network)

    def servers(
        self, config: NetworkConfig | None, reached: NetworkConfig | BridgePlan | Lease
    ) -> tuple[Address, ...]:
        """The name servers for a VM with addresses like those of `reached`."""
        servers = self.host_servers if config is None or config.dns is None else config.dns
        return choose_servers(servers, ipv4=reached.ipv4 is not None, ipv6=reached.ipv6 is not None)

    def _names(self, member: NetworkMember, port: PortPlan) -> Hosts:
        """The names that a VM knows when it is started now."""
        own = _make_member(member, port)
        peers = [m for m in self.members() if (m.network, m.group) == (own.network, own.group)]
        return derive_guest_names([own, *(m for m in peers if m.vm != own.vm)])[own.vm]

    def reserve(self, member: NetworkMember) -> Connection | None:
        """`plan`, and nobody else gets the same until `attach` or `give_up`."""
        connection = self.plan(member)
        if connection is not None:
            self.reserved[member.vm] = connection.port
        return connection

    def find_config(self, name: str) -> NetworkConfig | None:
        """A network as it is in the host config."""
        return self._config().get(name)

    def _get_config(self, name: str) -> NetworkConfig:
        config = self.find_config(name)
        if config is None:
            hint = " or ".join([*sorted(self._config()), "network: none"])
            what = f"there is no network {name} in the host configuration"
            raise InvalidDefinition([Problem("", 0, 0, "network.name", what, f"write {hint}")])
        return config

    def _address_uses(self, vm: str, network: str) -> Iterator[AddressUse]:
        """What others have on a network: by their lease, by their definition, or since they run with it."""
        for member in self._network_members():
            if member.vm != vm:
                yield from derive_address_uses(member.vm, member.use, member.lease, network)
        for port in (*self.ports.values(), *self.reserved.values()):
            if port.vm != vm and port.bridge.network == network:
                yield AddressUse(port.vm, port.mac, port.ipv4, port.ipv6)

    # VMs that run

    def list_vms(self) -> list[str]:
        """The names of all VMs."""
        return [member.vm for member in self._network_members()]

    def recover(self, found: Mapping[str, FoundPort], active: Callable[[str], bool]) -> list[PortPlan]:
        """Learn what VMs had when the daemon before this one ended: the content of their files; `active`:
        does a VM still run? Those that do not are given back."""
        ended = []
        for vm, (port, _) in found.items():
            if port is None:
                continue
            if active(vm):
                self.ports[vm] = port
            else:
                ended.append(port)
        return ended

    def list_strange(self, live: Set[str]) -> list[str]:
        """Of VMs that run, those of whose port nothing is known."""
        return sorted(live - self.ports.keys() - self.reserved.keys())

    def adopt(self, live: Set[str], found: Mapping[str, FoundPort]) -> frozenset[str]:
        """Learn the ports of every VM that runs; `found`: the content of the files of `list_strange`. Gives
        those that may have a TAP device of which no more is known."""
        network_members = {member.vm: member for member in self._network_members()}
        lost = set()
        for vm in self.list_strange(live):
            # also of one whose record cannot be read
            member = network_members.get(vm)
            # one that has come to be strange while files were read may have anything in its own
            port, is_there = found.get(vm, (None, True))
            port = port or (self._rebuild(member) if vm in found else None)
            if port is not None:
                self.ports[vm] = port
            elif is_there or member is None or (member.running and member.lease):
                lost.add(vm)
        return frozenset(lost)

    def _rebuild(self, member: NetworkMember | None) -> PortPlan | None:
        """The port of a VM that runs, whose port.json was lost."""
        if member is None:
            return None
        use, lease = member.running, member.lease
        config = None if use is None else self.find_config(use.name)
        if use is None or lease is None or config is None or lease.network != use.name:
            return None
        port = make_port(member.vm, member.uid, use, lease, self._bridge(config), config)
        self.unwritten[port.vm] = port
        return port

    def renew(self) -> None:
        """Apply the parts of a changed network that need no restart: which addresses VMs may reach, and which
        VMs reach each other."""
        config = self._config()
        uses = {member.vm: member.running or member.use for member in self._network_members()}
        for vm, port in self.ports.items():
            network, use = config.get(port.bridge.network), uses.get(vm)
            if network is None:
                continue
            wished = make_bridge(network)
            renewed = replace(port, bridge=adapt_bridge(port.bridge, wished))
            if use is not None and use.name == network.name:
                renewed = replace(
                    renewed,
                    group=derive_group(use, isolation=network.isolation),
                    connections=derive_connections(use, network),
                )
            if renewed != port:
                self.ports[vm] = self.unwritten[vm] = renewed

    def bridges(self) -> dict[str, BridgePlan]:
        """All networks, by name: those that VMs are on as they are, the others by the host config."""
        wanted = {name: make_bridge(network) for name, network in self._config().items()}
        return wanted | {port.bridge.network: port.bridge for port in self.ports.values()}

    def _bridge(self, network: NetworkConfig) -> BridgePlan:
        """A network as the next VM finds it."""
        for port in chain(self.ports.values(), self.reserved.values()):
            if port.bridge.network == network.name:
                return port.bridge
        return make_bridge(network)

    def is_used(self, network: str) -> bool:
        """Is a VM on it?"""
        return any(port.bridge.network == network for port in self.ports.values())

    def is_outdated(self, vm: str) -> bool:
        """Does it run on a network that is to be another?"""
        port = self.ports.get(vm)
        if port is None:
            return False
        network = self.find_config(port.bridge.network)
        return network is None or not has_same_shape(make_bridge(network), port.bridge)

    def is_on_lan(self, vm: str) -> bool:
        """Is it attached to a bridge that is not hypemand's?"""
        port = self.ports.get(vm)
        return port is not None and not port.bridge.managed

    def interface_of(self, vm: str) -> str | None:
        """The TAP device of a VM that has one."""
        port = self.ports.get(vm)
        return None if port is None else port.tap

    # what there is

    def members(self) -> tuple[Member, ...]:
        """All VMs that have addresses, by name."""
        found = (self._member(member) for member in self._network_members())
        return tuple(sorted((m for m in found if m is not None), key=lambda member: member.vm))

    def _member(self, member: NetworkMember) -> Member | None:
        port = self.ports.get(member.vm)
        if port is not None:
            return _make_member(member, port)
        use, lease = member.use, self._find_lease(member)
        if use is None or lease is None or (lease.ipv4 is None and lease.ipv6 is None):
            return None
        return Member(
            vm=member.vm,
            vm_id=member.vm_id,
            network=use.name,
            mac=lease.mac,
            ipv4=lease.ipv4,
            ipv6=lease.ipv6,
            group=self._group(use),
            attached=False,
            publish=use.publish,
            short_name=member.short_name,
        )

    def _find_lease(self, member: NetworkMember) -> Lease | None:
        """What a VM without a port would keep at a start: of a lease, what its network still has."""
        use, lease = member.use, member.lease
        if use is None or lease is None or not is_lease_of(use, lease):
            return None
        return self._keep_fitting(lease)

    def _keep_fitting(self, lease: Lease) -> Lease:
        config = self.find_config(lease.network)
        return keep_fitting(lease, None if config is None else self._bridge(config))

    def _group(self, use: NetworkUse) -> str | None:
        network = self.find_config(use.name)
        return derive_group(use, isolation=network is None or network.isolation)

    def view(self, member: NetworkMember, counters: Mapping[str, Counters]) -> VmNetwork | None:
        """A VM's place, as it is or would be; of its addresses only those that its network has. `counters`
        are by TAP device."""
        port = self.ports.get(member.vm)
        if port is not None:
            return VmNetwork(
                name=port.bridge.network,
                ipv4=port.ipv4,
                ipv6=port.ipv6,
                mac=port.mac,
                group=port.group,
                publish=port.publish,
                bandwidth=port.bandwidth,
                interface=port.tap,
                counters=counters.get(port.tap),
            )
        use = member.use
        if use is None:
            return None
        wish = Lease(use.name, use.mac or "", use.address, use.address6)
        lease = self._find_lease(member) or self._keep_fitting(wish)
        return VmNetwork(
            name=use.name,
            ipv4=lease.ipv4,
            ipv6=lease.ipv6,
            mac=lease.mac or None,
            group=self._group(use),
            publish=use.publish,
            bandwidth=use.bandwidth,
            interface=None,
            counters=None,
        )


def _make_member(member: NetworkMember, port: PortPlan) -> Member:
    return Member(
        vm=member.vm,
        vm_id=member.vm_id,
        network=port.bridge.network,
        mac=port.mac,
        ipv4=port.ipv4,
        ipv6=port.ipv6,
        group=port.group,
        attached=True,
        publish=port.publish,
        short_name=member.short_name,
    )


def _make_interface(port: PortPlan) -> GuestInterface:
    """The guest's configuration of its interface."""
    bridge = port.bridge
    addresses, gateways = [], []
    for address, own in ((port.ipv4, bridge.ipv4), (port.ipv6, bridge.ipv6)):
        if address is not None and own is not None:
            addresses.append(f"{address}/{own.network.prefixlen}")
            gateways.append(str(own.ip))
    return GuestInterface(port.mac, _INTERFACE, bridge.mtu, tuple(addresses), tuple(gateways))
