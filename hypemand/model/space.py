# SPDX-License-Identifier: Apache-2.0
"""What the daemon keeps on the host's disk."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class SpaceKind(StrEnum):
    """What takes the space. STANDBY: memory of VMs that is saved; RECORDS: what is known of VMs, tokens;
    RUNTIME: what is there while VMs run."""

    IMAGES = "images"
    DISKS = "disks"
    VOLUMES = "volumes"
    STANDBY = "standby"
    SNAPSHOTS = "snapshots"
    TEMPLATES = "templates"
    RECORDS = "records"
    RUNTIME = "runtime"


@dataclass(frozen=True, slots=True)
class SpaceUse:
    """Of one kind: how many files, the bytes that they could grow to (`size`) and those that they take on the
    host (`used`), and which of these `image prune --all` would free."""

    kind: SpaceKind
    count: int
    size: int
    used: int
    reclaimable: int = 0


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes of the file system that `folder` is on: all of it, and what is free."""

    folder: Path
    total: int
    free: int


@dataclass(frozen=True, slots=True)
class PoolSpace:
    """A pool of the host config. `volumes`: how many; `promised` bytes to them, of `allowed`; `problem`: why
    nothing is known of it, or ""."""

    name: str
    room: Room
    shared: bool
    volumes: int
    promised: int
    allowed: int
    problem: str


@dataclass(frozen=True, slots=True)
class SpaceReport:
    """All that the daemon keeps. `promised` bytes to disks and volumes, of `allowed`; `pools` apart."""

    uses: tuple[SpaceUse, ...]
    room: Room
    promised: int
    allowed: int
    pools: tuple[PoolSpace, ...] = ()
