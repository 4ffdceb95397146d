# SPDX-License-Identifier: Apache-2.0
"""Published ports are held: against programs of the host, and against other VMs."""

import errno
import socket
import struct
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest

from hypemand.config.network import Publish, Transport
from hypemand.errors import InUse
from hypemand.network.listeners import has_holder
from hypemand.network.port import PortPlan
from hypemand.network.reservations import Reservations
from tests.unit.network.lab import Namespace, make_bridge, make_port

TCP, UDP = Transport.TCP, Transport.UDP
LOOPBACK = IPv4Address("127.0.0.1")


@pytest.fixture
def reservations(host_namespace: Namespace) -> Iterator[Reservations]:
    del host_namespace
    reservations = Reservations()
    yield reservations
    reservations.release_others(())


def port(number: int, *publish: Publish) -> PortPlan:
    return make_port(make_bridge(), number, publish=publish)


def take(
    address: str, number: int, transport: Transport = TCP, *, reuse: bool = True, v6only: bool = False
) -> socket.socket:
    """As a program of the host does, and servers share addresses that nobody uses any more."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    kind = socket.SOCK_STREAM if transport is TCP else socket.SOCK_DGRAM
    server = socket.socket(family, kind)
    try:
        if family == socket.AF_INET6:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(v6only))
        if reuse and transport is TCP:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((address, number))
        if transport is TCP:
            server.listen()
    except BaseException:
        server.close()
        raise
    return server


@pytest.mark.parametrize("transport", [TCP, UDP])
@pytest.mark.parametrize("address", ["0.0.0.0", "127.0.0.1", "::"])
def test_a_program_that_comes_later_is_told(
    reservations: Reservations, transport: Transport, address: str
) -> None:
    reservations.take(port(1, Publish(None, 8080, 80, transport)))
    with pytest.raises(OSError, match="in use") as caught:
        take(address, 8080, transport)
    assert caught.value.errno == errno.EADDRINUSE
    reservations.release(port(1).uid)
    take(address, 8080, transport).close()


@pytest.mark.parametrize("transport", [TCP, UDP])
@pytest.mark.parametrize("address", ["0.0.0.0", "127.0.0.1", "::", "::1"])
@pytest.mark.parametrize("reuse", [False, True])
def test_a_program_that_was_there_is_found(
    reservations: Reservations, transport: Transport, address: str, reuse: bool
) -> None:
    with take(address, 8080, transport, reuse=reuse), pytest.raises(InUse) as caught:
        reservations.take(port(1, Publish(None, 8081, 80), Publish(None, 8080, 80, transport)))
    assert caught.value.message.startswith(f"port 8080/{transport} of the host is in use by ")
    # nothing of it is held
    take("0.0.0.0", 8081).close()


def test_a_program_at_another_address_is_no_obstacle(reservations: Reservations) -> None:
    with take("127.0.0.1", 8080), take("0.0.0.0", 8081, UDP):
        reservations.take(port(1, Publish(IPv4Address("192.0.2.1"), 8080, 80), Publish(None, 8081, 80, TCP)))


def test_a_port_that_is_taken_at_one_address_can_be_published_at_another(reservations: Reservations) -> None:
    """As with systemd-resolved, and a name server in a VM."""
    wanted = Publish(None, 53, 5353, UDP)
    with take("127.0.0.53", 53, UDP), pytest.raises(InUse) as caught:
        reservations.take(port(1, wanted))
    assert caught.value.hint == (
        "publish it at ADDRESS:53:5353/udp, one address of the host, or stop that program"
    )
    with take("127.0.0.53", 53, UDP):
        reservations.take(port(1, replace(wanted, address=IPv4Address("192.0.2.1"))))
    with take("127.0.0.53", 54), take("0.0.0.0", 54, UDP), pytest.raises(InUse) as everywhere:
        reservations.take(port(2, replace(wanted, host_port=54)))
    assert everywhere.value.hint == "publish another port, or stop that program"
    with take("::1", 55, TCP), pytest.raises(InUse) as six:
        reservations.take(port(3, Publish(None, 55, 55)))
    assert six.value.hint.startswith("publish it at [ADDRESS]:55:55, ")


def leave_connection(address: str, number: int, *, reuse: bool) -> socket.socket:
    """The client of a server that has closed and gone; the kernel remembers it until the client closes, too,
    and for a minute at most."""
    with take(address, number, reuse=reuse) as server:
        client = socket.create_connection((address, number))
        taken, _ = server.accept()
        taken.close()
        assert client.recv(1) == b""
    return client


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("closed", [False, True])
def test_a_connection_that_is_over_is_no_obstacle(
    reservations: Reservations, address: str, closed: bool
) -> None:
    with leave_connection(address, 8080, reuse=True) as client:
        if closed:  # TIME-WAIT instead of FIN-WAIT-2
            client.close()
        with pytest.raises(OSError, match="in use"):
            take(address, 8080, reuse=False)
        reservations.take(port(1, Publish(None, 8080, 80)))
        for anywhere in ("0.0.0.0", "::"):
            with pytest.raises(OSError, match="in use"):
                take(anywhere, 8080)


def test_nor_is_one_that_nobody_may_share(reservations: Reservations) -> None:
    """The kernel remembers it for a minute (TIME-WAIT), at the side that has closed first."""
    leave_connection("127.0.0.1", 8080, reuse=False).close()
    with pytest.raises(OSError, match="in use"):
        take("127.0.0.1", 8080, reuse=False)
    reservations.take(port(1, Publish(None, 8080, 80)))


def test_what_nobody_may_share_is_held_as_soon_as_it_is_over(reservations: Reservations) -> None:
    client = leave_connection("127.0.0.1", 8080, reuse=False)
    reservations.take(port(1, Publish(None, 8080, 80)))
    assert not reservations.complete()
    # a reset ends what is remembered at once
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    assert reservations.complete()
    with pytest.raises(OSError, match="in use"):
        take("127.0.0.1", 8080)


@pytest.mark.parametrize("transport", [TCP, UDP])
def test_who_has_a_port_is_who_gets_what_comes_to_it(transport: Transport, host_namespace: Namespace) -> None:
    del host_namespace
    any4, any6, two = (ip_address(text) for text in ("0.0.0.0", "::", "127.0.0.2"))
    with take("127.0.0.1", 8080, transport):
        found = {address for address in (any4, LOOPBACK, two, any6) if has_holder(transport, address, 8080)}
    assert found == {any4, LOOPBACK}
    with take("::", 8080, transport):
        assert all(has_holder(transport, address, 8080) for address in (any4, LOOPBACK, any6))
        assert not has_holder(transport, any4, 8081)
    with take("::", 8080, transport, v6only=True):
        assert has_holder(transport, any6, 8080)
        assert not has_holder(transport, any4, 8080)


@pytest.mark.parametrize(
    ("first", "second", "conflict"),
    [
        (Publish(None, 80, 1), Publish(None, 80, 2), "80/tcp"),
        (Publish(None, 80, 1), Publish(LOOPBACK, 80, 2), "127.0.0.1:80/tcp"),
        (Publish(LOOPBACK, 80, 1), Publish(None, 80, 2), "80/tcp"),
        (Publish(IPv6Address("::2"), 80, 1), Publish(IPv6Address("::2"), 80, 2), "[::2]:80/tcp"),
        (Publish(None, 80, 1, UDP), Publish(None, 80, 2, UDP), "80/udp"),
        (Publish(None, 80, 1, UDP), Publish(None, 80, 2, TCP), None),
        (Publish(LOOPBACK, 80, 1), Publish(IPv4Address("127.0.0.2"), 80, 2), None),
        (Publish(None, 80, 1), Publish(None, 81, 2), None),
    ],
)
def test_two_vms_do_not_share_a_port(
    reservations: Reservations, first: Publish, second: Publish, conflict: str | None
) -> None:
    reservations.take(port(1, first))
    if conflict is None:
        reservations.take(port(2, second))
        reservations.take(port(3, Publish(None, 99, 1)))
        return
    with pytest.raises(InUse) as caught:
        reservations.take(port(2, second))
    assert caught.value.message == f"port {conflict} is published by VM vm1"
    with pytest.raises(InUse, match="published twice by VM vm3"):
        reservations.take(port(3, replace_port(first), replace_port(second)))
    reservations.release(port(1).uid)
    reservations.take(port(2, second))


def replace_port(publish: Publish) -> Publish:
    return Publish(publish.address, 1080, publish.guest_port, publish.transport)


def test_what_a_vm_holds_it_keeps_when_it_asks_again(reservations: Reservations) -> None:
    reservations.take(port(1, Publish(None, 80, 1), Publish(None, 81, 1)))
    with take("0.0.0.0", 82), pytest.raises(InUse):
        reservations.take(port(1, Publish(None, 80, 1), Publish(None, 82, 1)))
    for number in (80, 81):
        with pytest.raises(OSError, match="in use"):
            take("0.0.0.0", number)
    reservations.take(port(1, Publish(None, 80, 1), Publish(None, 82, 1)))
    take("0.0.0.0", 81).close()
    with pytest.raises(OSError, match="in use"):
        take("0.0.0.0", 82)


def test_an_address_that_the_host_does_not_have_yet_can_be_held(reservations: Reservations) -> None:
    reservations.take(port(1, Publish(IPv4Address("192.0.2.77"), 80, 1)))
