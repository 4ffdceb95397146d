# SPDX-License-Identifier: Apache-2.0
"""Disks with holes in archives: the extents of a file, and a file from a stream of extents.

The stream is that of a GNU.sparse 1.0 member (GNU tar's manual, "Storing Sparse Files"): a map in decimal
numbers, padded to a block, then the data of all extents. All functions block.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

from hypemand.storage.disks import BLOCK, iter_data
from hypemand.tar import BLOCK as TAR_BLOCK
from hypemand.tar import InvalidArchive

MAX_EXTENTS = 16384
"""Of a member. A guest can make any number of holes: small ones are stored as zeros then."""
_DIGITS = 19
_CHECK_EVERY = 16 * 1024 * 1024


def list_extents(fd: int, size: int, most: int = MAX_EXTENTS) -> list[tuple[int, int]]:
    """The first byte of each extent that holds data, and the one after its last. At most `most` of them,
    whatever the file is like: holes between them are taken for data, small ones first."""
    gap = BLOCK
    found: list[tuple[int, int]] = []
    for start, end in iter_data(fd, size):
        _add(found, start, end, gap)
        while len(found) >= most:
            gap *= 2
            merged: list[tuple[int, int]] = []
            for extent in found:
                _add(merged, *extent, gap)
            found = merged
    return found


def _add(extents: list[tuple[int, int]], start: int, end: int, gap: int) -> None:
    if extents and start - extents[-1][1] < gap:
        extents[-1] = (extents[-1][0], end)
    else:
        extents.append((start, end))


class _Map:
    """The map of a sparse member, from pieces of any size. Its memory is bounded by MAX_EXTENTS."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.size = 0
        self._line = bytearray()

    @property
    def is_whole(self) -> bool:
        return bool(self.numbers) and len(self.numbers) == 1 + 2 * self.numbers[0]

    def feed(self, data: bytes) -> bytes:
        """What follows the map in `data`."""
        at = 0
        while not self.is_whole and at < len(data):
            end = data.find(b"\n", at, at + _DIGITS + 1)
            piece = data[at:end] if end >= 0 else data[at : at + _DIGITS + 1]
            self._line += piece
            at += len(piece) + (end >= 0)
            if len(self._line) > _DIGITS or (end >= 0 and not self._line.isdigit()):
                raise InvalidArchive("the map of a disk in the archive cannot be read")
            if end >= 0:
                self._take(int(self._line))
                self._line.clear()
        self.size += at
        return data[at:]

    def _take(self, number: int) -> None:
        self.numbers.append(number)
        if self.numbers[0] > MAX_EXTENTS:
            raise InvalidArchive(
                f"a disk in the archive has {self.numbers[0]} extents, more than {MAX_EXTENTS}"
            )


class SparseFile:
    """A new file of `size` bytes at `path`, of a member of an archive; holes take no space. `check_room`
    raises when the host has no free space left, and is called every 16 MiB.

    Nothing of what the archive says is believed: InvalidArchive for extents out of order, beyond the end of
    the file, or of another size than the member's.
    """

    def __init__(self, path: Path, size: int, check_room: Callable[[], None] = lambda: None) -> None:
        self._size, self._stored = size, 0
        self._check_room = check_room
        self._unchecked = 0
        self._map = _Map()
        self._padding: int | None = None
        self._extents: Iterator[tuple[int, int]] = iter(())
        self._at = self._end = 0
        self._fd: int | None = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._fd, size)

    def begin(self, stored: int) -> None:
        """The member has `stored` bytes."""
        self._stored = stored

    def write(self, data: bytes) -> None:
        """The next bytes of the member."""
        if self._padding is None:
            data = self._map.feed(data)
            if not self._map.is_whole:
                return
            self._take_map()
        assert self._padding is not None
        skipped = min(self._padding, len(data))
        self._padding -= skipped
        view = memoryview(data)[skipped:]
        while view:
            while self._at == self._end:
                self._at, self._end = next(self._extents)
            view = self._store(view)

    def _take_map(self) -> None:
        self._padding = -self._map.size % TAR_BLOCK
        numbers = self._map.numbers[1:]
        extents = [(start, start + size) for start, size in zip(numbers[::2], numbers[1::2], strict=True)]
        in_order = all(end <= start for (_, end), (start, _) in pairwise(extents))
        if not in_order or any(end > self._size for _, end in extents):
            raise InvalidArchive("the map of a disk in the archive does not fit its size")
        data = sum(end - start for start, end in extents)
        if self._map.size + self._padding + data != self._stored:
            raise InvalidArchive("the map of a disk in the archive does not fit its data")
        self._extents = iter(extents)

    def _store(self, view: memoryview) -> memoryview:
        assert self._fd is not None
        done = os.pwrite(self._fd, view[: self._end - self._at], self._at)
        self._at += done
        self._unchecked += done
        if self._unchecked >= _CHECK_EVERY:
            self._unchecked = 0
            self._check_room()
        return view[done:]

    def finish(self) -> None:
        """All of it was written, and lasts."""
        if not self._map.is_whole:
            raise InvalidArchive("the map of a disk in the archive is not complete")
        assert self._fd is not None
        os.fsync(self._fd)
        self.close()

    def close(self) -> None:
        """Close the file; may be called again."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            os.close(fd)
