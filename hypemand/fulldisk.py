# SPDX-License-Identifier: Apache-2.0
"""Detects full file systems and exceeded quotas, with the file system and a hint how to fix it."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from hypemand.config.sizes import format_size
from hypemand.errors import InsufficientResources
from hypemand.run import CommandFailed, is_disk_full
from hypemand.workers import Pool, run_in

_MIB = 1024 * 1024


@contextmanager
def name_full_disk(what: str, path: Path) -> Iterator[None]:
    """InsufficientResources in place of ENOSPC and EDQUOT, as an OSError or of a command. `what` could not be
    done, as "make the disk of VM web"; `path` is what was written where the error does not name it. Blocks
    when that happens."""
    try:
        yield
    except (OSError, CommandFailed) as error:
        if not is_disk_full(error):
            raise
        raise derive_full_disk(error, what, path) from error


@asynccontextmanager
async def name_full_disk_beside(what: str, path: Path) -> AsyncIterator[None]:
    """`name_full_disk` for the event loop, which does not wait for the file system."""
    try:
        yield
    except (OSError, CommandFailed) as error:
        if not is_disk_full(error):
            raise
        raise await run_in(Pool.RECORDS, derive_full_disk, error, what, path) from error


def derive_full_disk(error: OSError | CommandFailed, what: str, path: Path) -> InsufficientResources:
    """The error to show. Blocks: it looks at the file system."""
    named = getattr(error, "filename", None)
    place = Path(os.fsdecode(named)) if isinstance(named, str | bytes) else path
    quota = isinstance(error, OSError) and error.errno == errno.EDQUOT
    mount = find_mount_point(place)
    why = f"the disk quota on {mount} is exceeded" if quota else f"the file system {mount} is full"
    return InsufficientResources(
        f"no space left to {what}: {why}{_describe_free(mount)}",
        hint="free space there: hypemanctl df shows the usage, hypemanctl image prune may help",
    )


def find_mount_point(path: Path) -> Path:
    """The mount point of the file system that `path` is on, or would be on if it were made."""
    place = path.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    device = place.stat().st_dev
    while place != place.parent and place.parent.stat().st_dev == device:
        place = place.parent
    return place


def _describe_free(mount: Path) -> str:
    """A file system may have bytes, and no inodes."""
    try:
        about = os.statvfs(mount)
    except OSError:
        return ""
    if about.f_files > 0 and about.f_favail == 0:
        return ", it has no inodes left"
    free = about.f_bavail * about.f_frsize
    return f", it has {format_size(free if free < 10 * _MIB else free // _MIB * _MIB)} free"
