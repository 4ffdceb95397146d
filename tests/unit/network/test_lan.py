# SPDX-License-Identifier: Apache-2.0
"""Networks on bridges that are not hypemand's, in the kernel: what is attached, kept apart and left alone."""

import json
import os
import socket
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest

from hypemand.config.network import HostPort, Transport
from hypemand.errors import HostNotReady
from hypemand.network.port import BridgePlan, PortPlan
from hypemand.network.reconcile import HostNetworks
from tests.host.command import run_command
from tests.unit.network.frames import (
    ALL_NODES,
    BROADCAST,
    IPV4,
    IPV6,
    UDP,
    advertisement,
    arp,
    ethernet,
    icmp6,
    ipv4,
    ipv6,
    option,
    solicitation,
    udp,
)
from tests.unit.network.lab import (
    DEADLINE,
    Guest,
    Namespace,
    ip,
    make_bridge,
    make_port,
    open_tap,
    reaches,
    serve,
    set_sysctl,
)
from tests.unit.network.test_spoofing import FORGED, HONEST, mac_free, own4, own6, own_arp, read_until

# the gateway is another machine on the LAN: the peer, which has these addresses
LAN = make_bridge("lan", "br0", nat=False, managed=False)
FREE = replace(LAN, dhcp=True)
OWN = make_bridge(number=1)
HOST, HOST6 = "10.77.0.100", "fd77::100"
assert LAN.ipv4 is not None
assert LAN.ipv6 is not None
GATEWAY, GATEWAY6 = LAN.ipv4.ip, LAN.ipv6.ip


class Lan:
    """A bridge as an administrator makes it, with the host's own addresses and a port to another machine."""

    def __init__(self, host: Namespace, stack: ExitStack) -> None:
        self.peer = Namespace()
        stack.callback(self.peer.close)
        set_sysctl("bridge/bridge-nf-call-iptables", "0")
        set_sysctl("bridge/bridge-nf-call-ip6tables", "0")
        self.make()
        ip("link", "add", "port0", "type", "veth", "peer", "name", "eth0", "netns", self.peer.path)
        self.plug()
        with self.peer.entered():
            set_sysctl("ipv6/conf/eth0/accept_dad", "0")
            ip("addr", "add", f"{GATEWAY}/24", "dev", "eth0")
            ip("addr", "add", f"{GATEWAY6}/64", "dev", "eth0", "nodad")
            ip("link", "set", "eth0", "up")
        self.host = host

    def make(self) -> None:
        ip("link", "add", "br0", "type", "bridge")
        set_sysctl("ipv6/conf/br0/accept_dad", "0")
        ip("addr", "add", f"{HOST}/24", "dev", "br0")
        ip("addr", "add", f"{HOST6}/64", "dev", "br0", "nodad")
        ip("link", "set", "br0", "up")

    def plug(self) -> None:
        ip("link", "set", "port0", "master", "br0", "up")

    def read(self) -> object:
        """All of the bridge, but for what comes and goes with its ports."""
        text = run_command(["ip", "-json", "-details", "addr", "show", "br0"], timeout=DEADLINE).stdout
        (link,) = json.loads(text)
        timers = ("hello_timer", "tcn_timer", "topology_change_timer", "gc_timer")
        bridge = {k: v for k, v in link["linkinfo"]["info_data"].items() if k not in timers}
        settings = [
            run_command(["sysctl", f"net.{name}"], timeout=DEADLINE).stdout
            for name in ("ipv4.conf.br0.route_localnet", "ipv6.conf.br0.accept_ra", "ipv4.ip_forward")
        ]
        addresses = [(one["local"], one["prefixlen"]) for one in link["addr_info"] if one["scope"] != "link"]
        return link["mtu"], link["address"], link.get("ifalias"), addresses, bridge, settings


@pytest.fixture
def lan(host_namespace: Namespace, stack: ExitStack) -> Lan:
    return Lan(host_namespace, stack)


Start = Callable[[PortPlan], Guest]


def status(networks: HostNetworks, *plans: BridgePlan, ports: tuple[PortPlan, ...] = ()) -> tuple[str, ...]:
    return tuple(one.problem for one in networks.apply(plans, ports, prune=True))


