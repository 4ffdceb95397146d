# SPDX-License-Identifier: Apache-2.0
"""A file system whose files can share blocks: XFS, in a file, on a loop device of this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.host.command import run_command

# of which what is not used takes no space
_SIZE = 1024 * 1024 * 1024
_TIMEOUT = 60.0


@contextmanager
def file_system_that_shares(folder: Path) -> Iterator[Path]:
    """It is mounted in the block, somewhere below `folder`."""
    image, place = folder / "xfs.img", folder / "xfs"
    with image.open("xb") as made:
        made.truncate(_SIZE)
    place.mkdir()
    run_command(["mkfs.xfs", "-q", "-m", "reflink=1", str(image)], timeout=_TIMEOUT)
    run_command(["mount", "-o", "loop", str(image), str(place)], timeout=_TIMEOUT)
    try:
        yield place
    finally:
        run_command(["umount", str(place)], timeout=_TIMEOUT)
        place.rmdir()
        image.unlink()


def measure_used(place: Path) -> int:
    """Bytes that are in use there, when all that was written has its place."""
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
        about = os.fstatvfs(fd)
    finally:
        os.close(fd)
    return (about.f_blocks - about.f_bfree) * about.f_frsize
