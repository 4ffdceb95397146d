# SPDX-License-Identifier: Apache-2.0
"""Metrics of a host whose VMs start, run and end: read as Prometheus reads them."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from hypemand.errors import HostNotReady, HypemandError, InsufficientResources
from hypemand.manager.metrics.drops import DroppedLines
from hypemand.manager.metrics.metrics import Metrics, _read_usage
from hypemand.model.metrics import ApiCounts
from hypemand.model.state import State
from hypemand.storage.images import Image
from hypemand.systemd.usage import DiskUsage, UnitUsage, read_usage
from hypemand.turns import make_durations
from tests.fakes.host import DEADLINE, FakeHost, drive
from tests.unit.manager.test_restarts import SOON, crash

# Debian 12 has no types of it
parse_metrics: Callable[[str], Iterable[Any]] = text_string_to_metric_families


def watch(host: FakeHost) -> Metrics:
    """The metrics of its daemon, from now on."""
    return Metrics(host.parts, ApiCounts(), make_durations())


async def scrape(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Each sample by its name and the values of its labels in the order of their names."""
    text = (await metrics.render()).decode()
    families = parse_metrics(text)
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_vms_are_counted_by_state_and_their_starts_by_kind() -> None:
    async def scenario(host: FakeHost) -> None:
        metrics = watch(host)
        await host.create("idle")
        await host.run("web", memory="128M", vcpus=2)
        host.write("auto", autostart=True)
        await host.reload()
        await host.until(State.RUNNING, "auto")
        await host.manager.restart_vm("web")
        await host.until(State.RUNNING)
        found = await scrape(metrics)
        states = {key[1]: found[key] for key in found if key[0] == "hypemand_vms"}
        assert states == {state.value: 0.0 for state in State} | {"Running": 2.0, "Stopped": 1.0}
        starts = {key[1]: found[key] for key in found if key[0] == "hypemand_vm_starts_total"}
        assert {kind: number for kind, number in starts.items() if number} == {
            "request": 1.0,
            "autostart": 1.0,
            "restart": 1.0,
        }
        for kind in ("request", "autostart", "restart"):
            for name in ("initializing", "ready"):
                assert found[f"hypemand_vm_{name}_seconds_count", kind] == 1.0
                assert 0 < found[f"hypemand_vm_{name}_seconds_sum", kind] < DEADLINE
                assert found[f"hypemand_vm_{name}_seconds_bucket", kind, "+Inf"] == 1.0
        assert found["hypemand_vm_exits_total", "requested"] == 1.0
        assert found["hypemand_vm_guest_memory_bytes", "web"] == 128 * 2**20
        assert found["hypemand_vm_vcpus", "web"] == 2.0
        assert found["hypemand_memory_committed_bytes",] == (128 + 96) * 2**20
        assert ("hypemand_vm_vcpus", "idle") not in found
        assert found["hypemand_filesystem_free_bytes", str(host.config.state_dir)] > 0
        assert found["hypemand_images",] == 2.0
        await metrics.close()

    drive(scenario)


def test_restarts_by_systemd_and_other_requests_of_systemd_are_kinds_of_their_own() -> None:
    async def scenario(host: FakeHost) -> None:
        metrics = watch(host)
        await host.run(restart="on-failure", unit=SOON)
        host.vmm().exit(3)
        await crash(host, 2)
        await host.order("RestartUnit", host.vm().unit)
        await crash(host, 3)
        found = await scrape(metrics)
        starts = {key[1]: found[key] for key in found if key[0] == "hypemand_vm_starts_total" and found[key]}
        assert starts == {"request": 1.0, "restarted": 1.0, "systemd": 1.0}
        assert found["hypemand_vm_restarts_total", "web"] == 1.0
        assert found["hypemand_vm_exits_total", "failure"] == 1.0
        assert found["hypemand_vm_initializing_seconds_count", "restarted"] == 1.0
        # it was Running: nothing has failed to start
        failures = [found[key] for key in found if key[0] == "hypemand_vm_start_failures_total"]
        assert sum(failures) == 0.0
        await host.manager.stop_vm("web")
        await host.manager.delete_vm("web")
        assert ("hypemand_vm_restarts_total", "web") not in await scrape(metrics)
        await metrics.close()

    drive(scenario)


