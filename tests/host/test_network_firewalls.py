# SPDX-License-Identifier: Apache-2.0
"""Other firewalls on the host: never touched, and they go on working. What they forbid is told."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from tests.conftest import HostFactory
from tests.host.faults import ctl
from tests.host.lab import boot_hosts
from tests.host.netlab import PORT, SILENCE_MS, Place, Wired, install_probe, write_guest
from tests.host.recipe import Suite
from tests.host.vms import Vms, vms_of
from tests.host.wire import lay_wire

HOST_PORT = 7580
# As Docker does it, with iptables-nft and the policy that it sets, and a container.
DOCKER = """
ip link add docker0 type bridge
ip addr add 172.17.0.1/16 dev docker0
ip link set docker0 up
sysctl -qw net.ipv4.ip_forward=1
iptables -P FORWARD DROP
iptables -N DOCKER-USER
iptables -A FORWARD -j DOCKER-USER
iptables -A DOCKER-USER -j RETURN
iptables -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
iptables -A FORWARD -i docker0 ! -o docker0 -j ACCEPT
iptables -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
ip netns add container
ip link add veth0 type veth peer name eth0 netns container
ip link set veth0 master docker0 up
ip -n container addr add 172.17.0.2/16 dev eth0
ip -n container link set eth0 up
ip -n container route add default via 172.17.0.1
"""
LIBVIRT = """
ip link add virbr0 type bridge
ip addr add 192.168.122.1/24 dev virbr0
ip link set virbr0 up
iptables -N LIBVIRT_FWI
iptables -N LIBVIRT_FWO
iptables -I FORWARD -j LIBVIRT_FWI
iptables -I FORWARD -j LIBVIRT_FWO
iptables -A LIBVIRT_FWI -d 192.168.122.0/24 -o virbr0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
iptables -A LIBVIRT_FWI -o virbr0 -j REJECT
iptables -A LIBVIRT_FWO -s 192.168.122.0/24 -i virbr0 -j ACCEPT
iptables -A LIBVIRT_FWO -i virbr0 -j REJECT
iptables -t nat -N LIBVIRT_PRT
iptables -t nat -A POSTROUTING -j LIBVIRT_PRT
iptables -t nat -A LIBVIRT_PRT -s 192.168.122.0/24 ! -d 192.168.122.0/24 -j MASQUERADE
"""
# As firewalld's public zone; ssh and 7007 are open.
FIREWALLD = """
table inet firewalld {
  set open { type inet_service; elements = { 22, 7007 } }
  chain filter_INPUT {
    type filter hook input priority filter + 10; policy accept;
    ct state { established, related } accept
    iifname "lo" accept
    meta l4proto { icmp, ipv6-icmp } accept
    tcp dport @open accept
    reject with icmpx admin-prohibited
  }
  chain filter_FORWARD {
    type filter hook forward priority filter + 10; policy accept;
    ct state { established, related } accept
    ct status dnat accept
    iifname "lo" accept
    iifname "uplink0" oifname "uplink0" accept
    reject with icmpx admin-prohibited
  }
}
table bridge mine {
  chain forward {
    type filter hook forward priority 0; policy accept;
    counter
  }
}
"""


@pytest.fixture(scope="module")
def lab(suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Wired, Vms]]:
    """Hosts of our own: what is done here to A's firewall no other test should have to live with."""
    folder = tmp_path_factory.mktemp("netprobe")
    with boot_hosts([suite, suite]) as (a, b), lay_wire(a, b) as wire:
        wired = Wired(a, b, wire, folder)
        wired.route()
        install_probe(a, folder)
        install_probe(b, folder, image=False)
        wired.equip_b()
        with vms_of(a) as vms:
            write_guest(vms, "web", {"publish": [f"{HOST_PORT}:{PORT}"]})
            vms.reload()
            yield wired, vms


def read_others(wired: Wired) -> str:
    """All rules of all tables that are not ours, without their counters."""
    text = wired.a.run(["nft", "--stateless", "list", "ruleset"]).stdout
    return re.sub(r"^table (inet|bridge) hypemand \{\n.*?^\}\n", "", text, flags=re.MULTILINE | re.DOTALL)


def list_warnings(vms: Vms) -> str:
    """What is said of the default network."""
    return ctl(vms.host, "network", "inspect", "default").stdout


