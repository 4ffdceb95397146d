# SPDX-License-Identifier: Apache-2.0
"""VMs on networks of a real host: there with the VM and gone after it, whatever fails in between."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.host.apiget import api_text
from tests.host.faults import DROPIN, ctl, host_config
from tests.host.machine import TestHost
from tests.host.vms import NEEDS_RESTART, Vms, stuck_guests, vms_of

HostFactory = Callable[..., TestHost]

NETWORK_UNITS = ("hypemand-network.socket", "hypemand-network.service", "hypemand-tap.socket")
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


CALM = "calm"


@pytest.fixture(scope="module")
def calm_vms(host: TestHost) -> Iterator[Vms]:
    """A VM on the default network that tests share; how they leave it is how the next one finds it."""
    with vms_of(host) as vms:
        vms.define(CALM, **ON_DEFAULT)
        yield vms


@pytest.fixture
def calm(calm_vms: Vms) -> Vms:
    """That VM, Running."""
    if calm_vms.state(CALM) != "Running":
        calm_vms.start(CALM)
    return calm_vms


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
            vms.execute(name, "ping", "-c", "1", "-W", "60", shown[key].partition("/")[0])


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
        host.run(["systemctl", "start", NETWORK_UNITS[0], NETWORK_UNITS[2]])


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


@pytest.mark.one_release
def test_addresses_last_over_stops_and_daemons(vms: Vms) -> None:
    names = [vms.define(f"keeps-{letter}", **ON_DEFAULT) for letter in "ab"]
    vms.start(*names)
    before = {name: place(vms, name) for name in names}
    assert len({shown["ip"] for shown in before.values()}) == 2
    vms.ctl("stop", *names)
    vms.restart_daemon()
    vms.start(*reversed(names))
    for name in names:
        now = place(vms, name)
        for key in ("name", "ip", "ip6", "mac"):
            assert now[key] == before[name][key], key


@pytest.mark.one_release
def test_addresses_last_over_a_reboot_of_the_host(fresh_host: HostFactory) -> None:
    host = fresh_host()
    with vms_of(host) as vms:
        vms.define("first", **ON_DEFAULT)
        vms.define("second", autostart=True, **ON_DEFAULT)
        vms.start("second")
        before = place(vms, "second")
        host.reboot()
        vms.start("first")
        vms.wait("second", "Running")
        now = place(vms, "second")
        assert [now[key] for key in ("ip", "ip6", "mac")] == [before[key] for key in ("ip", "ip6", "mac")]
        assert place(vms, "first")["ip"] != now["ip"]
        reach_gateway(vms, "second")


def test_systemd_alone_restarts_a_vm_on_its_network(vms: Vms) -> None:
    name = vms.run("restarts", restart="always", unit={"RestartSec": "100ms"}, **ON_DEFAULT)
    tap, shown = tap_of(vms, name), place(vms, name)
    index = find_taps(vms.host)[tap]["ifindex"]
    with vms.without_daemon():
        # what gives the VMM its device is started for that
        vms.host.run(["systemctl", "stop", NETWORK_UNITS[1]])
        old = vms.unit(name, "MainPID")["MainPID"]
        vms.host.run(["kill", "-KILL", old])
        vms.wait_console(name, "up", 2)
        assert find_taps(vms.host)[tap]["ifindex"] == index
    vms.wait(name, "Running")
    reach_gateway(vms, name)
    assert find_taps(vms.host)[tap]["ifindex"] == index
    vms.host.run(["systemctl", "restart", f"hypeman-vm-{name}.service"])
    vms.wait(name, "Running")
    reach_gateway(vms, name)
    assert place(vms, name)["ip"] == shown["ip"]


def test_a_restart_of_daemon_or_network_service_disturbs_no_vm(calm: Vms, vms: Vms) -> None:
    tap = tap_of(calm, CALM)
    index, rules = find_taps(vms.host)[tap]["ifindex"], read_rules(vms.host).count(tap)
    for unit in ("hypemand.service", "hypemand-network.service"):
        for way in (["systemctl", "restart", unit], ["systemctl", "kill", "--signal=KILL", unit]):
            vms.host.run(way)
            vms.host.wait_until(lambda: ctl(vms.host, "network", "list", check=False).ok)
            reach_gateway(calm, CALM)
            assert find_taps(vms.host)[tap]["ifindex"] == index, way
            assert read_rules(vms.host).count(tap) == rules, way
    assert calm.state(CALM) == "Running"
    other = vms.run("after", **ON_DEFAULT)
    reach_gateway(vms, other)


@pytest.mark.one_release
def test_what_a_killed_daemon_was_about_to_start_is_cleared(calm: Vms, vms: Vms) -> None:
    host = vms.host
    index = find_taps(host)[tap_of(calm, CALM)]["ifindex"]
    vms.define("cut-off", disk="72M", **ON_DEFAULT)
    # the disk takes for ever, its first template has to be made; the TAP device is there long before
    host.shell(
        "mv /usr/sbin/mke2fs /usr/sbin/mke2fs.whole; printf '#!/bin/sh\nsleep 600\n' >/usr/sbin/mke2fs"
    )
    host.shell("chmod +x /usr/sbin/mke2fs; rm -rf /var/lib/hypemand/templates/*")
    try:
        host.run(["systemd-run", "--unit=starting", "--collect", "hypemanctl", "start", "cut-off"])
        host.wait_until(lambda: has_tap(vms, "cut-off"), "its TAP device is there")
        assert vms.state("cut-off") == "Stopped"
        host.run(["systemctl", "kill", "--signal=KILL", "--kill-whom=main", "hypemand.service"])
    finally:
        host.shell("mv /usr/sbin/mke2fs.whole /usr/sbin/mke2fs; pkill -f 'sleep 60[0]' || true")
    host.wait_until(lambda: traces_in_network(vms, "cut-off") == [], "nothing is left")
    assert find_taps(host)[tap_of(calm, CALM)]["ifindex"] == index
    reach_gateway(calm, CALM)
    vms.start("cut-off")
    reach_gateway(vms, "cut-off")


@pytest.mark.one_release
def test_a_daemon_that_is_killed_at_any_time_leaves_no_device_without_a_vm(vms: Vms) -> None:
    host = vms.host
    names = [vms.define(f"random-{number}", **ON_DEFAULT) for number in range(3)]
    for moment in (0.0, 0.01, 0.02, 0.03, 0.05, 0.08):
        script = f"hypemanctl start {' '.join(names)} >/dev/null 2>&1 & sleep {moment}"
        host.shell(f"{script}; systemctl kill --signal=KILL --kill-whom=main hypemand.service; wait")
        host.wait_until(lambda: ctl(host, "list", check=False).ok, "the daemon is back")
        for name in names:
            is_there = vms.state(name) != "Stopped"
            host.wait_until(
                lambda name=name, is_there=is_there: has_tap(vms, name) is is_there,  # type: ignore[misc]
                f"{name} has a device if it runs ({is_there}), killed after {moment} s",
            )
        ctl(host, "kill", *names, check=False)
        for name in names:
            vms.wait(name, "Stopped")
            assert traces_in_network(vms, name) == []


@pytest.mark.one_release
def test_nothing_is_removed_while_systemd_cannot_be_asked(calm: Vms) -> None:
    """The network service has just started, and the daemon cannot know which VMs run. What nobody needs, like
    the device of a VM that is not there, stays for now, too."""
    host = calm.host
    tap, orphan = tap_of(calm, CALM), "hv60999"
    index = find_taps(host)[tap]["ifindex"]
    host.run(["ip", "tuntap", "add", "mode", "tap", orphan])
    host.run(["ip", "link", "set", orphan, "alias", "hypemand VM that-is-gone"])
    since = time.time()
    bus = ["dbus.socket", "dbus.service"]
    host.run(["systemctl", "mask", "--runtime", "--now", *bus])
    try:
        host.run(["systemctl", "restart", "hypemand-network.service"])
        host.wait_until(
            lambda: any(
                "nothing is removed from networks now" in entry["MESSAGE"]
                for entry in host.journal("_SYSTEMD_UNIT=hypemand.service", since=since)
            ),
            what="the daemon has told the service what there is",
        )
        taps = find_taps(host)
        assert taps[tap]["ifindex"] == index
        assert orphan in taps
    finally:
        host.run(["systemctl", "unmask", "--runtime", *bus])
        host.run(["systemctl", "start", *bus])
    host.wait_until(lambda: orphan not in find_taps(host), "what nobody needs is removed")
    calm.wait(CALM, "Running")
    assert find_taps(host)[tap]["ifindex"] == index
    reach_gateway(calm, CALM)


@pytest.mark.one_release
def test_a_pool_that_is_used_up_refuses_with_figures(vms: Vms) -> None:
    with host_config(vms.host, networks={"tiny": TINY}):
        vms.run("has-it", network="tiny")
        assert place(vms, "has-it")["ip"] == "10.99.7.2"
        vms.define("too-many", network="tiny")
        said = refusal(vms.host, "too-many")
        assert "network tiny has no free address for VM too-many" in said
        assert "10.99.7.0/30 has 1 for VMs, and 1 are used by other VMs" in said
        assert traces_in_network(vms, "too-many") == []
        vms.ctl("stop", "has-it")
        assert "no free address" in refusal(vms.host, "too-many"), "a VM that is stopped keeps its address"
        vms.remove("has-it")
        vms.start("too-many")
        assert place(vms, "too-many")["ip"] == "10.99.7.2"
        vms.remove("too-many")


@pytest.mark.one_release
def test_an_address_that_cannot_be_had_is_refused_and_nothing_stays(vms: Vms) -> None:
    host = vms.host
    shown = network(host)
    gateway = shown["ipv4"].partition("/")[0]
    vms.run("holder", network={"address": f"{gateway.rpartition('.')[0]}.77"})
    taken = place(vms, "holder")
    assert taken["ip"].endswith(".77")
    for wish, words in (
        (
            {"address": taken["ip"]},
            f"cannot have the address {taken['ip']} of network default, which is used by VM holder",
        ),
        ({"address6": taken["ip6"]}, f"the address {taken['ip6']}"),
        ({"mac": taken["mac"]}, f"cannot have the MAC address {taken['mac']}"),
    ):
        vms.define("wishes", network=wish)
        said = refusal(host, "wishes")
        assert words in said
        assert "which is used by VM holder" in said
        assert traces_in_network(vms, "wishes") == []
        assert not host.run(["test", "-e", "/var/lib/hypemand/vms/wishes/disk.ext4"], check=False).ok
    for address in (gateway, "192.0.2.7"):
        vms.write("wishes", network={"address": address})
        checked = ctl(host, "check", "/etc/hypemand/vms.d/wishes.yaml", check=False)
        assert address in checked.stderr
    vms.define("wishes", **ON_DEFAULT)
    vms.start("wishes")


@pytest.mark.one_release
def test_a_published_port_has_one_owner(vms: Vms) -> None:
    host = vms.host
    server = ["/usr/bin/python3", "-m", "http.server", "--bind", "127.0.0.1", "8931"]
    serves = "echo served >/tmp/index; while :; do nc -l -p 80 </tmp/index; done"
    vms.define("shop", serves, network={"publish": ["8931:80"]})
    vms.define("rival", network={"publish": ["127.0.0.1:8931:80"]})
    host.run(["systemd-run", "--unit=hosts-own", "--collect", *server])
    try:
        host.wait_until(lambda: ":8931" in host.run(["ss", "-Hltn"]).stdout, "the host serves")
        assert "8931" in refusal(host, "shop")
        assert traces_in_network(vms, "shop") == []
        assert place(vms, "shop")["ip"] is None, "nor has it an address of it"
    finally:
        host.run(["systemctl", "stop", "hosts-own.service"])
    vms.start("shop")
    said = refusal(host, "rival")
    assert "VM rival publishes port 8931/tcp of this host, which is published by VM shop" in said
    assert traces_in_network(vms, "rival") == []
    fetch = "import socket; s = socket.create_connection(('127.0.0.1', 8931), 60); print(s.recv(99).decode())"
    # once it listens
    assert "served" in host.wait_until_succeeds(["/usr/bin/python3", "-c", fetch]).stdout
    assert not host.run(server, check=False).ok, "no program of the host gets the port"
    vms.ctl("stop", "shop")
    vms.start("rival")


@pytest.mark.one_release
def test_a_bridge_that_is_not_ours_is_left_alone_and_the_others_work(vms: Vms) -> None:
    host = vms.host
    host.shell("ip link add foreign0 type bridge; ip address add 10.66.0.1/24 dev foreign0")
    try:
        before = host.run(["ip", "-json", "-details", "link", "show", "foreign0"]).stdout
        with host_config(host, networks={"bad": {"bridge": "foreign0", "ipv4": "10.67.0.1/24"}}):
            vms.define("unlucky", network="bad")
            vms.define("lucky", **ON_DEFAULT)
            said = refusal(host, "unlucky")
            assert "network bad is not available" in said
            assert "foreign0" in said
            assert traces_in_network(vms, "unlucky") == []
            assert "foreign0" in network(host, "bad")["problem"]
            listed = ctl(host, "network", "list").stdout
            assert any(line.split()[:2] == ["bad", "problem"] for line in listed.splitlines())
            checked = ctl(host, "check", check=False)
            assert "network bad" in checked.stdout
            vms.start("lucky")
            reach_gateway(vms, "lucky")
            assert host.run(["ip", "-json", "-details", "link", "show", "foreign0"]).stdout == before
            host.run(["ip", "link", "del", "foreign0"])
            vms.start("unlucky")
            reach_gateway(vms, "unlucky")
            vms.remove("unlucky")
    finally:
        host.run(["ip", "link", "del", "foreign0"], check=False)
    assert not host.run(["ip", "link", "show", "foreign0"], check=False).ok, (
        "our bridge goes with its network"
    )


@pytest.mark.one_release
@pytest.mark.parametrize("harm", ["link del {}", "addr del {}", "link set {} down"])
def test_a_network_that_somebody_takes_away_is_there_again(calm: Vms, harm: str) -> None:
    host = calm.host
    shown = network(host)
    begun = time.time()
    what = f"{shown['ipv4']} dev {shown['bridge']}" if "addr" in harm else shown["bridge"]
    host.run(["ip", *harm.format(what).split()])

    def told() -> list[str]:
        return [e["MESSAGE"] for e in host.journal("-u", NETWORK_UNITS[1], "-p", "warning", since=begun)]

    host.wait_until(lambda: bool(told()), "it is noticed")
    assert told() == ["network default was removed by another program; restored"]
    reach_gateway(calm, CALM)
    assert network(host)["problem"] is None


@pytest.mark.one_release
def test_a_network_that_cannot_be_there_again_has_a_problem(vms: Vms) -> None:
    host = vms.host
    swap = (
        "systemctl kill -s STOP {0}; ip link del {1}; ip link add {1} type bridge; systemctl kill -s CONT {0}"
    )
    with host_config(host, networks={"swapped": {"bridge": "swap0", "ipv4": "10.99.4.1/24", "ipv6": "none"}}):
        vms.reload()
        host.wait_until(lambda: network(host, "swapped")["problem"] is None, "it is there")
        try:
            host.run(["sh", "-c", swap.format(NETWORK_UNITS[1], "swap0")])
            host.wait_until(
                lambda: (
                    "swap0 exists and does not belong to hypemand"
                    in (network(host, "swapped")["problem"] or "")
                ),
                "the state says so",
            )
        finally:
            host.run(["ip", "link", "del", "swap0"])


def test_without_the_network_service_vms_without_a_network_start(calm: Vms, vms: Vms) -> None:
    host = vms.host
    vms.define("wired", **ON_DEFAULT)
    vms.define("plain")
    with without_network_service(host):
        vms.restart_daemon()
        vms.start("plain")
        said = refusal(host, "wired")
        assert "network service" in said
        assert vms.state("wired") == "Stopped"
        assert traces_in_network(vms, "wired") == []
        reach_gateway(calm, CALM)
        refused = ctl(host, "restart", CALM, check=False)
        assert "network service" in refused.stderr
        assert calm.state(CALM) == "Running", "what could not be started again is not stopped"
        calm.ctl("stop", CALM)
        assert calm.state(CALM) == "Stopped"
    host.wait_until(lambda: traces_in_network(calm, CALM) == [], "what was left goes when it is back")
    vms.start("wired")
    calm.start(CALM)


@pytest.mark.one_release
def test_a_network_service_that_hangs_holds_up_no_end(calm: Vms, vms: Vms) -> None:
    host = vms.host
    vms.define("plain")
    pid = vms.properties(NETWORK_UNITS[1], "MainPID")["MainPID"]
    host.run(["kill", "-STOP", pid])
    try:
        begun = time.monotonic()
        calm.ctl("stop", CALM)
        vms.start("plain")
        assert time.monotonic() - begun < 20, "the service's watchdog takes longer than that"
        assert calm.state(CALM) == "Stopped"
    finally:
        host.run(["kill", "-CONT", pid], check=False)
    host.wait_until(lambda: traces_in_network(calm, CALM) == [], "its device goes when it can")
    calm.start(CALM)
    reach_gateway(calm, CALM)


@pytest.mark.parametrize("fault", ["absent", "refused"])
def test_without_rules_no_vm_is_on_a_network(vms: Vms, fault: str) -> None:
    host = vms.host
    vms.define("unruled", **ON_DEFAULT)
    rules = "/usr/lib/python3/dist-packages/hypemand/network/rules.py"
    path = "/usr/lib/python3/dist-packages/nftables" if fault == "absent" else rules
    host.run(["cp", "-a", path, f"{path}.whole"])
    try:
        if fault == "absent":
            host.run(["rm", "-rf", path])
        else:
            host.run(["sed", "-i", "s/policy drop/policy nonsense/; s/policy accept/policy nonsense/", path])
        host.run(["systemctl", "restart", "hypemand-network.service"])
        said = refusal(host, "unruled")
        assert "network default is not available" in said
        assert not has_tap(vms, "unruled")
        assert network(host)["problem"]
    finally:
        host.run(["rm", "-rf", path])
        host.run(["mv", f"{path}.whole", path])
        host.run(["systemctl", "restart", "hypemand-network.service"])
    assert traces_in_network(vms, "unruled") == []
    vms.start("unruled")
    reach_gateway(vms, "unruled")


@pytest.mark.one_release
def test_a_network_changes_when_its_last_vm_has_gone(vms: Vms) -> None:
    host = vms.host
    old = {"bridge": "moves0", "ipv4": "10.99.8.1/24", "ipv6": "none"}
    with host_config(host, networks={"moves": old}):
        vms.run("stays-on", network="moves")
        vms.define("comes-late", network="moves")
        shown = place(vms, "stays-on")
        host.push(DROPIN, json.dumps({"networks": {"moves": old | {"ipv4": "10.99.9.1/24"}}}))
        vms.reload()
        assert network(host, "moves")["pending"]
        assert vms.show("stays-on")["needs_restart"]
        told = [entry["MESSAGE"] for entry in host.journal(f"MESSAGE_ID={NEEDS_RESTART}")]
        assert any("network moves" in message for message in told)
        reach_gateway(vms, "stays-on")
        vms.restart_daemon()
        host.wait_until(lambda: network(host, "moves")["pending"], "known to the next daemon")
        assert network(host, "moves")["ipv4"] == "10.99.8.1/24"
        vms.start("comes-late")
        assert place(vms, "comes-late")["ip"].startswith("10.99.8.")
        vms.ctl("stop", "comes-late")
        assert place(vms, "comes-late")["ip"].startswith("10.99.8."), "the network has it still"
        assert place(vms, "stays-on")["ip"] == shown["ip"]
        vms.ctl("restart", "--wait", "stays-on")
        assert place(vms, "stays-on")["ip"] == "10.99.9.2"
        assert place(vms, "comes-late")["ip"] is None
        assert not vms.show("stays-on")["needs_restart"]
        assert not network(host, "moves")["pending"]
        reach_gateway(vms, "stays-on")
        for name in ("stays-on", "comes-late"):
            vms.remove(name)
    assert not host.run(["ip", "link", "show", "moves0"], check=False).ok


def test_a_vmm_with_a_network_is_still_shut_in(calm: Vms) -> None:
    unit = f"hypeman-vm-{CALM}.service"
    (line,) = (
        line
        for line in calm.host.run(["systemd-analyze", "security", "--no-pager", unit]).stdout.splitlines()
        if "Overall exposure level" in line
    )
    exposure = float(line.split(":")[1].split()[0])
    assert exposure <= 1.0, line
    assert calm.unit(CALM, "RestrictAddressFamilies", "PrivateNetwork") == {
        "RestrictAddressFamilies": "AF_UNIX",
        "PrivateNetwork": "yes",
    }
    assert "tun" not in calm.unit(CALM, "DeviceAllow")["DeviceAllow"]
    assert f"Iface: {tap_of(calm, CALM)}" in calm.host.run(["machinectl", "status", CALM]).stdout


@pytest.mark.one_release
def test_what_goes_over_the_wire_is_counted_and_shown(vms: Vms) -> None:
    name = vms.run("counted", **ON_DEFAULT)
    before = place(vms, name)["counters"]
    gateway = network(vms.host)["ipv4"].partition("/")[0]
    vms.execute(name, "ping", "-c", "5", "-s", "1000", gateway)
    now = place(vms, name)["counters"]
    for way in ("sent", "received"):
        assert now[f"{way}_packets"] - before[f"{way}_packets"] >= 5
        assert now[f"{way}_bytes"] - before[f"{way}_bytes"] >= 5000
    (member,) = (m for m in network(vms.host)["members"] if m["instance_name"] == name)
    shown = place(vms, name)
    # a flow of the guest's ping, and one connection to the guest, which nothing there takes
    connect = f"import socket; socket.socket().connect_ex(({shown['ip']!r}, 9))"
    vms.host.run(["/usr/bin/python3", "-c", connect])
    metrics = api_text(vms.host, "/metrics")
    for way in ("outgoing", "incoming"):
        assert f'hypemand_vm_network_connections_total{{direction="{way}",vm="{name}"}} 1.0\n' in metrics
    assert (member["ip"], member["attached"]) == (shown["ip"], True)
    assert shown["ip"] in vms.ctl("list").stdout
    assert f"Network: default, {shown['ip']} {shown['ip6']}" in vms.ctl("status", name).stdout


@pytest.mark.one_release
def test_a_vm_with_every_volume_that_it_may_have_has_a_network_too(vms: Vms) -> None:
    volumes = [f"v{number:02}" for number in range(16)]
    for volume in volumes:
        ctl(vms.host, "volume", "create", "--size=16M", volume)
    mounts = [{"volume": volume, "mount_path": f"/srv/{volume}"} for volume in volumes]
    try:
        name = vms.run("laden", volumes=mounts, kernel_headers=True, **ON_DEFAULT)
        reach_gateway(vms, name)
        vms.remove(name)
    finally:
        vms.remove_all()
        ctl(vms.host, "volume", "rm", *volumes)
