# SPDX-License-Identifier: Apache-2.0
"""Who reaches whom, proved with connections from and to guests: egress, published ports, isolation."""

import socket
import struct
from collections.abc import Callable
from contextlib import ExitStack
from ipaddress import ip_address

import pytest

from hypemand.config.network import HostPort, Publish, Transport
from hypemand.network import conntrack
from hypemand.network.port import PortPlan
from hypemand.network.reconcile import HostNetworks
from tests.host.command import run_command
from tests.unit.network.lab import (
    DEADLINE,
    HOST_UPLINK,
    HOST_UPLINK6,
    REMOTE,
    REMOTE6,
    Cable,
    Guest,
    Namespace,
    connect,
    ip,
    make_bridge,
    make_port,
    reaches,
    serve,
    set_sysctl,
)

TCP = socket.SOCK_STREAM
# long enough for a packet that is let through, even on a busy machine
NEVER = 0.5
StartGuest = Callable[[PortPlan], Guest]


@pytest.fixture(params=[False, True], ids=["plain", "br_netfilter"])
def bridge_netfilter(request: pytest.FixtureRequest, host_namespace: Namespace) -> bool:
    """With br_netfilter, as Docker loads it, the chains of IP see what is bridged too."""
    del host_namespace
    set_bridge_netfilter(on=request.param)
    return bool(request.param)


def set_bridge_netfilter(*, on: bool) -> None:
    for name in ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables"):
        set_sysctl(f"bridge/{name}", str(int(on)))


def publish(text: str, transport: Transport = Transport.TCP) -> Publish:
    *address, host, guest = text.split("|")
    return Publish(ip_address(address[0]) if address else None, int(host), int(guest), transport)


def add_foreign_chain(family: str, hook: str, rule: str) -> None:
    """A rule of somebody else, after ours."""
    chain = f"type filter hook {hook} priority 0\n {rule}"
    foreign = f"table {family} foreign {{\n chain foreign {{\n {chain}\n }}\n}}"
    run_command(["nft", "-f", "-"], input=foreign.encode(), timeout=DEADLINE)


def test_guests_go_out_under_the_address_of_the_host(
    networks: HostNetworks, cable: Cable, start_guest: StartGuest
) -> None:
    plan = make_bridge()
    networks.apply((plan,), (), prune=True)
    guest = start_guest(make_port(plan, 1))
    with serve(cable.namespace, TCP, 80) as server:
        assert reaches(guest.namespace, REMOTE, 80, server) == HOST_UPLINK
        assert reaches(guest.namespace, REMOTE6, 80, server) == HOST_UPLINK6


def test_without_nat_guests_are_reached_and_seen_under_their_own_addresses(
    networks: HostNetworks, cable: Cable, start_guest: StartGuest
) -> None:
    plan = make_bridge(nat=False)
    networks.apply((plan,), (), prune=True)
    guest = start_guest(make_port(plan, 1))
    with cable.namespace.entered():
        ip("route", "add", "10.77.0.0/24", "via", HOST_UPLINK)
        ip("route", "add", "fd77::/64", "via", HOST_UPLINK6)
    with serve(cable.namespace, TCP, 80) as server, guest.serve(TCP, 80) as inside:
        assert reaches(guest.namespace, REMOTE, 80, server) == str(guest.port.ipv4)
        assert reaches(guest.namespace, REMOTE6, 80, server) == str(guest.port.ipv6)
        assert reaches(cable.namespace, str(guest.port.ipv4), 80, inside) == REMOTE
        assert reaches(cable.namespace, str(guest.port.ipv6), 80, inside) == REMOTE6


def test_with_nat_others_reach_published_ports_and_nothing_else(
    networks: HostNetworks, cable: Cable, start_guest: StartGuest
) -> None:
    plan = make_bridge()
    networks.apply((plan,), (), prune=True)
    published = (publish("8080|80"), publish(f"{HOST_UPLINK}|81|80"), publish(f"{HOST_UPLINK6}|82|80"))
    guest = start_guest(make_port(plan, 1, publish=published))
    with cable.namespace.entered():
        ip("route", "add", "10.77.0.0/24", "via", HOST_UPLINK)
    with guest.serve(TCP, 80) as server:
        for address, port in (
            (HOST_UPLINK, 8080),
            (HOST_UPLINK, 81),
            (HOST_UPLINK6, 8080),
            (HOST_UPLINK6, 82),
        ):
            assert reaches(cable.namespace, address, port, server) in (REMOTE, REMOTE6)
        assert reaches(cable.namespace, str(guest.port.ipv4), 80, server, NEVER) is None
        assert reaches(cable.namespace, HOST_UPLINK6, 81, server, NEVER) is None
        assert reaches(cable.namespace, HOST_UPLINK, 82, server, NEVER) is None
        networks.detach(guest.port)
        assert reaches(cable.namespace, HOST_UPLINK, 8080, server, NEVER) is None


