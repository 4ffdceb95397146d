# SPDX-License-Identifier: Apache-2.0
"""Disk usage of hypemand in bytes. Blocks: run in a thread."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from hypemand.manager.admission import Room


class SpaceKind(StrEnum):
    """What takes the space. RECORDS: what is known of VMs, tokens; RUNTIME: what is there while VMs run."""

    IMAGES = "images"
    DISKS = "disks"
    VOLUMES = "volumes"
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
class SpaceReport:
    """All that the daemon keeps. `promised` bytes to disks and volumes, of `allowed`."""

    uses: tuple[SpaceUse, ...]
    room: Room
    promised: int
    allowed: int


def measure_space(state_dir: Path, runtime_dir: Path, reclaimable: int) -> tuple[SpaceUse, ...]:
    """Every file below the two folders, each counted once, whatever names it has."""
    sums: dict[SpaceKind, list[int]] = {kind: [0, 0, 0] for kind in SpaceKind}
    seen: set[tuple[int, int]] = set()
    for top in (state_dir, runtime_dir):
        for path, about in _walk(top):
            if (about.st_dev, about.st_ino) in seen:
                continue
            seen.add((about.st_dev, about.st_ino))
            kind = SpaceKind.RUNTIME if top == runtime_dir else _kind_of(path.relative_to(state_dir))
            counted = sums[kind]
            counted[2] += about.st_blocks * 512
            if stat.S_ISREG(about.st_mode):
                counted[0] += 1
                counted[1] += about.st_size
    return tuple(
        SpaceUse(kind, count, size, used, min(reclaimable, used) if kind is SpaceKind.IMAGES else 0)
        for kind, (count, size, used) in sums.items()
    )


def _kind_of(path: Path) -> SpaceKind:
    """Of what is at a path in the state folder."""
    match path.parts[0] if path.parts else "":
        case "images":
            return SpaceKind.IMAGES
        case "templates":
            return SpaceKind.TEMPLATES
        case "volumes" if path.suffix == ".ext4":
            return SpaceKind.VOLUMES
        case "vms" if path.suffix == ".ext4":
            return SpaceKind.DISKS
        case _:
            return SpaceKind.RECORDS


def _walk(top: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """A folder and all below it. What goes away meanwhile is passed over."""
    for folder, _folders, files in os.walk(top):
        yield from _look(Path(folder, name) for name in (".", *files))


def _look(paths: Iterable[Path]) -> Iterator[tuple[Path, os.stat_result]]:
    for path in paths:
        try:
            yield path, path.lstat()
        except OSError:
            continue
