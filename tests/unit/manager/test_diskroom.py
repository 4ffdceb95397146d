# SPDX-License-Identifier: Apache-2.0
"""What disks are promised, where several ask at once: measured in a thread, decided without a wait."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hypemand.config.vmdef import parse_definition
from hypemand.errors import InsufficientResources
from hypemand.manager import fleet as fleet_module
from hypemand.manager.volumes import ApiVolumes
from hypemand.model.space import Room
from tests.unit.manager.test_starts import Host, use

MIB = 1024 * 1024
# for one disk or volume of 64 MiB, and not for two
_ROOM = 100 * MIB


@pytest.fixture(autouse=True)
def small_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system with room for one."""
    monkeypatch.setattr(fleet_module, "read_room", lambda folder: Room(folder, _ROOM, _ROOM))


def prepare(host: Host) -> None:
    config = host.parts.config()
    host.parts.config.replace(replace(config, disk=replace(config.disk, reserve=0, overcommit=1.0)))


async def define(host: Host, *names: str) -> None:
    for name in names:
        keys = {"image": "app", "cmd": ["x"], "disk": "64M", "memory": "96M", "network": "none"}
        await host.manager.create_vm(parse_definition(name, keys), start=False)


def refused(ends: list[Any]) -> int:
    """How many were, for want of room; there is no other failure."""
    failures = [end for end in ends if isinstance(end, BaseException)]
    assert all(isinstance(failure, InsufficientResources) for failure in failures), failures
    return len(failures)


def test_of_starts_at_once_only_those_go_on_that_there_is_room_for(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        prepare(host)
        names = ("a", "b", "c")
        await define(host, *names)
        starts = (host.manager.start_vm(name) for name in names)
        assert refused(await asyncio.gather(*starts, return_exceptions=True)) == 2

    use(tmp_path, scenario)


def test_of_creations_with_a_start_at_once_only_one_stays(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        prepare(host)
        keys = {"image": "app", "cmd": ["x"], "disk": "64M", "memory": "96M", "network": "none"}
        made = (host.manager.create_vm(parse_definition(name, keys), start=True) for name in ("a", "b"))
        assert refused(await asyncio.gather(*made, return_exceptions=True)) == 1
        assert len(list(host.parts.fleet)) == 1

    use(tmp_path, scenario)


def test_a_start_counts_the_volume_that_is_being_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(host: Host) -> None:
        prepare(host)
        await define(host, "a")
        api = ApiVolumes(host.parts, host.manager)
        loop = asyncio.get_running_loop()
        create = api._store.create
        ends: list[Any] = []

        def create_meanwhile(*args: Any, **options: Any) -> Any:
            started = asyncio.run_coroutine_threadsafe(host.manager.start_vm("a"), loop)
            ends.append(started.exception(10))
            return create(*args, **options)

        monkeypatch.setattr(api._store, "create", create_meanwhile)
        await api.create_volume("data", 64 * MIB, {}, None)
        assert refused(ends) == 1

    use(tmp_path, scenario)


def test_of_two_volumes_that_grow_at_once_one_does(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        prepare(host)
        api = ApiVolumes(host.parts, host.manager)
        for name in ("one", "two"):
            await api.create_volume(name, 16 * MIB, {}, None)
        grown = (api.resize_volume(name, 80 * MIB) for name in ("one", "two"))
        assert refused(await asyncio.gather(*grown, return_exceptions=True)) == 1
        assert sum(volume.size for volume in await api.list_volumes()) == 96 * MIB
        # what was refused, and what was made, is promised no more than once
        look = await host.parts.fleet.look_at_disks()
        assert host.parts.fleet.promised_room(look) == 96 * MIB

    use(tmp_path, scenario)


def test_a_vm_that_was_started_after_the_look_counts_also_when_it_has_ended(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        prepare(host)
        await define(host, "a")
        fleet = host.parts.fleet
        look = await fleet.look_at_disks()
        assert fleet.promised_room(look) == 0
        await host.manager.start_vm("a")
        await host.manager.stop_vm("a")
        assert not fleet.get("a").state.is_vmm_active
        assert fleet.promised_room(look) == 64 * MIB

    use(tmp_path, scenario)