def test_the_host_reaches_published_ports_at_each_of_its_addresses(
    networks: HostNetworks, cable: Cable, host_namespace: Namespace, start_guest: StartGuest
) -> None:
    del cable
    plan = make_bridge()
    networks.apply((plan,), (), prune=True)
    guest = start_guest(make_port(plan, 1, publish=(publish("8080|80"), publish("127.0.0.1|81|80"))))
    with guest.serve(TCP, 80) as server:
        assert reaches(host_namespace, "127.0.0.1", 8080, server) == str(plan.ipv4 and plan.ipv4.ip)
        assert reaches(host_namespace, "127.0.0.1", 81, server) == str(plan.ipv4 and plan.ipv4.ip)
        assert reaches(host_namespace, HOST_UPLINK, 8080, server) is not None
        assert reaches(host_namespace, HOST_UPLINK6, 8080, server) is not None
        assert reaches(host_namespace, str(guest.port.ipv4), 80, server) is not None
        assert reaches(host_namespace, HOST_UPLINK, 81, server, NEVER) is None
        # which leads nowhere, and says so at once
        with pytest.raises(ConnectionRefusedError):
            connect(host_namespace, "::1", 8080)


def test_datagrams_come_to_a_published_port_and_their_answers_back(
    networks: HostNetworks, cable: Cable, host_namespace: Namespace, start_guest: StartGuest
) -> None:
    plan = make_bridge()
    networks.apply((plan,), (), prune=True)
    guest = start_guest(make_port(plan, 1, publish=(publish("53|5353", Transport.UDP),)))
    with guest.serve(socket.SOCK_DGRAM, 5353) as server:
        for namespace, address in ((cable.namespace, HOST_UPLINK), (host_namespace, "127.0.0.1")):
            with namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.sendto(b"question", (address, 53))
                data, sender = server.recvfrom(100)
                server.sendto(data + b"!", sender)
                assert client.recvfrom(100) == (b"question!", (address, 53))


@pytest.mark.parametrize("address", [HOST_UPLINK, HOST_UPLINK6])
def test_a_guest_reaches_published_ports_of_others_and_its_own(
    bridge_netfilter: bool, networks: HostNetworks, cable: Cable, start_guest: StartGuest, address: str
) -> None:
    del bridge_netfilter, cable
    plan, other = make_bridge(), make_bridge("other", "hypeman1", 1)
    networks.apply((plan, other), (), prune=True)
    server_guest = start_guest(make_port(plan, 1, publish=(publish("8080|80"),)))
    neighbour = start_guest(make_port(plan, 2))
    stranger = start_guest(make_port(other, 3))
    with server_guest.serve(TCP, 80) as server:
        assert reaches(neighbour.namespace, address, 8080, server) is not None
        assert reaches(stranger.namespace, address, 8080, server) is not None
        assert reaches(server_guest.namespace, address, 8080, server) is not None
        # and there is no other way
        for guest in (neighbour, stranger):
            assert reaches(guest.namespace, str(server_guest.port.ipv4), 80, server, NEVER) is None


def test_guests_reach_each_other_within_a_group_alone(
    bridge_netfilter: bool, networks: HostNetworks, start_guest: StartGuest
) -> None:
    del bridge_netfilter
    plan, other = make_bridge(), make_bridge("other", "hypeman1", 1)
    networks.apply((plan, other), (), prune=True)
    first = start_guest(make_port(plan, 1, group="a"))
    second = start_guest(make_port(plan, 2, group="a"))
    outsiders = [
        start_guest(make_port(plan, 3, group="b")),
        start_guest(make_port(plan, 4)),
        start_guest(make_port(other, 5, group="a")),
    ]
    with first.serve(TCP, 80) as server:
        for address in (first.port.ipv4, first.port.ipv6):
            assert reaches(second.namespace, str(address), 80, server) is not None
            for guest in outsiders:
                assert reaches(guest.namespace, str(address), 80, server, NEVER) is None


