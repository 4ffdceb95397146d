# SPDX-License-Identifier: Apache-2.0
"""Room for an image that is being made: what is too large is ended before it has taken all."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hypemand.errors import InsufficientResources, WrongState
from hypemand.storage.importer import import_image
from hypemand.storage.room import RoomWatch
from hypemand.storage.store import ImageStore
from tests.unit.storage.support import make_tar, member, shell

MIB = 1024 * 1024


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m,nr_inodes=4000", "none", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_what_takes_too_much_is_ended_and_that_is_its_error(disk: Path) -> None:
    stopped = threading.Event()
    watch = RoomWatch("the image app", disk, 4 * MIB, stopped.set)

    def work() -> None:
        with open(disk / "file", "wb") as file:
            while not stopped.wait(0.01):
                file.write(bytes(MIB // 8))
                file.flush()
        raise WrongState("this was cancelled")

    words = "the image app needs more disk space than available"
    with pytest.raises(InsufficientResources, match=words) as caught, watch.watching():
        work()
    assert "16M free, of which 4M are kept" in str(caught.value)
    assert os.statvfs(disk).f_bavail > 0


def test_what_fails_by_itself_says_so_and_what_fits_is_left_alone(disk: Path) -> None:
    watch = RoomWatch("it", disk, 4 * MIB, lambda: pytest.fail("it was ended"))
    with pytest.raises(ValueError, match="mine"), watch.watching():
        raise ValueError("mine")
    with watch.watching():
        (disk / "file").write_bytes(bytes(8 * MIB))
    watch.check()


def test_a_file_system_without_room_for_more_files_is_full(disk: Path) -> None:
    watch = RoomWatch("it", disk, 0, lambda: None)
    for number in range(3500):
        (disk / str(number)).touch()
    with pytest.raises(InsufficientResources, match="needs more disk space than available"):
        watch.check()


def test_what_cannot_fit_is_refused_with_the_figures(disk: Path) -> None:
    watch = RoomWatch("the image app", disk, 4 * MIB, lambda: None)
    watch.need(11 * MIB)
    words = f"the image app needs at least 13M of disk, and {disk} has 16M free, of which 4M are kept"
    with pytest.raises(InsufficientResources, match=words):
        watch.need(13 * MIB)


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_a_small_tar_that_becomes_a_large_one_leaves_nothing(tmp_path: Path, disk: Path, mode: str) -> None:
    source = make_tar(tmp_path / "bomb", [shell(), member("zeros", bytes(64 * MIB))], mode)
    store = ImageStore(disk / "images", [], lambda: 4 * MIB)
    with pytest.raises(InsufficientResources, match="4M are kept"):
        import_image(store, "app", str(source))
    assert [path.name for path in (disk / "images").rglob("*")] == [".staging"]
