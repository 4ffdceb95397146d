# SPDX-License-Identifier: Apache-2.0
"""Disks of VMs, with the real tools of e2fsprogs."""

from __future__ import annotations

import stat
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from hypemand.config.definition import GIB, MIB
from hypemand.config.schemafile import load_schema
from hypemand.config.sizes import parse_size
from hypemand.errors import HypemandError, InsufficientResources, InvalidDefinition
from hypemand.run import Completed, run
from hypemand.storage.disks import MAX_SIZE, DiskChange, ensure_disk, find_size_problem

UID = 61235


def test_what_may_be_written_can_be_made() -> None:
    """The check of a file refuses what a start would refuse."""
    for name, where in (("vm", ()), ("host", ("defaults", "properties"))):
        found = load_schema(name)["properties"]
        for key in where:
            found = found[key]
        assert parse_size(found["disk"]["x-size"]["maximum"]) == MAX_SIZE


def check(path: Path) -> None:
    """The file system is without a fault."""
    run(["e2fsck", "-fn", str(path)], timeout=60)


def put(path: Path, name: str, text: str) -> None:
    run(["debugfs", "-w", "-R", f"write /dev/stdin {name}", str(path)], timeout=60, input=text.encode())


def get(path: Path, name: str) -> str:
    return run(["debugfs", "-R", f"cat {name}", str(path)], timeout=60).stdout.decode()


def header(path: Path) -> dict[str, str]:
    lines = run(["dumpe2fs", "-h", str(path)], timeout=60).stdout.decode().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def test_a_new_disk_is_sparse_sound_and_its_vmms_own(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    assert ensure_disk(path, 10 * GIB, UID, tmp_path / "templates") is DiskChange.MADE
    about = path.stat()
    assert about.st_size == 10 * GIB
    assert about.st_blocks * 512 < 1 * MIB
    assert (stat.S_IMODE(about.st_mode), about.st_uid) == (0o600, UID)
    check(path)
    told = header(path)
    assert told["Filesystem volume name"] == "hypeman-disk"
    assert told["Reserved block count"] == "0"
    assert "has_journal" in told["Filesystem features"]


def test_a_new_disk_has_nothing_but_lost_and_found_as_the_guide_says(tmp_path: Path) -> None:
    ensure_disk(tmp_path / "disk.img", 64 * MIB, UID, tmp_path / "templates")
    listed = run(["debugfs", "-R", "ls -p /", str(tmp_path / "disk.img")], timeout=60).stdout.decode()
    names = {line.split("/")[5] for line in listed.splitlines() if line.count("/") > 5}
    assert names == {".", "..", "lost+found"}
    assert "`lost+found`" in (Path(__file__).parents[3] / "docs/volumes.md").read_text()


def test_the_guests_kernel_has_no_inode_tables_to_clear(tmp_path: Path) -> None:
    ensure_disk(tmp_path / "disk.img", 1 * GIB, UID, tmp_path / "templates")
    groups = run(["dumpe2fs", str(tmp_path / "disk.img")], timeout=60).stdout.decode()
    assert groups.count("ITABLE_ZEROED") == groups.count(": (Blocks ") == 8


def test_the_second_disk_of_a_size_is_a_copy_for_which_nothing_is_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[str] = []

    def note(argv: Sequence[str], **how: Any) -> Completed:
        commands.append(argv[0])
        return run(argv, **how)

    monkeypatch.setattr("hypemand.storage.disks.run", note)
    for name, size in (("first", 10 * GIB), ("second", 10 * GIB), ("other", 11 * GIB), ("third", 10 * GIB)):
        ensure_disk(tmp_path / f"{name}.img", size, UID, tmp_path / "templates")
    assert commands == ["mke2fs"] * 2


def test_a_disk_that_is_right_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    ensure_disk(path, 64 * MIB, UID, tmp_path / "templates")
    put(path, "kept", "content")
    assert ensure_disk(path, 64 * MIB, UID + 1, tmp_path / "templates") is DiskChange.KEPT
    assert get(path, "kept") == "content"
    assert path.stat().st_uid == UID + 1


@pytest.mark.parametrize("size", [100 * MIB, 40 * GIB])
def test_a_disk_is_made_larger_and_keeps_what_is_on_it(tmp_path: Path, size: int) -> None:
    path = tmp_path / "disk.img"
    ensure_disk(path, 64 * MIB, UID, tmp_path / "templates")
    put(path, "kept", "content")
    before = path.read_bytes()
    assert ensure_disk(path, size, UID, tmp_path / "templates") is DiskChange.GROWN
    assert path.stat().st_size == size
    with path.open("rb") as disk:
        assert disk.read(64 * MIB) == before, "the file system is the guest's to change"
    assert ensure_disk(path, size, UID, tmp_path / "templates") is DiskChange.KEPT


def test_a_disk_never_shrinks(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    ensure_disk(path, 128 * MIB, UID, tmp_path / "templates")
    problem = find_size_problem(path, 64 * MIB)
    assert problem is not None
    assert "cannot shrink" in problem.message
    with pytest.raises(
        InvalidDefinition, match=r"disk: 64M is less than the 128M that .* write 128M or more"
    ):
        ensure_disk(path, 64 * MIB, UID, tmp_path / "templates")
    assert path.stat().st_size == 128 * MIB
    check(path)


@pytest.mark.parametrize("size", [0, 1 * MIB, 1024 * 1024 * GIB])
def test_a_size_that_cannot_be_is_refused(tmp_path: Path, size: int) -> None:
    with pytest.raises(InvalidDefinition, match="is not a valid size; write 16M to 16T"):
        ensure_disk(tmp_path / "disk.img", size, UID, tmp_path / "templates")
    assert list(tmp_path.iterdir()) == []


def test_an_odd_size_is_rounded_up(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    ensure_disk(path, 20_000_001, UID, tmp_path / "templates")
    assert path.stat().st_size == 20_000_768
    assert ensure_disk(path, 20_000_001, UID, tmp_path / "templates") is DiskChange.KEPT
    check(path)


def test_a_disk_with_something_else_on_it_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(b"precious" * 1000)
    with pytest.raises(HypemandError, match="no ext4"):
        ensure_disk(path, 64 * MIB, UID, tmp_path / "templates")
    assert path.read_bytes() == b"precious" * 1000


def test_many_at_once_share_one_template(tmp_path: Path) -> None:
    def make(number: int) -> DiskChange:
        return ensure_disk(tmp_path / f"{number}.img", 64 * MIB, UID, tmp_path / "templates")

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(make, range(16))) == {DiskChange.MADE}
    assert len(list((tmp_path / "templates").iterdir())) == 1
    for number in range(16):
        check(tmp_path / f"{number}.img")


def test_a_full_host_is_told_and_nothing_is_left(tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "none", full], check=True)
    try:
        with pytest.raises(InsufficientResources, match="no space left"):
            ensure_disk(full / "disk.img", 10 * GIB, UID, tmp_path / "templates")
        assert list(full.iterdir()) == []
    finally:
        subprocess.run(["umount", full], check=True)