def test_a_vm_is_a_machine_of_the_lan(lan: Lan, networks: HostNetworks, start_guest: Start) -> None:
    before = lan.read()
    assert status(networks, LAN) == ("",)
    guest = start_guest(make_port(LAN, 1))
    with guest.serve(socket.SOCK_STREAM, 80) as server, serve(lan.peer, socket.SOCK_STREAM, 81) as far:
        assert reaches(lan.peer, "10.77.0.2", 80, server) == str(GATEWAY)
        assert reaches(lan.peer, "fd77::2", 80, server) == str(GATEWAY6)
        assert reaches(guest.namespace, str(GATEWAY), 81, far) == "10.77.0.2"
        assert reaches(guest.namespace, str(GATEWAY6), 81, far) == "fd77::2"
    networks.detach(guest.port)
    assert status(networks, LAN, OWN) == ("", "")
    assert status(networks, OWN) == ("",)
    networks.clean()
    assert lan.read() == before


def test_vms_on_a_lan_reach_each_other_unless_they_are_isolated(
    lan: Lan, networks: HostNetworks, start_guest: Start
) -> None:
    del lan
    assert status(networks, LAN) == ("",)
    one, two, alone = (
        start_guest(make_port(LAN, number, group=group)) for number, group in ((1, "*"), (2, "*"), (3, None))
    )
    with two.serve(socket.SOCK_STREAM, 80) as server:
        assert reaches(one.namespace, "10.77.0.3", 80, server) == "10.77.0.2"
        assert reaches(alone.namespace, "10.77.0.3", 80, server, 0.5) is None


def test_of_the_host_a_vm_reaches_what_it_may_and_the_lan_all(
    lan: Lan, networks: HostNetworks, start_guest: Start
) -> None:
    plan = replace(LAN, host_ports=frozenset({HostPort(Transport.TCP, 53)}))
    assert status(networks, plan) == ("",)
    guest = start_guest(make_port(plan, 1))
    for address in (HOST, HOST6):
        for port, allowed in ((53, True), (22, False)):
            with serve(lan.host, socket.SOCK_STREAM, port) as server:
                assert reaches(lan.peer, address, port, server) is not None
                assert (reaches(guest.namespace, address, port, server, 0.5) is not None) == allowed
    with guest.serve(socket.SOCK_STREAM, 80) as server, serve(lan.host, socket.SOCK_STREAM, 22) as local:
        assert reaches(lan.host, "10.77.0.2", 80, server) == HOST
        assert reaches(lan.host, "127.0.0.1", 22, local) == "127.0.0.1"


@pytest.mark.parametrize(
    ("spoil", "said", "cure"),
    [
        (["ip", "link", "del", "br0"], "the bridge br0 does not exist", "create it"),
        (["ip", "link", "set", "br0", "down"], "the bridge br0 is down", "ip link set br0 up"),
        (
            ["ip", "link", "set", "br0", "mtu", "1400"],
            "has an MTU of 1400, and network lan of 1500",
            "mtu: 1400",
        ),
        (
            ["ip", "link", "set", "br0", "alias", "hypemand network lan"],
            "br0 was created by hypemand",
            "managed: false",
        ),
    ],
)
def test_a_bridge_that_is_not_as_it_is_said_is_told_and_left_alone(
    lan: Lan, networks: HostNetworks, spoil: list[str], said: str, cure: str
) -> None:
    run_command(spoil, timeout=DEADLINE)
    there = "br0" in os.listdir("/proc/sys/net/ipv4/conf")
    before = lan.read() if there else None
    networks.apply((LAN, OWN), (), prune=False)
    problem, own = (one.problem for one in networks.apply((LAN, OWN), (), prune=False))
    assert said in problem
    assert cure in problem
    assert own == ""
    with pytest.raises(HostNotReady, match=said):
        networks.attach(make_port(LAN, 1))
    assert (lan.read() if there else None) == before


