# SPDX-License-Identifier: Apache-2.0
"""A guest that lies about who it is, on its TAP device: what is a lie does not come to the bridge."""

import json
import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest

from hypemand.config.eui64 import LINK_LOCAL, derive_eui64
from hypemand.config.network import HostPort, Publish, Transport
from hypemand.network.links import derive_bridge_mac
from hypemand.network.reconcile import HostNetworks
from tests.host.command import run_command
from tests.unit.network.frames import (
    ALL_NODES,
    ARP,
    BROADCAST,
    DESTINATION_OPTIONS,
    FRAGMENT,
    ICMPV6,
    IPV4,
    IPV6,
    UDP,
    advertisement,
    arp,
    behind_options,
    ethernet,
    fragment,
    icmp6,
    ipv4,
    ipv6,
    mac,
    option,
    solicitation,
    udp,
)
from tests.unit.network.lab import DEADLINE, Namespace, make_bridge, make_port, open_tap, serve, set_sysctl

PLAN = make_bridge()
PORT = make_port(PLAN, 1)
VICTIM = make_port(PLAN, 2)
assert PLAN.ipv4 is not None
assert PLAN.ipv6 is not None
assert PORT.ipv4 is not None
assert PORT.ipv6 is not None
assert VICTIM.ipv4 is not None
assert VICTIM.ipv6 is not None
GATEWAY, GATEWAY6 = PLAN.ipv4.ip, PLAN.ipv6.ip
OWN, OWN6, LOCAL = PORT.ipv4, PORT.ipv6, derive_eui64(PORT.mac, LINK_LOCAL)
OTHER, OTHER6, OTHER_LOCAL = VICTIM.ipv4, VICTIM.ipv6, derive_eui64(VICTIM.mac, LINK_LOCAL)
ANY, ANY6 = IPv4Address("0.0.0.0"), IPv6Address("::")
NODES = IPv6Address("ff02::1")
DATA = udp(1000, 2000)
ME, HIM = PORT.mac, VICTIM.mac


def own_arp(payload: bytes) -> bytes:
    return ethernet(ME, BROADCAST, ARP, payload)


def own4(source: IPv4Address, payload: bytes = DATA) -> bytes:
    return ethernet(ME, BROADCAST, IPV4, ipv4(source, GATEWAY, payload))


def own6(source: IPv6Address, payload: bytes, following: int = ICMPV6) -> bytes:
    return ethernet(ME, ALL_NODES, IPV6, ipv6(source, NODES, payload, following))


HONEST = {
    "arp": own_arp(arp(ME, OWN, GATEWAY)),
    "arp-answer": own_arp(arp(ME, OWN, GATEWAY, operation=2)),
    "arp-probe": own_arp(arp(ME, ANY, OWN)),
    "ipv4": own4(OWN),
    "ipv6": own6(OWN6, DATA, UDP),
    "ipv6-link-local": own6(LOCAL, DATA, UDP),
    "neighbour-solicitation": own6(OWN6, solicitation(GATEWAY6, option(1, ME))),
    "neighbour-solicitation-bare": own6(LOCAL, solicitation(GATEWAY6)),
    "duplicate-detection": own6(ANY6, solicitation(OWN6)),
    "duplicate-detection-nonce": own6(ANY6, solicitation(LOCAL, bytes([14, 1]) + bytes(6))),
    "neighbour-advertisement": own6(OWN6, advertisement(OWN6, option(2, ME))),
    "listener-report": own6(ANY6, icmp6(143, bytes(4)), ICMPV6),
    "echo": own6(OWN6, icmp6(128)),
    "router-solicitation": own6(LOCAL, icmp6(133, bytes(4) + option(1, ME))),
    "router-solicitation-bare": own6(LOCAL, icmp6(133)),
    "fragment": own6(OWN6, fragment(UDP, DATA), FRAGMENT),
}

