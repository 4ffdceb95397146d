# SPDX-License-Identifier: Apache-2.0
"""VMs on a bridge that an administrator has made, with another machine of that LAN in a namespace."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.host.apiget import api_get
from tests.host.faults import host_config
from tests.host.machine import TestHost
from tests.host.vms import Vms

NETWORK = {"bridge": "lanbr0", "managed": False, "ipv4": "192.0.2.1/24", "ipv6": "2001:db8:7::1/64"}
ADDRESS, ADDRESS6 = "192.0.2.7", "2001:db8:7::7"
ELSEWHERE = "02:00:00:00:00:99"
MAKE_BRIDGE = """
ip link add lanbr0 type bridge
ip link set lanport0 master lanbr0 up
ip link set lanbr0 up
"""
# its addresses are those of the gateway
MAKE_PEER = """
ip netns add lanpeer
ip link add lanport0 type veth peer name eth0 netns lanpeer
ip -n lanpeer addr add 192.0.2.1/24 dev eth0
ip -n lanpeer addr add 2001:db8:7::1/64 dev eth0 nodad
ip -n lanpeer link set eth0 up
"""
UNMAKE = "ip link del lanbr0; ip link del lanport0; ip netns del lanpeer; true"


class Lan:
    """The bridge, and the machine that is on it."""

    def __init__(self, host: TestHost) -> None:
        self._host = host

    def make_bridge(self) -> None:
        self._host.run(["sh", "-euc", MAKE_BRIDGE])

    def pings(self, address: str) -> bool:
        words = ["ip", "netns", "exec", "lanpeer", "busybox", "ping", "-c1", "-W5", address]
        return self._host.run(words, check=False).ok

    def mistake(self, *addresses: str) -> None:
        """Let it know the addresses behind another MAC address, as before a VM has moved."""
        for address in addresses:
            neighbour = [address, "lladdr", ELSEWHERE, "dev", "eth0", "nud", "stale"]
            self._host.run(["ip", "-n", "lanpeer", "neigh", "replace", *neighbour])

    def await_mac(self, address: str, mac: str) -> None:
        """It learns by itself behind which MAC address this is."""
        words = ["sh", "-c", f"ip -n lanpeer neigh show {address} | grep -q {mac}"]
        self._host.wait_until_succeeds(words)

    def read_bridge(self) -> tuple[object, ...]:
        """What hypemand is to leave as it is."""
        (link,) = json.loads(self._host.run(["ip", "-json", "-details", "addr", "show", "lanbr0"]).stdout)
        data = link["linkinfo"]["info_data"]
        settings = [data[key] for key in ("stp_state", "mcast_snooping", "vlan_filtering", "ageing_time")]
        addresses = [one["local"] for one in link["addr_info"] if one["scope"] == "global"]
        forwarding = self._host.run(["cat", "/proc/sys/net/ipv4/conf/lanbr0/route_localnet"]).stdout
        return link["mtu"], link.get("ifalias"), addresses, settings, forwarding


@pytest.fixture
def lan(host: TestHost) -> Iterator[Lan]:
    with ExitStack() as stack:
        stack.callback(host.run, ["sh", "-c", UNMAKE])
        host.run(["sh", "-euc", MAKE_PEER])
        yield Lan(host)


def test_a_vm_is_on_a_bridge_of_the_administrators_and_is_reached_at_once(vms: Vms, lan: Lan) -> None:
    host = vms.host
    with host_config(host, networks={"lan": NETWORK}):
        vms.define("web", network={"name": "lan", "address": ADDRESS, "address6": ADDRESS6})
        refused = vms.ctl("start", "web", check=False)
        assert "the bridge lanbr0 does not exist" in refused.stderr
        found = json.loads(vms.ctl("check", "--json", check=False).stdout)["host"]
        (said,) = [one for one in found if one["what"] == "network lan"]
        assert said["verdict"] == "missing"
        assert "lanbr0 does not exist" in said["text"]

        lan.make_bridge()
        before = lan.read_bridge()
        host.wait_until(lambda: not api_get(host, "/networks/lan")["problem"], "it is there")
        lan.mistake(ADDRESS, ADDRESS6)
        vms.start("web")
        mac = vms.show("web")["network"]["mac"]
        for address in (ADDRESS, ADDRESS6):
            lan.await_mac(address, mac)
            assert lan.pings(address)
        for gateway in ("192.0.2.1", "2001:db8:7::1"):
            vms.ctl("exec", "web", "--", "ping", "-c1", "-W60", gateway)

        # whoever restarts the host's network makes the bridge anew
        host.run(["ip", "link", "del", "lanbr0"])
        lan.make_bridge()
        host.wait_until(lambda: lan.pings(ADDRESS), "the VM is on the new bridge")
        vms.remove_all()
        assert lan.read_bridge() == before


def test_a_vm_that_the_lan_configures_has_any_address(vms: Vms, lan: Lan) -> None:
    lan.make_bridge()
    with host_config(vms.host, networks={"lan": NETWORK | {"dhcp": True}}):
        vms.run("free", network="lan")
        assert vms.show("free")["network"]["ip"] is None

        # as a DHCP client does
        vms.ctl("exec", "free", "--", "ip", "addr", "add", "192.0.2.99/24", "dev", "eth0")
        assert lan.pings("192.0.2.99")
        vms.remove_all()
