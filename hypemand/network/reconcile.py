# SPDX-License-Identifier: Apache-2.0
"""Reconciles the host's networks with the desired state: bridges, TAP devices, rules, limits, reservations.

The desired state is kept in memory alone, since the daemon sends all of it to a service that has just
started. All calls block, for some milliseconds: netlink and nftables answer at once.
"""

from __future__ import annotations

import logging
import pwd
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from hypemand.errors import HostNotReady, HypemandError
from hypemand.model.counters import Connections, Counters
from hypemand.network import lan
from hypemand.network.conntrack import forget_connections, forget_published
from hypemand.network.counters import read_counters
from hypemand.network.failures import told_by_kernel
from hypemand.network.firewall import Nftables, RuleRefused
from hypemand.network.forwarding import ensure_forwarding, lacks_forwarding
from hypemand.network.limits import Limits, Present, ifb_name
from hypemand.network.links import (
    Link,
    Links,
    Route,
    find_collision,
    is_our_bridge,
    is_ours,
)
from hypemand.network.port import BridgePlan, NetworkStatus, PortPlan, derive_plans, has_same_shape, tap_name
from hypemand.network.profiles import Profile, derive_profiles, render_profiles, render_unused
from hypemand.network.reservations import Reservations
from hypemand.network.rules import (
    COUNTED,
    Element,
    derive_connections,
    derive_elements,
    number_groups,
    render_changes,
    render_removal,
    render_tables,
)
from hypemand.network.sysctl import has_bridge_netfilter
from hypemand.network.taps import mend_taps
from hypemand.network.warnings import NOT_COUNTED, find_warnings
from hypemand.network.wire import NOT_APPLIED, TEMPLATE_USER

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Network:
    """A network that is there, and what makes it so: the index of its bridge."""

    plan: BridgePlan
    index: int


def find_template_user() -> int | None:
    """The uid of TEMPLATE_USER, if there is one."""
    try:
        return pwd.getpwnam(TEMPLATE_USER).pw_uid
    except KeyError:
        return None