FORGED = {
    "mac": ethernet(HIM, BROADCAST, ARP, arp(HIM, OTHER, GATEWAY)),
    "mac-alone": ethernet(HIM, BROADCAST, IPV4, ipv4(OWN, GATEWAY, DATA)),
    "mac-around-arp": ethernet(HIM, BROADCAST, ARP, arp(ME, OWN, GATEWAY)),
    "mac-around-detection": ethernet(HIM, ALL_NODES, IPV6, ipv6(ANY6, NODES, solicitation(OWN6))),
    "mac-of-bridge": ethernet("02:68:70:e5:85:40", BROADCAST, IPV4, ipv4(OWN, GATEWAY, DATA)),
    "arp-address": own_arp(arp(ME, OTHER, GATEWAY)),
    "arp-gateway": own_arp(arp(ME, GATEWAY, OTHER, operation=2)),
    "arp-mac": own_arp(arp(HIM, OWN, GATEWAY)),
    "arp-probe-mac": own_arp(arp(HIM, ANY, OWN)),
    "arp-probe-answer": own_arp(arp(ME, ANY, OWN, operation=2)),
    "arp-hardware": own_arp(arp(ME, OWN, GATEWAY, hardware=6)),
    "arp-protocol": own_arp(arp(ME, OWN, GATEWAY, protocol=IPV6)),
    "arp-mac-length": own_arp(arp(ME, OWN, GATEWAY, lengths=(5, 4))),
    "arp-address-length": own_arp(arp(ME, OWN, GATEWAY, lengths=(6, 3))),
    "ipv4-address": own4(OTHER),
    "ipv4-any": own4(ANY),
    "ipv4-loopback": own4(IPv4Address("127.0.0.1")),
    "dhcp-server": own4(OWN, udp(67, 68)),
    "dhcp-client": own4(ANY, udp(68, 67)),
    "ipv6-address": own6(OTHER6, DATA, UDP),
    "ipv6-link-local": own6(OTHER_LOCAL, DATA, UDP),
    "ipv6-any": own6(ANY6, DATA, UDP),
    "dhcp6-server": own6(LOCAL, udp(547, 546), UDP),
    "router-advertisement": own6(LOCAL, icmp6(134, bytes(12))),
    "router-advertisement-hidden": own6(
        LOCAL, behind_options(ICMPV6, icmp6(134, bytes(12))), DESTINATION_OPTIONS
    ),
    "redirect": own6(LOCAL, icmp6(137, bytes(36))),
    "listener-query": own6(LOCAL, icmp6(130, bytes(20))),
    "advertisement-of-other": own6(OWN6, advertisement(OTHER6, option(2, ME))),
    "advertisement-of-gateway": own6(LOCAL, advertisement(GATEWAY6, option(2, ME))),
    "advertisement-to-other": own6(OWN6, advertisement(OWN6, option(2, HIM))),
    "advertisement-twice": own6(OWN6, advertisement(OWN6, option(2, ME) + option(2, HIM))),
    "advertisement-hidden": own6(
        OWN6, behind_options(ICMPV6, advertisement(OTHER6, option(2, ME))), DESTINATION_OPTIONS
    ),
    # what is looked for where it would be without the header is there
    "solicitation-hidden": own6(
        OWN6,
        behind_options(ICMPV6, solicitation(IPv6Address(bytes(8) + option(1, ME)))),
        DESTINATION_OPTIONS,
    ),
    "solicitation-of-router-hidden": own6(
        LOCAL, behind_options(ICMPV6, icmp6(133, bytes(4) + option(1, HIM))), DESTINATION_OPTIONS
    ),
    "solicitation-of-router-as-other": own6(OTHER_LOCAL, icmp6(133)),
    "solicitation-of-router-mac": own6(LOCAL, icmp6(133, bytes(4) + option(1, HIM))),
    "solicitation-of-router-second-mac": own6(
        LOCAL, icmp6(133, bytes(4) + bytes([14, 1]) + bytes(6) + option(1, HIM))
    ),
    "fragment-before-options": own6(
        LOCAL, fragment(DESTINATION_OPTIONS, behind_options(ICMPV6, b"")), FRAGMENT
    ),
    "solicitation-mac": own6(OWN6, solicitation(GATEWAY6, option(1, HIM))),
    "solicitation-second-mac": own6(OWN6, solicitation(GATEWAY6, bytes([14, 1]) + bytes(6) + option(1, HIM))),
    "solicitation-as-other": own6(OTHER6, solicitation(GATEWAY6, option(1, ME))),
    "detection-of-other": own6(ANY6, solicitation(OTHER6)),
    "vlan": ethernet(ME, BROADCAST, IPV4, ipv4(OWN, GATEWAY, DATA), vlan=7),
    "vlan-forged": ethernet(ME, BROADCAST, IPV4, ipv4(OTHER, GATEWAY, DATA), vlan=7),
    "spanning-tree": ethernet(ME, "01:80:c2:00:00:00", 0x0026, b"\x42\x42\x03" + bytes(35)),
    "to-bridges-alone": ethernet(ME, "01:80:c2:00:00:0e", IPV4, ipv4(OWN, GATEWAY, DATA)),
    "unknown-protocol": ethernet(ME, BROADCAST, 0x88CC, bytes(40)),
}