def live_with(vms: Vms, wired: Wired) -> None:
    """All that touches rules of ours."""
    vms.start("web")
    vms.restart_daemon()
    wired.a.run(["systemctl", "restart", "hypemand-network.service"])
    vms.wait("web", "Running")
    vms.ctl("stop", "web")


def test_docker_and_libvirt_go_on_and_are_told_of(lab: tuple[Wired, Vms]) -> None:
    wired, vms = lab
    a = wired.a
    a.shell(DOCKER + LIBVIRT)
    container = [
        "ip",
        "netns",
        "exec",
        "container",
        "/srv/netprobe",
        "ask",
        "tcp",
        wired.b4,
        str(PORT),
        "3000",
    ]
    assert a.run(container).stdout.startswith(f"b {wired.a4}")
    before = read_others(wired)
    assert "DOCKER-USER" in before
    live_with(vms, wired)
    assert read_others(wired) == before
    vms.start("web")
    assert a.run(container).stdout.startswith(f"b {wired.a4}")
    # Docker's policy drops what VMs send on, and only its owner may change that; the cure is in the warning
    assert not Place(a, "web").ask(wired.b4, within=SILENCE_MS)
    cures = re.findall(r"iptables -I FORWARD -[io] hypeman0 -j ACCEPT", list_warnings(vms))
    assert len(cures) >= 2
    a.shell("\n".join(dict.fromkeys(cures)))
    assert Place(a, "web").reaches(wired.b4) == "b"
    assert Place(wired.b).reaches(wired.a4, HOST_PORT) == "web"
    vms.restart_daemon()
    assert "iptables -I" not in list_warnings(vms)
    vms.ctl("stop", "web")
    a.shell("iptables -D FORWARD -i hypeman0 -j ACCEPT; iptables -D FORWARD -o hypeman0 -j ACCEPT")
    assert read_others(wired) == before


def test_firewalld_goes_on_and_is_told_of(lab: tuple[Wired, Vms]) -> None:
    wired, vms = lab
    a = wired.a
    a.run(["nft", "-f", "-"], input="flush ruleset\n" + FIREWALLD)
    before = read_others(wired)
    assert "firewalld" in before
    # whoever flushes all rules has flushed ours; they are back at the next occasion
    live_with(vms, wired)
    assert read_others(wired) == before
    vms.start("web")
    assert Place(wired.b).reaches(wired.a4, HOST_PORT) == "web"
    assert not Place(a, "web").ask(wired.b4, within=SILENCE_MS)
    assert "firewall-cmd" in list_warnings(vms)
    a.run(["nft", "insert", "rule", "inet", "firewalld", "filter_FORWARD", "iifname", "hypeman0", "accept"])
    assert Place(a, "web").reaches(wired.b4) == "b"
    vms.ctl("stop", "web")


def test_rules_that_somebody_flushed_are_back_for_the_next_vm(lab: tuple[Wired, Vms]) -> None:
    """nftables.service flushes all when it is reloaded."""
    wired, vms = lab
    wired.a.run(["nft", "flush", "ruleset"])
    vms.start("web")
    assert Place(wired.b).reaches(wired.a4, HOST_PORT) == "web"
    assert Place(wired.a, "web").ask(wired.b4) == f"b {wired.a4}"
    tables = wired.a.run(["nft", "-j", "list", "tables"]).stdout
    ours = [e["table"]["family"] for e in json.loads(tables)["nftables"] if e.get("table", {}).get("name")]
    assert sorted(ours) == ["bridge", "inet"]
    vms.ctl("stop", "web")


def test_our_rules_and_devices_go_with_the_package_and_others_stay(fresh_host: HostFactory) -> None:
    host = fresh_host()
    host.shell("iptables -N MINE; ip link add mine0 type bridge")
    before = host.run(["nft", "--stateless", "list", "table", "ip", "filter"]).stdout
    # made beside everything else that the daemon does at its start
    host.wait_until(lambda: "hypemand" in host.run(["nft", "list", "tables"]).stdout)
    assert "hypeman0" in host.run(["ls", "/sys/class/net"]).stdout.split()
    host.run(["apt-get", "remove", "-y", "hypemand"], timeout=120)
    assert host.run(["nft", "--stateless", "list", "ruleset"]).stdout == before
    assert sorted(host.run(["ls", "/sys/class/net"]).stdout.split()) == ["lo", "mine0"]
