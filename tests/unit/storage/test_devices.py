# SPDX-License-Identifier: Apache-2.0
"""Block devices of the host as volumes."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from hypemand.errors import HostNotReady, InUse, NotFound
from hypemand.storage.devices import Device, examine_device, find_device

# mknod(2) makes a node, whether or not there is such a device
NUMBER = os.makedev(7, 200)
SWAPS = "Filename Type Size Used Priority\n/swapfile file 1048572 0 -2\n"
MOUNTS = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"


@pytest.fixture
def lun(tmp_path: Path) -> Path:
    """A directory with a device of the group disk."""
    folder = tmp_path / "lun"
    folder.mkdir()
    os.mknod(folder / "sdx", stat.S_IFBLK, NUMBER)
    (folder / "sdx").chmod(0o660)
    os.chown(folder / "sdx", 0, 6)
    (folder / "scsi-1").symlink_to("sdx")
    (folder / "file").touch()
    return folder


def find(lun: Path, word: str = "scsi-1") -> Device:
    return find_device(f"lun/{word}", {"lun": lun})


def test_a_device_is_found_by_a_link_and_has_a_serial_number_of_its_own(lun: Path) -> None:
    found, other = (examine_device(find(lun, word), writes=True) for word in ("scsi-1", "sdx"))
    assert (found.name, found.ref, found.disk, found.group) == ("lun/scsi-1", "lun/scsi-1", lun / "scsi-1", 6)
    assert found.serial != other.serial
    assert len(found.serial) <= 20


def test_what_is_no_device_is_named(lun: Path) -> None:
    with pytest.raises(NotFound, match="there is no pool san of devices") as refused:
        find_device("san/a", {"lun": lun})
    assert "lun" in refused.value.hint
    with pytest.raises(NotFound, match=f"the device {lun}/gone does not exist"):
        examine_device(find(lun, "gone"), writes=False)
    with pytest.raises(HostNotReady, match=f"{lun}/file is not a block device"):
        examine_device(find(lun, "file"), writes=False)


def check(
    device: Device, tmp_path: Path, mounts: str = MOUNTS, *, swaps: str = SWAPS, writes: bool = True
) -> None:
    (tmp_path / "mounts").write_text(mounts)
    (tmp_path / "swaps").write_text(swaps)
    places = {"mounts": tmp_path / "mounts", "swaps": tmp_path / "swaps"}
    examine_device(device, writes=writes, block_devices=tmp_path / "block", **places)


@pytest.mark.parametrize(
    ("mode", "group", "writes", "problem"),
    [
        (0o660, 6, True, ""),
        (0o640, 6, False, ""),
        (0o640, 6, True, "cannot be written to by a group"),
        (0o600, 6, False, "cannot be read by a group"),
        (0o660, 0, True, "cannot be written to by a group other than root"),
    ],
)
def test_its_group_must_be_able_to_open_it(
    lun: Path, tmp_path: Path, mode: int, group: int, *, writes: bool, problem: str
) -> None:
    os.chown(lun / "sdx", 0, group)
    (lun / "sdx").chmod(mode)
    if not problem:
        check(find(lun), tmp_path, writes=writes)
        return
    with pytest.raises(HostNotReady, match=problem):
        check(find(lun), tmp_path, writes=writes)


def test_what_the_host_uses_itself_is_no_vms(lun: Path, tmp_path: Path) -> None:
    device = find(lun)
    with pytest.raises(InUse, match="scsi-1 is mounted on this host, on /mnt"):
        check(device, tmp_path, f"{MOUNTS}31 22 7:200 / /mnt rw - ext4 /dev/x rw\n")
    part = tmp_path / "block/7:200/sdx1"
    (part / "holders").mkdir(parents=True)
    (part / "dev").write_text("7:201\n")
    check(device, tmp_path)
    with pytest.raises(InUse, match="is mounted on this host, on /mnt"):
        check(device, tmp_path, f"{MOUNTS}31 22 7:201 / /mnt rw - ext4 /dev/x1 rw\n")
    (part / "holders/dm-3").mkdir()
    with pytest.raises(InUse, match="is in use on this host by dm-3"):
        check(device, tmp_path)


def test_the_host_uses_what_it_swaps_to_and_what_a_btrfs_is_on(
    lun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hypemand.storage.devices._DEV", f"{lun}/")
    device, node = find(lun), lun / "sdx"
    with pytest.raises(InUse, match="scsi-1 is swap space of this host"):
        check(device, tmp_path, swaps=f"{SWAPS}{node} partition 1048572 0 -3\n")
    with pytest.raises(InUse, match="scsi-1 is mounted on this host, on /home"):
        check(device, tmp_path, f"{MOUNTS}31 22 0:35 /home /home rw shared:1 - btrfs {node} rw\n")
    check(device, tmp_path, f"{MOUNTS}31 22 0:35 / /proc rw - proc proc rw\n")


def test_a_partition_is_refused(lun: Path, tmp_path: Path) -> None:
    folder = tmp_path / "block/7:200"
    folder.mkdir(parents=True)
    (folder / "partition").write_text("1\n")
    with pytest.raises(HostNotReady, match="scsi-1 is a partition"):
        check(find(lun), tmp_path)