class Tapped:
    """The TAP device of a guest, and what of its frames comes to the host."""

    def __init__(self) -> None:
        self.tap = open_tap(PORT.tap)
        self.bridge = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))
        self.bridge.bind((PLAN.bridge, 0))
        self.bridge.settimeout(DEADLINE)
        # what the kernel drops before a socket sees it is told by the last, which always comes
        self.last = own_arp(arp(ME, OWN, IPv4Address("10.77.0.254")))

    def close(self) -> None:
        os.close(self.tap)
        self.bridge.close()

    def pass_through(self, frame: bytes) -> bool:
        """Does a frame come to the host? One after it has to, and they keep their order."""
        os.write(self.tap, frame)
        os.write(self.tap, self.last)
        seen = False
        while True:
            got, (_, _, kind, *_) = self.bridge.recvfrom(2000)
            if kind == socket.PACKET_OUTGOING:
                continue
            if got.startswith(self.last):
                return seen
            seen |= got.startswith((mac_free(frame), frame))


def mac_free(frame: bytes) -> bytes:
    """A frame as the kernel shows it without its VLAN tag."""
    return frame[:12] + frame[16:] if frame[12:14] == b"\x81\x00" else frame


@pytest.fixture
def tapped(networks: HostNetworks, host_namespace: Namespace) -> Iterator[Tapped]:
    del host_namespace
    set_sysctl("bridge/bridge-nf-call-iptables", "0")
    set_sysctl("bridge/bridge-nf-call-ip6tables", "0")
    networks.apply((PLAN,), (), prune=True)
    networks.attach(PORT)
    networks.attach(VICTIM)
    tapped = Tapped()
    yield tapped
    tapped.close()


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_frame_passes(tapped: Tapped, name: str) -> None:
    assert tapped.pass_through(HONEST[name])


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_frame_does_not_pass(tapped: Tapped, name: str) -> None:
    assert not tapped.pass_through(FORGED[name])


# What bridges keep to themselves (IEEE 802.1Q): unless told otherwise, the kernel takes it from the way of
# other frames before any rule of the bridge is asked.
RESERVED = [f"01:80:c2:00:00:{last:02x}" for last in range(16)]


def read_places() -> list[str]:
    """Where the bridge thinks that who is."""
    entries = run_command(["bridge", "fdb", "show", "br", PLAN.bridge], timeout=DEADLINE).stdout.splitlines()
    return sorted(entry for entry in entries if " dev hv" in entry and "permanent" not in entry)


def test_a_bridge_learns_nothing_from_a_guest(tapped: Tapped) -> None:
    places = read_places()
    assert [place.split()[0] for place in places] == [ME, HIM]
    for target in (BROADCAST, *RESERVED):
        for source in (HIM, "52:54:00:ff:ff:01"):
            assert not tapped.pass_through(ethernet(source, target, IPV4, ipv4(OWN, GATEWAY, DATA)))
    assert tapped.pass_through(HONEST["ipv4"])
    assert read_places() == places


@pytest.mark.parametrize("known", [True, False])
def test_a_guest_hears_nothing_that_is_for_another(tapped: Tapped, known: bool) -> None:
    """Not either when the bridge does not know where that one is, as of one that has been silent."""
    if not known:
        run_command(["bridge", "fdb", "del", HIM, "dev", VICTIM.tap, "master"], timeout=DEADLINE)
    for address, owner in ((OWN, ME), (OTHER, HIM)):
        words = ["ip", "neigh", "replace", str(address), "lladdr", owner, "dev", PLAN.bridge]
        run_command(words, timeout=DEADLINE)
    his = open_tap(VICTIM.tap)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as host:
            if known:  # his port takes part as soon as the bridge has noticed that he is there
                await_frame(his, lambda: host.sendto(b"hello", (str(OTHER), 1000)))
            host.sendto(b"for him", (str(OTHER), 1000))
            host.sendto(b"for me", (str(OWN), 1000))
        assert not any(b"for him" in frame for frame in read_until(tapped.tap, b"for me"))
        if known:
            assert read_until(his, b"for him")
    finally:
        os.close(his)


