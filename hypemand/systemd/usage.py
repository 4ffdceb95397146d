# SPDX-License-Identifier: Apache-2.0
"""What a VM's unit uses, as the kernel counts it for its control group: cheaper than to ask systemd."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hypemand.systemd.units import SLICE

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
    """See cgroups(7) and the kernel's Documentation/admin-guide/cgroup-v2.rst."""
    group = mount / SLICE / unit
    memory = cpu = None
    disks: tuple[DiskUsage, ...] = ()
    with suppress(OSError, ValueError):
        memory = int((group / "memory.current").read_text())
    with suppress(OSError, ValueError):
        cpu = next(_find_usage((group / "cpu.stat").read_text()), None)
    with suppress(OSError, ValueError):
        disks = tuple(_parse_disks((group / "io.stat").read_text()))
    return UnitUsage(memory, cpu, disks)


def _find_usage(text: str) -> Iterator[float]:
    for line in text.splitlines():
        if line.startswith("usage_usec "):
            yield int(line.split()[1]) / 1e6


def _parse_disks(text: str) -> Iterator[DiskUsage]:
    """Of a disk that was not used there may be no figures."""
    for line in text.splitlines():
        device, *pairs = line.split()
        values = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        if "rbytes" in values:
            figures = (int(values.get(key, "0")) for key in ("rbytes", "wbytes", "rios", "wios"))
            yield DiskUsage(device, *figures)
