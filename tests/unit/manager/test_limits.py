# SPDX-License-Identifier: Apache-2.0
"""Limits of a VM that are changed while it runs."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from hypemand.errors import GuestError, InvalidDefinition, WrongState
from hypemand.model.limits import DiskLimits, RuntimeLimits
from hypemand.model.state import State
from tests.fakes.host import FakeHost, drive

MIB = 1024 * 1024
LIMITED: dict[str, Any] = {
    "memory": "128M",
    "vcpus": 1,
    "balloon": True,
    "disk_io": {"read": "10MB/s", "iops": 500},
}
STARTED = RuntimeLimits(128 * MIB, 2.0, DiskLimits(read=10**7, iops=500))


def test_what_a_vm_was_started_with_is_what_it_has() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run(**LIMITED)
        assert await host.manager.get_limits("web") == STARTED
        await host.run("plain", vcpus=1, cpu_limit=0.25)
        assert await host.manager.get_limits("plain") == RuntimeLimits(None, 0.25)

    drive(scenario)


def test_limits_are_changed_until_the_next_start() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run(**LIMITED)
        before = host.vm().record.definition
        changed = await host.manager.set_limits(
            "web",
            {"memory": "96M", "cpu_limit": 0.5, "disk_io": {"read": None, "iops": "50", "write": "1MB/s"}},
        )
        assert changed == RuntimeLimits(96 * MIB, 0.5, DiskLimits(write=10**6, iops=50))
        assert await host.manager.get_limits("web") == changed
        # of what is not named, nothing changes
        changed = await host.manager.set_limits("web", {"disk_io": {"iops": 40}})
        assert changed == RuntimeLimits(96 * MIB, 0.5, DiskLimits(write=10**6, iops=40))
        reset = dict.fromkeys(("memory", "cpu_limit", "disk_io"))
        assert await host.manager.set_limits("web", reset) == STARTED
        await host.manager.set_limits("web", {"cpu_limit": 1, "disk_io": {"iops": 40}})
        assert host.vm().record.definition == before
        await host.manager.restart_vm("web")
        await host.until(State.RUNNING)
        assert await host.manager.get_limits("web") == STARTED

    drive(scenario)


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"vcpus": 2}, "vcpus: cannot be changed while the VM runs; memory, cpu_limit, disk_io can"),
        ({"nonsense": 2}, "nonsense: cannot be changed while the VM runs"),
        ({"memory": "1G"}, "memory: is more than the 128M with which the VM was started"),
        ({"memory": "1M"}, "memory: 1M is too small; write 64M to 1T"),
        ({"cpu_limit": 0}, "cpu_limit: 0 is too small; write 0.05 to 65"),
        ({"cpu_limit": "half"}, "cpu_limit: 'half' is not a number; write for example 0.05"),
        ({"disk_io": {"total": "1MB/s"}}, "disk_io.total: cannot be combined with read or write"),
        ({"disk_io": {"read": "1kB/s"}}, "disk_io.read: 1kB/s is too slow; write 64kB/s to 100GB/s"),
        ({"disk_io": {"iops": 10.5}}, "disk_io.iops"),
        ({"disk_io": {"iops": "many"}}, "disk_io.iops: 'many' is not a number"),
        ({"disk_io": {"reads": "1MB/s"}}, "disk_io.reads: is not known; did you mean read?"),
        ({"disk_io": 5}, "disk_io: is"),
    ],
)
def test_what_cannot_be_changed_is_refused_by_name(keys: dict[str, object], problem: str) -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run(**LIMITED)
        with pytest.raises(InvalidDefinition) as caught:
            await host.manager.set_limits("web", {"cpu_limit": 1.5, **keys})
        assert problem in str(caught.value)
        assert await host.manager.get_limits("web") == STARTED

    drive(scenario)


def test_without_a_balloon_memory_is_fixed_and_the_cure_is_named() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run(memory="128M")
        with pytest.raises(
            InvalidDefinition, match=r"memory: the VM has no memory balloon; set balloon: true"
        ):
            await host.manager.set_limits("web", {"memory": "96M"})

    drive(scenario)


def test_a_vm_that_does_not_run_has_none() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.create()
        for asked in (host.manager.get_limits("web"), host.manager.set_limits("web", {"cpu_limit": 1})):
            with pytest.raises(WrongState, match="change its definition instead"):
                await asked

    drive(scenario)


def test_a_vmm_that_refuses_is_named() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run(**LIMITED)
        host.vmm().monitor.refuses.add("block_set_io_throttle")
        with pytest.raises(
            GuestError, match="cannot change the limits of VM web: block_set_io_throttle is refused"
        ):
            await host.manager.set_limits("web", {"disk_io": {"iops": 50}})

    drive(scenario)


def test_a_guest_may_give_memory_back_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer is what it has by then, and what is set holds: it goes on by itself."""
    monkeypatch.setattr("hypemand.manager.limits._BALLOON_DEADLINE", 0.05)

    async def scenario(host: FakeHost) -> None:
        await host.run(**LIMITED)
        monitor = host.vmm().monitor
        monitor.keeps_memory = True
        assert (await host.manager.set_limits("web", {"memory": "64M"})).memory == 128 * MIB
        monitor.keeps_memory = False
        monitor.give_back()
        assert (await host.manager.get_limits("web")).memory == 64 * MIB
        # one that does so while it is waited for is waited for no longer
        monkeypatch.setattr("hypemand.manager.limits._BALLOON_DEADLINE", 30.0)
        monitor.keeps_memory = True
        monitor.orders.clear()
        setting = asyncio.ensure_future(host.manager.set_limits("web", {"memory": "96M"}))
        await host.until_true(lambda: "query-balloon" in monitor.orders)
        monitor.give_back()
        assert (await setting).memory == 96 * MIB

    drive(scenario)
