# SPDX-License-Identifier: Apache-2.0
"""VMs on networks of a real host: there with the VM and gone after it, whatever fails in between."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


from tests.host.faults import ctl, host_config
from tests.host.machine import TestHost
from tests.host.vms import END_DEADLINE, STAYS, Vms, stuck_guests, vms_of

NETWORK_UNITS = ("hypemand-network.socket", "hypemand-network.service")
# a key that is None is left out of a definition: the VM is on the host's default network
ON_DEFAULT: dict[str, Any] = {"network": None}
RULES = """
import nftables
nft = nftables.Nftables()
code, output, error = nft.cmd("list ruleset")
assert code == 0, error
print(output)
"""
# One address for VMs.
TINY = {"bridge": "tiny0", "ipv4": "10.99.7.1/30", "ipv6": "none"}


def find_taps(host: TestHost) -> dict[str, dict[str, Any]]:
    """The TAP devices of VMs, by name."""
    links = json.loads(host.run(["ip", "-json", "-details", "link", "show"]).stdout)
    taps = [link for link in links if link["ifname"].startswith("hv") and link["ifname"][2:].isdecimal()]
    return {link["ifname"]: link for link in taps}


def tap_of(vms: Vms, name: str) -> str:
    return f"hv{vms.show(name)['uid']}"


def has_tap(vms: Vms, name: str) -> bool:
    return tap_of(vms, name) in find_taps(vms.host)


def read_rules(host: TestHost) -> str:
    return host.run(["/usr/bin/python3", "-c", RULES]).stdout


def traces_in_network(vms: Vms, name: str) -> list[str]:
    """All that the host's network has of a VM."""
    uid = vms.show(name)["uid"]
    links = vms.host.run(["ip", "-oneline", "link", "show"]).stdout.splitlines()
    found = [line for line in links if f"hv{uid}" in line or f"hi{uid}" in line]
    found += [line for line in read_rules(vms.host).splitlines() if f"hv{uid}" in line]
    port = f"/var/lib/hypemand/vms/{name}/port.json"
    return found + vms.host.run(["sh", "-c", f"ls {port} 2>/dev/null || true"]).stdout.splitlines()


def place(vms: Vms, name: str) -> dict[str, Any]:
    network: dict[str, Any] = vms.show(name)["network"]
    return network


def network(host: TestHost, name: str = "default") -> dict[str, Any]:
    shown: dict[str, Any] = json.loads(ctl(host, "network", "inspect", name).stdout)
    return shown


def reach_gateway(vms: Vms, name: str) -> None:
    """The guest reaches its gateway by both protocols."""
    shown = network(vms.host, place(vms, name)["name"])
    for key in ("ipv4", "ipv6"):
        if shown[key]:
            vms.execute(name, "ping", "-c", "1", "-W", "5", shown[key].partition("/")[0])


def refusal(host: TestHost, name: str) -> str:
    refused = ctl(host, "start", name, check=False)
    assert not refused.ok
    return refused.stderr


@contextmanager
def without_network_service(host: TestHost) -> Iterator[None]:
    """It is not there in this block, and nothing brings it back."""
    host.run(["systemctl", "mask", "--runtime", "--now", *NETWORK_UNITS])
    try:
        yield
    finally:
        host.run(["systemctl", "unmask", "--runtime", *NETWORK_UNITS])
        host.run(["systemctl", "start", NETWORK_UNITS[0]])


def test_a_vm_is_on_its_network_from_its_first_moment_to_its_last(vms: Vms) -> None:
    with stuck_guests(vms.host):
        name = vms.define("netted", **ON_DEFAULT)
        vms.ctl("start", name)
        assert vms.state(name) == "Initializing"
        assert has_tap(vms, name)
        vms.ctl("kill", name)
        assert traces_in_network(vms, name) == []
    for end in ("stop", "kill", "crash"):
        vms.start(name)
        shown = place(vms, name)
        assert shown["ip"] in vms.execute(name, "ifconfig", "eth0")
        assert shown["mac"] in vms.execute(name, "cat", "/sys/class/net/eth0/address")
        reach_gateway(vms, name)
        assert has_tap(vms, name)
        if end == "crash":
            vms.host.run(["kill", "-SEGV", vms.unit(name, "MainPID")["MainPID"]])
            vms.wait(name, "Stopped")
        else:
            vms.ctl(end, name)
        assert traces_in_network(vms, name) == [], end
        assert (place(vms, name)["ip"], place(vms, name)["interface"]) == (shown["ip"], None)
    vms.start(name)
    tap = tap_of(vms, name)
    vms.remove(name)
    assert tap not in find_taps(vms.host)
    assert tap not in read_rules(vms.host)
