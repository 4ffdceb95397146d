# SPDX-License-Identifier: Apache-2.0
"""What a hostile guest can do to others: nothing. Each lie is told beside its honest twin, which must arrive,
so that no test passes because nothing works."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from tests.host import packets
from tests.host.faults import host_config
from tests.host.netlab import (
    PORT,
    SILENCE_MS,
    Lines,
    Place,
    Watch,
    Wired,
    bridge_end,
    look_up,
    new_token,
    serve,
    watch_wire,
    write_guest,
)
from tests.host.packets import ALL_NODES, ALL_NODES_MAC, ARP, BROADCAST, IPV4, IPV6, End, ethernet
from tests.host.vms import Vms, vms_of

pytestmark = pytest.mark.one_release

ALLOWED, CLOSED, LOOPBACK, UNTOLD, PUBLISHED = 7101, 7102, 7103, 7104, 7180
OTHER_NETWORK = {"bridge": "other0", "ipv4": "10.77.0.1/24", "ipv6": "fd77:77:77::1/64"}
# Nobody has these.
FAR, FAR_MAC = End("52:54:00:ff:ff:01", "203.0.113.7", "2001:db8:f::7"), "52:54:00:ff:ff:02"
PORTS = (40000, PORT)


@dataclass(frozen=True)
class Lab:
    """VMs on host A. `left`, the enemy, and `right` are of one group, `alone` is of none, `other` is on
    another network; all are watched where they are plugged in."""

    wired: Wired
    vms: Vms
    ends: dict[str, End]
    gateway: End
    watches: dict[str, Watch]

    def place(self, name: str) -> Place:
        return Place(self.wired.a, name)

    def prove_dropped(
        self,
        forged: bytes,
        bad: bytes,
        honest: bytes,
        good: bytes,
        arrives: str = "right",
        *,
        passes: Sequence[str] = ("tap",),
    ) -> None:
        """`left` sends both frames: the forged one leaves it and is seen at no more than these places, the
        honest one arrives."""
        self.place("left").send("eth0", forged, honest)
        assert self.watches["tap"].sees(bad), "the forged frame was never sent"
        assert self.watches[arrives].sees(good), "its honest twin does not arrive"
        self.see_all()
        assert {name for name, watch in self.watches.items() if watch.has_seen(bad)} <= set(passes)

    def see_all(self) -> None:
        """Let all watches see what was sent up to now: a frame that each must see is sent after it."""
        mark, a = new_token(), Place(self.wired.a)
        for bridge, names in (("hypeman0", ("left", "right", "alone")), ("other0", ("other",))):
            ends = [self.ends[name] for name in names]
            pings = [packets.ping(FAR.ip4, end.ip4, mark) for end in ends]
            frames = [
                ethernet(self.gateway.mac, end.mac, IPV4, p) for end, p in zip(ends, pings, strict=True)
            ]
            a.send(bridge, *frames)
        beyond = packets.ping(self.wired.a4, self.wired.b4, mark)
        a.send("uplink0", ethernet(FAR.mac, BROADCAST, IPV4, beyond))
        for watch in self.watches.values():
            assert watch.sees(mark), f"{watch.name} sees nothing"


@pytest.fixture(scope="module")
def lab(wired: Wired) -> Iterator[Lab]:
    a = wired.a
    networks = {
        "default": {"host_ports": [f"{ALLOWED}/tcp", f"{ALLOWED}/udp", f"{LOOPBACK}/udp"]},
        "other": OTHER_NETWORK,
    }
    with ExitStack() as stack:
        stack.enter_context(host_config(a, networks=networks))
        vms = stack.enter_context(vms_of(a))
        for name in ("left", "right"):
            write_guest(vms, name, {"group": "pair"})
        ways = (f"{PUBLISHED}:{PORT}", f"127.0.0.1:{PUBLISHED + 1}:{PORT}")
        write_guest(vms, "alone", {"publish": [f"{way}{kind}" for way in ways for kind in ("", "/udp")]})
        write_guest(vms, "other", "other")
        vms.reload()
        vms.start("left", "right", "alone", "other")
        serve(a, "a", ALLOWED, CLOSED)
        stack.callback(a.run, ["systemctl", "stop", "serve-a"])
        ends = {name: look_up(Place(a, name)) for name in ("left", "right", "alone", "other")}
        places = {
            "tap": (Place(a), f"hv{vms.show('left')['uid']}"),
            "bridge": (Place(a), "hypeman0"),
            "right": (Place(a, "right"), "eth0"),
            "alone": (Place(a, "alone"), "eth0"),
            "other": (Place(a, "other"), "eth0"),
        }
        watches = {n: stack.enter_context(place.watch(port)) for n, (place, port) in places.items()}
        watches["wire"] = stack.enter_context(watch_wire(wired.wire, wired.folder))
        yield Lab(wired, vms, ends, bridge_end(a, "hypeman0"), watches)


Frame = Callable[[Lab, bytes], bytes]


def to_right(
    lab: Lab, kind: int, payload: bytes, *, mac: str | None = None, vlan: int | None = None
) -> bytes:
    """A frame from `left` to `right`."""
    return ethernet(mac or lab.ends["left"].mac, lab.ends["right"].mac, kind, payload, vlan)


def udp4(lab: Lab, token: bytes, source: str | None = None) -> bytes:
    """A datagram from `left` or who it claims to be to `right`."""
    return packets.udp(source or lab.ends["left"].ip4, lab.ends["right"].ip4, PORTS, token)


def udp6(lab: Lab, token: bytes, source: str | None = None) -> bytes:
    return packets.udp(source or lab.ends["left"].ip6, lab.ends["right"].ip6, PORTS, token)


def honest4(lab: Lab, token: bytes) -> bytes:
    return to_right(lab, IPV4, udp4(lab, token))


def honest6(lab: Lab, token: bytes) -> bytes:
    return to_right(lab, IPV6, udp6(lab, token))


def claim4(whose: Callable[[Lab], str]) -> Frame:
    """An IPv4 source that is not the sender's."""
    return lambda lab, token: to_right(lab, IPV4, udp4(lab, token, whose(lab)))


