# SPDX-License-Identifier: Apache-2.0
"""Pools of volumes: two hosts, of which each has a daemon, and one directory that both have."""

from __future__ import annotations

import asyncio
import os
import stat
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hypemand.config.definition import VolumeMount
from hypemand.config.pools import PoolConfig
from hypemand.errors import (
    AlreadyExists,
    HostNotReady,
    InsufficientResources,
    InUse,
    InvalidRequest,
    NotFound,
    WrongState,
)
from hypemand.manager.resources.poolreader import PoolReader
from hypemand.manager.snapshots import ApiSnapshots
from hypemand.manager.transfer import Transfers
from hypemand.manager.volumes import ApiVolumes
from hypemand.model.state import Origin, State
from hypemand.model.transfer import ExportWanted
from hypemand.storage.pools import VolumePool
from hypemand.storage.volumes import VolumeStore
from hypemand.unitnames import unit_name
from tests.fakes.host import DEADLINE, FakeHost, define, folder_in_memory, running
from tests.unit.storage.diskuser import READS, locked

MIB = 1024 * 1024
DATA = {"volume": "san/data", "mount_path": "/srv"}
Scenario = Callable[[FakeHost, FakeHost], Awaitable[None]]


async def give_pools(host: FakeHost, **pools: PoolConfig) -> None:
    """As a reload finds them."""
    host.config = replace(host.config, pools=pools)
    await host.daemon.reloader.reload()


def drive(scenario: Scenario) -> None:
    """On two hosts with the pool san, which is shared, and a pool of its own each, fast."""

    async def main(folder: Path) -> None:
        async with asyncio.timeout(2 * DEADLINE), running(folder / "a") as a, running(folder / "b") as b:
            (folder / "shared").mkdir()
            for host in (a, b):
                own = host.folder / "fast"
                own.mkdir()
                await give_pools(host, san=PoolConfig(folder / "shared", shared=True), fast=PoolConfig(own))
            await scenario(a, b)

    with folder_in_memory() as folder:
        asyncio.run(main(folder))


def volumes(host: FakeHost) -> ApiVolumes:
    """The API of volumes."""
    return ApiVolumes(host.parts, host.manager)


async def create(host: FakeHost, name: str = "san/data", size: int = 16 * MIB) -> None:
    await volumes(host).create_volume(name, size, {}, None)


async def names(host: FakeHost) -> list[str]:
    return [volume.name for volume in await volumes(host).list_volumes()]


def test_what_one_host_makes_grows_and_removes_the_other_has_at_its_next_use() -> None:
    async def scenario(a: FakeHost, b: FakeHost) -> None:
        await create(a)
        await create(a, "fast/data")
        await create(a, "data")
        assert await names(a) == ["data", "fast/data", "san/data"]
        assert await names(b) == ["san/data"]
        await volumes(b).resize_volume("san/data", 32 * MIB)
        assert (await volumes(a).get_volume("san/data")).size == 32 * MIB
        with pytest.raises(AlreadyExists, match="a volume san/data already exists"):
            await create(b)
        await volumes(b).remove_volume("san/data")
        assert await names(a) == ["data", "fast/data"]
        with pytest.raises(NotFound, match="there is no volume san/data"):
            await volumes(a).get_volume("san/data")

    drive(scenario)


def test_a_vm_gets_a_volume_that_another_host_made_and_its_unit_waits_for_the_mount() -> None:
    async def scenario(a: FakeHost, b: FakeHost) -> None:
        await create(a)
        await b.run("web", volumes=[DATA])
        unit = b.systemd.units[unit_name("web")]
        folder = b.config.pools["san"].directory / "volumes"
        assert unit.properties["RequiresMountsFor"] == [str(folder)]
        await b.create("other", volumes=[DATA])
        with pytest.raises(InUse, match="VM web writes to the volume san/data"):
            await b.start("other")
        with pytest.raises(InUse, match="attached to other, web"):
            await volumes(b).remove_volume("san/data")
        # what it runs with is known to the next daemon
        await b.restart_daemon()
        with pytest.raises(InUse, match="VM web writes to the volume san/data"):
            await b.start("other")

    drive(scenario)


