# SPDX-License-Identifier: Apache-2.0
"""Who is to be reached is: the world from guests, published ports from everywhere, at once after changes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.host.faults import host_config
from tests.host.netlab import PORT, SILENCE_MS, Place, Wired, look_up, new_token, watch_wire, write_guest
from tests.host.vms import Vms, vms_of

pytestmark = pytest.mark.one_release

TCP, UDP, LOCAL = 7280, 7253, 7281
PUBLISH = [f"{TCP}:{PORT}", f"{UDP}:{PORT}/udp", f"127.0.0.1:{LOCAL}:{PORT}", f"127.0.0.1:{LOCAL}:{PORT}/udp"]
PORTS = {"tcp": TCP, "udp": UDP}
# Who goes on calling keeps what conntrack remembers: a caller whom that leads astray never gets an answer.
ANSWER = 60.0


@pytest.fixture(scope="module")
def lab(wired: Wired) -> Iterator[Vms]:
    """VMs on host A: `web` publishes ports, `friend` does not."""
    with vms_of(wired.a) as vms:
        write_guest(vms, "web", {"publish": PUBLISH})
        write_guest(vms, "friend")
        vms.reload()
        vms.start("web", "friend")
        yield vms


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_guests_reach_other_hosts_under_the_address_of_theirs(lab: Vms, wired: Wired, transport: str) -> None:
    web = Place(wired.a, "web")
    assert web.ask(wired.b4, transport=transport) == f"b {wired.a4}"
    assert web.ask(wired.b6, transport=transport) == f"b {wired.a6}"


def test_no_address_of_a_guest_is_on_the_wire(lab: Vms, wired: Wired) -> None:
    web = look_up(Place(wired.a, "web"))
    mark = new_token()
    with watch_wire(wired.wire, wired.folder) as watch:
        for address in (wired.b4, wired.b6):
            assert Place(wired.a, "web").pings(address)
            assert Place(wired.a, "web").reaches(address) == "b"
        Place(wired.b).send("uplink0", b"\xff" * 6 + b"\2" * 6 + b"\x88\xb5" + mark.ljust(46))
        assert watch.sees(mark)
    for packed in (web.packed4, web.packed6):
        assert not watch.has_seen(packed)


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_published_ports_are_reached_from_another_host(lab: Vms, wired: Wired, transport: str) -> None:
    b = Place(wired.b)
    assert b.ask(wired.a4, PORTS[transport], transport) == f"web {wired.b4}", "the caller's own address"
    assert b.ask(wired.a6, PORTS[transport], transport) == f"web {wired.b6}"
    assert not b.ask(wired.a4, LOCAL, transport, within=SILENCE_MS)
    assert not b.ask(wired.a6, LOCAL, transport, within=SILENCE_MS)


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_published_ports_are_reached_from_the_host_itself(lab: Vms, wired: Wired, transport: str) -> None:
    a, port = Place(wired.a), PORTS[transport]
    for address in (wired.a4, wired.a6, "127.0.0.1"):
        assert a.reaches(address, port, transport) == "web", address
    assert a.reaches("127.0.0.1", LOCAL, transport) == "web"
    assert not a.ask(wired.a4, LOCAL, transport, within=SILENCE_MS)


@pytest.mark.parametrize("transport", ["tcp", "udp"])
@pytest.mark.parametrize("guest", ["friend", "web"])
def test_published_ports_are_reached_from_guests(lab: Vms, wired: Wired, guest: str, transport: str) -> None:
    """Of another VM, and of the very one that the port leads to."""
    place = Place(wired.a, guest)
    for address in (wired.a4, wired.a6):
        assert place.reaches(address, PORTS[transport], transport) == "web", address


def test_a_guest_of_another_host_reaches_a_published_port(lab: Vms, wired: Wired) -> None:
    with vms_of(wired.b) as vms:
        write_guest(vms, "remote")
        vms.reload()
        vms.start("remote")
        remote = Place(wired.b, "remote")
        for address, seen in ((wired.a4, wired.b4), (wired.a6, wired.b6)):
            assert remote.ask(address, TCP) == f"web {seen}"
            assert remote.ask(address, UDP, "udp") == f"web {seen}"


def test_without_nat_guests_have_their_own_addresses_everywhere(wired: Wired) -> None:
    network = {"bridge": "routed0", "ipv4": "10.78.0.1/24", "ipv6": "fd78:78:78::1/64", "nat": False}
    ways = (("10.78.0.0/24", wired.a4), ("fd78:78:78::/64", wired.a6))
    with host_config(wired.a, networks={"routed": network}), vms_of(wired.a) as vms:
        write_guest(vms, "plain", "routed")
        vms.reload()
        vms.start("plain")
        guest, me = Place(wired.a, "plain"), look_up(Place(wired.a, "plain"))
        for subnet, via in ways:
            wired.b.run(["ip", "route", "add", subnet, "via", via])
        try:
            assert guest.ask(wired.b4) == f"b {me.ip4}"
            assert guest.ask(wired.b6) == f"b {me.ip6}"
            assert Place(wired.b).ask(me.ip4) == f"plain {wired.b4}"
        finally:
            for subnet, _ in ways:
                wired.b.run(["ip", "route", "del", subnet])


def find_connections(wired: Wired, address: str) -> str:
    """What conntrack of host A remembers of an address."""
    return wired.a.shell(f"grep -F {address} /proc/net/nf_conntrack || true").stdout


def test_after_a_restart_a_caller_who_never_stopped_calling_is_answered(lab: Vms, wired: Wired) -> None:
    before = look_up(Place(wired.a, "web"))
    with Place(wired.b).nag(wired.a4, UDP) as four, Place(wired.b).nag(wired.a6, UDP) as six:
        for lines in (four, six):
            assert lines.await_line(lambda line: line.startswith("web "), ANSWER)
        lab.ctl("restart", "--wait", "web")
        for lines in (four, six):
            lines.drop()
            assert lines.await_line(lambda line: line.startswith("web "), ANSWER)
    assert Place(wired.b).ask(wired.a4, TCP) == f"web {wired.b4}"
    after = look_up(Place(wired.a, "web"))
    assert after == before, "the same MAC and addresses as before"


def test_another_vm_that_gets_the_address_and_port_is_reached(wired: Wired) -> None:
    with vms_of(wired.a) as vms:
        write_guest(vms, "first", {"publish": ["7290:7007/udp", "7291:7007"]})
        vms.reload()
        vms.start("first")
        old = look_up(Place(wired.a, "first"))
        assert Place(wired.a, "first").reaches(wired.b4, transport="udp") == "b"
        with Place(wired.b).nag(wired.a4, 7290) as lines:
            assert lines.await_line(lambda line: line.startswith("first "), ANSWER)
            assert find_connections(wired, old.ip4)
            vms.ctl("stop", "first")
            assert find_connections(wired, old.ip4) == ""
            vms.remove("first")
            keys = {"address": old.ip4, "address6": old.ip6, "publish": ["7290:7007/udp", "7291:7007"]}
            write_guest(vms, "second", keys)
            vms.reload()
            vms.start("second")
            lines.drop()
            assert lines.await_line(lambda line: line.startswith("second "), ANSWER)
        new = look_up(Place(wired.a, "second"))
        assert (new.ip4, new.ip6) == (old.ip4, old.ip6)
        assert new.mac != old.mac
        # the host does not send to the MAC address that the first had
        assert Place(wired.a).ask(old.ip4)
        assert Place(wired.a).ask(old.ip6)
        assert Place(wired.b).reaches(wired.a4, 7291) == "second"


def test_a_port_is_taken_as_long_as_a_vm_has_it_and_free_afterwards(lab: Vms, wired: Wired) -> None:
    def bind(port: int, kind: str = "SOCK_STREAM", address: str = "0.0.0.0") -> bool:
        script = f"import socket; socket.socket(socket.AF_INET, socket.{kind}).bind(('{address}', {port}))"
        return wired.a.run(["python3", "-c", script], check=False).ok

    assert not bind(TCP)
    assert not bind(UDP, "SOCK_DGRAM")
    assert not bind(LOCAL, address="127.0.0.1")
    lab.ctl("stop", "web")
    try:
        assert bind(TCP)
        assert bind(UDP, "SOCK_DGRAM")
        assert bind(LOCAL, address="127.0.0.1")
        assert (
            "refused"
            in Place(wired.b)
            .run(Place(wired.b).probe, "ask", "tcp", wired.a4, str(TCP), "1000", check=False)
            .stderr
        )
    finally:
        lab.start("web")
    assert Place(wired.b).reaches(wired.a4, TCP) == "web"
