# SPDX-License-Identifier: Apache-2.0
"""Disk usage of hypemand in bytes. Blocks: run in a thread."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from hypemand.model.space import SpaceKind, SpaceUse
from hypemand.vm.folders import STANDBY

# they have holes, and do not grow
_FIXED = (SpaceKind.STANDBY, SpaceKind.SNAPSHOTS)


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
                counted[1] += about.st_blocks * 512 if kind in _FIXED else about.st_size
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
        case "snapshots":
            return SpaceKind.SNAPSHOTS
        case "vms" if path.suffix == ".ext4":
            return SpaceKind.DISKS
        case "vms" if len(path.parts) > 2 and path.parts[2].startswith(STANDBY):
            return SpaceKind.STANDBY
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
