# SPDX-License-Identifier: Apache-2.0
"""VMs that are marked `autostart` are started once after the host has booted, by this daemon or the next."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from ipaddress import IPv4Interface
from typing import Any, cast

from hypemand.config.network import NetworkConfig
from hypemand.model.state import State
from tests.fakes.host import FakeHost, drive

OFFICE = NetworkConfig(
    "office", "br0", IPv4Interface("192.0.2.1/24"), None, nat=False, isolation=False, managed=False
)
SIZE = FakeHost.BOOTS
ALL = [f"vm{number:02}" for number in range(SIZE + 3)]
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
        # each has found out what it lacks
        queue = cast(Any, host.daemon.reloader)._autostarts._queue
        await host.until_true(lambda: all(turn.is_aside for turn in queue._turns))
        await bring_bridge(host)
        await host.start("runs")
        (host.config.vm_dir / "gone.yaml").unlink()
        host.write("no-more", network={"name": "office", "address": "192.0.2.7"})
        await begin_anew(host)
        assert left(host) == []
        assert host.vmms.runs == {"runs": 1}

    drive(scenario)


async def begin_all(host: FakeHost, **more: Mapping[str, object]) -> None:
    """The host has booted with more VMs than may boot at a time, none of which comes up by itself."""
    for name in ALL:
        host.guest(name).boots = False
        host.write(name, **{"autostart": True, "boot_timeout": "1h", **more.get(name, {})})
    await host.daemon.reloader.begin()
    await host.until_true(lambda: len(host.vmms.live) == SIZE)


def booting(host: FakeHost) -> list[str]:
    """Those whose VMMs run."""
    return sorted(host.vmms.live)


def test_so_many_boot_at_a_time_as_the_host_has_cpus_for() -> None:
    async def scenario(host: FakeHost) -> None:
        await begin_all(host)
        assert booting(host) == ALL[:SIZE]
        waits = f"Stopped: will start when fewer than {SIZE} VMs boot"
        assert {host.vm(name).view().status_text for name in ALL[SIZE:]} == {waits}
        # one that is Running, one that has failed, and one that was stopped: each lets another one start
        host.vmm(ALL[0]).come_up()
        await host.until_true(lambda: ALL[SIZE] in host.vmms.live)
        assert ALL[SIZE + 1] not in host.vmms.live
        host.vmm(ALL[1]).exit(3)
        await host.until_true(lambda: ALL[SIZE + 1] in host.vmms.live)
        await host.manager.stop_vm(ALL[2])
        await host.until_true(lambda: ALL[SIZE + 2] in host.vmms.live)
        assert "will start" not in host.vm(ALL[-1]).view().status_text
        await host.until_true(lambda: left(host) == [])

    drive(scenario)


def test_who_starts_a_vm_himself_waits_for_none_of_them() -> None:
    async def scenario(host: FakeHost) -> None:
        await begin_all(host)
        host.guest(ALL[-1]).boots = True
        await host.start(ALL[-1])
        await host.until(State.RUNNING, ALL[-1])
        assert "will start" not in host.vm(ALL[-1]).view().status_text
        await host.until_true(lambda: ALL[-1] not in left(host))
        assert host.vmms.runs[ALL[-1]] == 1
        assert ALL[-2] not in host.vmms.live

    drive(scenario)


def test_those_that_wait_when_the_daemon_ends_are_started_by_the_next() -> None:
    async def scenario(host: FakeHost) -> None:
        await begin_all(host)
        await host.until_true(lambda: left(host) == ALL[SIZE:])
        await begin_anew(host)
        await host.until_true(lambda: booting(host) == ALL)
        assert set(host.vmms.runs.values()) == {1}

    drive(scenario)


def test_one_that_is_ordered_after_another_waits_for_that_and_one_that_stands_still_holds_up_none() -> None:
    async def scenario(host: FakeHost) -> None:
        last = f"hypeman@{ALL[-1]}.service"
        await begin_all(host, **{ALL[0]: {"unit": {"After": [last]}}})
        assert booting(host) == ALL[1 : SIZE + 1]
        host.vmm(ALL[1]).fill_disk()
        await host.until_true(lambda: ALL[SIZE + 1] in host.vmms.live)
        host.vmm(ALL[2]).come_up()
        await host.until_true(lambda: ALL[-1] in host.vmms.live)
        assert ALL[0] not in host.vmms.live
        host.vmm(ALL[3]).come_up()
        await host.until_true(lambda: "waiting for" in host.vm(ALL[0]).view().status_text)
        host.vmm(ALL[-1]).come_up()
        await host.until_true(lambda: ALL[0] in host.vmms.live)

    drive(scenario)


def test_those_that_are_ordered_in_a_circle_start() -> None:
    async def scenario(host: FakeHost) -> None:
        for name, other in (("a", "b"), ("b", "a")):
            host.write(name, autostart=True, unit={"After": [f"hypeman-vm-{other}.service"]})
        await host.daemon.reloader.begin()
        await host.until_true(lambda: host.vmms.runs == {"a": 1, "b": 1})

    drive(scenario)
