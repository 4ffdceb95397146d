# SPDX-License-Identifier: Apache-2.0
"""The VMs' places in the host's networks: who has which, when they are made, and when they go.

What is on the host is the network service's to make. It is told all that there is to be when the daemon
starts, when the host config has changed and when it has come back; a VM's start and end are told alone. One
thing is told at a time, so that the whole is never told without a VM that is just being started.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

from hypemand.config.network import NetworkConfig, NetworkUse
from hypemand.errors import HostNotReady, HypemandError, InvalidDefinition, NotFound, Problem
from hypemand.log import MessageId, log_vm
from hypemand.manager.leases import (
    Claim,
    Lease,
    allocate,
    count_addresses,
    derive_claims,
    is_lease_of,
    keep_fitting,
)
from hypemand.manager.names import Hosts, derive_guest_names
from hypemand.manager.networkview import Member, NetworkInfo, VmNetwork
from hypemand.manager.plan import Connection
from hypemand.manager.ports import (
    PortFiles,
    check_publish,
    derive_group,
    is_same_wire,
    make_bridge,
    make_port,
)
from hypemand.network.port import BridgePlan, Counters, NetworkHost, NetworkStatus, PortPlan
from hypemand.network.resolvers import Address, choose_servers, find_host_servers
from hypemand.network.wire import NOT_APPLIED
from hypemand.storage.configdisk import GuestInterface

_log = logging.getLogger(__name__)
_INTERFACE = "eth0"
_COUNTERS_DEADLINE = 1.0
_FIRST_LOOK = 5.0
_NO_SERVERS = (
    "VMs are told no name servers: the host has none that they could reach; write dns: in hypemand.yaml "
    "(dns: [] if there are to be none)"
)
# between attempts to tell all there is
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0


@dataclass(frozen=True, slots=True)
class Tenant:
    """A VM: `use` is its network by its definition, `running` by the one that it runs with, if it does."""

    vm: str
    vm_id: str
    uid: int
    use: NetworkUse | None
    lease: Lease | None
    running: NetworkUse | None = None


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What is asked each time, since it may have changed: the networks of the host config, all VMs, the names
    of those whose unit lives (BusError when systemd cannot be asked), and the host's own name servers."""

    config: Callable[[], Mapping[str, NetworkConfig]]
    tenants: Callable[[], Iterable[Tenant]]
    list_live: Callable[[], Awaitable[Set[str]]]
    servers: Callable[[], Iterable[Address]] = find_host_servers