def claim6(whose: Callable[[Lab], str]) -> Frame:
    return lambda lab, token: to_right(lab, IPV6, udp6(lab, token, whose(lab)))


def claim_mac(whose: Callable[[Lab], str], kind: int = IPV4) -> Frame:
    """The sender's address behind the MAC address of somebody else."""
    make = udp4 if kind == IPV4 else udp6
    return lambda lab, token: to_right(lab, kind, make(lab, token), mac=whose(lab))


LIES_ABOUT_SOURCES: dict[str, tuple[Frame, Frame]] = {
    "IPv4 of a VM": (claim4(lambda lab: lab.ends["alone"].ip4), honest4),
    "IPv4 of the gateway": (claim4(lambda lab: lab.gateway.ip4), honest4),
    "IPv4 from afar": (claim4(lambda _: FAR.ip4), honest4),
    "no IPv4": (claim4(lambda _: "0.0.0.0"), honest4),
    "IPv6 of a VM": (claim6(lambda lab: lab.ends["alone"].ip6), honest6),
    "IPv6 of the gateway": (claim6(lambda lab: lab.gateway.ip6), honest6),
    "IPv6 from afar": (claim6(lambda _: FAR.ip6), honest6),
    "link-local of a VM": (claim6(lambda lab: lab.ends["alone"].link_local), honest6),
    "link-local of the gateway": (claim6(lambda lab: lab.gateway.link_local), honest6),
    "MAC of a VM": (claim_mac(lambda lab: lab.ends["alone"].mac), honest4),
    "MAC of the gateway": (claim_mac(lambda lab: lab.gateway.mac), honest4),
    "MAC of nobody": (claim_mac(lambda _: FAR_MAC), honest4),
    "MAC of a VM, IPv6": (claim_mac(lambda lab: lab.ends["alone"].mac, IPV6), honest6),
    "in a VLAN": (lambda lab, token: to_right(lab, IPV4, udp4(lab, token, FAR.ip4), vlan=0), honest4),
    "honest in a VLAN": (lambda lab, token: to_right(lab, IPV4, udp4(lab, token), vlan=7), honest4),
    "no known kind": (lambda lab, token: to_right(lab, 0x88B5, token), honest4),
    "spanning tree": (
        lambda lab, token: ethernet(lab.ends["left"].mac, "01:80:c2:00:00:00", 38, b"\x42\x42\3" + token),
        honest4,
    ),
}


