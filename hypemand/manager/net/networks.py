# SPDX-License-Identifier: Apache-2.0
"""The VMs' places in the host's networks: when they are made, and when they go. Who has which: `allocation`.

The network service changes the host. It gets the whole desired state when the daemon starts, when the host
config has changed and when the service has come back; a VM's start and end are sent alone. One request is
sent at a time, so that the desired state never lacks a VM that is just being started.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Set
from dataclasses import replace
from functools import partial
from pathlib import Path

from hypemand.config.addresses import count_addresses
from hypemand.config.network import DEFAULT_CONNECTIONS
from hypemand.errors import HostNotReady, HypemandError, NotFound
from hypemand.manager.net.allocation import AddressAllocation
from hypemand.manager.net.ports import PortFiles
from hypemand.model.counters import Connections, Counters
from hypemand.model.networks import Member, NetworkInfo, VmNetwork
from hypemand.network.port import BridgePlan, NetworkHost, NetworkStatus, PortPlan
from hypemand.network.resolvers import Address, find_host_servers
from hypemand.network.wire import NOT_APPLIED
from hypemand.systemd.log import MessageId, log_vm
from hypemand.tasks import Tasks, finish
from hypemand.vm.networkmember import NetworkMember
from hypemand.workers import Pool, run_in

_log = logging.getLogger(__name__)
_COUNTERS_DEADLINE = 1.0
_FIRST_LOOK = 5.0
_NO_SERVERS = (
    "VMs have no DNS servers: the host has none that they can reach; set dns: in hypemand.yaml "
    "(dns: [] for none)"
)
_NO_IPV6 = "the host has no IPv6 (ipv6.disable=1): the network has IPv4 only"
# between attempts to tell all there is
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0


class Networks:
    """`list_live` gives the names of the VMs whose unit lives, or raises BusError when systemd cannot be
    asked; `vms` is the folder of the VMs' records, `find_servers` gives the host's own name servers, and may
    block. `on_members` is called when VMs may have come to their network or left it. `first_pause`: seconds
    until what could not be done is tried again."""

    def __init__(
        self,
        host: NetworkHost,
        allocation: AddressAllocation,
        list_live: Callable[[], Awaitable[Set[str]]],
        vms: Path,
        *,
        find_servers: Callable[[], Iterable[Address]] = find_host_servers,
        on_members: Callable[[], None] = lambda: None,
        first_pause: float = _FIRST_PAUSE,
    ) -> None:
        self.allocation = allocation
        self._files = PortFiles(vms)
        self._find_servers = find_servers
        self._on_members = on_members
        self._host = host
        self._list_live = list_live
        # of runs that have ended, whose end the network service was not told
        self._stale: list[PortPlan] = []
        self._statuses: dict[str, NetworkStatus] = {}
        self._pending: frozenset[str] = frozenset()
        # VMs that run, whose records are lost
        self._counters: Mapping[str, Counters] = {}
        self._connections: Mapping[str, Connections] = {}
        self._lock = asyncio.Lock()
        self._syncing: asyncio.Task[None] | None = None
        self._first_pause = first_pause
        self._due = asyncio.Event()
        self._tasks = Tasks("networks")
        self._told = asyncio.Event()
        self._closed = False
        # why nothing is removed, as it was logged last
        self._kept_for = ""
        # was the host told all there is, so that nothing of what there was before can be left?
        self._complete = True

    # all at once

    async def recover(self, active: Callable[[str], bool]) -> None:
        """Learn what VMs had when the daemon before this one ended; `active`: does a VM still run?"""
        found = await run_in(Pool.RECORDS, self._files.find_all, self.allocation.list_vms())
        self._stale += self.allocation.recover(found, active)

    async def learn_servers(self) -> None:
        """Know the host's name servers as they are now."""
        self.allocation.host_servers = tuple(await run_in(Pool.RECORDS, self._find_servers))

    def begin_sync(self) -> None:
        """Have `sync` run in the background, until it could do all."""
        self._due.set()
        if not self._closed and (self._syncing is None or self._syncing.done()):
            self._syncing = self._tasks.start("sync", self._keep_syncing())

    async def _keep_syncing(self) -> None:
        pause = self._first_pause
        while self._due.is_set():
            self._due.clear()
            try:
                await self.sync()
            except Exception:
                _log.exception("cannot check the networks")
                self._complete = False
            if not self._complete:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._due.wait(), pause)
                self._due.set()
                pause = min(pause * 2, _LONGEST_PAUSE)

    async def close(self) -> None:
        """End what runs in the background. VMs keep their networks."""
        self._closed = True
        await self._tasks.close()

    async def sync(self) -> None:
        """Make the host's networks be as the host config and the VMs that run want them."""
        async with self._lock:
            await self._apply()
        self.tell()

    async def sync_within(self, seconds: float) -> None:
        """`sync`, but back after that time at the latest; it goes on then."""
        task = self._tasks.start("sync", self.sync(), awaited=True)
        done, _ = await asyncio.wait([task], timeout=seconds)
        if done:
            task.result()
        else:
            self._tasks.log_failure(task)

    async def _apply(self) -> None:
        prune = await self._adopt_live()
        self.allocation.renew()
        await self._write_ports()
        bridges = self.allocation.bridges()
        try:
            statuses = await self._host.apply(
                tuple(bridges.values()), tuple(self.allocation.ports.values()), prune=prune
            )
        except HypemandError as error:
            statuses = tuple(NetworkStatus(name, str(error)) for name in bridges)
            self._complete = False
        else:
            self._complete = prune
            await self._drop_stale()
        self._take_statuses(map(self._add_warnings, statuses))
        self._tell_pending()
        if not self._complete and (self._syncing is None or self._syncing.done()):
            self.begin_sync()

    async def _adopt_live(self) -> bool:
        """Learn the resources of every VM that runs. False: they are not known, so nothing may be removed."""
        try:
            live = await self._list_live()
            strange = self.allocation.list_strange(live)
            found = await run_in(Pool.RECORDS, self._files.find_all, strange) if strange else {}
            lost = self.allocation.adopt(live, found)
        except HypemandError as error:
            lost, why = frozenset(), str(error)
        else:
            why = f"the network resources are not known of the VMs {', '.join(sorted(lost))}" if lost else ""
        if why and why != self._kept_for:
            _log.warning("nothing is removed from networks now: %s", why)
        self._kept_for = why
        return not why

    async def _write_ports(self) -> None:
        """Who calls holds the lock: nobody else writes or removes them meanwhile."""
        unwritten, self.allocation.unwritten = self.allocation.unwritten, {}
        if unwritten:
            written = run_in(Pool.RECORDS, self._files.write_all, tuple(unwritten.values()))
            await finish(written, "ports of VMs")

    async def _drop_stale(self) -> None:
        """The devices may be gone by now, what conntrack remembers of their addresses may not."""
        for port in tuple(self._stale):
            try:
                await self._end(port)
            except HypemandError as error:
                _log.warning(
                    "VM %s: cannot remove left-overs of its interface %s: %s", port.vm, port.tap, error
                )
                self._complete = False

    async def _end(self, port: PortPlan) -> None:
        """Have nothing left of a run that has ended."""
        await self._host.detach(port)
        self._stale = [old for old in self._stale if old is not port]
        if port.vm not in self.allocation.ports:
            await finish(run_in(Pool.RECORDS, self._files.remove, port.vm), f"port of {port.vm}")

    def _add_warnings(self, status: NetworkStatus) -> NetworkStatus:
        """With what the network service is not told, since it was left out before."""
        if not self.allocation.lacks_ipv6(status.network):
            return status
        return replace(status, warnings=(*status.warnings, _NO_IPV6))

    def _take_statuses(self, statuses: Iterable[NetworkStatus]) -> None:
        self._told.set()
        before, self._statuses = self._statuses, {status.network: status for status in statuses}
        for name, status in self._statuses.items():
            old = before.get(name, NetworkStatus(name, ""))
            if status.problem and status.problem != old.problem:
                _log.error("network %s is not available: %s", name, status.problem)
            elif old.problem and not status.problem:
                _log.info("network %s is available again", name)
            for warning in status.warnings:
                if warning not in old.warnings:
                    _log.warning("network %s: %s", name, warning)

    def _tell_pending(self) -> None:
        """Tell of networks that have to stay as they are since VMs are on them."""
        ports = self.allocation.ports.values()
        pending = frozenset(port.bridge.network for port in ports if self.allocation.is_outdated(port.vm))
        ids = {member.vm: member.vm_id for member in self.allocation.members()}
        for port in ports:
            name = port.bridge.network
            if name in pending - self._pending:
                log_vm(
                    logging.WARNING,
                    f"VM {port.vm} is on network {name}, whose changed configuration is"
                    f" applied when no VM is attached to it: hypemanctl restart {port.vm}",
                    port.vm,
                    ids.get(port.vm, ""),
                    MessageId.NEEDS_RESTART,
                )
        self._pending = pending

    # one VM

    async def check_usable(self, network: str) -> None:
        """Raise HostNotReady if no VM can be on a network now."""
        async with self._lock:
            await self._check_usable(network)

    async def _check_usable(self, network: str) -> None:
        status = self._statuses.get(network)
        if status is None or status.problem:
            await self._apply()
            status = self._statuses.get(network, NetworkStatus(network, "it does not exist"))
        if status.problem:
            raise HostNotReady(
                f"network {network} is not available: {status.problem}", hint="see: hypemanctl network list"
            )

    def lacks_lan(self, member: NetworkMember) -> bool:
        """Is it to be on a bridge that is not hypemand's and, as far as is known, not there?"""
        config = None if member.use is None else self.allocation.find_config(member.use.name)
        if config is None or config.managed:
            return False
        status = self._statuses.get(config.name)
        return status is None or bool(status.problem)

    async def check_released(self, vm: str) -> None:
        """Raise HostNotReady unless all is given back that a VM has had while it ran."""
        async with self._lock:
            if vm in self.allocation.ports or any(port.vm == vm for port in self._stale):
                raise HostNotReady(
                    f"the interface of VM {vm} is not removed yet",
                    hint="see: systemctl status hypemand-network",
                )

    async def attach(self, vm: str) -> None:
        """Make the TAP device of a VM that has a reservation. HostNotReady, and InUse for a port of the host
        that another program has; nothing is left of it then."""
        try:
            async with self._lock:
                await self._check_usable(self.allocation.reserved[vm].bridge.network)
                for stale in [old for old in self._stale if _share(old, self.allocation.reserved[vm])]:
                    await self._ask(partial(self._end, stale))
                port = self.allocation.ports[vm] = self.allocation.reserved.pop(vm)
                await finish(run_in(Pool.RECORDS, self._files.write, port), f"port of {vm}")
                await self._ask(lambda: self._host.attach(port))
        except BaseException:
            await self._tasks.run_shielded(f"end of VM {vm}", self.give_up(vm))
            raise
        self.tell()

    async def _ask(self, ask: Callable[[], Awaitable[object]]) -> None:
        """Send a request to the network service; one that has just been started gets the desired state
        before."""
        try:
            await ask()
        except HypemandError as error:
            if error.code != NOT_APPLIED:
                raise
            await self._apply()
            await ask()

    async def give_up(self, vm: str) -> None:
        """A VM that was to be started is not; whatever was done for it before is undone."""
        self.allocation.reserved.pop(vm, None)
        await self.detach(vm)

    async def detach(self, vm: str) -> None:
        """Remove the TAP device of a VM that runs no more. If that cannot be done now, it is done as soon as
        the network service is there again."""
        if vm not in self.allocation.ports:
            return
        try:
            async with self._lock:
                await self._detach(vm)
        except asyncio.CancelledError:
            self._put_off(vm)
            raise
        self.tell()

    async def _detach(self, vm: str) -> None:
        port = self.allocation.ports.get(vm)
        if port is None:
            return
        try:
            await self._ask(lambda: self._host.detach(port))
        except HypemandError as error:
            _log.warning("VM %s: cannot remove its interface %s: %s", vm, port.tap, error)
            self._put_off(vm)
        else:
            del self.allocation.ports[vm]
            await finish(run_in(Pool.RECORDS, self._files.remove, vm), f"port of {vm}")
        if port.bridge.network in self._pending and not self.allocation.is_used(port.bridge.network):
            await self._apply()

    def _put_off(self, vm: str) -> None:
        """Its end is sent later, also by a daemon that comes after this one."""
        if (port := self.allocation.ports.pop(vm, None)) is not None:
            self._stale.append(port)
            self.begin_sync()

    # what there is

    def tell(self) -> None:
        """VMs may have come to their network or left it."""
        self._on_members()

    def view(self, member: NetworkMember) -> VmNetwork | None:
        """See `AddressAllocation.view`; with the counters that were read last."""
        return self.allocation.view(member, self._counters)

    def is_outdated(self, vm: str) -> bool:
        """See NetworkHost."""
        return self.allocation.is_outdated(vm)

    def is_on_lan(self, vm: str) -> bool:
        """See NetworkHost."""
        return self.allocation.is_on_lan(vm)

    def interface_of(self, vm: str) -> str | None:
        """See NetworkHost."""
        return self.allocation.interface_of(vm)

    def find_counters(self, vm: str) -> Counters | None:
        """The counters of its TAP device that were read last, if it has one."""
        interface = self.allocation.interface_of(vm)
        return None if interface is None else self._counters.get(interface)

    async def read_counters(self) -> None:
        """Have `view` show counters as they are now, or none if they cannot be read."""
        if not self.allocation.ports:
            return
        try:
            async with asyncio.timeout(_COUNTERS_DEADLINE):
                self._counters = await self._host.counters()
        except (HypemandError, TimeoutError) as error:
            _log.debug("no counters: %s", error)
            self._counters = {}

    def find_connections(self, vm: str) -> Connections | None:
        """Its new connections, as they were read last, if it has an interface."""
        interface = self.allocation.interface_of(vm)
        return None if interface is None else self._connections.get(interface)

    async def read_connections(self) -> None:
        """Have `find_connections` find what is counted now, or nothing if that cannot be read. That takes
        longer than the counters of interfaces: 30 microseconds a VM."""
        if not self.allocation.ports:
            return
        try:
            async with asyncio.timeout(_COUNTERS_DEADLINE):
                self._connections = await self._host.connections()
        except (HypemandError, TimeoutError) as error:
            _log.debug("no counters of connections: %s", error)
            self._connections = {}

    async def list_networks(self) -> list[NetworkInfo]:
        """All networks, by name. How they are is known some moments after the daemon's start."""
        if self._syncing is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._told.wait(), _FIRST_LOOK)
        await self.learn_servers()
        bridges = self.allocation.bridges()
        members = self.allocation.members()
        return [
            self._info(bridges[name], [m for m in members if m.network == name]) for name in sorted(bridges)
        ]

    async def get_network(self, name: str) -> NetworkInfo:
        """One network. NotFound."""
        for info in await self.list_networks():
            if info.name == name:
                return info
        raise NotFound(f"there is no network {name[:80]}", hint="hypemanctl network list shows the networks")

    def _info(self, bridge: BridgePlan, members: list[Member]) -> NetworkInfo:
        config = self.allocation.find_config(bridge.network)
        status = self._statuses.get(bridge.network, NetworkStatus(bridge.network, ""))
        interface = bridge.ipv4 or bridge.ipv6
        dns = self.allocation.servers(config, bridge)
        warnings = status.warnings
        if not dns and (config is None or config.dns is None) and not bridge.dhcp:
            warnings += (_NO_SERVERS,)
        # of a LAN's nobody here knows which are free
        addresses = count_addresses(interface) if interface is not None and bridge.managed else 0
        held = {member.ipv4 if bridge.ipv4 is not None else member.ipv6 for member in members} - {None}
        return NetworkInfo(
            name=bridge.network,
            bridge=bridge.bridge,
            ipv4=bridge.ipv4,
            ipv6=bridge.ipv6,
            mtu=bridge.mtu,
            dns=dns,
            nat=bridge.nat,
            managed=bridge.managed,
            dhcp=bridge.dhcp,
            isolation=config is None or config.isolation,
            host_ports=tuple(sorted(bridge.host_ports, key=lambda port: (port.port, port.transport))),
            connections=DEFAULT_CONNECTIONS if config is None else config.connections,
            egress=bridge.egress,
            link_local=bridge.link_local,
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