def test_what_an_administrator_plugs_into_the_bridge_reaches_guests_and_is_reached(
    bridge_netfilter: bool, networks: HostNetworks, start_guest: StartGuest, stack: ExitStack
) -> None:
    del bridge_netfilter
    plan = make_bridge()
    networks.apply((plan,), (), prune=True)
    guest = start_guest(make_port(plan, 1))
    other = Namespace()
    stack.callback(other.close)
    ip("link", "add", "plug0", "up", "master", plan.bridge, "type", "veth", "peer", "name", "eth0")
    ip("link", "set", "eth0", "netns", other.path)
    with other.entered():
        ip("addr", "add", "10.77.0.200/24", "dev", "eth0")
        ip("link", "set", "eth0", "up")
    with serve(other, TCP, 80) as server, guest.serve(TCP, 80) as inside:
        assert reaches(guest.namespace, "10.77.0.200", 80, server) == str(guest.port.ipv4)
        assert reaches(other, str(guest.port.ipv4), 80, inside) == "10.77.0.200"


def test_marks_of_ours_do_not_leave_the_host(
    bridge_netfilter: bool, networks: HostNetworks, cable: Cable, start_guest: StartGuest
) -> None:
    del bridge_netfilter
    plan = make_bridge()
    networks.apply((plan,), (), prune=True)
    guest = start_guest(make_port(plan, 1, publish=(publish("8080|80"),)))
    add_foreign_chain("inet", "postrouting", 'oifname "eth0" meta mark != 0 drop')
    with guest.serve(TCP, 80) as server:
        assert reaches(cable.namespace, HOST_UPLINK, 8080, server) == REMOTE


def test_a_mark_of_somebody_else_is_no_membership(networks: HostNetworks, start_guest: StartGuest) -> None:
    """One that is the number of a group, in a frame that the kernel's own flag does not stop."""
    plan = make_bridge()
    networks.apply((plan,), (), prune=True)
    first = start_guest(make_port(plan, 1, group="a"))
    second, loner = start_guest(make_port(plan, 2, group="a")), start_guest(make_port(plan, 3))
    ip("link", "set", loner.port.tap, "type", "bridge_slave", "isolated", "off")
    add_foreign_chain("bridge", "prerouting", "meta mark set 1")
    with first.serve(socket.SOCK_DGRAM, 53) as server:
        for guest in (loner, second):
            with guest.namespace.entered():
                ip("neigh", "add", str(first.port.ipv4), "lladdr", first.port.mac, "dev", "eth0")
            with guest.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.sendto(guest.port.vm.encode(), (str(first.port.ipv4), 53))
            if guest is loner:
                server.settimeout(NEVER)
                with pytest.raises(TimeoutError):
                    server.recv(100)
                server.settimeout(DEADLINE)
        assert server.recv(100) == b"vm2"


def test_bridges_of_others_go_on_without_marks(networks: HostNetworks, stack: ExitStack) -> None:
    networks.apply((make_bridge(),), (make_port(make_bridge(), 1),), prune=True)
    ip("link", "add", "br0", "up", "type", "bridge")
    ends = [Namespace(), Namespace()]
    for number, end in enumerate(ends, 1):
        stack.callback(end.close)
        ip("link", "add", f"plug{number}", "up", "master", "br0", "type", "veth", "peer", "name", "eth0")
        ip("link", "set", "eth0", "netns", end.path)
        with end.entered():
            ip("addr", "add", f"10.9.0.{number}/24", "dev", "eth0")
            ip("link", "set", "eth0", "up")
    add_foreign_chain("bridge", "forward", "meta mark != 0 drop")
    with serve(ends[0], TCP, 80) as server:
        assert reaches(ends[1], "10.9.0.1", 80, server) == "10.9.0.2"


def test_guests_do_not_reach_each_other_by_way_of_the_host(
    bridge_netfilter: bool, networks: HostNetworks, start_guest: StartGuest
) -> None:
    del bridge_netfilter
    plan = make_bridge()
    networks.apply((plan,), (), prune=True)
    first, second = start_guest(make_port(plan, 1)), start_guest(make_port(plan, 2))
    assert plan.ipv4 is not None
    assert plan.ipv6 is not None
    with second.namespace.entered():
        ip("route", "add", str(first.port.ipv4), "via", str(plan.ipv4.ip))
        ip("route", "add", str(first.port.ipv6), "via", str(plan.ipv6.ip))
    with first.serve(TCP, 80) as server:
        assert reaches(second.namespace, str(first.port.ipv4), 80, server, NEVER) is None
        assert reaches(second.namespace, str(first.port.ipv6), 80, server, NEVER) is None


