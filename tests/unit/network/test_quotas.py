# SPDX-License-Identifier: Apache-2.0
"""What a guest may take of the host's connection tracking, and where it may send: proved with its packets."""

import itertools
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace

import pytest

from hypemand.config.netparse import parse_egress
from hypemand.config.network import Egress, Publish
from hypemand.model.counters import Connections
from hypemand.network.firewall import Nftables, RuleRefused
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
    ip,
    make_bridge,
    make_port,
    reaches,
    serve,
)

TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM
NEVER = 0.5
SOURCE_PORTS = itertools.count(20000)  # never one twice: that would be a connection that is known already
StartGuest = Callable[[PortPlan], Guest]


def allow(*texts: str) -> tuple[Egress, ...]:
    return tuple(map(parse_egress, texts))


def read_rules() -> str:
    return run_command(["nft", "list", "ruleset"], timeout=DEADLINE).stdout


def count_arrived(server: socket.socket) -> int:
    """Datagrams that wait there."""
    server.settimeout(NEVER)
    count = 0
    with suppress(TimeoutError):
        while server.recv(100):
            count += 1
    return count


def send_new(cable: Cable, guest: Guest, address: str, count: int) -> int:
    """Of so many new connections of a guest, of one datagram each, those that get to the other machine."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with ExitStack() as stack:
        server = stack.enter_context(serve(cable.namespace, UDP, 5000))
        for port in itertools.islice(SOURCE_PORTS, count):
            source = stack.enter_context(guest.namespace.socket(family, UDP))
            source.bind(("", port))
            source.sendto(b"x", (address, 5000))
        return count_arrived(server)


def test_the_first_packet_of_each_connection_is_counted_both_ways(
    networks: HostNetworks, cable: Cable, start_guest: StartGuest
) -> None:
    plan = make_bridge()
    networks.apply((plan,), (), prune=True)
    web = start_guest(make_port(plan, 1, publish=(Publish(None, 8080, 80),)))
    other = start_guest(make_port(plan, 2))
    assert networks.connections() == {web.port.tap: Connections(), other.port.tap: Connections()}
    assert send_new(cable, web, REMOTE, 3) == 3
    assert send_new(cable, web, REMOTE6, 2) == 2
    with serve(cable.namespace, TCP, 80) as server:
        assert reaches(web.namespace, REMOTE, 80, server)  # of several packets
    with web.serve(TCP, 80) as server:
        for address in (HOST_UPLINK, HOST_UPLINK6):
            assert reaches(cable.namespace, address, 8080, server)
        # what is not let through is the sender's alone
        assert web.port.ipv4 is not None
        assert reaches(other.namespace, str(web.port.ipv4), 80, server, NEVER) is None
    counted = networks.connections()
    assert counted[web.port.tap] == Connections(outgoing=6, incoming=2)
    networks.detach(other.port)
    assert set(networks.connections()) == {web.port.tap}


def test_a_guest_has_so_many_connections_by_both_protocols_and_its_neighbour_its_own(
    networks: HostNetworks, cable: Cable, start_guest: StartGuest
) -> None:
    plan = make_bridge()
    networks.apply((plan,), (), prune=True)
    greedy = start_guest(make_port(plan, 1, connections=30))
    other = start_guest(make_port(plan, 2, connections=30))
    assert send_new(cable, greedy, REMOTE, 20) == 20
    assert send_new(cable, greedy, REMOTE6, 50) == 10
    assert send_new(cable, greedy, REMOTE, 20) == 0
    with serve(cable.namespace, TCP, 80) as server:
        assert reaches(greedy.namespace, REMOTE, 80, server, NEVER) is None
        assert reaches(other.namespace, REMOTE, 80, server) == HOST_UPLINK
    # its place is free again when it has gone, and what others do with the same limit is not disturbed
    networks.detach(greedy.port)
    assert "connections_30" in read_rules()
    networks.detach(other.port)
    assert "_30 " not in read_rules()


def test_a_stream_that_nobody_answers_is_one_connection(
    networks: HostNetworks, cable: Cable, start_guest: StartGuest
) -> None:
    plan = make_bridge()
    networks.apply((plan,), (), prune=True)
    guest = start_guest(make_port(plan, 1, connections=16))
    with serve(cable.namespace, UDP, 5000) as server:
        with guest.namespace.socket(socket.AF_INET, UDP) as source:
            for _ in range(200):
                source.sendto(b"x", (REMOTE, 5000))
        assert count_arrived(server) == 200
    assert send_new(cable, guest, REMOTE, 10) == 10


def test_connections_that_have_ended_make_room(
    networks: HostNetworks, cable: Cable, start_guest: StartGuest
) -> None:
    plan = make_bridge()
    networks.apply((plan,), (), prune=True)
    guest = start_guest(make_port(plan, 1, connections=16))
    run_command(["sysctl", "-q", "net.netfilter.nf_conntrack_udp_timeout=1"], timeout=DEADLINE)
    assert send_new(cable, guest, REMOTE, 40) == 16
    with guest.namespace.socket(socket.AF_INET, UDP) as source, serve(cable.namespace, UDP, 5001) as server:
        server.settimeout(0.2)
        for _ in range(100):
            source.sendto(b"x", (REMOTE, 5001))
            with suppress(TimeoutError):
                assert server.recv(10) == b"x"
                return
    raise AssertionError("no new connection passes, though the old ones have ended")


@pytest.fixture
def no_counting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel without nft_connlimit."""
    change = Nftables.change

    def refuse(self: Nftables, text: str) -> None:
        if "ct count" in text:
            raise RuleRefused("Error: Could not process rule: No such file or directory")
        change(self, text)

    monkeypatch.setattr(Nftables, "change", refuse)


