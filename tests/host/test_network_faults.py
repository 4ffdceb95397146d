# SPDX-License-Identifier: Apache-2.0
"""A VM that cannot get its network does not start, is told why, and leaves nothing. More: test_network.py."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.host.faults import ctl, host_config
from tests.host.netlab import PORT, Place, Wired, read_network, write_guest
from tests.host.vms import Vms, vms_of
from tests.host.wire import UPLINK

pytestmark = pytest.mark.one_release

LISTENS = """
import socket, sys
kind = socket.SOCK_DGRAM if sys.argv[3] == "udp" else socket.SOCK_STREAM
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
taken = socket.socket(family, kind)
taken.bind((sys.argv[1], int(sys.argv[2])))
if kind == socket.SOCK_STREAM:
    taken.listen()
print("up", flush=True)
sys.stdin.read()
"""
OWNS = """
import nftables, sys
nft = nftables.Nftables()
print(nft.cmd("table inet hypemand { flags owner; }"), flush=True)
sys.stdin.read()
"""
DROPIN = "/run/systemd/system/hypemand-network.service.d/test.conf"


@pytest.fixture
def bare(wired: Wired) -> Iterator[Vms]:
    """VMs of host A; when they are gone its network is as it was before."""
    with vms_of(wired.a) as vms:
        before = read_network(wired.a)
        yield vms
        vms.remove_all()
        assert read_network(wired.a) == before


def refuse(vms: Vms, name: str, *words: str) -> str:
    """The VM does not start, for a reason that has these words, and nothing of the attempt stays."""
    before = read_network(vms.host)
    refused = vms.ctl("start", "--wait", name, check=False)
    assert not refused.ok
    for word in words:
        assert word in refused.stderr, refused.describe()
    assert "internal error of hypemand" not in refused.stderr
    assert vms.state(name) == "Stopped"
    assert read_network(vms.host) == before
    return refused.stderr


def network_status(vms: Vms, name: str) -> str:
    """All that is said of a network."""
    return ctl(vms.host, "network", "inspect", name, check=False).stdout


# where a service listens in the way of a published port
IN_THE_WAY = (
    ("0.0.0.0", "tcp"),
    ("127.0.0.1", "udp"),
    ("::", "tcp"),
    ("::1", "udp"),
    ("198.51.100.1", "tcp"),
)


def test_a_port_that_a_service_of_the_host_has_on_any_address(bare: Vms, wired: Wired) -> None:
    write_guest(bare, "web", {"publish": [f"7600:{PORT}", f"7600:{PORT}/udp"]})
    bare.reload()
    for address, transport in IN_THE_WAY:
        with wired.a.popen(["python3", "-c", LISTENS, address, "7600", transport]) as service:
            assert service.stdout is not None
            assert service.stdout.readline() == b"up\n"
            refuse(bare, "web", f"7600/{transport}")
    bare.start("web")
    assert Place(wired.b).reaches(wired.a4, 7600) == "web"


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_a_subnet_that_collides_with_a_route_is_refused_and_the_route_named(
    bare: Vms, wired: Wired, family: str
) -> None:
    clash = {
        "ipv4": {"bridge": "clash0", "ipv4": "198.51.100.129/25"},
        "ipv6": {"bridge": "clash0", "ipv4": "none", "ipv6": "2001:db8:100::1:1/112"},
    }[family]
    route = {"ipv4": "198.51.100.0/24", "ipv6": "2001:db8:100::/64"}[family]
    with host_config(wired.a, networks={"clash": clash}):
        write_guest(bare, "web", "clash")
        write_guest(bare, "fine")
        bare.reload()
        refuse(bare, "web", route, UPLINK)
        assert route in network_status(bare, "clash")
        assert "clash0" not in wired.a.run(["ls", "/sys/class/net"]).stdout.split()
        bare.start("fine")
        assert Place(wired.a, "fine").reaches(wired.b4) == "b"
        bare.remove_all()


def test_a_route_that_comes_later_does_not_end_a_network_in_use(bare: Vms, wired: Wired) -> None:
    write_guest(bare, "web")
    bare.reload()
    bare.start("web")
    wired.a.run(["ip", "route", "add", "10.80.0.0/12", "via", wired.b4])
    try:
        bare.restart_daemon()
        assert bare.state("web") == "Running"
        assert Place(wired.a, "web").reaches(wired.b4) == "b"
    finally:
        wired.a.run(["ip", "route", "del", "10.80.0.0/12"])


@contextmanager
def network_service_with(vms: Vms, setting: str) -> Iterator[None]:
    """The network service runs with another setting of its unit in this block, or fails to."""
    restart = "systemctl daemon-reload; systemctl reset-failed hypemand-network.service 2>/dev/null || true"
    stop = "systemctl stop hypemand-network.service"
    vms.host.push(DROPIN, f"[Service]\n{setting}\n")
    vms.host.shell(f"{restart}; {stop}")
    try:
        yield
    finally:
        vms.host.shell(f"rm {DROPIN}; {restart}; {stop}; systemctl start hypemand-network.socket")


@pytest.mark.both_releases
def test_a_network_service_without_its_capability(bare: Vms, wired: Wired) -> None:
    write_guest(bare, "web")
    write_guest(bare, "apart", "none")
    bare.reload()
    without = "AmbientCapabilities=\nAmbientCapabilities=CAP_NET_BIND_SERVICE"
    with network_service_with(bare, without):
        refuse(bare, "web", "CAP_NET_ADMIN")
        bare.start("apart")
        assert "eth0" not in bare.execute("apart", "ls", "/sys/class/net")
    bare.start("web")
    assert Place(wired.a, "web").reaches(wired.b4) == "b"


@pytest.mark.both_releases
def test_a_rule_that_the_kernel_refuses(bare: Vms, wired: Wired) -> None:
    """Somebody else owns a table of our name, which none but its owner may change."""
    write_guest(bare, "web")
    bare.reload()
    wired.a.run(["systemctl", "stop", "hypemand-network.socket", "hypemand-network.service"])
    wired.a.run(["nft", "delete", "table", "inet", "hypemand"])
    with wired.a.popen(["/usr/bin/python3", "-c", OWNS]) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline().startswith(b"(0,")
        wired.a.run(["systemctl", "start", "hypemand-network.socket"])
        refuse(bare, "web", "nftables rejected a rule", "no other program owns")
    # the service may have made a table of its own by then
    wired.a.wait_until(lambda: "flags owner" not in wired.a.run(["nft", "list", "ruleset"]).stdout)
    bare.start("web")
    assert Place(wired.a, "web").reaches(wired.b4) == "b"