def test_a_volume_can_be_a_vms_own_disk_which_one_host_has_at_a_time() -> None:
    async def scenario(a: FakeHost, b: FakeHost) -> None:
        await create(a, "san/own")
        mount = {"volume": "san/own", "mount_path": "/"}
        await a.run("web", volumes=[mount], disk="64G")
        vm, disk = a.vm("web"), a.parts.volumes.get("san/own").disk
        assert not vm.places.disk.exists()
        bound = a.systemd.units[unit_name("web")].properties["BindPaths"]
        assert (str(disk), str(vm.places.own.disk)) in {(host, inside) for host, inside, *_ in bound}
        assert a.parts.fleet.promised_room(await a.parts.fleet.look_at_disks()) == 0
        await b.create("web", volumes=[mount])
        with locked(disk), pytest.raises(InUse, match="it was given to VM web on host "):
            await b.start("web")
        await b.start("web")
        with pytest.raises(WrongState, match="web has the volume san/own for its disk"):
            await ApiSnapshots(b.parts, b.manager).create_snapshot("web", None, "base", {})

    drive(scenario)


def test_a_vm_that_has_a_device_may_open_that_alone_and_is_not_put_into_standby() -> None:
    async def scenario(a: FakeHost, _b: FakeHost) -> None:
        device = a.folder / "lun/one"
        device.parent.mkdir()
        os.mknod(device, stat.S_IFBLK, os.makedev(7, 200))
        device.chmod(0o660)
        os.chown(device, 0, 6)
        a.config = replace(a.config, pools_of_devices={"lun": device.parent})
        await a.daemon.reloader.reload()
        await a.run("web", volumes=[{"device": "lun/one", "mount_path": "/srv"}])
        properties = a.systemd.units[unit_name("web")].properties
        assert properties["DeviceAllow"] == [(str(device), "rw")]
        assert properties["SupplementaryGroups"] == ["6"]
        with pytest.raises(WrongState, match="VM web has the device lun/one, and when it is restored"):
            await a.manager.standby_vm("web")
        assert a.vm("web").state is State.RUNNING
        # what is not of that pool any more, it keeps
        a.config = replace(a.config, pools_of_devices={})
        await a.daemon.reloader.reload()
        await a.restart_daemon()
        assert a.vm("web").state is State.RUNNING
        with pytest.raises(NotFound, match="there is no pool lun of devices"):
            await a.manager.restart_vm("web")
        a.config = replace(a.config, pools_of_devices={"lun": device.parent})
        await a.daemon.reloader.reload()
        device.unlink()
        with pytest.raises(NotFound, match=f"the device {device} does not exist"):
            await a.manager.restart_vm("web")
        assert a.vm("web").state is State.RUNNING
        await a.create("other", volumes=[{"device": "lun/one", "mount_path": "/srv", "required": False}])
        await a.start("other")
        assert a.vm("other").runs.definition.volumes == ()


def test_a_vm_that_had_a_disk_of_its_own_before_starts_from_the_volume_and_not_from_a_snapshot_of_that() -> (
    None
):
    async def scenario(a: FakeHost, _: FakeHost) -> None:
        snapshots = ApiSnapshots(a.parts, a.manager)
        await create(a, "san/own")
        await a.run("web", disk="1G")
        await a.manager.stop_vm("web")
        await snapshots.create_snapshot("web", None, "base", {})
        mount = {"volume": "san/own", "mount_path": "/"}
        # less than its old disk, which is of no use any more
        await a.parts.records.update("web", define("web", volumes=[mount], disk="64M"), Origin.API)
        with pytest.raises(WrongState, match="web has the volume san/own for its disk, and would not start"):
            await snapshots.restore_snapshot("web", "base", None)
        await a.start("web")
        await a.until(State.RUNNING, "web")
        await a.manager.restart_vm("web")

    drive(scenario)