def test_new_connections_come_no_faster_than_allowed(
    networks: HostNetworks, cable: Cable, start_guest: StartGuest, no_counting: None
) -> None:
    """On a kernel that cannot count them, this limit is the one that stays."""
    del no_counting
    plan = make_bridge()
    networks.apply((plan,), (), prune=True)
    guest = start_guest(make_port(plan, 1, connections=16))
    assert "ct count" not in read_rules()
    assert 16 <= send_new(cable, guest, REMOTE, 200) < 40


def test_a_kernel_that_cannot_count_is_reported(networks: HostNetworks, no_counting: None) -> None:
    plan = make_bridge()
    del no_counting
    (status,) = networks.apply((plan,), (make_port(plan, 1),), prune=True)
    assert status.problem == ""
    assert "the kernel cannot count connections" in " ".join(status.warnings)


@pytest.fixture
def metadata(cable: Cable) -> Iterator[tuple[socket.socket, socket.socket]]:
    """What a cloud serves, on the other side of the host's wire."""
    with cable.namespace.entered():
        ip("addr", "add", "169.254.169.254/32", "dev", "eth0")
        ip("addr", "add", "fd00:ec2::254/128", "dev", "eth0", "nodad")
    ip("route", "add", "169.254.169.254/32", "via", REMOTE)
    ip("route", "add", "fd00:ec2::254/128", "via", REMOTE6)
    with serve(cable.namespace, TCP, 80) as server, serve(cable.namespace, TCP, 81) as other:
        yield server, other


def test_a_clouds_secrets_are_for_the_host_alone_unless_the_network_says_otherwise(
    networks: HostNetworks,
    metadata: tuple[socket.socket, socket.socket],
    start_guest: StartGuest,
) -> None:
    server, _ = metadata
    plan = make_bridge()
    opened = make_bridge("open", "open0", 1, link_local=True)
    networks.apply((plan, opened), (), prune=True)
    guest, trusted = start_guest(make_port(plan, 1)), start_guest(make_port(opened, 2))
    for address in ("169.254.169.254", "fd00:ec2::254"):
        assert reaches(guest.namespace, address, 80, server, NEVER) is None
        assert reaches(trusted.namespace, address, 80, server) is not None
    # and as soon as it does
    renewed = replace(guest.port, bridge=replace(plan, link_local=True))
    networks.apply((renewed.bridge, opened), (renewed, trusted.port), prune=True)
    assert reaches(guest.namespace, "169.254.169.254", 80, server) is not None