def test_a_device_that_is_no_bridge_is_told(lan: Lan, networks: HostNetworks) -> None:
    del lan
    (problem,) = status(networks, replace(LAN, bridge="port0"))
    assert "port0 is not a bridge" in problem


def test_a_bridge_that_is_made_again_gets_the_vms_back(
    lan: Lan, networks: HostNetworks, start_guest: Start
) -> None:
    assert status(networks, LAN) == ("",)
    guest = start_guest(make_port(LAN, 1))
    assert not networks.is_awaited("br0")
    ip("link", "del", "br0")
    (lost,) = networks.restore_bridges()
    assert "br0 does not exist" in lost.problem
    assert networks.restore_bridges() == ()
    assert networks.is_awaited("br0")
    assert networks.find_come() == []
    lan.make()
    lan.plug()
    ip("link", "set", "br0", "down")
    assert networks.find_come() == []
    ip("link", "set", "br0", "up")
    assert networks.find_come() == ["br0"]
    assert status(networks, LAN, ports=(guest.port,)) == ("",)
    assert networks.find_come() == []
    with guest.serve(socket.SOCK_STREAM, 80) as server:
        assert reaches(lan.peer, "10.77.0.2", 80, server) == str(GATEWAY)


def test_a_bridge_with_spanning_tree_is_told(lan: Lan, networks: HostNetworks) -> None:
    del lan
    ip("link", "set", "br0", "type", "bridge", "stp_state", "1")
    (one,) = networks.apply((LAN,), (), prune=True)
    assert one.problem == ""
    assert [warning for warning in one.warnings if "spanning tree" in warning]


# Guests that lie. What they send is looked for at the other machine.

ME, NODES, ANY6 = make_port(LAN, 1).mac, IPv6Address("ff02::1"), IPv6Address("::")
DATA = udp(1000, 2000)
# what the LAN may have given
GIVEN, GIVEN6, STRANGE_LOCAL = GATEWAY + 77, IPv6Address("fd77::77"), IPv6Address("fe80::1234")
METADATA = ethernet(ME, BROADCAST, IPV4, ipv4(IPv4Address("10.77.0.2"), IPv4Address("169.254.169.254"), DATA))
METADATA6 = ethernet(
    ME, ALL_NODES, IPV6, ipv6(IPv6Address("fd77::2"), IPv6Address("fd00:ec2::254"), DATA, UDP)
)
ADVERTISEMENT = icmp6(134, bytes(12))
NOT_KNOWN = {
    "arp": own_arp(arp(ME, GIVEN, GATEWAY)),
    "ipv4": own4(GIVEN),
    "dhcp": own4(IPv4Address("0.0.0.0"), udp(68, 67)),
    "ipv6": own6(GIVEN6, DATA, UDP),
    "link-local": own6(STRANGE_LOCAL, DATA, UDP),
    "solicitation": own6(GIVEN6, solicitation(GATEWAY6, option(1, ME))),
    "advertisement": own6(GIVEN6, advertisement(GIVEN6, option(2, ME))),
    "detection": own6(ANY6, solicitation(GIVEN6)),
    "router-solicitation": own6(STRANGE_LOCAL, icmp6(133, bytes(4) + option(1, ME))),
}
# of the lies of test_spoofing, those that nobody can tell where addresses are not known
NOT_TOLD = {"arp-probe-answer", "ipv4-any", "ipv4-loopback", "dhcp-client", "ipv6-any"}


class Tapped:
    """The TAP device of the first guest, and what of its frames comes to the other machine."""

    def __init__(self, lan: Lan, stack: ExitStack) -> None:
        self.tap = open_tap(make_port(LAN, 1).tap)
        stack.callback(os.close, self.tap)
        self.peer = stack.enter_context(lan.peer.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)))
        self.peer.bind(("eth0", 0))
        # a port takes part as soon as the bridge has noticed that the guest is there
        self.peer.settimeout(0.05)
        while not self._arrives(HONEST["arp-probe"]):
            pass
        self.peer.settimeout(DEADLINE)

    def _arrives(self, frame: bytes) -> bool:
        os.write(self.tap, frame)
        with suppress(TimeoutError):
            while not self.peer.recv(2000).startswith(frame):
                pass
            return True
        return False

    def list_passing(self, frames: Mapping[str, bytes]) -> set[str]:
        """Those that come to the other machine. One after each has to, and they keep their order."""
        return {name for name, frame in frames.items() if self._passes(frame)}

    def _passes(self, frame: bytes) -> bool:
        last = HONEST["arp-probe"] + os.urandom(8)
        os.write(self.tap, frame)
        os.write(self.tap, last)
        seen = False
        while last not in (got := self.peer.recv(2000)):
            seen |= got.startswith((frame, mac_free(frame)))
        return seen


