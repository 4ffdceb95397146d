# SPDX-License-Identifier: Apache-2.0
"""Limits of a VM that can be changed while it runs."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class DiskLimits:
    """Of all disks of a VM together: bytes per second, and operations per second. None: no limit. `total` in
    place of `read` and `write`."""

    read: int | None = None
    write: int | None = None
    total: int | None = None
    iops: int | None = None


@dataclass(frozen=True, slots=True)
class RuntimeLimits:
    """What a running VM has now. `memory` in bytes: what its guest has of that with which it was started,
    None without a balloon; `cpu_limit` in CPUs, None: no limit."""

    memory: int | None
    cpu_limit: float | None
    disk_io: DiskLimits = field(default_factory=DiskLimits)