def prove(lab: Lab, forged: Frame, honest: Frame) -> None:
    bad, good = new_token(), new_token()
    lab.prove_dropped(forged(lab, bad), bad, honest(lab, good), good)


@pytest.mark.parametrize("lie", LIES_ABOUT_SOURCES)
def test_a_source_that_is_not_the_senders_is_dropped(lab: Lab, lie: str) -> None:
    prove(lab, *LIES_ABOUT_SOURCES[lie])


def announce(
    claimed: Callable[[Lab], str],
    operation: int = 2,
    *,
    at: Callable[[Lab], str] = lambda lab: lab.ends["left"].mac,
    mac: Callable[[Lab], str] = lambda lab: lab.ends["left"].mac,
    target: str | None = None,
) -> Frame:
    """An ARP packet that says that `claimed` is at a MAC address. The token is behind it, as padding."""

    def make(lab: Lab, token: bytes) -> bytes:
        right = lab.ends["right"]
        packet = packets.arp(operation, at(lab), claimed(lab), right.ip4, right.mac)
        return ethernet(mac(lab), target or right.mac, ARP, packet + token)

    return make


def advertise(claimed: Callable[[Lab], str], source: Callable[[Lab], str]) -> Frame:
    def make(lab: Lab, token: bytes) -> bytes:
        left, right = lab.ends["left"], lab.ends["right"]
        packet = packets.neighbour_advertisement(source(lab), right.ip6, claimed(lab), left.mac, token)
        return to_right(lab, IPV6, packet)

    return make


def solicit(source: Callable[[Lab], str]) -> Frame:
    def make(lab: Lab, token: bytes) -> bytes:
        left, right = lab.ends["left"], lab.ends["right"]
        packet = packets.neighbour_solicitation(source(lab), right.ip6, right.ip6, left.mac, token)
        return to_right(lab, IPV6, packet)

    return make


def own4(lab: Lab) -> str:
    return lab.ends["left"].ip4


def own6(lab: Lab) -> str:
    return lab.ends["left"].ip6


LIES_ABOUT_NEIGHBOURS: dict[str, tuple[Frame, Frame]] = {
    "answer for the gateway": (announce(lambda lab: lab.gateway.ip4), announce(own4)),
    "answer for a VM": (announce(lambda lab: lab.ends["alone"].ip4), announce(own4)),
    "answer for itself at another's MAC": (
        announce(own4, at=lambda lab: lab.ends["alone"].mac),
        announce(own4),
    ),
    "question from the gateway": (
        announce(lambda lab: lab.gateway.ip4, 1, target=BROADCAST),
        announce(own4, 1, target=BROADCAST),
    ),
    "question in another's name": (
        announce(
            lambda lab: lab.ends["alone"].ip4,
            1,
            at=lambda lab: lab.ends["alone"].mac,
            mac=lambda lab: lab.ends["alone"].mac,
            target=BROADCAST,
        ),
        announce(own4, 1, target=BROADCAST),
    ),
    "advertisement of the gateway": (advertise(lambda lab: lab.gateway.ip6, own6), advertise(own6, own6)),
    "advertisement of the gateway's link-local": (
        advertise(lambda lab: lab.gateway.link_local, lambda lab: lab.ends["left"].link_local),
        advertise(lambda lab: lab.ends["left"].link_local, lambda lab: lab.ends["left"].link_local),
    ),
    "advertisement of a VM": (advertise(lambda lab: lab.ends["alone"].ip6, own6), advertise(own6, own6)),
    "solicitation in another's name": (solicit(lambda lab: lab.ends["alone"].ip6), solicit(own6)),
    "solicitation in the gateway's name": (solicit(lambda lab: lab.gateway.link_local), solicit(own6)),
}