def tap(lan: Lan, networks: HostNetworks, stack: ExitStack, port: PortPlan) -> Tapped:
    """A guest with that port, beside one whose addresses are known."""
    assert status(networks, port.bridge) == ("",)
    networks.attach(port)
    networks.attach(make_port(port.bridge, 2))
    return Tapped(lan, stack)


def test_what_a_vm_says_is_known_to_be_true_on_a_lan_too(
    lan: Lan, networks: HostNetworks, stack: ExitStack
) -> None:
    tapped = tap(lan, networks, stack, make_port(LAN, 1))
    assert tapped.list_passing(HONEST) == set(HONEST)
    assert tapped.list_passing(FORGED | NOT_KNOWN) == set()


def test_a_vm_that_the_lan_configures_takes_nothing_of_whom_is_known(
    lan: Lan, networks: HostNetworks, stack: ExitStack
) -> None:
    tapped = tap(lan, networks, stack, make_port(FREE, 1, ipv4=None, ipv6=None))
    assert tapped.list_passing(HONEST | NOT_KNOWN) == {*HONEST, *NOT_KNOWN}
    assert tapped.list_passing(FORGED) == NOT_TOLD


def test_one_family_may_be_known_and_the_other_not(
    lan: Lan, networks: HostNetworks, stack: ExitStack
) -> None:
    tapped = tap(lan, networks, stack, make_port(FREE, 1, ipv6=None))
    assert tapped.list_passing(NOT_KNOWN) == set(NOT_KNOWN) - {"arp", "ipv4", "dhcp"}
    assert tapped.list_passing(FORGED) == {"ipv6-any"}


@pytest.mark.parametrize("allowed", [False, True])
def test_secrets_of_a_cloud_are_not_to_be_had_over_the_lan(
    lan: Lan, networks: HostNetworks, stack: ExitStack, allowed: bool
) -> None:
    tapped = tap(lan, networks, stack, make_port(replace(LAN, link_local=allowed), 1))
    frames = {"4": METADATA, "6": METADATA6}
    assert tapped.list_passing(frames) == (set(frames) if allowed else set())


@pytest.mark.parametrize("free", [False, True])
def test_a_router_of_the_lan_is_heard_by_those_that_the_lan_configures(
    lan: Lan, networks: HostNetworks, stack: ExitStack, free: bool
) -> None:
    port = make_port(FREE, 1, ipv6=None) if free else make_port(LAN, 1)
    tapped = tap(lan, networks, stack, port)
    router = "52:54:00:ff:00:01"
    told = ethernet(router, ALL_NODES, IPV6, ipv6(STRANGE_LOCAL, NODES, ADVERTISEMENT))
    last = ethernet(router, BROADCAST, IPV4, ipv4(GATEWAY, GIVEN, udp(1, 2, b"the last one")))
    tapped.peer.send(told)
    tapped.peer.send(last)
    heard = read_until(tapped.tap, b"the last one")
    assert any(frame.startswith(told) for frame in heard) == free


def test_the_lies_are_seen_where_there_are_no_rules(
    lan: Lan, networks: HostNetworks, stack: ExitStack
) -> None:
    tapped = tap(lan, networks, stack, make_port(LAN, 1))
    run_command(["nft", "delete", "table", "bridge", "hypemand"], timeout=DEADLINE)
    hidden = {"spanning-tree", "to-bridges-alone"}
    assert tapped.list_passing(FORGED | NOT_KNOWN) >= set(FORGED | NOT_KNOWN) - hidden