class Networks:
    """`vms` is the folder of the VMs' records. `listeners` are called when `members` may have changed.
    `first_pause`: seconds until what could not be done is tried again."""

    def __init__(
        self, host: NetworkHost, vms: Path, around: Surroundings, *, first_pause: float = _FIRST_PAUSE
    ) -> None:
        self.listeners: list[Callable[[], None]] = []
        self._host = host
        self._files = PortFiles(vms)
        self._around = around
        # VMs that were let through and have no TAP device yet, and those that may have one
        self._claimed: dict[str, PortPlan] = {}
        self._ports: dict[str, PortPlan] = {}
        # of runs that have ended, whose end the network service was not told
        self._stale: list[PortPlan] = []
        self._statuses: dict[str, NetworkStatus] = {}
        self._pending: frozenset[str] = frozenset()
        self._counters: Mapping[str, Counters] = {}
        self._lock = asyncio.Lock()
        self._syncing: asyncio.Task[None] | None = None
        self._first_pause = first_pause
        self._due = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._told = asyncio.Event()
        self._closed = False
        # was the host told all there is, so that nothing of what there was before can be left?
        self._complete = True

    # all at once

    def recover(self, active: Callable[[str], bool]) -> None:
        """Learn what VMs had when the daemon before this one ended; `active`: does a VM still run?"""
        for tenant in self._around.tenants():
            port = self._files.find(tenant.vm)
            if port is None:
                continue
            if active(tenant.vm):
                self._ports[tenant.vm] = port
            else:
                self._stale.append(port)

    def begin_sync(self) -> None:
        """Have `sync` run in the background, until it could do all."""
        self._due.set()
        if not self._closed and (self._syncing is None or self._syncing.done()):
            self._syncing = asyncio.create_task(self._keep_syncing(), name="networks")

    async def _keep_syncing(self) -> None:
        pause = self._first_pause
        while self._due.is_set():
            self._due.clear()
            try:
                await self.sync()
            except Exception:
                _log.exception("the networks could not be looked at")
            if not self._complete:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._due.wait(), pause)
                self._due.set()
                pause = min(pause * 2, _LONGEST_PAUSE)

    async def close(self) -> None:
        """End what runs in the background. VMs keep their networks."""
        self._closed = True
        tasks = [*self._tasks, *([] if self._syncing is None else [self._syncing])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def sync(self) -> None:
        """Make the host's networks be as the host config and the VMs that run want them."""
        async with self._lock:
            await self._apply()
        self.tell()

    async def sync_within(self, seconds: float) -> None:
        """`sync`, but back after that time at the latest; it goes on then."""
        task = asyncio.create_task(self.sync(), name="networks")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        done, _ = await asyncio.wait([task], timeout=seconds)
        if done:
            task.result()

    async def _apply(self) -> None:
        prune = await self._adopt_live()
        config = self._around.config()
        self._renew_ports(config)
        bridges = self._wanted_bridges(config)
        try:
            statuses = await self._host.apply(
                tuple(bridges.values()), tuple(self._ports.values()), prune=prune
            )
        except HypemandError as error:
            statuses = tuple(NetworkStatus(name, str(error)) for name in bridges)
            self._complete = False
        else:
            self._complete = prune
            await self._drop_stale()
        self._take_statuses(statuses)
        self._tell_pending(config)
        if not self._complete and (self._syncing is None or self._syncing.done()):
            self.begin_sync()

    async def _adopt_live(self) -> bool:
        """Know of every VM that runs. False: that cannot be told, so nothing may be removed."""
        try:
            live = await self._around.list_live()
        except HypemandError as error:
            _log.warning("nothing is removed from the networks now: %s", error)
            return False
        tenants = {tenant.vm: tenant for tenant in self._around.tenants()}
        for vm in live - self._ports.keys() - self._claimed.keys():
            # also of one whose record cannot be read
            port = self._files.find(vm) or self._rebuild(tenants.get(vm))
            if port is not None:
                self._ports[vm] = port
        return True

    def _rebuild(self, tenant: Tenant | None) -> PortPlan | None:
        """The port of a VM that runs, whose port.json was lost."""
        if tenant is None:
            return None
        use, lease = tenant.running, tenant.lease
        config = None if use is None else self._around.config().get(use.name)
        if use is None or lease is None or config is None or lease.network != use.name:
            return None
        port = make_port(tenant.vm, tenant.uid, use, lease, self._bridge(config), isolation=config.isolation)
        self._files.write(port)
        return port

    def _renew_ports(self, config: Mapping[str, NetworkConfig]) -> None:
        """What of a changed network does not have to wait: whom it reaches, and who reaches whom on it."""
        uses = {tenant.vm: tenant.running or tenant.use for tenant in self._around.tenants()}
        for vm, port in self._ports.items():
            network, use = config.get(port.bridge.network), uses.get(vm)
            if network is None:
                continue
            wished = make_bridge(network)
            renewed = replace(port, bridge=replace(port.bridge, nat=wished.nat, host_ports=wished.host_ports))
            if use is not None and use.name == network.name:
                renewed = replace(renewed, group=derive_group(use, isolation=network.isolation))
            if renewed != port:
                self._ports[vm] = renewed
                self._files.write(renewed)

    def _wanted_bridges(self, config: Mapping[str, NetworkConfig]) -> dict[str, BridgePlan]:
        """All networks, by name: those that VMs are on as they are, the others by the host config."""
        wanted = {name: make_bridge(network) for name, network in config.items()}
        return wanted | {port.bridge.network: port.bridge for port in self._ports.values()}

    def _bridge(self, network: NetworkConfig) -> BridgePlan:
        """A network as the next VM finds it."""
        for port in chain(self._ports.values(), self._claimed.values()):
            if port.bridge.network == network.name:
                return port.bridge
        return make_bridge(network)

    async def _drop_stale(self) -> None:
        """The devices may be gone by now, what conntrack remembers of their addresses may not."""
        for port in tuple(self._stale):
            try:
                await self._end(port)
            except HypemandError as error:
                _log.warning(
                    "VM %s: cannot remove what its interface %s has left: %s", port.vm, port.tap, error
                )
                self._complete = False

    async def _end(self, port: PortPlan) -> None:
        """Have nothing left of a run that has ended."""
        await self._host.detach(port)
        self._stale = [old for old in self._stale if old is not port]
        if port.vm not in self._ports:
            self._files.remove(port.vm)

    def _take_statuses(self, statuses: Iterable[NetworkStatus]) -> None:
        self._told.set()
        before, self._statuses = self._statuses, {status.network: status for status in statuses}
        for name, status in self._statuses.items():
            old = before.get(name, NetworkStatus(name, ""))
            if status.problem and status.problem != old.problem:
                _log.error("no VM can be on network %s: %s", name, status.problem)
            elif old.problem and not status.problem:
                _log.info("VMs can be on network %s again", name)
            for warning in status.warnings:
                if warning not in old.warnings:
                    _log.warning("network %s: %s", name, warning)

    def _tell_pending(self, config: Mapping[str, NetworkConfig]) -> None:
        """Tell of networks that have to stay as they are since VMs are on them."""
        pending = frozenset(
            port.bridge.network for port in self._ports.values() if _is_outdated(port, config)
        )
        ids = {tenant.vm: tenant.vm_id for tenant in self._around.tenants()}
        for port in self._ports.values():
            name = port.bridge.network
            if name in pending - self._pending:
                log_vm(
                    logging.WARNING,
                    f"VM {port.vm} is on network {name}, which has changed in the host config and stays as it"
                    f" is until no VM is on it: hypemanctl restart {port.vm}",
                    port.vm,
                    ids.get(port.vm, ""),
                    MessageId.NEEDS_RESTART,
                )
        self._pending = pending

    # one VM

    def plan(self, tenant: Tenant) -> Connection | None:
        """What a VM gets if it is started now; None for one without a network. InvalidDefinition, InUse,
        InsufficientResources."""
        use = tenant.use
        if use is None:
            return None
        network = self._get_config(use.name)
        bridge = self._bridge(network)
        claims = list(self._claims(tenant.vm, use.name))
        lease = allocate(tenant.vm, tenant.vm_id, use, bridge, tenant.lease, claims)
        port = make_port(tenant.vm, tenant.uid, use, lease, bridge, isolation=network.isolation)
        check_publish(port, (*self._ports.values(), *self._claimed.values()))
        dns = self._servers(network, lease)
        hosts = self._names(tenant, port)
        return Connection(lease, port, _make_interface(port), tuple(map(str, dns)), hosts)

    def lacks_servers(self, tenant: Tenant) -> bool:
        """Would a VM be told of no name server, since the host knows none yet?"""
        network = None if tenant.use is None else self._around.config().get(tenant.use.name)
        return network is not None and network.dns is None and not self._servers(network, network)

    def _servers(
        self, config: NetworkConfig | None, reached: NetworkConfig | BridgePlan | Lease
    ) -> tuple[Address, ...]:
        """What is told who has addresses like those of `reached`."""
        servers = self._around.servers() if config is None or config.dns is None else config.dns
        return choose_servers(servers, ipv4=reached.ipv4 is not None, ipv6=reached.ipv6 is not None)

    def _names(self, tenant: Tenant, port: PortPlan) -> Hosts:
        """The names that a VM knows when it is started now."""
        own = _make_member(tenant, port)
        peers = [m for m in self.members() if (m.network, m.group) == (own.network, own.group)]
        return derive_guest_names([own, *(m for m in peers if m.vm != own.vm)])[own.vm]

    def claim(self, tenant: Tenant) -> Connection | None:
        """`plan`, and nobody else gets the same until `attach` or `give_up`."""
        connection = self.plan(tenant)
        if connection is not None:
            self._claimed[tenant.vm] = connection.port
        return connection

    def _get_config(self, name: str) -> NetworkConfig:
        config = self._around.config()
        if name not in config:
            hint = " or ".join([*sorted(config), "network: none"])
            what = f"there is no network {name} in the host config"
            raise InvalidDefinition([Problem("", 0, 0, "network.name", what, f"write {hint}")])
        return config[name]

    def _claims(self, vm: str, network: str) -> Iterator[Claim]:
        """What others have on a network: by their lease, by their definition, or since they run with it."""
        for tenant in self._around.tenants():
            if tenant.vm != vm:
                yield from derive_claims(tenant.vm, tenant.use, tenant.lease, network)
        for port in (*self._ports.values(), *self._claimed.values()):
            if port.vm != vm and port.bridge.network == network:
                yield Claim(port.vm, port.mac, port.ipv4, port.ipv6)

    async def check_usable(self, network: str) -> None:
        """Raise HostNotReady if no VM can be on a network now."""
        async with self._lock:
            await self._check_usable(network)

    async def _check_usable(self, network: str) -> None:
        status = self._statuses.get(network)
        if status is None or status.problem:
            await self._apply()
            status = self._statuses.get(network, NetworkStatus(network, "it is not there"))
        if status.problem:
            raise HostNotReady(
                f"no VM can be on network {network}: {status.problem}", hint="see: hypemanctl network list"
            )

    async def attach(self, vm: str) -> None:
        """Make the TAP device of a VM that has claimed. HostNotReady, and InUse for a port of the host that
        somebody else has; nothing is left of it then."""
        try:
            async with self._lock:
                await self._check_usable(self._claimed[vm].bridge.network)
                for stale in [old for old in self._stale if _share(old, self._claimed[vm])]:
                    await self._ask(partial(self._end, stale))
                port = self._ports[vm] = self._claimed.pop(vm)
                self._files.write(port)
                await self._ask(lambda: self._host.attach(port))
        except BaseException:
            await asyncio.shield(self.give_up(vm))
            raise
        self.tell()

    async def _ask(self, ask: Callable[[], Awaitable[object]]) -> None:
        """Ask the network service; one that has just been started is told all there is before."""
        try:
            await ask()
        except HypemandError as error:
            if error.code != NOT_APPLIED:
                raise
            await self._apply()
            await ask()

    async def give_up(self, vm: str) -> None:
        """A VM that was to be started is not; whatever was done for it before is undone."""
        self._claimed.pop(vm, None)
        await self.detach(vm)

    async def detach(self, vm: str) -> None:
        """Remove the TAP device of a VM that runs no more. If that cannot be done now, it is done as soon as
        the network service is there again."""
        if vm not in self._ports:
            return
        try:
            async with self._lock:
                await self._detach(vm)
        except asyncio.CancelledError:
            self._put_off(vm)
            raise
        self.tell()

    async def _detach(self, vm: str) -> None:
        port = self._ports.get(vm)
        if port is None:
            return
        try:
            await self._ask(lambda: self._host.detach(port))
        except HypemandError as error:
            _log.warning("VM %s: cannot remove its interface %s: %s", vm, port.tap, error)
            self._put_off(vm)
        else:
            del self._ports[vm]
            self._files.remove(vm)
        if port.bridge.network in self._pending and not self._is_used(port.bridge.network):
            await self._apply()

    def _put_off(self, vm: str) -> None:
        """Its end is told later, also by a daemon that comes after this one."""
        if (port := self._ports.pop(vm, None)) is not None:
            self._stale.append(port)
            self.begin_sync()

    def _is_used(self, network: str) -> bool:
        return any(port.bridge.network == network for port in self._ports.values())

    def is_outdated(self, vm: str) -> bool:
        """Does it run on a network that is to be another?"""
        port = self._ports.get(vm)
        return port is not None and _is_outdated(port, self._around.config())

    def interface_of(self, vm: str) -> str | None:
        """The TAP device of a VM that has one."""
        port = self._ports.get(vm)
        return None if port is None else port.tap

    # what there is

    def tell(self) -> None:
        """Call the listeners."""
        for listener in self.listeners:
            listener()

    def members(self) -> tuple[Member, ...]:
        """All VMs that have addresses, by name."""
        found = (self._member(tenant) for tenant in self._around.tenants())
        return tuple(sorted((m for m in found if m is not None), key=lambda member: member.vm))

    def _member(self, tenant: Tenant) -> Member | None:
        port = self._ports.get(tenant.vm)
        if port is not None:
            return _make_member(tenant, port)
        use, lease = tenant.use, self._find_lease(tenant)
        if use is None or lease is None or (lease.ipv4 is None and lease.ipv6 is None):
            return None
        return Member(
            vm=tenant.vm,
            vm_id=tenant.vm_id,
            network=use.name,
            mac=lease.mac,
            ipv4=lease.ipv4,
            ipv6=lease.ipv6,
            group=self._group(use),
            attached=False,
            publish=use.publish,
        )

    def _find_lease(self, tenant: Tenant) -> Lease | None:
        """What a VM without a port would keep at a start: of a lease, what its network still has."""
        use, lease = tenant.use, tenant.lease
        if use is None or lease is None or not is_lease_of(use, lease):
            return None
        return self._keep_fitting(lease)

    def _keep_fitting(self, lease: Lease) -> Lease:
        config = self._around.config().get(lease.network)
        return keep_fitting(lease, None if config is None else self._bridge(config))

    def _group(self, use: NetworkUse) -> str | None:
        network = self._around.config().get(use.name)
        return derive_group(use, isolation=network is None or network.isolation)

    def view(self, tenant: Tenant) -> VmNetwork | None:
        """A VM's place, as it is or would be; of its addresses only those that its network has."""
        port = self._ports.get(tenant.vm)
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
                counters=self._counters.get(port.tap),
            )
        use = tenant.use
        if use is None:
            return None
        wish = Lease(use.name, use.mac or "", use.address, use.address6)
        lease = self._find_lease(tenant) or self._keep_fitting(wish)
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

    async def read_counters(self) -> None:
        """Have `view` show counters as they are now, or none if they cannot be had."""
        if not self._ports:
            return
        try:
            async with asyncio.timeout(_COUNTERS_DEADLINE):
                self._counters = await self._host.counters()
        except (HypemandError, TimeoutError) as error:
            _log.debug("no counters: %s", error)
            self._counters = {}

    async def list_networks(self) -> list[NetworkInfo]:
        """All networks, by name. How they are is known some moments after the daemon's start."""
        if self._syncing is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._told.wait(), _FIRST_LOOK)
        config = self._around.config()
        bridges = self._wanted_bridges(config)
        members = self.members()
        return [
            self._info(bridges[name], config.get(name), [m for m in members if m.network == name])
            for name in sorted(bridges)
        ]

    async def get_network(self, name: str) -> NetworkInfo:
        """One network. NotFound."""
        for info in await self.list_networks():
            if info.name == name:
                return info
        raise NotFound(
            f"there is no network {name[:80]}", hint="hypemanctl network list shows those that there are"
        )

    def _info(self, bridge: BridgePlan, config: NetworkConfig | None, members: list[Member]) -> NetworkInfo:
        status = self._statuses.get(bridge.network, NetworkStatus(bridge.network, ""))
        interface = bridge.ipv4 or bridge.ipv6
        dns = self._servers(config, bridge)
        warnings = status.warnings
        if not dns and (config is None or config.dns is None):
            warnings += (_NO_SERVERS,)
        addresses = 0 if interface is None else count_addresses(interface)
        held = {member.ipv4 if bridge.ipv4 is not None else member.ipv6 for member in members} - {None}
        return NetworkInfo(
            name=bridge.network,
            bridge=bridge.bridge,
            ipv4=bridge.ipv4,
            ipv6=bridge.ipv6,
            mtu=bridge.mtu,
            dns=dns,
            nat=bridge.nat,
            isolation=config is None or config.isolation,
            host_ports=tuple(sorted(bridge.host_ports, key=lambda port: (port.port, port.transport))),
            problem=status.problem,
            warnings=warnings,
            pending=bridge.network in self._pending,
            addresses=addresses,
            free_addresses=max(addresses - len(held), 0),
            members=tuple(members),
        )