@pytest.mark.parametrize("lie", LIES_ABOUT_NEIGHBOURS)
def test_nobody_can_be_told_that_another_is_here(lab: Lab, lie: str) -> None:
    prove(lab, *LIES_ABOUT_NEIGHBOURS[lie])


def router(extension: int | None = None) -> Frame:
    return lambda lab, token: ethernet(
        lab.ends["left"].mac,
        ALL_NODES_MAC,
        IPV6,
        packets.router_advertisement(lab.ends["left"].link_local, token, extension),
    )


def echo(lab: Lab, token: bytes) -> bytes:
    """Like router(), but harmless."""
    packet = packets.ping(lab.ends["left"].link_local, ALL_NODES, token)
    return ethernet(lab.ends["left"].mac, ALL_NODES_MAC, IPV6, packet)


def datagram(ports: tuple[int, int], family: int = IPV4) -> Frame:
    """A datagram from the first of these ports to the second."""

    def make(lab: Lab, token: bytes) -> bytes:
        left, right = lab.ends["left"], lab.ends["right"]
        ends = (left.ip4, right.ip4) if family == IPV4 else (left.link_local, right.link_local)
        return to_right(lab, family, packets.udp(*ends, ports, token * 50))

    return make


SERVICES: dict[str, tuple[Frame, Frame]] = {
    "router": (router(), echo),
    "router behind hop-by-hop options": (router(packets.HOP_BY_HOP), echo),
    "router behind destination options": (router(packets.DESTINATION), echo),
    "router in a fragment": (router(packets.FRAGMENT), echo),
    "DHCP server": (datagram((67, 68)), datagram((1067, 1068))),
    "DHCPv6 server": (datagram((547, 546), IPV6), datagram((1547, 1546), IPV6)),
}


@pytest.mark.parametrize("service", SERVICES)
def test_a_guest_is_no_router_and_no_dhcp_server(lab: Lab, service: str) -> None:
    prove(lab, *SERVICES[service])


def test_no_lie_has_changed_what_the_host_and_the_neighbour_know(lab: Lab) -> None:
    for name in ("left", "right", "alone"):
        end = lab.ends[name]
        for address in (end.ip4, end.ip6):
            assert Place(lab.wired.a).ask(address) is not None, f"{name} at {address}"
    addresses = lab.place("right").run("ip", "addr", "show", "dev", "eth0").stdout
    routes = lab.place("right").run("ip", "-6", "route").stdout
    assert "2001:db8:bad:" not in addresses + routes


def test_the_link_carries_nothing_to_a_vm_that_is_of_no_group(lab: Lab) -> None:
    left, alone, right = (lab.ends[name] for name in ("left", "alone", "right"))

    def prove_for(make: Callable[[End, bytes], bytes]) -> None:
        bad, good = new_token(), new_token()
        # the host's own end of the bridge sees all, since it is watched
        lab.prove_dropped(make(alone, bad), bad, make(right, good), good, passes=("tap", "bridge"))

    prove_for(lambda to, t: ethernet(left.mac, to.mac, IPV4, packets.udp(left.ip4, to.ip4, PORTS, t)))
    prove_for(lambda to, t: ethernet(left.mac, to.mac, IPV6, packets.udp(left.ip6, to.ip6, PORTS, t)))
    prove_for(lambda to, t: ethernet(left.mac, to.mac, ARP, packets.arp(1, left.mac, left.ip4, to.ip4) + t))


