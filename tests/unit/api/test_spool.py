# SPDX-License-Identifier: Apache-2.0
"""A file that is kept until its size is known."""

import asyncio
import os
from pathlib import Path

import pytest

from hypemand.api.spool import IN_MEMORY, Spool
from hypemand.errors import HostNotReady, InsufficientResources


def keep(folder: Path, *pieces: bytes, reserve: int = 0) -> tuple[int, bytes]:
    async def main() -> tuple[int, bytes]:
        with Spool(folder, reserve) as spool:
            for piece in pieces:
                await spool.write(piece)
            return spool.size, b"".join([block async for block in spool.blocks()])

    return asyncio.run(main())


@pytest.mark.parametrize("count", [0, 1, IN_MEMORY, IN_MEMORY + 1, 5 * IN_MEMORY + 3])
def test_all_of_it_comes_back_and_nothing_stays(tmp_path: Path, count: int) -> None:
    data = bytes(range(251)) * (count // 251 + 1)
    pieces = [data[:count][start : start + 32_768] for start in range(0, count, 32_768)]
    assert keep(tmp_path, *pieces) == (count, data[:count])
    assert list(tmp_path.iterdir()) == []


def test_a_host_without_room_is_told_in_words(tmp_path: Path) -> None:
    with pytest.raises(HostNotReady, match="cannot store the file"):
        keep(tmp_path / "missing", b"x" * (IN_MEMORY + 1))


def test_what_the_host_keeps_for_itself_is_not_there_for_uploads(tmp_path: Path) -> None:
    about = os.statvfs(tmp_path)
    free = about.f_bavail * about.f_frsize
    data = b"x" * (IN_MEMORY + 1)
    assert keep(tmp_path, data, reserve=free // 2)[0] == len(data)
    with pytest.raises(
        InsufficientResources, match=r"the file system /\S* has .* free, of which .* are kept"
    ):
        keep(tmp_path, data, reserve=2 * free)
    assert keep(tmp_path, b"what is small needs no disk", reserve=2 * free)[0] == 27
