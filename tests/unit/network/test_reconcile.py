# SPDX-License-Identifier: Apache-2.0
"""The host's networks in the kernel: what is made, mended, refused and removed."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from typing import Any

import pytest

from hypemand.config.network import Bandwidth, HostPort, Publish, Transport
from hypemand.errors import HostNotReady, HypemandError, InUse, InvalidDefinition
from hypemand.network.limits import Limits
from hypemand.network.links import Links, derive_bridge_mac
from hypemand.network.port import NetworkStatus, PortPlan
from hypemand.network.reconcile import HostNetworks
from hypemand.network.reservations import Reservations
from tests.host.command import run_command
from tests.unit.network.lab import DEADLINE, Cable, ip, make_bridge, make_port, open_tap, set_sysctl

PLAN = make_bridge()
LIMITED = make_port(
    PLAN,
    1,
    publish=(Publish(None, 8080, 80), Publish(IPv4Address("127.0.0.1"), 53, 53, Transport.UDP)),
    bandwidth=Bandwidth(1_000_000, 2_000_000),
    group="a",
)


def read(*argv: str) -> str:
    return run_command(list(argv), timeout=DEADLINE).stdout


def list_links() -> dict[str, dict[str, Any]]:
    links = json.loads(read("ip", "-json", "-details", "link"))
    return {link["ifname"]: link for link in links if link["ifname"] != "lo"}


def list_addresses() -> list[tuple[str, str, int]]:
    """All but link-local ones, which come and go with the carrier."""
    return sorted(
        (link["ifname"], address["local"], address["prefixlen"])
        for link in json.loads(read("ip", "-json", "address"))
        for address in link["addr_info"]
        if address["scope"] != "link"
    )


def read_ports() -> dict[str, tuple[str, object]]:
    """The bridge of every TAP device, and how it is there."""
    taps = {name: link for name, link in list_links().items() if name.startswith("hv")}
    keys = ("isolated", "hairpin")
    return {
        name: (link["master"], [link["linkinfo"]["info_slave_data"][key] for key in keys])
        for name, link in taps.items()
    }


def read_host() -> str:
    """All that is ours, without what changes by itself."""
    rules = read("nft", "--stateless", "list", "ruleset")
    qdiscs = [qdisc for qdisc in read("tc", "qdisc").splitlines() if "tbf" in qdisc or "ingress" in qdisc]
    return "\n".join([rules, *map(str, list_addresses()), *qdiscs, *sorted(list_links())])


def test_a_bridge_is_made_with_its_addresses(networks: HostNetworks) -> None:
    (status,) = networks.apply((make_bridge(mtu=1400),), (), prune=True)
    assert (status.network, status.problem, status.warnings) == ("default", "", ())
    link = list_links()["hypeman0"]
    assert link["ifalias"] == "hypemand network default"
    assert (link["mtu"], link["address"]) == (1400, derive_bridge_mac("default"))
    assert link["linkinfo"]["info_data"]["stp_state"] == 0
    assert link["linkinfo"]["info_data"]["mcast_snooping"] == 0
    assert "UP" in link["flags"]
    addresses = read("ip", "-brief", "address", "show", "hypeman0")
    assert "10.77.0.1/24" in addresses
    assert "fd77::1/64" in addresses
    # it has no carrier yet, and is used all the same
    assert "tentative" not in read("ip", "address", "show", "hypeman0")


def test_a_bridge_without_ipv6_has_none(networks: HostNetworks) -> None:
    networks.apply((make_bridge(ipv6=None),), (), prune=True)
    assert "inet6" not in read("ip", "address", "show", "hypeman0")


def test_a_tap_device_is_made_for_the_user_of_the_vm(networks: HostNetworks) -> None:
    networks.apply((PLAN,), (), prune=True)
    set_sysctl("bridge/bridge-nf-call-iptables", "0")
    set_sysctl("bridge/bridge-nf-call-ip6tables", "0")
    networks.apply((PLAN,), (), prune=True)
    port = make_port(PLAN, 1)
    index = networks.attach(port)
    networks.attach(make_port(PLAN, 2, group="a"))
    links = list_links()
    link = links[port.tap]
    assert (link["ifindex"], link["ifalias"], link["master"]) == (index, "hypemand VM vm1", "hypeman0")
    data = link["linkinfo"]["info_data"]
    assert (data["type"], data["user"], data["persist"]) == ("tap", port.uid, True)
    assert link["linkinfo"]["info_slave_data"]["isolated"]
    assert not links["hv61202"]["linkinfo"]["info_slave_data"]["isolated"]
    assert "inet6" not in read("ip", "address", "show", port.tap)


def test_what_is_there_stays_as_it_is(networks: HostNetworks) -> None:
    ports = (LIMITED, make_port(PLAN, 2))
    networks.apply((PLAN,), (), prune=True)
    for port in ports:
        networks.attach(port)
    before, links = read_host(), {name: link["ifindex"] for name, link in list_links().items()}
    networks.apply((PLAN,), ports, prune=True)
    assert read_host() == before
    assert {name: link["ifindex"] for name, link in list_links().items()} == links


def test_a_service_that_was_killed_is_followed_by_one_that_knows_the_same(networks: HostNetworks) -> None:
    networks.apply((PLAN,), (), prune=True)
    networks.attach(LIMITED)
    before = read_host()
    networks.close()
    follower = HostNetworks()
    with pytest.raises(HostNotReady, match="just started"):
        follower.attach(LIMITED)
    follower.apply((PLAN,), (LIMITED,), prune=True)
    assert read_host() == before
    with pytest.raises(InUse, match="8080/tcp is published by VM vm1"):
        follower.attach(make_port(PLAN, 2, publish=LIMITED.publish))
    follower.close()


STEPS: dict[str, tuple[tuple[type, str], ...]] = {
    "attach": (
        (Reservations, "take"),
        (HostNetworks, "_change_rules"),
        (Links, "add_tap"),
        (Links, "set_port"),
        (Limits, "set"),
        (Links, "add_ifb"),
        (Links, "tc"),
        (Links, "forget_neighbours"),
    ),
    "detach": (
        (Links, "delete_ours"),
        (Limits, "remove"),
        (HostNetworks, "_change_rules"),
        (Reservations, "release"),
    ),
}


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("doing", "owner", "name"),
    [pytest.param(doing, *step, id=f"{doing}-{step[1]}") for doing, steps in STEPS.items() for step in steps],
)
def test_a_service_that_is_killed_in_between_leaves_nothing(
    networks: HostNetworks, doing: str, owner: type, name: str, after: bool
) -> None:
    networks.apply((PLAN,), (), prune=True)
    empty = describe()
    networks.attach(LIMITED)
    whole = describe()
    if doing == "attach":
        networks.detach(LIMITED)
    networks.close()
    die_in(doing, owner, name, after=after)
    for ports, expected in (((), empty), ((LIMITED,), whole), ((), empty)):
        with closing(HostNetworks()) as follower:
            follower.apply((PLAN,), ports, prune=True)
            assert describe() == expected


def die_in(doing: str, owner: type, name: str, *, after: bool) -> None:
    """Have a service in a process of its own attach or detach a VM, and die before or after a step of it."""
    child = os.fork()
    if child == 0:
        try:
            service = HostNetworks()
            service.apply((PLAN,), (LIMITED,) if doing == "detach" else (), prune=True)
            step = getattr(owner, name)

            def die(*arguments: Any, **keys: Any) -> None:
                if after:
                    step(*arguments, **keys)
                os._exit(9)

            setattr(owner, name, die)
            getattr(service, doing)(LIMITED)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9, "it was not killed there"


@pytest.mark.parametrize(
    "damage",
    [
        ["ip", "link", "del", "hv61201"],
        ["ip", "link", "set", "hv61201", "nomaster"],
        ["ip", "link", "set", "hv61201", "down"],
        ["ip", "link", "set", "hv61201", "mtu", "900"],
        ["ip", "link", "set", "hypeman0", "down"],
        ["ip", "link", "del", "hypeman0"],
        ["ip", "addr", "del", "10.77.0.1/24", "dev", "hypeman0"],
        ["ip", "addr", "add", "10.99.0.1/24", "dev", "hypeman0"],
        ["ip", "link", "del", "hi61201"],
        ["tc", "qdisc", "del", "dev", "hv61201", "root"],
        ["tc", "qdisc", "del", "dev", "hv61201", "ingress"],
        ["tc", "qdisc", "del", "dev", "hi61201", "root"],
        ["nft", "flush", "ruleset"],
        ["nft", "flush", "set", "bridge", "hypemand", "taps"],
        ["bridge", "link", "set", "dev", "hv61202", "isolated", "off"],
        ["bridge", "link", "set", "dev", "hv61202", "learning", "on"],
        ["bridge", "link", "set", "dev", "hv61202", "flood", "on"],
        ["ip", "link", "set", "hv61202", "type", "bridge_slave", "group_fwd_mask", "0"],
        ["ip", "link", "set", "hv61202", "arp", "on"],
    ],
    ids=" ".join,
)
def test_what_was_damaged_is_mended(networks: HostNetworks, damage: list[str]) -> None:
    for name in ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables"):
        set_sysctl(f"bridge/{name}", "0")
    ports = (LIMITED, make_port(PLAN, 2))
    networks.apply((PLAN,), (), prune=True)
    for port in ports:
        networks.attach(port)
    before = describe()
    run_command(damage, timeout=DEADLINE)
    assert describe() != before
    networks.apply((PLAN,), ports, prune=True)
    assert describe() == before


PORT_FLAGS = ("isolated", "learning", "flood", "group_fwd_mask")


def describe() -> list[object]:
    """The host, with its devices by their names."""
    links = [
        (
            name,
            link["mtu"],
            link.get("master"),
            "UP" in link["flags"],
            "NOARP" in link["flags"],
            [link.get("linkinfo", {}).get("info_slave_data", {}).get(key) for key in PORT_FLAGS],
        )
        for name, link in sorted(list_links().items())
    ]
    qdiscs = sorted(
        (qdisc["dev"], qdisc["kind"])
        for qdisc in json.loads(read("tc", "-json", "qdisc"))
        if qdisc["kind"] in ("tbf", "ingress")
    )
    places = sorted(
        (place["mac"], place["ifname"])
        for place in json.loads(read("bridge", "-json", "fdb"))
        if place["ifname"].startswith("hv") and place["state"] == "static"
    )
    return [links, places, list_addresses(), qdiscs, read("nft", "--stateless", "list", "ruleset")]


def test_what_nothing_needs_is_removed_and_nothing_else(networks: HostNetworks) -> None:
    other = make_bridge("other", "hypeman1", 1)
    gone = make_port(other, 3, bandwidth=Bandwidth(1_000_000, None))
    networks.apply((PLAN, other), (), prune=True)
    networks.attach(LIMITED)
    networks.attach(gone)
    for words in (["br0", "type", "bridge"], ["hi9", "type", "ifb"], ["hi61204", "type", "ifb"]):
        ip("link", "add", *words)
    ip("link", "set", "hi9", "alias", "for the shop")
    ip("tuntap", "add", "mode", "tap", "hv9")
    before = set(list_links())
    networks.apply((PLAN,), (LIMITED,), prune=False)
    assert set(list_links()) == before
    networks.apply((PLAN,), (LIMITED,), prune=True)
    # hi61204 is as a service that was killed leaves one
    assert before - set(list_links()) == {"hypeman1", gone.tap, "hi61203", "hi61204"}
    networks.clean()
    assert set(list_links()) == {"br0", "hi9", "hv9"}
    assert "hypemand" not in read("nft", "list", "ruleset")


def test_all_of_a_vm_goes_with_it(networks: HostNetworks) -> None:
    networks.apply((PLAN,), (), prune=True)
    empty = read_host()
    networks.attach(LIMITED)
    assert read_host() != empty
    networks.detach(LIMITED)
    assert read_host() == empty
    networks.detach(LIMITED)
    # its ports can be had
    networks.attach(make_port(PLAN, 2, publish=LIMITED.publish))


def test_a_vm_that_is_attached_again_is_made_anew(networks: HostNetworks) -> None:
    networks.apply((PLAN,), (), prune=True)
    first = networks.attach(LIMITED)
    moved = replace(LIMITED, ipv4=IPv4Address("10.77.0.99"), publish=(), bandwidth=Bandwidth())
    assert networks.attach(moved) != first
    rules = read("nft", "list", "ruleset")
    assert "10.77.0.99" in rules
    assert str(LIMITED.ipv4) not in rules
    assert "8080" not in rules
    assert "hi61201" not in list_links()


@contextmanager
def foreign_tap() -> Iterator[None]:
    """The name of the TAP device is somebody else's, and the device is in use."""
    ip("link", "add", LIMITED.tap, "type", "ifb")
    yield
    assert list_links()[LIMITED.tap]["linkinfo"]["info_kind"] == "ifb"