def await_frame(tap: int, cause: Callable[[], object]) -> None:
    """Do it again and again until something comes."""
    end = time.monotonic() + DEADLINE
    while not select.select([tap], [], [], 0.05)[0]:
        assert time.monotonic() < end, "nothing comes"
        cause()


def read_until(tap: int, token: bytes) -> list[bytes]:
    """What comes to a guest, up to a frame with these bytes."""
    frames = [b""]
    while token not in frames[-1]:
        assert select.select([tap], [], [], DEADLINE)[0], f"{token!r} does not come"
        frames.append(os.read(tap, 2000))
    return frames


@pytest.mark.parametrize("plugged", [True, False])
def test_nothing_comes_in_but_over_the_bridge(
    tapped: Tapped, networks: HostNetworks, host_namespace: Namespace, plugged: bool
) -> None:
    """Also when somebody has taken the interface off the bridge, where all that is forged is dropped."""
    plan = replace(PLAN, host_ports=frozenset({HostPort(Transport.UDP, 2000)}))
    networks.apply((plan,), (PORT,), prune=True)
    for name in ("all", PORT.tap):  # a stricter host does not take such packets anyway
        set_sysctl(f"ipv4/conf/{name}/rp_filter", "0")
    with serve(host_namespace, socket.SOCK_DGRAM, 2000) as server:
        honest = ipv4(OWN, GATEWAY, udp(1000, 2000, b"honest"))
        os.write(tapped.tap, ethernet(ME, derive_bridge_mac(PLAN.network), IPV4, honest))
        assert server.recv(99) == b"honest"
        if not plugged:
            run_command(["ip", "link", "set", PORT.tap, "nomaster"], timeout=DEADLINE)
        shown = run_command(["ip", "-json", "link", "show", PORT.tap], timeout=DEADLINE).stdout
        own_mac = str(json.loads(shown)[0]["address"])
        for target in RESERVED if plugged else (own_mac, BROADCAST, *RESERVED):
            for source in (OWN, OTHER):
                forged = ipv4(source, GATEWAY, udp(1000, 2000, b"forged"))
                os.write(tapped.tap, ethernet(ME, target, IPV4, forged))
            os.write(tapped.tap, ethernet(ME, target, ARP, arp(ME, OWN, GATEWAY)))
        server.settimeout(0.2)
        with pytest.raises(TimeoutError):
            server.recv(99)
    while select.select([tapped.tap], [], [], 0)[0]:
        frame = os.read(tapped.tap, 2000)
        assert frame[12:14] != b"\x08\x06" or frame[21] == 1, "a question of ARP was answered"
    assert "lladdr" not in run_command(["ip", "neigh", "show", "dev", PORT.tap], timeout=DEADLINE).stdout


def test_without_ipv6_a_guest_has_no_link_local_address_either(
    tapped: Tapped, networks: HostNetworks
) -> None:
    port = make_port(PLAN, 1, ipv6=None)
    networks.apply((PLAN,), (port,), prune=True)
    assert tapped.pass_through(HONEST["ipv4"])
    assert not tapped.pass_through(HONEST["ipv6-link-local"])


def test_a_guest_does_not_hear_itself(tapped: Tapped, networks: HostNetworks) -> None:
    """With br_netfilter its port sends frames back, for its own published ports; those alone."""
    set_sysctl("bridge/bridge-nf-call-iptables", "1")
    port = make_port(PLAN, 1, group="a", publish=(Publish(None, 80, 80),))
    networks.apply((PLAN,), (port, VICTIM), prune=True)
    flags = run_command(["bridge", "-d", "link", "show", "dev", port.tap], timeout=DEADLINE).stdout
    assert "hairpin on" in flags
    os.write(tapped.tap, own_arp(arp(ME, OWN, GATEWAY)))
    answered = False
    while not answered:
        assert select.select([tapped.tap], [], [], DEADLINE)[0]
        heard = os.read(tapped.tap, 2000)
        assert heard[6:12] != mac(ME)
        # the gateway's answer comes after what the bridge has sent to all
        answered = heard.startswith(mac(ME) + mac(derive_bridge_mac(PLAN.network)) + b"\x08\x06")


def test_forged_frames_pass_where_there_are_no_rules(tapped: Tapped) -> None:
    """So that what is above proves the rules, and not that such frames are never seen."""
    run_command(["nft", "delete", "table", "bridge", "hypemand"], timeout=DEADLINE)
    hidden = [name for name, frame in FORGED.items() if not tapped.pass_through(frame)]
    assert hidden == []