def test_a_guest_reaches_of_the_host_what_is_allowed(
    networks: HostNetworks, cable: Cable, host_namespace: Namespace, start_guest: StartGuest
) -> None:
    plan = make_bridge(host_ports=frozenset({HostPort(Transport.TCP, 53)}))
    networks.apply((plan,), (), prune=True)
    guest = start_guest(make_port(plan, 1))
    assert plan.ipv4 is not None
    with serve(host_namespace, TCP, 53) as allowed, serve(host_namespace, TCP, 22) as forbidden:
        assert reaches(guest.namespace, str(plan.ipv4.ip), 53, allowed) == str(guest.port.ipv4)
        for address in (str(plan.ipv4.ip), HOST_UPLINK, HOST_UPLINK6):
            assert reaches(guest.namespace, address, 22, forbidden, NEVER) is None
        # which is nobody else's loss
        assert reaches(cable.namespace, HOST_UPLINK, 22, forbidden) == REMOTE
        assert reaches(host_namespace, "127.0.0.1", 22, forbidden) is not None
        with guest.namespace.entered():
            ip("route", "add", "127.0.0.2", "via", str(plan.ipv4.ip))
            set_sysctl("ipv4/conf/eth0/route_localnet", "1")
        assert reaches(guest.namespace, "127.0.0.2", 53, allowed, NEVER) is None


@pytest.mark.parametrize("version", [4, 6])
def test_a_guest_gets_echoes_of_the_host(
    networks: HostNetworks, start_guest: StartGuest, version: int
) -> None:
    plan = make_bridge()
    networks.apply((plan,), (), prune=True)
    guest = start_guest(make_port(plan, 1))
    interface = plan.ipv4 if version == 4 else plan.ipv6
    assert interface is not None
    family, protocol, kind = (
        (socket.AF_INET, socket.IPPROTO_ICMP, 8)
        if version == 4
        else (socket.AF_INET6, socket.IPPROTO_ICMPV6, 128)
    )
    checksum = ~(kind << 8) & 0xFFFF  # of the rest, which is 0; that of ICMPv6 the kernel makes
    with guest.namespace.socket(family, socket.SOCK_RAW, protocol) as client:
        client.sendto(struct.pack(">BBHI", kind, 0, checksum, 0), (str(interface.ip), 0))
        answers = {8: 0, 128: 129}
        while client.recv(1000)[20 if version == 4 else 0] != answers[kind]:
            pass


def test_what_the_host_forwards_for_others_goes_on(
    networks: HostNetworks, cable: Cable, stack: ExitStack
) -> None:
    container = Namespace()
    stack.callback(container.close)
    ip("link", "add", "docker0", "type", "veth", "peer", "name", "eth9")
    ip("link", "set", "eth9", "netns", container.path)
    ip("addr", "add", "172.17.0.1/16", "dev", "docker0")
    ip("link", "set", "docker0", "up")
    with container.entered():
        ip("addr", "add", "172.17.0.2/16", "dev", "eth9")
        ip("link", "set", "eth9", "up")
        ip("route", "add", "default", "via", "172.17.0.1")
    with cable.namespace.entered():
        ip("route", "add", "172.17.0.0/16", "via", HOST_UPLINK)
    networks.apply((make_bridge(),), (make_port(make_bridge(), 1),), prune=True)
    with serve(container, TCP, 80) as server:
        assert reaches(cable.namespace, "172.17.0.2", 80, server) == REMOTE


def test_the_address_of_a_stopped_guest_can_be_used_again_at_once(
    networks: HostNetworks, cable: Cable, start_guest: StartGuest
) -> None:
    plan = make_bridge()
    networks.apply((plan,), (), prune=True)
    guest = start_guest(make_port(plan, 1, publish=(publish("53|5353", Transport.UDP),)))
    with (
        cable.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
        guest.serve(socket.SOCK_DGRAM, 5353) as server,
    ):
        client.sendto(b"to the first", (HOST_UPLINK, 53))
        assert server.recv(100) == b"to the first"
        networks.detach(guest.port)
        next_guest = start_guest(make_port(plan, 2, publish=guest.port.publish))
        with next_guest.serve(socket.SOCK_DGRAM, 5353) as next_server:
            # the same connection to conntrack, were it not forgotten
            client.sendto(b"to the second", (HOST_UPLINK, 53))
            assert next_server.recv(100) == b"to the second"