@contextmanager
def foreign_ifb() -> Iterator[None]:
    """The ifb device cannot be made."""
    ip("link", "add", "hi61201", "type", "bridge")
    yield


@contextmanager
def taken_port() -> Iterator[None]:
    with subprocess.Popen(["/usr/bin/python3", "-c", LISTEN], stdout=subprocess.PIPE) as listener:
        assert listener.stdout is not None
        listener.stdout.readline()
        yield
        listener.kill()


LISTEN = """
import socket, time
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(("127.0.0.1", 8080))
s.listen()
print("listens", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("obstacle", [foreign_tap, foreign_ifb, taken_port])
def test_a_vm_that_cannot_be_attached_leaves_nothing(networks: HostNetworks, obstacle: Any) -> None:
    networks.apply((PLAN,), (), prune=True)
    with obstacle():
        before = read_host()
        with pytest.raises(HypemandError):
            networks.attach(LIMITED)
        assert read_host() == before
    networks.attach(make_port(PLAN, 2, publish=(Publish(None, 8081, 80),)))


def test_a_port_of_the_host_is_refused_with_the_program_named(networks: HostNetworks) -> None:
    networks.apply((PLAN,), (), prune=True)
    with taken_port(), pytest.raises(InUse, match=r"^port 8080/tcp of the host is in use by "):
        networks.attach(LIMITED)


def test_a_port_that_cannot_be_led_to_the_vm_is_refused(networks: HostNetworks) -> None:
    networks.apply((PLAN,), (), prune=True)
    with pytest.raises(InvalidDefinition, match="no IPv4 address"):
        networks.attach(replace(LIMITED, ipv4=None))


def test_a_bridge_of_somebody_else_is_left_alone(networks: HostNetworks) -> None:
    ip("link", "add", "hypeman0", "type", "bridge")
    before = list_links()
    other = make_bridge("other", "hypeman1", 1)
    first, second = networks.apply((PLAN, other), (), prune=True)
    assert first.problem.startswith("hypeman0 exists and does not belong to hypemand; ")
    assert second.problem == ""
    assert list_links()["hypeman0"] == before["hypeman0"]
    with pytest.raises(HostNotReady, match="hypeman0 exists and does not belong to hypemand"):
        networks.attach(LIMITED)
    networks.attach(make_port(other, 2))


def test_a_bridge_whose_maker_was_killed_before_it_was_marked_is_ours(networks: HostNetworks) -> None:
    ip("link", "add", "hypeman0", "address", derive_bridge_mac("default"), "type", "bridge")
    (status,) = networks.apply((PLAN,), (), prune=True)
    assert status.problem == ""


def test_a_subnet_that_the_host_reaches_elsewhere_is_refused(networks: HostNetworks, cable: Cable) -> None:
    del cable
    ip("route", "add", "10.77.0.128/25", "dev", "eth0")
    ip("route", "add", "default", "dev", "eth0")
    good = make_bridge("good", "hypeman1", 1)
    bad, fine = networks.apply((PLAN, good), (), prune=True)
    assert "10.77.0.128/25 dev eth0" in bad.problem
    assert fine.problem == ""
    assert "hypeman0" not in list_links()
    with pytest.raises(HostNotReady, match=r"10\.77\.0\.128/25 dev eth0"):
        networks.attach(LIMITED)


def test_a_route_over_a_bridge_that_only_has_the_name_of_ours_counts(networks: HostNetworks) -> None:
    ip("link", "add", "hypeman0", "type", "bridge")
    ip("address", "add", "10.78.1.1/25", "dev", "hypeman0")
    ip("link", "set", "hypeman0", "up")
    ip("route", "replace", "10.78.1.0/25", "dev", "hypeman0")
    other = replace(make_bridge("other", "hypeman1", 1), ipv4=IPv4Interface("10.78.1.1/24"))
    first, second = networks.apply((PLAN, other), (), prune=True)
    assert "does not belong to hypemand" in first.problem
    assert "10.78.1.0/25 dev hypeman0" in second.problem


def test_a_network_that_cannot_be_mended_keeps_its_vms(networks: HostNetworks) -> None:
    """Its bridge has lost its addresses, and meanwhile the host reaches them elsewhere."""
    networks.apply((PLAN,), (), prune=True)
    networks.attach(LIMITED)
    before = describe()
    run_command(["ip", "addr", "flush", "dev", "hypeman0"], timeout=DEADLINE)
    ip("link", "add", "eth7", "up", "type", "bridge")
    ip("route", "add", "10.77.0.0/16", "dev", "eth7")
    (status,) = networks.apply((PLAN,), (LIMITED,), prune=True)
    assert "10.77.0.0/16 dev eth7" in status.problem
    ip("link", "del", "eth7")
    (status,) = networks.apply((PLAN,), (LIMITED,), prune=True)
    assert status.problem == ""
    assert describe() == before


def test_a_network_can_get_another_bridge(networks: HostNetworks) -> None:
    networks.apply((PLAN,), (), prune=True)
    (status,) = networks.apply((replace(PLAN, bridge="hypeman9"),), (), prune=True)
    assert status.problem == ""
    assert set(list_links()) == {"hypeman9"}


def test_networks_can_change_places(networks: HostNetworks) -> None:
    other = make_bridge("other", "hypeman1", 1)
    networks.apply((PLAN, other), (), prune=True)
    swapped = (replace(PLAN, bridge="hypeman1"), replace(other, bridge="hypeman0"))
    assert [status.problem for status in networks.apply(swapped, (), prune=True)] == ["", ""]


def test_one_bridge_is_not_for_two_networks(networks: HostNetworks) -> None:
    other = make_bridge("other", PLAN.bridge, 1)
    first, second = networks.apply((PLAN, other), (), prune=True)
    assert (first.problem, second.problem) == ("", "hypeman0 is the bridge of network default")


def test_two_networks_with_one_subnet_are_refused(networks: HostNetworks) -> None:
    twin = make_bridge("twin", "hypeman1")
    first, second = networks.apply((PLAN, twin), (), prune=True)
    assert first.problem == ""
    assert "10.77.0.0/24 dev hypeman0" in second.problem


def test_a_route_that_comes_later_is_told_and_takes_nothing_away(
    networks: HostNetworks, cable: Cable
) -> None:
    del cable
    networks.apply((PLAN,), (), prune=True)
    ip("route", "add", "10.0.0.0/8", "dev", "eth0")
    (status,) = networks.apply((PLAN,), (), prune=True)
    assert status.problem == ""
    assert "10.0.0.0/8 dev eth0" in status.warnings[0]
    networks.attach(LIMITED)


def test_a_network_stays_as_it_is_until_its_last_vm_has_stopped(networks: HostNetworks) -> None:
    port = make_port(PLAN, 1)
    networks.apply((PLAN,), (), prune=True)
    networks.attach(port)
    changed = replace(
        PLAN,
        ipv4=IPv4Interface("10.88.0.1/24"),
        mtu=1400,
        host_ports=frozenset({HostPort(Transport.UDP, 53)}),
    )
    (status,) = networks.apply((changed,), (port,), prune=True)
    assert status.warnings == ("hypeman0 is not changed until the last VM on it has stopped",)
    assert "10.77.0.1/24" in read("ip", "-brief", "address")
    # what can change under a VM has changed
    assert '"hypeman0" . udp . 53' in read("nft", "list", "ruleset")
    with pytest.raises(HostNotReady, match="VMs are still attached to hypeman0"):
        networks.attach(make_port(changed, 2))
    networks.detach(port)
    (status,) = networks.apply((changed,), (), prune=True)
    assert status.warnings == ()
    addresses = read("ip", "-brief", "address")
    assert "10.88.0.1/24" in addresses
    assert "10.77.0.1/24" not in addresses
    assert list_links()["hypeman0"]["mtu"] == 1400
    networks.attach(make_port(changed, 2))


def test_forwarding_is_turned_on_for_the_first_vm(networks: HostNetworks) -> None:
    forwarding = (Path("/proc/sys/net/ipv4/ip_forward"), Path("/proc/sys/net/ipv6/conf/all/forwarding"))
    networks.apply((PLAN,), (), prune=True)
    assert [path.read_text() for path in forwarding] == ["0\n", "0\n"]
    networks.attach(make_port(PLAN, 1))
    assert [path.read_text() for path in forwarding] == ["1\n", "1\n"]


def test_a_host_that_lives_on_router_advertisements_goes_on_doing_so(
    networks: HostNetworks, cable: Cable
) -> None:
    del cable
    ip("-6", "route", "add", "default", "via", "fe80::1", "dev", "eth0", "proto", "ra")
    (status,) = networks.apply((PLAN,), (), prune=True)
    assert "sysctl net.ipv6.conf.eth0.accept_ra=2" in status.warnings[0]
    forwarding = Path("/proc/sys/net/ipv6/conf/all/forwarding")
    networks.attach(make_port(PLAN, 1))
    assert forwarding.read_text() == "0\n"
    set_sysctl("ipv6/conf/eth0/accept_ra", "2")
    (status,) = networks.apply((PLAN,), (make_port(PLAN, 1),), prune=True)
    assert status.warnings == ()
    assert forwarding.read_text() == "1\n"


def test_vms_that_come_and_go_are_no_change_of_the_rest_of_the_host(networks: HostNetworks) -> None:
    assert not networks.has_changed()
    networks.apply((PLAN,), (), prune=True)
    networks.attach(LIMITED)
    networks.attach(make_port(PLAN, 2))
    networks.detach(LIMITED)
    assert not networks.has_changed()
    set_sysctl("bridge/bridge-nf-call-iptables", "0")
    set_sysctl("bridge/bridge-nf-call-ip6tables", "0")
    networks.apply((PLAN,), (LIMITED,), prune=True)
    set_sysctl("bridge/bridge-nf-call-iptables", "1")
    assert networks.has_changed()
    networks.apply((PLAN,), (LIMITED,), prune=True)
    assert not networks.has_changed()


def test_counters_are_of_the_vm(networks: HostNetworks) -> None:
    networks.apply((PLAN,), (), prune=True)
    port = make_port(PLAN, 1)
    networks.attach(port)
    tap = open_tap(port.tap)
    frame = bytes.fromhex("ffffffffffff") + bytes.fromhex(port.mac.replace(":", "")) + b"\x08\x06" + bytes(50)
    before = networks.counters()[port.tap]
    os.write(tap, frame)
    after = networks.counters()[port.tap]
    os.close(tap)
    assert after.sent_packets - before.sent_packets == 1
    assert after.sent_bytes - before.sent_bytes == len(frame)


FOREIGN = """
table ip filter {
  chain INPUT { type filter hook input priority 0; policy accept; }
  chain FORWARD { type filter hook forward priority 0; policy drop;
    iifname "docker0" accept
  }
  chain DOCKER-USER {
  }
}
table ip nat {
  chain PREROUTING { type nat hook prerouting priority -100; policy accept;
    fib daddr type local tcp dport 443 dnat to 172.17.0.2:443
  }
  chain POSTROUTING { type nat hook postrouting priority 100; policy accept;
    ip saddr 172.17.0.0/16 oifname != "docker0" masquerade
  }
}
table inet firewalld {
  chain filter_FORWARD { type filter hook forward priority 10; policy accept;
    reject with icmpx type admin-prohibited
  }
}
table bridge filter {
  chain forward { type filter hook forward priority 0; policy accept;
    ether saddr 02:00:00:00:00:01 drop
  }
}
table ip libvirt_network {
  chain forward { type filter hook forward priority 0; policy accept;
    oifname "virbr0" reject
  }
}
"""


def test_rules_of_others_are_left_as_they_are(networks: HostNetworks) -> None:
    run_command(["nft", "-f", "-"], input=FOREIGN.replace(" }\n", "\n }\n").encode(), timeout=DEADLINE)
    before = read("nft", "--handle", "list", "ruleset")
    networks.apply((PLAN,), (), prune=True)
    networks.attach(LIMITED)
    networks.apply((PLAN,), (LIMITED,), prune=True)
    networks.detach(LIMITED)
    networks.clean()
    assert read("nft", "--handle", "list", "ruleset") == before


def test_firewalls_that_drop_what_is_forwarded_are_told_with_the_cure(networks: HostNetworks) -> None:
    run_command(["nft", "-f", "-"], input=FOREIGN.replace(" }\n", "\n }\n").encode(), timeout=DEADLINE)
    (status,) = networks.apply((PLAN,), (), prune=True)
    docker, firewalld = status.warnings
    assert "ip filter FORWARD" in docker
    assert "iptables -I FORWARD -i hypeman0 -j ACCEPT" in docker
    assert "firewall-cmd --permanent --zone=trusted --add-interface=hypeman0" in firewalld
    for chain in ("ip filter FORWARD", "inet firewalld filter_FORWARD"):
        for way in ("iifname", "oifname"):
            run_command(
                ["nft", "insert", "rule", *chain.split(), way, "hypeman0", "accept"], timeout=DEADLINE
            )
    (status,) = networks.apply((PLAN,), (), prune=True)
    assert status.warnings == ()


def test_rules_that_somebody_removes_are_made_again(networks: HostNetworks) -> None:
    networks.apply((PLAN,), (), prune=True)
    networks.attach(LIMITED)
    before = read("nft", "list", "ruleset")
    assert not networks.restore_rules()
    run_command(["nft", "flush", "ruleset"], timeout=DEADLINE)
    assert networks.restore_rules()
    assert read("nft", "list", "ruleset") == before


@pytest.mark.parametrize(
    "harm",
    [
        ("link", "del", "hypeman0"),
        ("link", "set", "hypeman0", "down"),
        ("addr", "del", "10.77.0.1/24", "dev", "hypeman0"),
        ("addr", "flush", "dev", "hypeman0"),
    ],
    ids=" ".join,
)
def test_a_bridge_that_somebody_takes_away_is_made_again(
    networks: HostNetworks, harm: tuple[str, ...]
) -> None:
    networks.apply((PLAN, make_bridge("lan", "lan0", 1)), (), prune=True)
    networks.attach(LIMITED)
    networks.attach(make_port(PLAN, 2))
    before, ports = read_host(), read_ports()
    assert networks.restore_bridges() == ()
    ip(*harm)
    assert networks.restore_bridges() == (NetworkStatus("default", ""),)
    assert read_host() == before
    assert read_ports() == ports
    assert networks.restore_bridges() == ()


def test_a_bridge_that_cannot_be_made_again_is_told(networks: HostNetworks) -> None:
    networks.apply((PLAN,), (), prune=True)
    ip("link", "del", "hypeman0")
    ip("link", "add", "hypeman0", "type", "bridge")
    (status,) = networks.restore_bridges()
    assert "hypeman0 exists and does not belong to hypemand" in status.problem


def test_a_subnet_that_was_taken_meanwhile_is_not_taken_back(networks: HostNetworks) -> None:
    networks.apply((PLAN,), (), prune=True)
    ip("link", "del", "hypeman0")
    ip("link", "add", "other0", "type", "bridge")
    ip("addr", "add", "10.77.0.9/24", "dev", "other0")
    ip("link", "set", "other0", "up")
    (status,) = networks.restore_bridges()
    assert "10.77.0.0/24 dev other0" in status.problem
    assert "hypeman0" not in list_links()


def test_attach_mends_rules_that_are_not_as_they_were_left(networks: HostNetworks) -> None:
    networks.apply((PLAN,), (), prune=True)
    run_command(["nft", "flush", "ruleset"], timeout=DEADLINE)
    networks.attach(LIMITED)
    assert LIMITED.mac in read("nft", "list", "ruleset")
    run_command(["nft", "flush", "ruleset"], timeout=DEADLINE)
    networks.detach(LIMITED)
    rules = read("nft", "list", "ruleset")
    assert "chain guest_arp" in rules
    assert LIMITED.mac not in rules


def test_a_user_that_the_vm_is_not_cannot_open_its_tap_device(networks: HostNetworks) -> None:
    networks.apply((PLAN,), (), prune=True)
    port = make_port(PLAN, 1)
    networks.attach(port)
    assert (try_tap(port, port.uid), try_tap(port, port.uid + 1)) == ("", "EPERM")


def try_tap(port: PortPlan, uid: int) -> str:
    program = (
        "import errno, fcntl, os, struct\n"
        f"os.setgid(65534); os.setuid({uid})\n"
        "tap = os.open('/dev/net/tun', os.O_RDWR)\n"
        f"request = struct.pack('16sH22x', {port.tap.encode()!r}, 0x1002)\n"
        "try:\n    fcntl.ioctl(tap, 0x400454CA, request)\n"
        "except OSError as error:\n    print(errno.errorcode[error.errno], end='')\n"
    )
    return read("/usr/bin/python3", "-c", program)


def test_a_template_has_a_tap_device_on_no_network_as_long_as_its_vmm_lives(networks: HostNetworks) -> None:
    """With what a VM's has, so that its guest agrees on the same."""
    del networks  # which is in a namespace of its own
    with closing(HostNetworks(lambda: 999)) as service:
        before = set(list_links())
        tap = service.open_tap(999)
        (name,) = set(list_links()) - before
        link = list_links()[name]
        assert link["linkinfo"]["info_kind"] == "tun"
        assert link["linkinfo"]["info_data"]["vnet_hdr"]
        assert (link["operstate"], link.get("master")) == ("DOWN", None)
        os.close(tap)
        assert set(list_links()) == before
        with pytest.raises(HostNotReady, match="user 998 has no VM with a network"):
            service.open_tap(998)