def test_failures_have_their_reason_and_the_marker_that_was_missing() -> None:
    async def scenario(host: FakeHost) -> None:
        metrics = watch(host)
        for name in ("hangs", "ends"):
            host.guest(name).boots = False
            await host.create(name, boot_timeout="1s" if name == "hangs" else "60s")
            await host.manager.start_vm(name)
        await host.until_true(lambda: "ends" in host.vmms.live and bool(host.vmm("ends").monitor.orders))
        host.vmm("ends").exit(5)
        await host.until_ended("ends")
        await host.until_ended("hangs")
        await host.create("bare")
        shutil.rmtree(host.folder / "images/app")
        with pytest.raises(HypemandError):
            await host.manager.start_vm("bare")
        found = await scrape(metrics)
        failures = {key[1:]: found[key] for key in found if key[0] == "hypemand_vm_start_failures_total"}
        assert {key: number for key, number in failures.items() if number} == {
            ("HYPEMAN-PROGRAM-START", "boot-timeout"): 1.0,
            ("", "exited"): 1.0,
            ("", "image"): 1.0,
        }
        assert found["hypemand_vm_exits_total", "boot-timeout"] == 1.0
        await metrics.close()

    drive(scenario)


def test_a_start_that_is_refused_counts_by_what_was_missing() -> None:
    async def scenario(host: FakeHost) -> None:
        metrics = watch(host)
        await host.create("fat", memory="1T")
        await host.create("offline", network="default")
        with pytest.raises(InsufficientResources):
            await host.manager.start_vm("fat")
        host.network.refuse = HostNotReady("the network service is not available")
        with pytest.raises(HostNotReady):
            await host.manager.start_vm("offline")
        found = await scrape(metrics)
        assert found["hypemand_vm_start_failures_total", "", "resources"] == 1.0
        assert found["hypemand_vm_start_failures_total", "", "host"] == 1.0
        await metrics.close()

    drive(scenario)


def test_a_daemon_that_starts_beside_vms_counts_no_start_of_theirs() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run()
        await host.restart_daemon()
        metrics = watch(host)
        await host.until(State.RUNNING)
        found = await scrape(metrics)
        assert sum(found[key] for key in found if key[0] == "hypemand_vm_starts_total") == 0.0
        assert found["hypemand_vms", "Running"] == 1.0
        host.vmm().exit(0)
        await host.until_ended()
        assert (await scrape(metrics))["hypemand_vm_exits_total", "success"] == 1.0
        await metrics.close()

    drive(scenario)


def test_pulls_are_counted_by_how_they_end() -> None:
    async def scenario(host: FakeHost) -> None:
        metrics = watch(host)
        with pytest.raises(HypemandError):
            await host.parts.images.pulls.get("registry.example/none")
        found = await scrape(metrics)
        assert found["hypemand_image_pulls_total", "failed"] == 1.0
        assert found["hypemand_image_pulls_total", "ready"] == 0.0
        assert found["hypemand_image_pulls_in_progress",] == 0.0
        await metrics.close()

    drive(scenario)


def test_traffic_is_that_of_the_vms_own_device() -> None:
    async def scenario(host: FakeHost) -> None:
        metrics = watch(host)
        await host.run(network="default")
        await host.run("alone")
        traffic = {
            key: n for key, n in (await scrape(metrics)).items() if key[0][:20] == "hypemand_vm_network_"
        }
        assert traffic == {
            ("hypemand_vm_network_transmit_bytes_total", "web"): 100.0,
            ("hypemand_vm_network_transmit_packets_total", "web"): 1.0,
            ("hypemand_vm_network_receive_bytes_total", "web"): 200.0,
            ("hypemand_vm_network_receive_packets_total", "web"): 2.0,
            ("hypemand_vm_network_dropped_packets_total", "web"): 0.0,
            ("hypemand_vm_network_connections_total", "outgoing", "web"): 3.0,
            ("hypemand_vm_network_connections_total", "incoming", "web"): 4.0,
        }
        host.network.away = HostNotReady("the network service is not available")
        assert not [key for key in await scrape(metrics) if key[0][:20] == "hypemand_vm_network_"]
        host.network.away = None
        await metrics.close()

    drive(scenario)


def test_scrapes_at_once_are_one_look() -> None:
    async def scenario(host: FakeHost) -> None:
        metrics = watch(host)
        await host.run(network="default")
        host.network.asked.clear()
        texts = await asyncio.gather(*(metrics.render() for _ in range(10)))
        assert len(set(texts)) == 1
        assert host.network.asked == ["counters", "connections"]
        await metrics.close()

    drive(scenario)