def test_who_called_before_the_port_was_published_gets_to_the_guest(
    networks: HostNetworks, cable: Cable, start_guest: StartGuest
) -> None:
    plan = make_bridge()
    networks.apply((plan,), (), prune=True)
    with (
        cable.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
        cable.namespace.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client6,
    ):
        client.sendto(b"too early", (HOST_UPLINK, 53))
        client6.sendto(b"too early", (HOST_UPLINK6, 53))
        guest = start_guest(make_port(plan, 1, publish=(publish("53|5353", Transport.UDP),)))
        with guest.serve(socket.SOCK_DGRAM, 5353) as server:
            for sender, address in ((client, HOST_UPLINK), (client6, HOST_UPLINK6)):
                # the same connection to conntrack, were it not forgotten
                sender.sendto(b"again", (address, 53))
                assert server.recv(100) == b"again"


def test_who_called_while_the_rules_were_away_gets_to_the_guest(
    networks: HostNetworks, cable: Cable, start_guest: StartGuest
) -> None:
    plan = make_bridge()
    networks.apply((plan,), (), prune=True)
    guest = start_guest(make_port(plan, 1, publish=(publish("53|5353", Transport.UDP),)))
    # conntrack goes on without us, as with the rules of another firewall
    add_foreign_chain("inet", "input", "ct state invalid drop")
    with (
        cable.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
        guest.serve(socket.SOCK_DGRAM, 5353) as server,
    ):
        run_command(["nft", "delete", "table", "inet", "hypemand"], timeout=DEADLINE)
        client.sendto(b"too early", (HOST_UPLINK, 53))
        assert networks.restore_rules()
        client.sendto(b"again", (HOST_UPLINK, 53))
        assert server.recv(100) == b"again"


@pytest.mark.parametrize("ports", [1, 20])
def test_in_a_large_table_who_called_before_is_found(
    networks: HostNetworks, cable: Cable, start_guest: StartGuest, monkeypatch: pytest.MonkeyPatch, ports: int
) -> None:
    monkeypatch.setattr(conntrack, "_MANY", 0)
    plan = make_bridge()
    networks.apply((plan,), (), prune=True)
    with (
        cable.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
        cable.namespace.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client6,
        cable.namespace.socket(socket.AF_INET, socket.SOCK_DGRAM) as other,
    ):
        other.sendto(b"to the host", (HOST_UPLINK, 99))
        client.sendto(b"too early", (HOST_UPLINK, 53))
        client6.sendto(b"too early", (HOST_UPLINK6, 53))
        assert conntrack.forget_early(frozenset(range(53, 53 + ports))) == 2
        assert conntrack.forget_early(frozenset({99})) == 1
        assert conntrack.forget_early(frozenset({99})) == 0


def test_the_host_finds_itself_under_its_own_address(
    networks: HostNetworks, cable: Cable, host_namespace: Namespace
) -> None:
    del cable
    plan = make_bridge()
    networks.apply((plan,), (make_port(plan, 1),), prune=True)
    assert plan.ipv4 is not None
    with serve(host_namespace, TCP, 80) as server:
        assert reaches(host_namespace, str(plan.ipv4.ip), 80, server) == str(plan.ipv4.ip)


def test_bridge_netfilter_that_comes_later_is_noticed(
    networks: HostNetworks, cable: Cable, start_guest: StartGuest
) -> None:
    """As it does with Docker, which loads it for its first container."""
    plan = make_bridge()
    set_bridge_netfilter(on=False)
    networks.apply((plan,), (), prune=True)
    guest = start_guest(make_port(plan, 1, publish=(publish("8080|80"),)))
    set_bridge_netfilter(on=True)
    neighbour = start_guest(make_port(plan, 2))
    with guest.serve(TCP, 80) as server:
        assert reaches(neighbour.namespace, HOST_UPLINK, 8080, server) is not None
        assert reaches(guest.namespace, HOST_UPLINK, 8080, server) is not None
        assert reaches(cable.namespace, HOST_UPLINK, 8080, server) is not None


def test_an_address_behind_another_mac_is_reached_at_once(
    networks: HostNetworks, cable: Cable, host_namespace: Namespace, start_guest: StartGuest
) -> None:
    del cable
    plan = make_bridge()
    networks.apply((plan,), (), prune=True)
    first = start_guest(make_port(plan, 1))
    with first.serve(TCP, 80) as server:
        for address in (first.port.ipv4, first.port.ipv6):
            assert reaches(host_namespace, str(address), 80, server) is not None
    networks.detach(first.port)
    second = start_guest(make_port(plan, 2, ipv4=first.port.ipv4, ipv6=first.port.ipv6))
    with second.serve(TCP, 80) as server:
        for address in (first.port.ipv4, first.port.ipv6):
            assert reaches(host_namespace, str(address), 80, server, NEVER) is not None
