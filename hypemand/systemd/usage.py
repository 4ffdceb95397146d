# SPDX-License-Identifier: Apache-2.0
"""What a VM's unit uses, as the kernel counts it for its control group: cheaper than to ask systemd."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from hypemand.systemd.units import SLICE

T = TypeVar("T")
_MOUNT = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class DiskUsage:
    """Of one disk of the host, MAJOR:MINOR: bytes and requests."""

    device: str
    read_bytes: int
    written_bytes: int
    reads: int
    writes: int


@dataclass(frozen=True, slots=True)
class UnitUsage:
    """`memory` in bytes, with the page cache that counts for the unit. None, or no disk: the host does not
    count that, or the unit has gone."""

    memory: int | None = None
    cpu_seconds: float | None = None
    disks: tuple[DiskUsage, ...] = ()


def read_usage(unit: str, mount: Path = _MOUNT) -> UnitUsage:
    """See cgroups(7) and the kernel's Documentation/admin-guide/cgroup-v2.rst. With control groups v1 it is
    the memory alone."""
    group = mount / SLICE / unit
    memory, *_ = [
        *_read(group / "memory.current", int),
        *_read(mount / "memory" / SLICE / unit / "memory.usage_in_bytes", int),
        None,
    ]
    cpu, *_ = [*_read(group / "cpu.stat", _find_usage), None]
    disks, *_ = [*_read(group / "io.stat", _parse_disks), ()]
    return UnitUsage(memory, cpu, disks)


def _read(path: Path, parse: Callable[[str], T]) -> list[T]:
    """What is in a file; nothing if it is not there or not understood."""
    try:
        return [parse(path.read_text())]
    except (OSError, ValueError):
        return []


def _find_usage(text: str) -> float:
    for line in text.splitlines():
        if line.startswith("usage_usec "):
            return int(line.split()[1]) / 1e6
    raise ValueError("no usage_usec")


def _parse_disks(text: str) -> tuple[DiskUsage, ...]:
    """Of a disk that was not used there may be no figures."""
    found = []
    for line in text.splitlines():
        device, *pairs = line.split()
        values = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        if "rbytes" in values:
            figures = (int(values.get(key, "0")) for key in ("rbytes", "wbytes", "rios", "wios"))
            found.append(DiskUsage(device, *figures))
    return tuple(found)