def test_a_disk_that_hangs_costs_a_scrape_its_figures_and_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on = threading.Event()
    monkeypatch.setattr("hypemand.manager.metrics.metrics._DEADLINE", 0.05)

    async def scenario(host: FakeHost) -> None:
        metrics = watch(host)
        looks: list[None] = []

        def hang() -> list[Image]:
            looks.append(None)
            goes_on.wait(DEADLINE)
            return []

        monkeypatch.setattr(host.parts.images.store, "list_images", hang)
        for _ in range(3):
            found = await scrape(metrics)
            assert ("hypemand_images",) not in found
            assert found["hypemand_vms", "Stopped"] == 0.0
        assert len(looks) == 1, "one thread hangs, and not one for each scrape"
        goes_on.set()
        await metrics.close()

    drive(scenario)


def test_dropped_lines_are_those_that_hypeman_console_tells_of() -> None:
    notice = "hypeman-console: 7 lines (70 bytes) were not kept: they came faster than the journal takes them"
    fields: dict[str, Any] = {"PRIORITY": "4", "_SYSTEMD_SLICE": "hypeman.slice", "HYPEMAN_DROPPED": "7"}

    async def scenario(host: FakeHost) -> None:
        await host.create()
        host.log("web", notice, realtime=1.0, **fields)  # before the daemon was started
        metrics = watch(host)
        assert not [key for key in await scrape(metrics) if key[0] == "hypemand_journal_lines_dropped_total"]
        host.log("web", notice, **fields)
        host.log("web", "a guest says so", **fields)
        host.log("web", notice, **{**fields, "HYPEMAN_DROPPED": "9" * 30})
        host.log("web", notice, **{**fields, "_SYSTEMD_UNIT": "other.service"})
        host.log("web", notice, **{**fields, "_SYSTEMD_SLICE": "system.slice"})
        assert (await scrape(metrics))["hypemand_journal_lines_dropped_total", "web"] == 7.0
        host.log("web", notice, **fields)
        assert (await scrape(metrics))["hypemand_journal_lines_dropped_total", "web"] == 14.0
        await metrics.close()

    drive(scenario)


def test_so_many_notices_at_once_and_the_rest_the_next_time() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.create()
        drops = DroppedLines(host.journal)
        for _ in range(1500):
            host.log("web", "hypeman-console: 1 line", PRIORITY="4", _SYSTEMD_SLICE="hypeman.slice",
                     HYPEMAN_DROPPED="1")  # fmt: skip
        assert [drops.read(), drops.read()] == [{"web": 1000}, {"web": 1500}]
        drops.close()

    drive(scenario)


def test_what_control_groups_do_not_count_is_that_of_the_vmm() -> None:
    unit = "hypeman-vm-none.service"
    found = _read_usage(unit, os.getpid())
    assert found.memory is not None
    assert found.memory > 10 * 2**20
    assert found.cpu_seconds is not None
    assert found.cpu_seconds > 0.0
    assert _read_usage(unit, None) == UnitUsage()
    assert _read_usage(unit, 2**22 + 1) == UnitUsage()


def test_what_a_unit_uses_is_read_from_its_control_group(tmp_path: Path) -> None:
    group = tmp_path / "hypeman.slice/hypeman-vm-web.service"
    assert read_usage(group.name, tmp_path) == UnitUsage()
    group.mkdir(parents=True)
    (group / "memory.current").write_text("4096\n")
    (group / "cpu.stat").write_text("usage_usec 2500000\nuser_usec 1\n")
    (group / "io.stat").write_text("8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n8:16 \n7:0\n")
    assert read_usage(group.name, tmp_path) == UnitUsage(4096, 2.5, (DiskUsage("8:0", 1, 2, 3, 4),))
    (group / "memory.current").write_text("max\n")
    (group / "io.stat").write_text("8:0 rbytes=x\n")
    assert read_usage(group.name, tmp_path) == UnitUsage(None, 2.5)
    # control groups v1
    old = tmp_path / "memory/hypeman.slice" / group.name
    old.mkdir(parents=True)
    (old / "memory.usage_in_bytes").write_text("8192\n")
    assert read_usage(group.name, tmp_path) == UnitUsage(8192, 2.5)