class HostNetworks:
    """`NetworkHost` as it is done; see there for the contract of its methods."""

    def __init__(self, template_user: Callable[[], int | None] = find_template_user) -> None:
        self._template_user = template_user
        self._links = Links()
        self._limits = Limits(self._links)
        self._reservations = Reservations()
        self._nft: Nftables | None = None
        self._applied = False
        self._networks: dict[str, _Network] = {}  # by the bridge's name
        self._ports: dict[int, PortPlan] = {}  # by uid
        self._groups: dict[tuple[str, str], int] = {}
        self._bridge_netfilter = False
        self._counts = True  # does the kernel count connections?
        self._plans: Mapping[str, BridgePlan] = {}  # of the last `apply`, whether there or not
        self._unfit: set[str] = set()  # bridges of others that are there and not as VMs need them
        self._seen: tuple[object, ...] = ()

    def close(self) -> None:
        """Close the netlink sockets. Everything stays as it is, but for the reservations."""
        self._links.close()
        self._reservations.release_others(())

    @property
    def summary(self) -> str:
        """For the service's status."""
        if not self._applied:
            return "waits for hypemand.service"
        return f"networks: {len(self._networks)}, VMs: {len(self._ports)}"

    # -- all of it

    def apply(
        self, bridges: tuple[BridgePlan, ...], ports: tuple[PortPlan, ...], *, prune: bool
    ) -> tuple[NetworkStatus, ...]:
        """See NetworkHost."""
        with told_by_kernel("networks"):
            return self._apply(bridges, ports, prune)

    def _apply(
        self, bridges: tuple[BridgePlan, ...], ports: tuple[PortPlan, ...], prune: bool
    ) -> tuple[NetworkStatus, ...]:
        plans = derive_plans(bridges, ports)
        self._ports = {port.uid: port for port in ports}
        if prune:
            self._prune(plans.values())
        routes = self._links.list_routes()
        problems: dict[str, str] = {}
        warnings: dict[str, list[str]] = {plan.network: [] for plan in (*bridges, *plans.values())}
        self._networks = dict(self._ensure_bridges(plans, routes, problems, warnings))
        self._groups = number_groups(self._ports.values(), self._groups)
        self._applied = True
        try:
            self._replace_tables()
        except HostNotReady as error:
            problems |= {network: str(error) for network in warnings if network not in problems}
        self._ensure_ports(warnings, routes)
        self._plans = plans
        found = self._find_warnings(routes)
        for network, words in found.items():
            warnings[network] += words
        self._seen = self._look(routes, found)
        for plan in bridges:
            kept = plans[plan.bridge]
            if kept.network != plan.network:
                problems[plan.network] = f"{plan.bridge} is the bridge of network {kept.network}"
            elif not has_same_shape(kept, plan):
                warnings[plan.network].append(
                    f"{plan.bridge} is not changed until the last VM on it has stopped"
                )
        return tuple(
            NetworkStatus(plan.network, problems.get(plan.network, ""), tuple(warnings[plan.network]))
            for plan in bridges
        )

    def _ensure_bridges(
        self,
        plans: Mapping[str, BridgePlan],
        routes: tuple[Route, ...],
        problems: dict[str, str],
        warnings: dict[str, list[str]],
    ) -> Iterator[tuple[str, _Network]]:
        """Bridges that are as they are to be; also one that is not, if it is there and VMs are on it."""
        ours = {plan.bridge for plan in plans.values() if plan.managed and self._find_bridge(plan)}
        taken = [route for route in routes if route.device not in ours]
        for plan in plans.values():
            self._unfit.discard(plan.bridge)
            try:
                if plan.managed and (route := find_collision(plan, taken)):
                    told = f"its subnet has addresses that the host reaches by another route: {route}"
                    if not self._links.has_address(plan):
                        raise HostNotReady(told, hint="use another subnet for the network in hypemand.yaml")
                    warnings[plan.network].append(told)
                index = self._ensure_bridge(plan)
            except HypemandError as error:
                problems[plan.network] = str(error)
                link = self._find_bridge(plan)
                if link is None:
                    continue
                index = link.index
                self._unfit |= set() if plan.managed else {plan.bridge}
            subnets = [one.network for one in (plan.ipv4, plan.ipv6) if one is not None and plan.managed]
            taken += [Route(subnet, plan.bridge, False) for subnet in subnets]
            yield plan.bridge, _Network(plan, index)

    def _find_bridge(self, plan: BridgePlan) -> Link | None:
        """A network's bridge, be it right or not."""
        link = self._links.find(plan.bridge)
        if link is None or not (is_our_bridge(link, plan.network) if plan.managed else lan.is_usable(link)):
            return None
        return link

    def _ensure_bridge(self, plan: BridgePlan) -> int:
        with told_by_kernel(f"network {plan.network}"):
            return self._links.ensure_bridge(plan) if plan.managed else lan.ensure_usable(self._links, plan)

    def _ensure_ports(self, warnings: dict[str, list[str]], routes: tuple[Route, ...]) -> None:
        """TAP devices, limits and reservations of all VMs: what is missing is made. A VM that does not get
        all of it goes on."""
        links = {link.name: link for link in self._links.list_links()} if self._ports else {}
        present = Present(links, self._links.list_qdiscs() if self._ports else {})
        self._reservations.release_others(self._ports)
        for port in self._ports.values():
            try:
                with told_by_kernel(f"VM {port.vm}"):
                    self._ensure_port(port, present)
                    self._reservations.take(port)
            except HypemandError as error:
                warnings[port.bridge.network].append(f"VM {port.vm}: {error.message}")
        used = {port.bridge.bridge for port in self._ports.values()}
        for network in self._networks.values():
            if network.plan.managed and network.plan.bridge in used:
                with told_by_kernel(f"network {network.plan.network}"):
                    ensure_forwarding(network.plan, lambda: routes)

    def _ensure_port(self, port: PortPlan, present: Present) -> None:
        link = present.links.get(port.tap)
        network = self._networks.get(port.bridge.bridge)
        if network is None:
            raise HostNotReady(f"{port.bridge.bridge} is not there")
        if link is None or not is_ours(link):
            _log.warning("VM %s: its TAP device %s did not exist", port.vm, port.tap)
            self._make_tap(port, network.index)
            return
        self._links.mend_tap(link, port, network.index, **self._derive_flags(port))
        self._limits.mend(link.index, port.uid, port.vm, port.bridge.mtu, port.bandwidth, present)

    def _derive_flags(self, port: PortPlan) -> dict[str, bool]:
        """With br_netfilter, what goes to a published port of a VM on the same bridge is bridged, not routed.
        Then nothing but the rules keeps VMs apart."""
        return {
            "isolated": port.group is None and not self._bridge_netfilter,
            "hairpin": self._bridge_netfilter and bool(port.publish),
        }

    def _find_warnings(self, routes: Iterable[Route]) -> dict[str, list[str]]:
        present = {name: network.plan for name, network in self._networks.items()}
        return find_warnings(
            self._plans.values(), present, self._links, self._nft, routes, counts=self._counts
        )

    def _look(self, routes: Iterable[Route], warnings: Mapping[str, list[str]]) -> tuple[object, ...]:
        """The parts of the host's other configuration that affect VMs, or are reported."""
        plans = {name: network.plan for name, network in self._networks.items() if network.plan.managed}
        others = [route for route in routes if route.device not in plans]
        collisions = [find_collision(plan, others) for plan in plans.values()]
        used = {port.bridge.bridge for port in self._ports.values()} & set(plans)
        lacking = {name for name in used if lacks_forwarding(plans[name])}
        return (has_bridge_netfilter(), lacking, warnings, collisions)

    def has_changed(self) -> bool:
        """Has the rest of the host changed, so that `apply` would repair or report something?"""
        if not self._applied:
            return False
        with told_by_kernel("networks"):
            routes = self._links.list_routes()
            return self._look(routes, self._find_warnings(routes)) != self._seen

    # -- rules

    def _find_nft(self) -> Nftables:
        if self._nft is None:
            self._nft = Nftables()
        return self._nft

    def _replace_tables(self) -> None:
        self._bridge_netfilter = has_bridge_netfilter()
        plans = [network.plan for network in self._networks.values()]
        elements = [element for port in self._ports.values() for element in self._derive_elements(port)]
        render = partial(render_tables, plans, elements, bridge_netfilter=self._bridge_netfilter)
        try:
            self._find_nft().change(render(self._list_profiles(counts=True)))
            self._counts = True
        except RuleRefused as error:
            self._find_nft().change(render(self._list_profiles(counts=False)))
            self._counts = False
            _log.warning("%s: %s", NOT_COUNTED, error)
        # if they were away, what has come meanwhile would be led to the host for ever
        with told_by_kernel("connections"):
            forget_published(publish for port in self._ports.values() for publish in port.publish)

    def _list_profiles(self, *, counts: bool) -> list[Profile]:
        owners: list[BridgePlan | PortPlan] = [network.plan for network in self._networks.values()]
        owners += self._ports.values()
        return [profile for owner in owners for profile in derive_profiles(owner, counts=counts)]

    def _derive_elements(self, port: PortPlan) -> tuple[Element, ...]:
        group = self._groups[port.bridge.bridge, port.group] if port.group is not None else None
        return tuple(derive_elements(port, group))

    def _change_rules(self, text: str) -> None:
        """A small transaction. If the kernel does not have what we think, all of it is replaced."""
        try:
            self._find_nft().change(text)
        except RuleRefused as error:
            _log.warning("%s; all rules are created again", error.message)
            self._replace_tables()

    def restore_rules(self) -> bool:
        """Make the tables anew if somebody has removed them; were they removed?"""
        if not self._applied or self._nft is None or self._nft.is_complete():
            return False
        self._replace_tables()
        return True

    # -- bridges that somebody else has changed

    def is_bridge(self, index: int) -> bool:
        """Is it the index of a network's bridge?"""
        return any(network.index == index for network in self._networks.values())

    def is_our_bridge(self, index: int) -> bool:
        """Is it that of a bridge that hypemand has made?"""
        return any(one.index == index and one.plan.managed for one in self._networks.values())

    def is_awaited(self, name: str) -> bool:
        """Is it the name of a bridge that others are to create or to repair, as far as is known?"""
        plan = self._plans.get(name)
        return plan is not None and not plan.managed and (name not in self._networks or name in self._unfit)

    def find_come(self) -> list[str]:
        """Bridges that were awaited, and with which VMs can do now."""
        awaited = [plan for name, plan in self._plans.items() if self.is_awaited(name)]
        with told_by_kernel("networks"):
            return [plan.bridge for plan in awaited if lan.is_fit(self._links, plan)]

    def restore_bridges(self) -> tuple[NetworkStatus, ...]:
        """Make anew the bridges that are not there any more as they were made, with the VMs' devices on them;
        those of others are awaited. How each of those is now, and nothing of the rest."""
        lost = {name: network.plan for name, network in self._networks.items() if not self._is_whole(network)}
        if not lost:
            return ()
        problems: dict[str, str] = {}
        warnings: dict[str, list[str]] = defaultdict(list)
        self._networks = {
            name: one for name, one in self._networks.items() if one.plan.managed or name not in lost
        }
        try:
            with told_by_kernel("networks"):
                routes = self._links.list_routes()
                self._networks |= dict(self._ensure_bridges(lost, routes, problems, warnings))
                self._ensure_ports(warnings, routes)
        except HypemandError as error:
            problems = {plan.network: str(error) for plan in lost.values()} | problems
        return tuple(
            NetworkStatus(plan.network, problems.get(plan.network, ""), tuple(warnings[plan.network]))
            for plan in lost.values()
        )

    def _is_whole(self, network: _Network) -> bool:
        try:
            with told_by_kernel(f"network {network.plan.network}"):
                look = self._links.is_whole if network.plan.managed else partial(lan.is_whole, self._links)
                return look(network.plan, network.index)
        except HypemandError:  # mending it will tell why
            return False

    # -- one VM

    def attach(self, port: PortPlan) -> int:
        """See NetworkHost."""
        self._expect_applied()
        if port.uid in self._ports or self._links.find(port.tap) is not None:
            self.detach(port)
        with told_by_kernel(f"VM {port.vm}"), ExitStack() as undo:
            network = self._find_network(port)
            self._follow_bridge_netfilter()
            undo.callback(self._reservations.release, port.uid)
            self._reservations.take(port)
            undo.callback(self._forget, port.uid)
            self._remember(port)
            undo.callback(self._remove_devices, port.uid)
            index = self._make_tap(port, network.index)
            if network.plan.managed:
                ensure_forwarding(network.plan, self._links.list_routes)
            self._forget_the_last(port, network.index)
            undo.pop_all()
        return index

    def open_tap(self, uid: int) -> int:
        """A descriptor of the TAP device of the VM whose VMM has that uid; it is there before the VM's unit
        is. That of a template has one of its own, on no network. Raises HostNotReady."""
        with told_by_kernel(tap_name(uid)):
            link = self._links.find(tap_name(uid))
            if link is None and uid == self._template_user():
                return self._links.open_lone_tap()
            if link is None or not is_ours(link):
                raise HostNotReady(f"{tap_name(uid)} does not exist: user {uid} has no VM with a network")
            return self._links.open_tap(link, uid)

    def list_taps(self) -> set[str]:
        """The names of all VMs' TAP devices."""
        return {port.tap for port in self._ports.values()}

    def mend_taps(self, names: Iterable[str]) -> dict[str, str | None]:
        """See taps.mend_taps; of those that VMs have."""
        taps = {port.tap: port for port in self._ports.values()}
        wanted = [taps[name] for name in names if name in taps]
        return dict(mend_taps(self._links, wanted, self._ports.values(), self._derive_flags))

    def _follow_bridge_netfilter(self) -> None:
        """It may have been turned on since the rules were made: by Docker, for its first container."""
        if self._bridge_netfilter == has_bridge_netfilter():
            return
        self._replace_tables()
        for port in self._ports.values():
            link, network = self._links.find(port.tap), self._networks.get(port.bridge.bridge)
            if link is not None and network is not None and is_ours(link):
                self._links.mend_tap(link, port, network.index, **self._derive_flags(port))

    def _forget_the_last(self, port: PortPlan, bridge: int) -> None:
        """What the host remembers of who had the VM's addresses and ports before would keep others from it
        for seconds, or for as long as they try."""
        self._links.forget_neighbours(bridge, [a for a in (port.ipv4, port.ipv6) if a is not None])
        forget_published(port.publish)

    def complete_reservations(self) -> bool:
        """Hold published ports that could not be held yet; are all of them held now?"""
        return self._reservations.complete()

    def _find_network(self, port: PortPlan) -> _Network:
        """The network of a VM that comes. The daemon may know a network since its last `apply`."""
        network = self._networks.get(port.bridge.bridge)
        if network is not None and has_same_shape(network.plan, port.bridge):
            if network.plan.managed:
                return network
            return _Network(network.plan, self._ensure_bridge(network.plan))
        if any(other.bridge.bridge == port.bridge.bridge for other in self._ports.values()):
            raise HostNotReady(
                (
                    f"network {port.bridge.network} has changed, but "
                    f"VMs are still attached to {port.bridge.bridge}"
                ),
                hint="stop them first",
            )
        if port.bridge.managed and (route := find_collision(port.bridge, self._links.list_routes())):
            raise HostNotReady(
                f"the subnet of network {port.bridge.network} has addresses that the host reaches by another "
                f"route: {route}",
                hint="use another subnet for the network in hypemand.yaml",
            )
        network = _Network(port.bridge, self._ensure_bridge(port.bridge))
        self._networks[port.bridge.bridge] = network
        self._replace_tables()
        return network

    def _remember(self, port: PortPlan) -> None:
        present = {profile.name for profile in self._list_profiles(counts=self._counts)}
        self._ports[port.uid] = port
        self._groups = number_groups(self._ports.values(), self._groups)
        missing = [p for p in derive_profiles(port, counts=self._counts) if p.name not in present]
        self._change_rules(render_profiles(missing) + render_changes(self._derive_elements(port)))

    def _forget(self, uid: int) -> None:
        port = self._ports.pop(uid, None)
        if port is not None:
            elements = self._derive_elements(port)
            self._groups = number_groups(self._ports.values(), self._groups)
            unused = derive_profiles(port, counts=self._counts)
            used = self._list_profiles(counts=self._counts)
            self._change_rules(render_changes((), elements) + render_unused(unused, used))

    def _make_tap(self, port: PortPlan, bridge: int) -> int:
        index = self._links.add_tap(port, bridge, **self._derive_flags(port))
        self._limits.set(index, port.uid, port.vm, port.bridge.mtu, port.bandwidth)
        return index

    def _remove_devices(self, uid: int) -> None:
        self._links.delete_ours(tap_name(uid))
        self._limits.remove(uid)

    def detach(self, port: PortPlan) -> None:
        """See NetworkHost."""
        self._expect_applied()
        known = self._ports.get(port.uid, port)
        with told_by_kernel(f"VM {port.vm}"):
            self._remove_devices(port.uid)
            self._forget(port.uid)
            self._reservations.release(port.uid)
            addresses = {a for plan in (known, port) for a in (plan.ipv4, plan.ipv6) if a is not None}
            forget_connections(addresses)

    def _expect_applied(self) -> None:
        if not self._applied:
            raise HostNotReady(
                "the network service has just started and is not configured yet",
                hint="ask again",
                code=NOT_APPLIED,
            )

    def counters(self) -> Mapping[str, Counters]:
        """See NetworkHost."""
        return read_counters()

    def connections(self) -> Mapping[str, Connections]:
        """See NetworkHost."""
        if not self._ports:
            return {}
        nft = self._find_nft()
        counted = {name: dict(nft.read_counted(kind, name)) for name, kind in COUNTED.items()}
        return {port.tap: derive_connections(port, counted) for port in self._ports.values()}

    # -- what is not wished

    def _prune(self, plans: Iterable[BridgePlan]) -> None:
        """Remove what is ours and not wished. `plans`: the bridges that are."""
        keep = {tap_name(uid) for uid in self._ports}
        keep |= {ifb_name(uid) for uid, port in self._ports.items() if port.bandwidth.upload is not None}
        keep |= {plan.bridge for plan in plans if plan.managed}
        for link in self._links.list_links():
            if link.name not in keep and is_ours(link):
                _log.info("removed %s, which is not used (%s)", link.name, link.alias)
                self._links.delete(link)

    def clean(self) -> None:
        """Remove all that is ours."""
        for link in self._links.list_links():
            if is_ours(link):
                self._links.delete(link)
        self._find_nft().change(render_removal())