TO_ALL: dict[str, Callable[[End, End, bytes], bytes]] = {
    "ARP": lambda me, to, t: ethernet(me.mac, BROADCAST, ARP, packets.arp(1, me.mac, me.ip4, to.ip4) + t),
    "IPv4": lambda me, _, t: ethernet(
        me.mac, BROADCAST, IPV4, packets.udp(me.ip4, "255.255.255.255", PORTS, t)
    ),
    "IPv6": lambda me, _, t: ethernet(me.mac, ALL_NODES_MAC, IPV6, packets.udp(me.ip6, ALL_NODES, PORTS, t)),
}


@pytest.mark.parametrize("kind", TO_ALL)
def test_what_is_sent_to_all_gets_to_the_group(lab: Lab, kind: str) -> None:
    token = new_token()
    lab.place("left").send("eth0", TO_ALL[kind](lab.ends["left"], lab.ends["right"], token))
    assert lab.watches["right"].sees(token)
    lab.see_all()
    assert [name for name, watch in lab.watches.items() if watch.has_seen(token)] == [
        "tap",
        "bridge",
        "right",
    ]


@pytest.mark.parametrize("victim", ["right", "alone", "other"])
@pytest.mark.parametrize("family", ["ip4", "ip6"])
def test_the_gateway_routes_nothing_from_vm_to_vm(lab: Lab, victim: str, family: str) -> None:
    left, kind = lab.ends["left"], IPV4 if family == "ip4" else IPV6
    beyond = lab.wired.b4 if family == "ip4" else lab.wired.b6

    def routed(target: str, token: bytes) -> bytes:
        packet = packets.udp(getattr(left, family), target, PORTS, token)
        return ethernet(left.mac, lab.gateway.mac, kind, packet)

    bad, good = new_token(), new_token()
    forged, honest = routed(getattr(lab.ends[victim], family), bad), routed(beyond, good)
    lab.prove_dropped(forged, bad, honest, good, "wire", passes=("tap", "bridge"))


def test_only_members_of_a_group_reach_each_other(lab: Lab) -> None:
    for family in ("ip4", "ip6"):
        at = {name: getattr(end, family) for name, end in lab.ends.items()}
        for transport in ("tcp", "udp"):
            for one, other in (("left", "right"), ("right", "left")):
                said = lab.place(one).ask(at[other], transport=transport)
                assert said == f"{other} {at[one]}"
        for name in ("alone", "other"):
            assert Place(lab.wired.a).reaches(at[name]) == name
            assert lab.place("left").hears_nothing(at[name])
            assert lab.place(name).hears_nothing(at["left"])
            assert lab.place("left").hears_nothing(at[name], transport="udp")


def test_of_the_host_a_guest_reaches_what_is_allowed(lab: Lab) -> None:
    left, wired = lab.place("left"), lab.wired
    for address in (lab.gateway.ip4, lab.gateway.ip6):
        assert left.pings(address)
        for transport in ("tcp", "udp"):
            assert left.reaches(address, ALLOWED, transport) == "a"
            assert not left.ask(address, CLOSED, transport, within=SILENCE_MS)
    for address in (wired.a4, wired.a6):
        assert Place(wired.b).reaches(address, CLOSED) == "a", "others are no business of ours"
        assert not left.ask(address, CLOSED, within=SILENCE_MS)
    # what a guest says to another network's gateway is said to the host, too
    assert not left.ask("10.77.0.1", CLOSED, within=SILENCE_MS)


HEARS = """
import socket, sys
ears = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
ears.bind(("0.0.0.0", int(sys.argv[1])))
print("up", flush=True)
while True:
    print(ears.recv(999).hex(), flush=True)
"""


# What bridges keep to themselves (IEEE 802.1Q, table 8-1): the kernel takes it from the way of other frames.
RESERVED = [f"01:80:c2:00:00:{last:02x}" for last in range(16)]


def read_places(lab: Lab) -> list[str]:
    """Where the host's bridge thinks that who is."""
    entries = lab.wired.a.run(["bridge", "fdb", "show", "br", "hypeman0"]).stdout.splitlines()
    return sorted(entry for entry in entries if " dev hv" in entry and "permanent" not in entry)


