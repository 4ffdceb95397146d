# SPDX-License-Identifier: Apache-2.0
"""Block devices of the host as volumes of VMs, such as LUNs: from the pools of the host config that have
devices.

The daemon does not open them, and writes nothing to them: what is on a device is the administrator's. Of two
VMs on this host the lock of QEMU refuses the second. It is a lock on the device node of this host, and says
nothing of other hosts.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from hypemand.errors import HostNotReady, InUse, NotFound

_MOUNTS = Path("/proc/self/mountinfo")
_SWAPS = Path("/proc/swaps")
_BLOCK_DEVICES = Path("/sys/dev/block")
# what else is named there may be slow to ask
_DEV = "/dev/"
_SERIAL_DIGITS = 16


@dataclass(frozen=True, slots=True)
class Device:
    """A block device. `name`: POOL/NAME; `group`: the id of the group that may open it (`examine_device`)."""

    name: str
    disk: Path
    group: int = -1

    @property
    def ref(self) -> str:
        """What definitions call it."""
        return self.name

    @property
    def serial(self) -> str:
        """The serial number of its drive in a guest; 20 bytes, the most of virtio-blk."""
        return f"dev-{hashlib.sha256(self.name.encode()).hexdigest()[:_SERIAL_DIGITS]}"


def find_device(name: str, pools: Mapping[str, Path]) -> Device:
    """The device POOL/NAME, of these pools, whether or not it is there. NotFound. Pure."""
    pool, _, word = name.partition("/")
    if pool not in pools:
        there = ", ".join(sorted(pools)) or "none"
        hint = f"pools: of the host configuration has with devices: {there}"
        raise NotFound(f"there is no pool {pool[:80]} of devices", hint=hint)
    return Device(name, pools[pool] / word)


def examine_device(
    device: Device,
    *,
    writes: bool,
    mounts: Path = _MOUNTS,
    swaps: Path = _SWAPS,
    block_devices: Path = _BLOCK_DEVICES,
) -> Device:
    """The device with its group, if a VMM can have it. NotFound; HostNotReady if it is no whole block device,
    or its group cannot open it; InUse if the host itself has mounted it, swaps to it, or has another device
    on top of it or on a part of it. OSError. Blocks."""
    try:
        found = device.disk.stat()
    except FileNotFoundError:
        hint = f"ls -l {device.disk.parent} shows the devices"
        raise NotFound(f"the device {device.disk} does not exist", hint=hint) from None
    if not stat.S_ISBLK(found.st_mode):
        raise HostNotReady(f"{device.disk} is not a block device")
    folder = block_devices / _format_number(found.st_rdev)
    if (folder / "partition").exists():
        # the locks of two VMs that have it and the whole device would not meet
        raise HostNotReady(f"{device.disk} is a partition", hint="use a whole device")
    wanted = stat.S_IRGRP | (stat.S_IWGRP if writes else 0)
    if found.st_mode & wanted != wanted or found.st_gid == 0:
        raise HostNotReady(
            f"{device.disk} cannot be {'written to' if writes else 'read'} by a group other than root",
            hint="set GROUP=disk and MODE=0660 for it by a rule of udev(7)",
        )
    parts = {folder.name, *(one.read_text().strip() for one in folder.glob("*/dev"))}
    for use in (*_find_mounts(mounts.read_text(), parts), *_find_swaps(swaps.read_text(), parts)):
        raise InUse(f"{device.disk} is {use}", hint="take it out of use there first")
    holders = sorted({one.name for pattern in ("holders/*", "*/holders/*") for one in folder.glob(pattern)})
    if holders:
        raise InUse(
            f"{device.disk} is in use on this host by {holders[0]}",
            hint="use the device on top of it, such as that of multipath in /dev/mapper",
        )
    return replace(device, group=found.st_gid)


def _format_number(number: int) -> str:
    return f"{os.major(number)}:{os.minor(number)}"


def _find_mounts(mountinfo: str, parts: Container[str]) -> Iterator[str]:
    """Of proc_pid_mountinfo(5). The number of a btrfs is none of a device, but its source is one."""
    for line in mountinfo.splitlines():
        fields = line.split()
        source = fields[fields.index("-") + 2]
        if fields[2] in parts or _find_number(source) in parts:
            yield f"mounted on this host, on {fields[4]}"


def _find_swaps(swaps: str, parts: Container[str]) -> Iterator[str]:
    """Of proc_swaps(5), below its heading."""
    for line in swaps.splitlines()[1:]:
        if _find_number(line.split()[0]) in parts:
            yield "swap space of this host"


def _find_number(path: str) -> str:
    """That of a device node of the host; "" for what is none."""
    if not path.startswith(_DEV):
        return ""
    try:
        found = os.stat(path)
    except OSError:
        return ""
    return _format_number(found.st_rdev) if stat.S_ISBLK(found.st_mode) else ""
