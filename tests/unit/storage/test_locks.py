# SPDX-License-Identifier: Apache-2.0
"""Who has a disk open, as QEMU itself and processes with its locks say."""

import os
import subprocess
from pathlib import Path

import pytest

from hypemand.errors import InUse
from hypemand.storage.locks import hold_disk, is_disk_in_use
from tests.unit.storage.diskuser import READS, WRITES, in_qemu, locked, qemu_argv

MIB = 1024 * 1024


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.ext4"
    path.touch()
    os.truncate(path, 16 * MIB)
    return path


def can_hold(disk: Path, *, beside_readers: bool) -> bool:
    try:
        with hold_disk(disk, "changed", beside_readers=beside_readers):
            return True
    except InUse:
        return False


@pytest.mark.parametrize("readonly", [True, False])
def test_a_disk_that_qemu_has_is_in_use_until_it_ends(disk: Path, *, readonly: bool) -> None:
    assert not is_disk_in_use(disk)
    with in_qemu(disk, readonly=readonly):
        assert is_disk_in_use(disk)
        assert can_hold(disk, beside_readers=True) is readonly
        assert not can_hold(disk, beside_readers=False)
    assert not is_disk_in_use(disk)


@pytest.mark.parametrize(("held", "beside_readers"), [(READS, True), (WRITES, False)])
def test_the_locks_that_tests_take_are_those_of_qemu(
    disk: Path, held: tuple[int, ...], *, beside_readers: bool
) -> None:
    with locked(disk, held):
        assert is_disk_in_use(disk)
        assert can_hold(disk, beside_readers=True) is beside_readers
        assert not can_hold(disk, beside_readers=False)


@pytest.mark.parametrize(
    ("beside_readers", "readonly", "opens"),
    [(False, True, False), (False, False, False), (True, False, False), (True, True, True)],
)
def test_qemu_opens_no_disk_that_is_being_worked_on(
    disk: Path, *, beside_readers: bool, readonly: bool, opens: bool
) -> None:
    with hold_disk(disk, "changed", beside_readers=beside_readers):
        argv, quits = qemu_argv(disk, readonly=readonly), b'{"execute":"qmp_capabilities"}{"execute":"quit"}'
        ended = subprocess.run(argv, input=quits, capture_output=True, timeout=60, check=False)
    assert (ended.returncode == 0) is opens, ended.stderr
    assert opens or b"lock" in ended.stderr


def test_the_error_names_the_file_its_owner_what_is_done_and_the_cure(disk: Path) -> None:
    os.chown(disk, 61234, 0)
    with (
        locked(disk),
        pytest.raises(InUse) as refused,
        hold_disk(disk, "removed"),
    ):
        pass
    assert refused.value.message == (
        f"{disk} is being written to by a VMM or another program with QEMU's locks, and cannot be removed"
        " meanwhile; it belongs to uid 61234"
    )
    assert refused.value.hint == f"stop its VM, or the program that `fuser -v {disk}` shows"


def test_what_is_no_disk_is_held_by_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/nowhere")
    for name in ("pipe", "link", "missing", "."):
        assert not is_disk_in_use(tmp_path / name)
