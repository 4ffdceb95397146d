# SPDX-License-Identifier: Apache-2.0
"""Volumes that several hosts have: nothing is done to one but under its lock, and errors name who has it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from hypemand.errors import InUse
from hypemand.storage.volume import Volume
from hypemand.storage.volumelock import find_lock_file, lock_volume
from hypemand.storage.volumes import VolumeStore
from hypemand.storage.volumestart import prepare_volume
from tests.unit.storage.diskuser import READS, locked
from tests.unit.storage.test_disks_in_use import about

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


def refuse(volume: Volume, *, writes: bool) -> str:
    with pytest.raises(InUse) as refused:
        prepare_volume(volume.disk, "other", UID, writes=writes)
    return str(refused.value.message)


def test_who_has_it_is_named_and_nothing_of_it_is_changed(volume: Volume) -> None:
    prepare_volume(volume.disk, "web", UID, writes=True)
    # a file system that is mounted
    mark = ["debugfs", "-w", "-R", "feature +needs_recovery", str(volume.disk)]
    subprocess.run(mark, check=True, timeout=60)
    noted, before = find_lock_file(volume.disk).read_bytes(), about(volume.disk)
    with locked(volume.disk):
        for writes in (True, False):
            said = refuse(volume, writes=writes)
            assert f"it was given to VM web on host {os.uname().nodename} (boot " in said
    assert (find_lock_file(volume.disk).read_bytes(), about(volume.disk)) == (noted, before)


def test_all_readers_are_named_and_no_more_of_them_than_there_can_be(volume: Volume) -> None:
    prepare_volume(volume.disk, "before", UID, writes=True)
    prepare_volume(volume.disk, "first", UID, writes=False)
    with locked(volume.disk, READS):
        for name in ("second", "third", "second"):
            prepare_volume(volume.disk, name, UID, writes=False)
        said = refuse(volume, writes=True)
        assert [word for word in said.split() if word in ("before", "first", "second", "third")] == [
            "first",
            "third",
            "second",
        ]
        for number in range(40):
            prepare_volume(volume.disk, f"reader-{number}", UID, writes=False)
        assert refuse(volume, writes=True).count("VM reader-") == 16


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff{",
        b'{"holders": 1}',
        b'{"holders": [{"host": "a\\nb", "boot": "00", "vm": "web"}]}',
        b"[" * 70_000,
    ],
)
def test_a_lock_file_that_says_nothing_sensible_keeps_nobody_away(volume: Volume, content: bytes) -> None:
    find_lock_file(volume.disk).write_bytes(content)
    with locked(volume.disk):
        assert "belongs to root" in refuse(volume, writes=True)
    prepare_volume(volume.disk, "web", UID, writes=True)
    with locked(volume.disk):
        assert "was given to VM web on" in refuse(volume, writes=True)


def test_whom_it_was_given_to_before_this_host_was_booted_has_ended(volume: Volume) -> None:
    prepare_volume(volume.disk, "web", UID, writes=True)
    file = find_lock_file(volume.disk)
    boot = file.read_text().split('"boot": "')[1][:32]
    file.write_text(file.read_text().replace(boot, "0" * 32))
    with locked(volume.disk):
        assert "VM web" not in refuse(volume, writes=True)
    file.write_text(file.read_text().replace(f'"{os.uname().nodename}"', '"elsewhere"', 1))
    with locked(volume.disk):
        assert "VM web on host elsewhere (boot 00000000)" in refuse(volume, writes=True)


def test_what_one_daemon_works_on_another_leaves(
    tmp_path: Path, store: VolumeStore, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hypemand.storage.volumestart._PATIENCE", 0.1)
    with lock_volume(volume.disk, "replayed"):
        before = about(volume.disk)
        for work in (
            lambda: store.resize(volume, 32 * MIB),
            lambda: store.remove(volume),
            lambda: prepare_volume(volume.disk, "web", UID, writes=False),
        ):
            with pytest.raises(InUse, match=r"being worked on, by this host or another"):
                work()
        assert about(volume.disk) == before
    making = tmp_path / "volumes" / f".{'a' * 32}.making"
    making.mkdir()
    with lock_volume(making / "volume.ext4", "made"):
        other = VolumeStore(tmp_path / "volumes", tmp_path / "templates")
        other.load()
        other.clean_up()
        assert making.is_dir()
    other.load()
    other.clean_up()
    assert not making.exists()
    store.resize(volume, 32 * MIB)


def test_who_waits_for_a_removal_finds_that_it_is_gone(store: VolumeStore, volume: Volume) -> None:
    store.remove(volume)
    with pytest.raises(FileNotFoundError), lock_volume(volume.disk, "given to a VM"):
        pass
