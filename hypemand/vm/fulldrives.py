# SPDX-License-Identifier: Apache-2.0
"""The disks of a VM that cannot be written because the host's file system is full."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from hypemand.fulldisk import find_mount_point
from hypemand.vmm.driver import Drive
from hypemand.workers import Pool, run_in

# to look at a file system; one that hangs must not hold up what is asked of a VM
_LOOK_DEADLINE = 1.0
# from a drive to what it is in words, as "its disk", and the file that it is on the host; None for one that
# the VM does not have
Locate: TypeAlias = Callable[[Drive], tuple[str, Path] | None]


@dataclass(frozen=True, slots=True)
class FullDrive:
    """What could not be written, in words, and the mount point of the file system that it is on: its folder,
    where that could not be found out."""

    what: str
    mount: Path


async def find_full_drives(drives: Sequence[Drive], locate: Locate) -> tuple[FullDrive, ...]:
    """Where these drives are. What the VM does not have is left out: the VMM may say anything."""
    found = dict.fromkeys(place for drive in drives if (place := locate(drive)) is not None)
    try:
        async with asyncio.timeout(_LOOK_DEADLINE):
            return await run_in(Pool.RECORDS, _look, tuple(found))
    except (OSError, TimeoutError):
        return tuple(FullDrive(what, file.parent) for what, file in found)


def _look(found: Sequence[tuple[str, Path]]) -> tuple[FullDrive, ...]:
    return tuple(FullDrive(what, find_mount_point(file)) for what, file in found)


def describe_full(full: Sequence[FullDrive]) -> str | None:
    """What is full, for what, and what lets the guest go on; None where it is not known what."""
    if not full:
        return None
    mounts = sorted({str(drive.mount) for drive in full})
    systems = f"the file system {mounts[0]} is" if len(mounts) == 1 else f"{_join(mounts)} are"
    return (
        f"{systems} full, so {_join([drive.what for drive in full])} cannot be written; the VM resumes by"
        " itself when more than disk.reserve is free there (hypemanctl df shows the usage)"
    )


def _join(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else words[0]