def test_a_network_says_where_its_vms_may_send(
    networks: HostNetworks, cable: Cable, start_guest: StartGuest
) -> None:
    plan = make_bridge(egress=allow(f"{REMOTE} 80", f"{REMOTE} 82-84", f"{REMOTE6}/128"))
    networks.apply((plan,), (), prune=True)
    guest = start_guest(make_port(plan, 1, publish=(Publish(None, 8080, 80),)))
    with serve(cable.namespace, TCP, 80) as one, serve(cable.namespace, TCP, 81) as two:
        assert reaches(guest.namespace, REMOTE, 80, one) == HOST_UPLINK
        assert reaches(guest.namespace, REMOTE, 81, two, NEVER) is None
        assert reaches(guest.namespace, REMOTE6, 81, two) is not None
    with serve(cable.namespace, TCP, 83) as three, guest.serve(TCP, 80) as inside:
        assert reaches(guest.namespace, REMOTE, 83, three) == HOST_UPLINK
        # who asks for it is answered
        assert reaches(cable.namespace, HOST_UPLINK, 8080, inside) == REMOTE
    assert send_new(cable, guest, REMOTE, 5) == 0


def test_a_vm_may_be_let_less_far_than_its_network_and_no_farther(
    networks: HostNetworks, cable: Cable, start_guest: StartGuest
) -> None:
    plan = make_bridge(egress=allow("0.0.0.0/0 80-81"))
    networks.apply((plan,), (), prune=True)
    shut = start_guest(make_port(plan, 1, egress=()))
    narrow = start_guest(make_port(plan, 2, egress=allow(f"{REMOTE} 81-82")))
    plain = start_guest(make_port(plan, 3))
    with (
        serve(cable.namespace, TCP, 80) as one,
        serve(cable.namespace, TCP, 81) as two,
        serve(cable.namespace, TCP, 82) as three,
    ):
        servers = {80: one, 81: two, 82: three}

        def list_reached(guest: Guest) -> set[int]:
            return {
                port
                for port, server in servers.items()
                if reaches(guest.namespace, REMOTE, port, server, NEVER) is not None
            }

        assert list_reached(shut) == set()
        assert list_reached(narrow) == {81}
        assert list_reached(plain) == {80, 81}


def test_a_published_port_of_another_vm_is_no_way_around(
    networks: HostNetworks, cable: Cable, start_guest: StartGuest
) -> None:
    del cable
    plan = make_bridge()
    networks.apply((plan,), (), prune=True)
    shut = start_guest(make_port(plan, 1, egress=()))
    free = start_guest(make_port(plan, 3))
    target = start_guest(make_port(plan, 2, publish=(Publish(None, 8080, 80),)))
    with target.serve(TCP, 80) as server:
        assert reaches(free.namespace, HOST_UPLINK, 8080, server) is not None
        assert reaches(shut.namespace, HOST_UPLINK, 8080, server, NEVER) is None


def test_what_vms_share_goes_with_the_last_of_them(networks: HostNetworks) -> None:
    plan = make_bridge()
    networks.apply((plan,), (), prune=True)
    before = read_rules()
    lists = allow("10.0.0.0/8", "10.1.0.0/16 80", "10.0.0.0/7 1-65535/udp", "fd00::/8")
    ports = [make_port(plan, n, egress=lists, connections=100 + n % 2) for n in range(1, 5)]
    for port in ports:
        networks.attach(port)
    rules = read_rules()
    assert rules.count("chain egress_") == 1
    assert rules.count("chain connections_") == before.count("chain connections_") + 2
    for port in ports:
        networks.detach(port)
    assert read_rules() == before