def test_there_is_no_way_around_the_bridge(lab: Lab) -> None:
    """Frames to these addresses are seen by no rule of a bridge that does not forward them, but teach it
    where their sender is, and come in at the TAP device itself."""
    a, left, places = lab.wired.a, lab.ends["left"], read_places(lab)
    assert [place.split()[0] for place in places] == sorted(
        end.mac for name, end in lab.ends.items() if name != "other"
    )
    tap = f"hv{lab.vms.show('left')['uid']}"
    # a host that is stricter does not take them anyway
    a.run(["sysctl", "-q", "net.ipv4.conf.all.rp_filter=0", f"net.ipv4.conf.{tap}.rp_filter=0"])
    said = packets.udp(left.ip4, lab.gateway.ip4, (PORTS[0], UNTOLD), b"forged")
    frames = [
        ethernet(source, target, IPV4, said)
        for target in RESERVED
        for source in (left.mac, lab.ends["alone"].mac, lab.ends["right"].mac, lab.gateway.mac, FAR_MAC)
    ]
    with a.popen(["python3", "-c", HEARS, str(UNTOLD)]) as process:
        heard = Lines(process)
        assert heard.next(60) == "up"
        lab.place("left").send("eth0", *frames)
        assert lab.watches["tap"].sees(b"forged")
        lab.see_all()
        Place(lab.wired.b).ask(lab.wired.a4, UNTOLD, "udp", within=SILENCE_MS)
        told = [heard.next(60)]
        assert told[0] is not None, "nothing is heard from others, either"
        while told[-1] is not None:
            assert b"forged" not in bytes.fromhex(told[-1])
            told.append(heard.next(0.2))
    assert read_places(lab) == places


def test_a_guest_does_not_reach_loopback_by_its_address(lab: Lab) -> None:
    """route_localnet, without which nothing can be published on 127.0.0.1, lets such frames in."""
    a, left, gateway = lab.wired.a, lab.ends["left"], lab.gateway

    def knock(target: str, token: bytes, port: int = LOOPBACK) -> bytes:
        # not from PORT: what answers there would answer the answer, for ever
        packet = packets.udp(left.ip4, target, (PORTS[0], port), token)
        return ethernet(left.mac, gateway.mac, IPV4, packet)

    with a.popen(["python3", "-c", HEARS, str(LOOPBACK)]) as process:
        heard = Lines(process)
        assert heard.next(60) == "up"
        bad, good = new_token(), new_token()
        lab.place("left").send("eth0", knock("127.0.0.1", bad), knock(gateway.ip4, good))
        assert heard.next(60) == good.hex()
        assert heard.next(0.2) is None
    bad, good = new_token(), new_token()
    forged, honest = knock("127.0.0.1", bad, PUBLISHED + 1), knock(lab.wired.a4, good, PUBLISHED)
    lab.prove_dropped(forged, bad, honest, good, "alone", passes=("tap", "bridge"))


def test_a_published_port_is_the_only_way_in(lab: Lab) -> None:
    left, wired, alone = lab.place("left"), lab.wired, lab.ends["alone"]
    for address in (wired.a4, wired.a6, lab.gateway.ip4, lab.gateway.ip6):
        assert left.reaches(address, PUBLISHED) == "alone"
        assert not left.ask(address, PUBLISHED + 1, within=SILENCE_MS), "it is published on 127.0.0.1 alone"
    assert Place(wired.a).reaches("127.0.0.1", PUBLISHED + 1) == "alone"
    # nor does a neighbour of the host get in who routes to its VMs
    for address, via in ((alone.ip4, wired.a4), (alone.ip6, wired.a6)):
        wired.b.run(["ip", "route", "add", address, "via", via])
        try:
            assert Place(wired.b).reaches(via, PUBLISHED) == "alone"
            assert not Place(wired.b).ask(address, within=SILENCE_MS)
        finally:
            wired.b.run(["ip", "route", "del", address])
