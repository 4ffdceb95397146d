# SPDX-License-Identifier: Apache-2.0
"""What a VM holds is its own, whatever is known of it: records that are lost, a unit that systemd does not
know, a bus that is down."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest

from hypemand.config.definition import VolumeMount
from hypemand.config.network import NetworkUse
from hypemand.errors import HostNotReady, InUse, NotFound
from hypemand.manager.images.images import Images
from hypemand.manager.resources.volumeuse import derive_filler
from hypemand.manager.volumes import ApiVolumes
from hypemand.model.state import Origin, State
from hypemand.storage.disks import ensure_disk
from hypemand.storage.images import Image
from hypemand.storage.volume import Volume
from hypemand.systemd.bus import BusError
from hypemand.systemd.units import UnitPlan, UnitStatus
from hypemand.unitnames import unit_name
from hypemand.vm.record import Lease
from hypemand.vm.runfiles import Past
from tests.unit.manager.test_starts import FakeUnits, Host, definition
from tests.unit.storage.diskuser import READS, locked

MIB = 1024 * 1024
NO_BUS = BusError("systemd does not answer", errno.ETIMEDOUT)
# no invocation, so there is nothing to connect to
BETWEEN_RUNS, ENDING = UnitStatus("activating", "auto-restart"), UnitStatus("deactivating", "stop-sigterm")


@dataclass
class Units(FakeUnits):
    """`loaded`: VMs whose unit there is; `bound`: files of any unit; `down`: systemd does not answer."""

    loaded: dict[str, str] = field(default_factory=dict)
    bound: dict[Path, bool] = field(default_factory=dict)
    down: bool = False
    on_stop: Callable[[], None] = lambda: None

    async def stop(self, unit: str) -> None:
        self.on_stop()
        await super().stop(unit)

    async def status(self, unit: str, *, with_memory: bool = False) -> UnitStatus:
        if self.down:
            raise NO_BUS
        return await super().status(unit, with_memory=with_memory)

    async def list_vms(self) -> Mapping[str, str]:
        if self.down:
            raise NO_BUS
        return self.loaded

    async def bound_files(self, unit: str) -> Mapping[Path, bool]:
        if self.down:
            raise NO_BUS
        return self.bound if unit in self.live else {}


class Daemon(Host):
    """A host whose daemon is started by `recover`, after what a test prepares."""

    def __init__(self, folder: Path) -> None:
        self.systemd = Units()
        super().__init__(folder, self.systemd)
        self.volumes = ApiVolumes(self.parts, self.manager)
        self.parts.records._vms.mkdir(parents=True, exist_ok=True)
        self.parts.volumes.load()

    def make_volume(self) -> Volume:
        return self.parts.volumes.create("data", 16 * MIB, {})

    def run(self, scenario: Callable[[], Awaitable[None]]) -> None:
        async def main() -> None:
            await self.recovery.recover()
            try:
                async with asyncio.timeout(30):
                    await scenario()
            finally:
                await self.manager.close()

        asyncio.run(main())

    async def expect_held(self, volume: Volume) -> None:
        """The VM web has the volume."""
        for change in (self.volumes.remove_volume("data"), self.volumes.resize_volume("data", 32 * MIB)):
            with pytest.raises(
                InUse, match=r"attached to web|the volume data is in use by the running VM web"
            ):
                await change
        mount = VolumeMount("data", "/srv")
        with pytest.raises(InUse, match="VM web writes to the volume data"):
            self.parts.volume_use.resolve("other", replace(definition(), name="other", volumes=(mount,)))
        assert volume.disk.stat().st_size == 16 * MIB


@pytest.fixture
def daemon(tmp_path: Path) -> Daemon:
    return Daemon(tmp_path)


def add_web(daemon: Daemon, *mounts: VolumeMount) -> None:
    """A VM as a daemon before this one has left it."""
    inventory = daemon.parts.records
    inventory.load()
    asyncio.run(inventory.add(replace(definition(), volumes=mounts), Origin.API))


@pytest.mark.parametrize("status", [BETWEEN_RUNS, ENDING])
def test_a_vm_whose_run_json_is_lost_has_the_volumes_that_its_unit_has(
    daemon: Daemon, status: UnitStatus, caplog: pytest.LogCaptureFixture
) -> None:
    volume = daemon.make_volume()
    add_web(daemon)  # it was detached from the definition since
    daemon.systemd.live[unit_name("web")] = status
    daemon.systemd.bound = {volume.disk: True, Path("/usr"): False}

    async def scenario() -> None:
        await daemon.expect_held(volume)
        (attachment,) = (await daemon.volumes.get_volume("data")).attachments
        assert (attachment.vm, attachment.running, attachment.mount.writes) == ("web", True, True)
        # and nothing once it has ended
        del daemon.systemd.live[unit_name("web")]
        await daemon.recovery.resync()
        await daemon.volumes.remove_volume("data")

    daemon.run(scenario)


def test_a_volume_that_the_unit_only_reads_is_open_to_other_readers(daemon: Daemon) -> None:
    volume = daemon.make_volume()
    add_web(daemon, VolumeMount("data", "/srv"))  # it is to write to it from its next start on
    daemon.systemd.live[unit_name("web")] = BETWEEN_RUNS
    daemon.systemd.bound = {volume.disk: False}

    async def scenario() -> None:
        reads, writes = VolumeMount("data", "/srv", readonly=True), VolumeMount("data", "/srv")
        other = replace(definition(), name="other")
        assert daemon.parts.volume_use.resolve("other", replace(other, volumes=(reads,)))
        with pytest.raises(InUse):
            daemon.parts.volume_use.resolve("other", replace(other, volumes=(writes,)))

    daemon.run(scenario)


@pytest.mark.parametrize("status", [BETWEEN_RUNS, ENDING, None])
def test_what_it_was_started_with_counts_between_its_runs_at_its_end_and_without_systemd(
    daemon: Daemon, status: UnitStatus | None
) -> None:
    volume = daemon.make_volume()
    add_web(daemon)
    vm = daemon.parts.adopt(next(iter(daemon.parts.records)), Past())
    vm.runs.files.keep_definition(replace(definition(), volumes=(VolumeMount("data", "/srv"),)))
    if status is None:
        daemon.systemd.down = True
    else:
        daemon.systemd.live[unit_name("web")] = status
    daemon.run(lambda: daemon.expect_held(volume))


def test_without_run_json_and_systemd_the_definition_counts(daemon: Daemon) -> None:
    volume = daemon.make_volume()
    add_web(daemon, VolumeMount("data", "/srv"))
    daemon.systemd.down = True
    daemon.run(lambda: daemon.expect_held(volume))


@pytest.mark.parametrize("now", [None, NetworkUse("dmz"), NetworkUse("default", group="g")])
def test_a_vm_whose_run_json_is_lost_is_on_the_network_of_its_addresses(
    daemon: Daemon, now: NetworkUse | None
) -> None:
    add_web(daemon)
    inventory = daemon.parts.records
    asyncio.run(inventory.lease("web", Lease("default", "02:00:00:00:00:01", None, None)))
    asyncio.run(inventory.update("web", replace(definition(), network=now), Origin.API))
    daemon.systemd.live[unit_name("web")] = BETWEEN_RUNS

    async def scenario() -> None:
        member = daemon.parts.fleet.get("web").network_member
        assert member.running is not None
        assert member.running.name == "default"
        # how it may be reached there is known from its definition only
        assert (member.running.group, member.running.isolate) in ((None, True), ("g", None))

    daemon.run(scenario)


@contextmanager
def running_unknown(daemon: Daemon) -> Iterator[list[Path]]:
    """A VMM has the files of the VM web, of which systemd knows nothing. Gives these files."""
    config, disk = daemon.runtime / "web/config.img", daemon.vms / "web/disk.ext4"
    (daemon.runtime / "web").mkdir(parents=True)
    config.write_bytes(bytes(512))
    ensure_disk(disk, 64 * MIB, 61234, daemon.vms.parent / "templates")
    (daemon.vms / "web/run.json").write_text("{}")
    with locked(config, READS), locked(disk):
        yield [config, disk, daemon.vms / "web/run.json"]


def about(paths: list[Path]) -> list[tuple[int, int, int]]:
    return [((it := path.stat()).st_ino, it.st_uid, it.st_mode) for path in paths]


def test_a_vm_whose_disk_a_vmm_has_is_neither_deleted_nor_started(daemon: Daemon) -> None:
    add_web(daemon)

    async def refuse(before: list[tuple[int, int, int]], files: list[Path]) -> None:
        with pytest.raises(InUse, match=r"disk.ext4 is being written to by a VMM.* cannot be removed"):
            await daemon.manager.delete_vm("web")
        with pytest.raises(InUse, match=r"disk.ext4 is being written to by a VMM.* cannot be changed"):
            await daemon.manager.start_vm("web")
        assert about(files) == before
        assert daemon.systemd.live == {}
        assert (await daemon.manager.get_vm("web")).state is State.STOPPED

    async def scenario() -> None:
        await refuse(before, files)
        holding.close()
        await daemon.manager.start_vm("web")
        assert unit_name("web") in daemon.systemd.live
        await daemon.manager.delete_vm("web")
        assert not (daemon.vms / "web").exists()

    with ExitStack() as holding:
        files = holding.enter_context(running_unknown(daemon))
        before = about(files)
        daemon.run(scenario)


def test_a_creation_that_fails_while_a_vmm_has_the_disk_keeps_the_vm(daemon: Daemon) -> None:
    async def scenario() -> None:
        with ExitStack() as holding:

            async def run_all_the_same(plan: UnitPlan) -> None:
                del daemon.systemd.live[unit_name(plan.vm)]
                holding.enter_context(locked(daemon.vms / "web/disk.ext4"))
                raise BusError("no such property", errno.EINVAL)

            daemon.systemd.taken = run_all_the_same
            with pytest.raises(BusError, match="no such property"):
                await daemon.manager.create_vm(definition(), start=True)
            assert (daemon.vms / "web/disk.ext4").exists()
            assert daemon.parts.fleet.find("web") is not None
        await daemon.manager.delete_vm("web")
        assert list(daemon.vms.iterdir()) == []

    daemon.run(scenario)


def test_a_fill_that_fails_while_a_vmm_has_the_volume_says_what_failed(daemon: Daemon) -> None:
    async def scenario() -> None:
        with ExitStack() as holding:

            async def take_volume(*_arguments: object) -> Image:
                (volume,) = daemon.parts.volumes
                holding.enter_context(locked(volume.disk))
                raise NotFound("there is no image")

            daemon.images.have_within = take_volume  # type: ignore[method-assign]
            with pytest.raises(NotFound, match="there is no image"):
                async with daemon.volumes.fill_volume("data", 16 * MIB, {}, None):
                    pass
            (volume,) = daemon.parts.volumes
            assert volume.disk.exists()
            assert not volume.ready

    daemon.run(scenario)


def test_a_volume_that_is_being_filled_goes_when_the_vm_that_fills_it_has_ended(
    daemon: Daemon, caplog: pytest.LogCaptureFixture
) -> None:
    volume = daemon.parts.volumes.create("half", 16 * MIB, {}, ready=False)
    name = derive_filler(volume)
    inventory = daemon.parts.records
    inventory.load()
    mounts = (VolumeMount(volume.id, "/volume"),)
    asyncio.run(inventory.add(replace(definition(), name=name, volumes=mounts), Origin.HELPER))
    daemon.systemd.live[unit_name(name)] = BETWEEN_RUNS

    async def scenario() -> None:
        assert volume.disk.exists()
        await daemon.recovery.clean_up()
        assert daemon.parts.fleet.find(name) is None
        assert list(daemon.parts.volumes) == []
        assert "cannot remove" not in caplog.text

    with ExitStack() as vmm:
        vmm.enter_context(locked(volume.disk))
        daemon.systemd.on_stop = vmm.close
        daemon.run(scenario)


def test_runtime_folders_go_only_where_systemd_and_the_locks_know_of_no_vmm(daemon: Daemon) -> None:
    for name in ("ghost", "loaded", "open"):
        (daemon.runtime / name).mkdir(parents=True)
        (daemon.runtime / name / "config.img").write_bytes(bytes(512))
    daemon.systemd.loaded = {"loaded": "active"}

    async def scenario() -> None:
        # what systemd does not answer for is left
        assert len(list(daemon.runtime.iterdir())) == 3
        daemon.systemd.down = True
        await daemon.recovery.clean_up()
        assert len(list(daemon.runtime.iterdir())) == 3
        daemon.systemd.down = False
        with locked(daemon.runtime / "open/config.img", READS):
            await daemon.recovery.clean_up()
        assert sorted(path.name for path in daemon.runtime.iterdir()) == ["loaded", "open"]

    daemon.run(scenario)


@pytest.mark.parametrize("lost", ["record", "folder"])
def test_no_image_goes_while_it_is_not_known_which_vms_there_are(daemon: Daemon, lost: str) -> None:
    add_web(daemon)
    if lost == "record":
        (daemon.vms / "web/vm.json").write_text("{")
    else:
        daemon.vms.rename(daemon.vms.with_name("elsewhere"))
        daemon.vms.write_text("where the VMs were")
    images = Images(cast(Any, None), cast(Any, NoPulls()), check_uses=daemon.parts.records.check_complete)

    async def scenario() -> None:
        with pytest.raises(HostNotReady):
            await images.prune_images(every=True, dry_run=False)
        with pytest.raises(HostNotReady):
            await images.remove_image("oci:/app")

    daemon.run(scenario)


class NoPulls:
    """None is on."""

    async def cancel(self, _name: object) -> bool:
        return False
