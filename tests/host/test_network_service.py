# SPDX-License-Identifier: Apache-2.0
"""The network service as a unit: sandboxed, started by its socket, alone with its rights."""

import json
import time
from collections.abc import Callable, Iterator

import pytest

from tests.host.machine import TestHost

UNIT = "hypemand-network.service"
SOCKET = "/run/hypemand/network.sock"
TAP_SOCKET = "/run/hypemand/tap/tap.sock"
# the wish of a daemon, told by the client that the daemon has
ASK = """
import asyncio, json, sys
from ipaddress import IPv4Interface, IPv6Interface
from hypemand.config.network import Bandwidth, Publish
from hypemand.errors import HypemandError
from hypemand.network.client import NetworkClient
from hypemand.network.port import BridgePlan, PortPlan

plan = BridgePlan("probe", "probe0", IPv4Interface("10.78.0.1/24"), IPv6Interface("fd78::1/64"), 1500, True,
                  frozenset())
port = PortPlan("probe", 64000, plan, "52:54:00:00:78:01", plan.ipv4.ip + 1, plan.ipv6.ip + 1, None,
                (Publish(None, int(sys.argv[2]), 80),), Bandwidth(1_000_000, 1_000_000))

async def main():
    client = NetworkClient()
    try:
        match sys.argv[1]:
            case "attach":
                print(await client.apply((plan,), (), prune=False))
                print(await client.attach(port))
            case "detach":
                await client.apply((plan,), (port,), prune=False)
                await client.detach(port)
            case "clean":
                await client.apply((), (), prune=True)
    except HypemandError as error:
        print(f"{type(error).__name__}: {error}")
    finally:
        await client.close()

asyncio.run(main())
"""


@pytest.fixture
def probe(host: TestHost) -> Iterator[TestHost]:
    """A host without the daemon: that tells the service its own wish whenever the service is there anew."""
    daemon = ["hypemand.socket", "hypemand.service"]
    host.push("/root/ask.py", ASK)
    host.run(["systemctl", "stop", *daemon, UNIT])
    # each test starts it some times, and systemd counts them together
    host.run(["systemctl", "reset-failed", UNIT, "hypemand-network.socket"])
    try:
        yield host
    finally:
        ask(host, "clean")
        host.run(["rm", "/root/ask.py"])
        host.run(["systemctl", "start", *daemon])


def ask(host: TestHost, what: str, port: int = 80) -> str:
    return host.run(["python3", "/root/ask.py", what, str(port)]).stdout


def list_links(host: TestHost) -> set[str]:
    return {link["ifname"] for link in json.loads(host.run(["ip", "-json", "link"]).stdout)}


def show(host: TestHost, name: str) -> str:
    return host.run(["systemctl", "show", "--value", "--property", name, UNIT]).stdout.strip()


def test_it_starts_when_it_is_asked_and_does_everything_in_its_sandbox(probe: TestHost) -> None:
    begun = time.time()
    told = ask(probe, "attach")
    assert told.splitlines()[1].isdigit(), told
    assert show(probe, "ActiveState") == "active"
    assert "VMs: 1" in show(probe, "StatusText")
    assert {"probe0", "hv64000", "hi64000"} <= list_links(probe)
    assert "10.78.0.2 . 80" in probe.run(["nft", "list", "map", "inet", "hypemand", "any4"]).stdout
    assert probe.run(["sysctl", "-n", "net.ipv4.ip_forward"]).stdout == "1\n"
    # the port is held, even one below 1024
    taken = probe.run(["socat", "tcp-listen:80,reuseaddr", "stdout"], check=False)
    assert "Address already in use" in taken.stderr
    errors = [entry["MESSAGE"] for entry in probe.journal("-u", UNIT, "-p", "warning", since=begun)]
    assert [message for message in errors if "was not there" not in message] == []
    assert ask(probe, "detach") == ""
    assert not {"hv64000", "hi64000"} & list_links(probe)


def test_what_it_made_outlives_it(probe: TestHost) -> None:
    ask(probe, "attach")
    rules = probe.run(["nft", "list", "ruleset"]).stdout
    for verb in ("restart", "stop"):
        probe.run(["systemctl", verb, UNIT])
        assert {"probe0", "hv64000"} <= list_links(probe)
        assert probe.run(["nft", "list", "ruleset"]).stdout == rules


def test_a_unit_that_has_the_port_is_named(probe: TestHost) -> None:
    listener = ["systemd-run", "--unit=has-the-port", "socat", "tcp-listen:8088,fork", "exec:/bin/true"]
    probe.run(listener)
    probe.wait_until_succeeds(["sh", "-c", "ss -Hltn sport = 8088 | grep -q ."])
    told = ask(probe, "attach", 8088)
    probe.run(["systemctl", "stop", "has-the-port.service"])
    assert "InUse: port 8088/tcp of the host is in use by has-the-port.service" in told
    assert "hv64000" not in list_links(probe)


def test_its_rights_are_few(host: TestHost) -> None:
    analysis = host.run(["systemd-analyze", "security", "--no-pager", UNIT]).stdout
    (verdict,) = (line for line in analysis.splitlines() if "Overall exposure level" in line)
    assert float(verdict.split(":")[1].split()[0]) <= 3.0, analysis
    assert host.run(["stat", "-c", "%a %U", SOCKET]).stdout == "600 root\n"
    # launchers of any uid may come, and only where systemd binds it
    assert host.run(["stat", "-c", "%a %U", TAP_SOCKET, "/run/hypemand/tap"]).stdout == "666 root\n700 root\n"


def test_it_is_restarted_when_it_dies(probe: TestHost) -> None:
    ask(probe, "attach")
    died = int(show(probe, "NRestarts")) + 1
    probe.run(["systemctl", "kill", "--signal=KILL", UNIT])
    probe.wait_until(lambda: show(probe, "ActiveState") == "active" and int(show(probe, "NRestarts")) == died)
    assert {"probe0", "hv64000"} <= list_links(probe)
    probe.run(["systemctl", "reset-failed", UNIT], check=False)


def test_nothing_of_it_stays_when_the_package_is_removed(fresh_host: Callable[..., TestHost]) -> None:
    host = fresh_host()
    host.push("/root/ask.py", ASK)
    before = list_links(host)
    assert ask(host, "attach").splitlines()[1].isdigit()
    host.run(["dpkg", "--remove", "hypemand"], timeout=120)
    assert list_links(host) <= before
    assert "hypemand" not in host.run(["nft", "list", "ruleset"]).stdout
