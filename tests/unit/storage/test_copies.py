# SPDX-License-Identifier: Apache-2.0
"""Copies of disks: they share blocks where the file system can, and are sparse where it cannot."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from hypemand.config.definition import MIB
from hypemand.storage.disks import copy_disk, ensure_disk
from tests.sharedblocks import file_system_that_shares, measure_used

FICLONE = 0x40049409  # linux/fs.h
SIZE, DATA, HOLE = 256 * MIB, 24 * MIB, 64 * MIB
# of what a file system needs for a file, beside its content
MARGIN = 2 * MIB


def write_disk(path: Path) -> None:
    """A file of which a part is data."""
    with path.open("xb") as file:
        file.truncate(SIZE)
        file.seek(HOLE)
        file.write(os.urandom(DATA))
        os.fsync(file.fileno())


def is_same(one: Path, other: Path) -> bool:
    """Is their content the same, holes included?"""
    with one.open("rb") as first, other.open("rb") as second:
        if one.stat().st_size != other.stat().st_size:
            return False
        return all(first.read(MIB) == second.read(MIB) for _ in range(SIZE // MIB + 1))


def stored(path: Path) -> int:
    return path.stat().st_blocks * 512


def refuse(number: int) -> tuple[list[tuple[str, int]], Callable[[int, int, int], int]]:
    """An ioctl(2) that fails so, and what it was asked: of which file, whose blocks, and which request."""
    asked: list[tuple[str, int]] = []

    def ioctl(fd: int, request: int, argument: int) -> int:
        assert os.fstat(fd).st_size == 0, "nothing was copied before"
        asked.append((Path(os.readlink(f"/proc/self/fd/{argument}")).name, request))
        raise OSError(number, os.strerror(number))

    return asked, ioctl


def test_a_copy_shares_all_blocks_until_one_is_written(tmp_path: Path) -> None:
    with file_system_that_shares(tmp_path) as place:
        source, copy = place / "disk", place / "copy"
        write_disk(source)
        before = measure_used(place)
        copy_disk(source, copy, mode=0o640)
        assert measure_used(place) - before < MARGIN
        assert is_same(source, copy)
        assert copy.stat().st_mode & 0o777 == 0o640
        with copy.open("r+b") as file:
            file.seek(HOLE)
            file.write(bytes(4096))
        assert not is_same(source, copy)
        assert measure_used(place) - before < MARGIN


def test_a_new_disk_shares_the_blocks_of_its_template(tmp_path: Path) -> None:
    with file_system_that_shares(tmp_path) as place:
        # with a journal of 32 MiB, whose blocks are the same in each
        ensure_disk(place / "first", 2048 * MIB, os.getuid(), place / "templates")
        before = measure_used(place)
        for number in range(8):
            ensure_disk(place / f"disk{number}", 2048 * MIB, os.getuid(), place / "templates")
        assert stored(place / "disk0") > 64 * 1024
        assert measure_used(place) - before < stored(place / "disk0")


def test_a_copy_to_another_file_system_is_sparse(tmp_path: Path) -> None:
    with file_system_that_shares(tmp_path) as place:
        write_disk(place / "disk")
        copy_disk(place / "disk", tmp_path / "copy")
        assert is_same(place / "disk", tmp_path / "copy")
        assert DATA <= stored(tmp_path / "copy") < DATA + MARGIN


# ioctl_ficlone(2): in a file system without it, to another one, files that cannot share, a file system whose
# ioctl(2) knows none of it, a kernel without it
@pytest.mark.parametrize(
    "number",
    [errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS],
    ids=errno.errorcode.get,
)
def test_where_blocks_cannot_be_shared_a_copy_is_sparse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    asked, ioctl = refuse(number)
    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    write_disk(tmp_path / "disk")
    checks: list[None] = []
    copy_disk(tmp_path / "disk", tmp_path / "copy", check=lambda: checks.append(None))
    assert asked == [("disk", FICLONE)]
    assert is_same(tmp_path / "disk", tmp_path / "copy")
    assert DATA <= stored(tmp_path / "copy") < DATA + MARGIN
    assert len(checks) == DATA // MIB


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EPERM], ids=errno.errorcode.get)
def test_a_copy_that_fails_for_another_reason_has_failed_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    asked, ioctl = refuse(number)
    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    write_disk(tmp_path / "disk")
    with pytest.raises(OSError, match=os.strerror(number)) as raised:
        copy_disk(tmp_path / "disk", tmp_path / "copy")
    assert (raised.value.errno, raised.value.filename) == (number, str(tmp_path / "copy"))
    assert len(asked) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["disk"]
