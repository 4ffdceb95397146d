# SPDX-License-Identifier: Apache-2.0
"""Admission of VMs by memory and disk space. Pure, except for reading the host's memory."""

from __future__ import annotations

from pathlib import Path

from hypemand.config.host import DiskPolicy, MemoryPolicy
from hypemand.config.sizes import format_size
from hypemand.errors import InsufficientResources
from hypemand.model.space import Room

_MIB = 1024 * 1024
_MEMINFO = Path("/proc/meminfo")


def read_total_memory(path: Path = _MEMINFO) -> int:
    """Bytes of memory that the host has."""
    for line in path.read_text().splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"{path} has no MemTotal")


def derive_usable(total: int, policy: MemoryPolicy | DiskPolicy) -> int:
    """What of the `total` bytes of memory, or of a file system, VMs may have together."""
    return int(max(total - policy.reserve, 0) * policy.overcommit)


def check_memory(name: str, wanted: int, committed: int, total: int, policy: MemoryPolicy) -> None:
    """Raise InsufficientResources, with the figures, when a VM of `wanted` bytes does not fit beside the
    `committed` bytes of the VMs that are active on a host of `total` bytes."""
    usable = derive_usable(total, policy)
    if committed + wanted <= usable:
        return
    free = max(usable - committed, 0)
    raise InsufficientResources(
        f"VM {name} wants {_shown(wanted)} of memory, but {_shown(free)} are left: the host has"
        f" {_shown(total)}, keeps {_shown(policy.reserve)} for itself at an overcommit of"
        f" {policy.overcommit:g}, and active VMs hold {_shown(committed)}",
        hint="lower memory: in its definition, stop another VM, or raise memory.overcommit in"
        " /etc/hypemand/hypemand.yaml",
    )


def check_disk(what: str, wanted: int, promised: int, room: Room, policy: DiskPolicy) -> None:
    """Raise InsufficientResources, with the figures, when `wanted` more bytes do not fit beside the
    `promised` bytes of all other disks and volumes, or hardly anything is free."""
    if room.free < policy.reserve:
        raise InsufficientResources(
            f"{what} needs disk space, but {_shown(room.free)} are free on the file system of"
            f" {room.folder}, of which {_shown(policy.reserve)} are reserved",
            hint="hypemanctl df shows the usage; or lower disk.reserve in /etc/hypemand/hypemand.yaml",
        )
    usable = derive_usable(room.total, policy)
    if promised + wanted <= usable:
        return
    raise InsufficientResources(
        f"{what} needs {_shown(wanted)} of disk space, but {_shown(max(usable - promised, 0))} are left:"
        f" the file system of {room.folder} has {_shown(room.total)}, reserves {_shown(policy.reserve)} at an"
        f" overcommit of {policy.overcommit:g}, and disks and volumes have {_shown(promised)} allocated",
        hint="use a smaller size, remove VMs or volumes, or raise disk.overcommit in"
        " /etc/hypemand/hypemand.yaml",
    )


def _shown(size: int) -> str:
    return format_size(size // _MIB * _MIB)