def test_a_vm_of_another_host_is_named_and_one_that_may_go_without_does() -> None:
    async def scenario(a: FakeHost, b: FakeHost) -> None:
        await create(a)
        await a.run("web", volumes=[DATA])
        disk = a.parts.volumes.get("san/data").disk
        with locked(disk), pytest.raises(InUse, match="it was given to VM web on host "):
            await volumes(b).remove_volume("san/data")
        await b.create("reader", volumes=[{**DATA, "readonly": True}])
        await b.create("without", volumes=[{**DATA, "required": False}])
        with locked(disk):
            before = disk.stat()
            with pytest.raises(InUse, match="it was given to VM web on host "):
                await b.start("reader")
            assert b.vm("reader").state is State.STOPPED
            assert disk.stat().st_ctime_ns == before.st_ctime_ns
            await b.start("without")
            assert b.vm("without").runs.definition.volumes == ()
            await b.manager.stop_vm("without")
        with locked(disk, READS):
            await b.start("reader")
            await b.start("without")
            assert b.vm("without").runs.definition.volumes == ()

    drive(scenario)


def test_a_start_of_a_daemon_leaves_what_another_is_making_and_a_creation_what_was_cut_off() -> None:
    async def scenario(a: FakeHost, b: FakeHost) -> None:
        await create(a)
        folder = a.config.pools["san"].directory / "volumes"
        for mark in ("making", "removed"):
            (folder / f".{'a' * 32}.{mark}").mkdir()
        filling = a.parts.volumes.create("san/filling", 16 * MIB, {}, ready=False)
        # nobody is at them: the creation has seen that
        assert sorted(path.name for path in folder.iterdir() if path.suffix in (".making", ".removed")) == []
        (folder / f".{'b' * 32}.making").mkdir()
        await b.restart_daemon()
        await b.daemon.recovery.clean_up()
        assert (folder / f".{'b' * 32}.making").is_dir()
        assert filling.disk.exists()
        b.config = replace(b.config, pools={})

    drive(scenario)


def test_names_are_of_one_volume_also_where_two_hosts_choose_them_at_once() -> None:
    async def scenario(a: FakeHost, b: FakeHost) -> None:
        both = (volumes(a), volumes(b))
        creations = (one.create_volume("san/data", 16 * MIB, {}, None) for one in both * 3)
        ends = await asyncio.gather(*creations, return_exceptions=True)
        assert [type(end) for end in ends if isinstance(end, Exception)] == [AlreadyExists] * 5
        assert await names(a) == await names(b) == ["san/data"]

    drive(scenario)


