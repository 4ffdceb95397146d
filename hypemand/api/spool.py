# SPDX-License-Identifier: Apache-2.0
"""Spools a file of unknown size, because a guest needs the size before the data."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from types import TracebackType

from hypemand.atomic import write_all
from hypemand.config.sizes import format_size
from hypemand.errors import HostNotReady, InsufficientResources
from hypemand.fulldisk import find_mount_point, name_full_disk
from hypemand.workers import Lent, Pool

# What is kept in memory. Most files that are copied singly are smaller.
IN_MEMORY = 1024 * 1024
_BLOCK = 256 * 1024
_MIB = 1024 * 1024


class _File:
    """A file without a name, made when something is to be stored. Used in threads."""

    def __init__(self, folder: Path, reserve: int) -> None:
        self._folder = folder
        self._reserve = reserve
        self._fd: int | None = None

    def store(self, block: bytearray) -> None:
        try:
            with name_full_disk("store the file temporarily", self._folder):
                if self._fd is None:
                    self._fd = os.open(self._folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
                self._check_room(len(block))
                write_all(self._fd, block)
        except OSError as error:
            raise HostNotReady(f"the host cannot store the file temporarily: {error.strerror}") from None

    def _check_room(self, size: int) -> None:
        """What the host keeps for itself is not there for those who upload."""
        about = os.statvfs(self._folder)
        free = about.f_bavail * about.f_frsize
        if free - size < self._reserve:
            raise InsufficientResources(
                "no space left to store the file temporarily: the file system"
                f" {find_mount_point(self._folder)} has {format_size(free // _MIB * _MIB)} free, of which"
                f" {format_size(self._reserve)} (disk.reserve) are kept",
                hint="free space there: hypemanctl df shows the usage",
            )

    def read(self, size: int, offset: int) -> bytes:
        assert self._fd is not None
        return os.pread(self._fd, size, offset)

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)


class Spool:
    """In memory while it is small, then in a file of `folder` that has no name and so outlives nobody.
    `reserve` bytes stay free there."""

    def __init__(self, folder: Path, reserve: int) -> None:
        self.size = 0
        self._memory = bytearray()
        self._file = Lent(Pool.SPOOL, _File(folder, reserve), _File.close)

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    async def write(self, data: bytes) -> None:
        """Add to its end. InsufficientResources when the host has no free space for it, HostNotReady when it
        cannot keep it for another reason."""
        self.size += len(data)
        self._memory += data
        if len(self._memory) > IN_MEMORY:
            block, self._memory = self._memory, bytearray()
            await self._file.run(lambda file: file.store(block))

    async def blocks(self) -> AsyncIterator[bytes]:
        """All of it, from its beginning."""
        stored = self.size - len(self._memory)
        for offset in range(0, stored, _BLOCK):
            size = min(_BLOCK, stored - offset)
            yield await self._file.run(partial(_File.read, size=size, offset=offset))
        for offset in range(0, len(self._memory), _BLOCK):
            yield bytes(self._memory[offset : offset + _BLOCK])
