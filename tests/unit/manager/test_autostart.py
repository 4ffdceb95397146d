# SPDX-License-Identifier: Apache-2.0
"""VMs that are marked `autostart` are started once after the host has booted, by this daemon or the next."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Interface

from hypemand.config.network import NetworkConfig
from hypemand.model.state import State
from tests.fakes.host import FakeHost, drive

OFFICE = NetworkConfig(
    "office", "br0", IPv4Interface("192.0.2.1/24"), None, nat=False, isolation=False, managed=False
)
LATE = {"autostart": True, "network": {"name": "office", "address": "192.0.2.7"}}


def take_bridge(host: FakeHost) -> None:
    """The host has just booted, and what makes its bridge is not done."""
    host.networks["office"] = OFFICE
    host.network.problems["office"] = "the bridge br0 does not exist"
    host.is_online.clear()


async def bring_bridge(host: FakeHost) -> None:
    """Now it is there."""
    host.network.problems.clear()
    await host.parts.networks.sync()


async def begin_anew(host: FakeHost) -> None:
    """Another daemon starts, as `hypemand.daemon` does."""
    await host.restart_daemon()
    await host.daemon.reloader.begin()


def left(host: FakeHost) -> list[str]:
    """What is on record as not started yet."""
    return (host.config.runtime_dir / "autostarted").read_text().split()


def test_all_are_started_after_the_boot_and_none_by_a_daemon_that_is_restarted() -> None:
    async def scenario(host: FakeHost) -> None:
        host.write("web", autostart=True)
        host.write("db")
        await host.daemon.reloader.begin()
        await host.until(State.RUNNING)
        await host.until_true(lambda: left(host) == [])
        await host.stop_for_good()
        await begin_anew(host)
        host.write("new", autostart=True)
        await host.reload()
        await host.until(State.RUNNING, "new")
        assert {name: host.vm(name).state for name in ("web", "db")} == {
            "web": State.STOPPED,
            "db": State.STOPPED,
        }
        # as a boot leaves it
        (host.config.runtime_dir / "autostarted").unlink()
        await begin_anew(host)
        await host.until(State.RUNNING)
        assert host.vmms.runs == {"web": 2, "new": 1}

    drive(scenario)


def test_one_that_waits_for_the_hosts_network_is_started_by_the_next_daemon_when_that_is_up() -> None:
    async def scenario(host: FakeHost) -> None:
        take_bridge(host)
        host.write("web", **LATE)
        host.write("db", autostart=True)
        await host.daemon.reloader.begin()
        await host.until(State.RUNNING, "db")
        await host.until_true(lambda: left(host) == ["web"])
        await host.stop_for_good("db")
        await begin_anew(host)
        assert left(host) == ["web"]
        assert host.vm().state is State.STOPPED, "the network is not up yet"
        await bring_bridge(host)
        host.is_online.set()
        await host.until(State.RUNNING)
        await host.until_true(lambda: left(host) == [])
        assert host.vmms.runs == {"web": 1, "db": 1}

    drive(scenario)


def test_one_whose_start_a_daemon_has_not_made_before_its_end_is_started_by_the_next() -> None:
    async def scenario(host: FakeHost) -> None:
        host.network.gate = asyncio.Event()
        host.write("web", autostart=True, network="default")
        await host.daemon.reloader.begin()
        await host.network.made.wait()
        await host.daemon.reloader.close(0.01)
        assert host.traces() == []
        host.network.gate = None
        await begin_anew(host)
        await host.until(State.RUNNING)
        assert host.vmms.runs == {"web": 1}

    drive(scenario)


def test_what_has_become_of_it_meanwhile_is_respected() -> None:
    async def scenario(host: FakeHost) -> None:
        take_bridge(host)
        for name in ("gone", "no-more", "runs"):
            host.write(name, **{**LATE, "network": {"name": "office", "address": f"192.0.2.{len(name)}"}})
        await host.daemon.reloader.begin()
        await host.until_true(lambda: left(host) == ["gone", "no-more", "runs"])
        await bring_bridge(host)
        await host.start("runs")
        (host.config.vm_dir / "gone.yaml").unlink()
        host.write("no-more", network={"name": "office", "address": "192.0.2.7"})
        await begin_anew(host)
        assert left(host) == []
        assert host.vmms.runs == {"runs": 1}

    drive(scenario)