def test_a_pool_that_is_not_there_is_none_and_nothing_else_is_kept_from_work(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario(a: FakeHost, _b: FakeHost) -> None:
        await create(a)
        await create(a, "data")
        shared = a.config.pools["san"].directory
        shared.rename(shared.with_name("away"))
        with pytest.raises(HostNotReady, match=r"the pool san is not available: .*shared does not exist"):
            await volumes(a).get_volume("san/data")
        with pytest.raises(HostNotReady, match="the pool san is not available"):
            await create(a, "san/more")
        assert not shared.exists()
        await a.create("web", volumes=[DATA])
        with pytest.raises(HostNotReady, match="the pool san is not available"):
            await a.start("web")
        await a.run("other", volumes=[{**DATA, "volume": "data"}])
        assert await names(a) == ["data"]
        (pool,) = [one for one in (await volumes(a).measure_space()).pools if one.problem]
        assert (pool.name, pool.volumes) == ("san", 0)
        assert caplog.text.count("the pool san is not available") == 1
        shared.with_name("away").rename(shared)
        await a.start("web")
        with pytest.raises(NotFound, match="there is no pool lun"):
            await create(a, "lun/data")

    drive(scenario)


def test_a_shared_pool_on_the_root_file_system_is_one_that_is_not_mounted(tmp_path: Path) -> None:
    pool = VolumePool.from_config("san", PoolConfig(Path("/var/tmp"), shared=True))
    if Path("/var/tmp").stat().st_dev != Path("/").stat().st_dev:
        pytest.skip("/var/tmp is a file system of its own")
    pool.read()
    assert "is on the root file system" in pool.problem
    assert not pool.folder.exists()
    assert not list(tmp_path.iterdir())


def test_a_pool_that_does_not_answer_holds_up_nobody_else() -> None:
    async def scenario(folder: Path) -> None:
        store = VolumeStore(
            folder / "volumes", folder / "templates", {"san": PoolConfig(folder, shared=True)}
        )
        answers = threading.Event()
        (pool,) = store.pools
        refresh = pool.refresh

        def hang() -> None:
            answers.wait(DEADLINE)
            refresh()

        pool.refresh = hang  # type: ignore[method-assign]
        reader = PoolReader(store, 0.1)
        await reader.read(["data"])
        assert not pool.problem
        await reader.read(["san/data"])
        with pytest.raises(HostNotReady, match=r"it was not read within 0\.1 s"):
            store.get("san/data")
        answers.set()
        await PoolReader(store).read()
        with pytest.raises(NotFound):
            store.get("san/data")

    with folder_in_memory() as folder:
        asyncio.run(scenario(folder))


def test_its_space_is_counted_apart() -> None:
    async def scenario(a: FakeHost, _b: FakeHost) -> None:
        await create(a, size=24 * MIB)
        await create(a, "fast/data", 16 * MIB)
        await create(a, "data", 40 * MIB)
        report = await volumes(a).measure_space()
        assert report.promised == 40 * MIB
        assert [(one.name, one.shared, one.volumes, one.promised) for one in report.pools] == [
            ("san", True, 1, 24 * MIB),
            ("fast", False, 1, 16 * MIB),
        ]
        assert all(one.room.total >= one.room.free > 0 for one in report.pools)
        policy = replace(a.config.disk, overcommit=1.0)
        a.parts.config.replace(replace(a.config, disk=policy))
        with pytest.raises(InsufficientResources, match=r"the volume san/huge .*disks and volumes have 24M"):
            await create(a, "san/huge", 16 * 1024 * 1024 * MIB)
        await volumes(a).resize_volume("san/data", 32 * MIB)
        assert (await volumes(a).measure_space()).promised == 40 * MIB

    drive(scenario)


def test_a_volume_of_a_pool_is_attached_by_its_name_and_does_not_go_into_an_archive() -> None:
    async def scenario(a: FakeHost, _b: FakeHost) -> None:
        await create(a)
        await a.create("web")
        await a.manager.attach_volume("web", VolumeMount("san/data", "/srv"))
        assert a.vm().record.definition.volumes == (VolumeMount("san/data", "/srv"),)
        with pytest.raises(AlreadyExists, match="the volume san/data is already attached"):
            await a.manager.attach_volume("web", VolumeMount("san/data", "/other"))
        transfers = Transfers(a.parts, volumes(a))
        with pytest.raises(InvalidRequest, match="san/data is in a pool, and is not exported with a VM"):
            async with transfers.export_vm("web", ExportWanted(all_volumes=True)):
                pass
        await a.manager.detach_volume("web", "san/data")
        assert a.vm().record.definition.volumes == ()

    drive(scenario)


def test_a_reload_takes_pools_and_gives_them_up_and_a_vm_keeps_what_it_has() -> None:
    async def scenario(a: FakeHost, _b: FakeHost) -> None:
        await create(a, "fast/data")
        await a.run("web", volumes=[{**DATA, "volume": "fast/data"}])
        pools = dict(a.config.pools)
        await give_pools(a)
        assert await names(a) == []
        assert a.vm().state is State.RUNNING
        await a.create("other", volumes=[{**DATA, "volume": "fast/data"}])
        with pytest.raises(NotFound, match="there is no pool fast"):
            await a.start("other")
        await give_pools(a, **pools)
        with pytest.raises(InUse, match="VM web writes to the volume fast/data"):
            await a.start("other")
        # one that was not there at first is looked at again
        slow = a.folder / "slow"
        await give_pools(a, slow=PoolConfig(slow))
        with pytest.raises(HostNotReady, match=r"the pool slow is not available: .* does not exist"):
            await create(a, "slow/data")
        slow.mkdir()
        await give_pools(a, slow=PoolConfig(slow))
        await create(a, "slow/data")

    drive(scenario)
