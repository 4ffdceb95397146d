# SPDX-License-Identifier: Apache-2.0
"""Nothing that the host does to disks touches one that a VMM has open."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from hypemand.config.vmdef import parse_definition
from hypemand.errors import InUse
from hypemand.manager.inventory import Inventory
from hypemand.manager.uids import Uids
from hypemand.model.state import Origin
from hypemand.storage.disks import ensure_disk, has_journal_to_replay, make_fresh_disk, remove_disk
from hypemand.storage.images import Image
from hypemand.storage.replay import replay_here
from hypemand.storage.store import ImageStore
from hypemand.storage.volume import Volume
from hypemand.storage.volumes import VolumeStore
from hypemand.storage.volumestart import prepare_volume
from tests.unit.storage.diskuser import READS, WRITES, in_qemu, locked
from tests.unit.storage.test_images import put

MIB = 1024 * 1024
UID = 61234


@pytest.fixture
def store(tmp_path: Path) -> VolumeStore:
    store = VolumeStore(tmp_path / "volumes", tmp_path / "templates")
    store.load()
    return store


@pytest.fixture
def volume(store: VolumeStore) -> Volume:
    return store.create("data", 16 * MIB, {})


def about(path: Path) -> tuple[int, ...]:
    it = path.stat()
    return it.st_ino, it.st_size, it.st_uid, it.st_mode, it.st_mtime_ns, it.st_ctime_ns


def expect_untouched(disk: Path, work: Callable[[], object]) -> None:
    """Refused for each way to have the disk, and done when nobody has."""
    before = about(disk)
    for held in (WRITES, READS):
        with locked(disk, held), pytest.raises(InUse, match=disk.name):
            work()
        assert about(disk) == before
    work()
    assert not disk.exists() or about(disk) != before


WORK: dict[str, Callable[[Path, Path], object]] = {
    "grown": lambda disk, templates: ensure_disk(disk, 32 * MIB, UID, templates),
    "given to a user": lambda disk, templates: ensure_disk(disk, 16 * MIB, UID, templates),
    "made anew": lambda disk, templates: make_fresh_disk(disk, 16 * MIB, UID, templates),
    "removed": lambda disk, _templates: remove_disk(disk),
    "given to a writer": lambda disk, _templates: prepare_volume(disk, "web", UID, writes=True),
}


@pytest.mark.parametrize("work", WORK.values(), ids=WORK.keys())
def test_a_disk_in_use_is_not(tmp_path: Path, work: Callable[[Path, Path], object]) -> None:
    disk, templates = tmp_path / "disk.ext4", tmp_path / "templates"
    ensure_disk(disk, 16 * MIB, -1, templates)
    expect_untouched(disk, lambda: work(disk, templates))


def test_a_volume_in_use_is_neither_resized_nor_removed(store: VolumeStore, volume: Volume) -> None:
    with in_qemu(volume.disk):
        before = about(volume.disk)
        with pytest.raises(InUse, match="cannot be removed"):
            store.remove(volume)
        with pytest.raises(InUse, match="cannot be changed"):
            store.resize(volume, 32 * MIB)
        assert about(volume.disk) == before
        assert store.get("data") == volume
        assert [path.name for path in volume.folder.parent.iterdir()] == [volume.id]
    expect_untouched(volume.disk, lambda: store.resize(volume, 32 * MIB))
    expect_untouched(volume.disk, lambda: store.remove(store.get("data")))


def test_a_volume_that_was_not_filled_waits_until_nobody_has_it(
    tmp_path: Path, store: VolumeStore, caplog: pytest.LogCaptureFixture
) -> None:
    filling = store.create("filling", 16 * MIB, {}, ready=False)
    again = VolumeStore(tmp_path / "volumes", tmp_path / "templates")
    with locked(filling.disk):
        again.load()
        again.remove_unfilled(filling)
        assert [(volume.name, volume.ready) for volume in again] == [("filling", False)]
        assert "cannot remove the volume filling" in caplog.text
    again.remove_unfilled(filling)
    assert list(again) == []


def test_a_reader_beside_a_reader_and_none_beside_a_writer(volume: Volume) -> None:
    prepare_volume(volume.disk, "web", UID, writes=False)
    with in_qemu(volume.disk, readonly=True):
        prepare_volume(volume.disk, "web", UID, writes=False)
    before = about(volume.disk)
    with in_qemu(volume.disk), pytest.raises(InUse, match=r"written to .* cannot be given to a VM"):
        prepare_volume(volume.disk, "web", UID, writes=False)
    assert about(volume.disk) == before


def test_no_journal_is_replayed_that_a_vmm_may_write_to(volume: Volume) -> None:
    """A file system that is mounted looks like one that was left by a crash."""
    subprocess.run(
        ["debugfs", "-w", "-R", "feature +needs_recovery", str(volume.disk)], check=True, timeout=60
    )
    held: list[bool] = []

    def replay(disk: Path, uid: int) -> None:
        # for as long as it takes, a VMM that systemd starts alone is kept away
        with in_qemu(disk):
            held.append(False)
        replay_here(disk, uid)

    for there in (WRITES, READS):
        with locked(volume.disk, there), pytest.raises(InUse):
            prepare_volume(volume.disk, "web", os.getuid(), writes=False, replay=replay_here)
        assert has_journal_to_replay(volume.disk)
    with pytest.raises(AssertionError):
        prepare_volume(volume.disk, "web", os.getuid(), writes=False, replay=replay)
    assert held == []
    prepare_volume(volume.disk, "web", os.getuid(), writes=False, replay=replay_here)
    assert not has_journal_to_replay(volume.disk)


def test_a_vm_in_use_keeps_its_folder_and_its_record(tmp_path: Path) -> None:
    inventory = Inventory(tmp_path / "vms", Uids((61184, 65519), tmp_path / "userdb"))
    inventory.load()
    record = asyncio.run(inventory.add(parse_definition("web", {"image": "app"}), Origin.API))
    disk = inventory.folder("web") / "disk.ext4"
    ensure_disk(disk, 16 * MIB, record.uid, tmp_path / "templates")
    for refuse in (inventory.check_removable, lambda name: asyncio.run(inventory.remove(name))):
        with in_qemu(disk), pytest.raises(InUse, match="cannot be removed"):
            refuse("web")
        assert inventory.find("web") == record
        assert sorted(path.name for path in inventory.folder("web").iterdir()) == ["disk.ext4", "vm.json"]
    asyncio.run(inventory.remove("web"))
    assert not inventory.folder("web").exists()


@pytest.fixture
def image(tmp_path: Path) -> tuple[ImageStore, Image]:
    store = ImageStore(tmp_path / "images", ())
    store.prepare()
    return store, put(store.folder, "app")


def test_an_image_that_a_vmm_has_is_neither_removed_nor_pruned(image: tuple[ImageStore, Image]) -> None:
    store, content = image
    with in_qemu(content.rootfs, readonly=True):
        with pytest.raises(InUse, match=r"rootfs.erofs is being read by a VMM"):
            store.remove_image("app", [])
        assert store.prune([], every=True) == store.find_prunable([], every=True) == []
        assert store.get_image("app").digest == content.digest
        # and others may have it all the same
        with in_qemu(content.rootfs, readonly=True):
            pass
    assert [pruned.names for pruned in store.prune([], every=True)] == [("app",)]