def _share(old: PortPlan, new: PortPlan) -> bool:
    """Would one get what belonged to the other?"""
    return old.uid == new.uid or bool({old.ipv4, old.ipv6} & {new.ipv4, new.ipv6} - {None})


def _is_outdated(port: PortPlan, config: Mapping[str, NetworkConfig]) -> bool:
    network = config.get(port.bridge.network)
    return network is None or not is_same_wire(make_bridge(network), port.bridge)


def _make_member(tenant: Tenant, port: PortPlan) -> Member:
    return Member(
        vm=tenant.vm,
        vm_id=tenant.vm_id,
        network=port.bridge.network,
        mac=port.mac,
        ipv4=port.ipv4,
        ipv6=port.ipv6,
        group=port.group,
        attached=True,
        publish=port.publish,
    )


def _make_interface(port: PortPlan) -> GuestInterface:
    """What the guest is told of its interface."""
    bridge = port.bridge
    addresses, gateways = [], []
    for address, own in ((port.ipv4, bridge.ipv4), (port.ipv6, bridge.ipv6)):
        if address is not None and own is not None:
            addresses.append(f"{address}/{own.network.prefixlen}")
            gateways.append(str(own.ip))
    return GuestInterface(port.mac, _INTERFACE, bridge.mtu, tuple(addresses), tuple(gateways))
