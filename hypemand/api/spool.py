# SPDX-License-Identifier: Apache-2.0
"""A file whose size is not known before its end, kept until it is: a guest is told sizes first."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from types import TracebackType

from hypemand.atomic import write_all
from hypemand.errors import HostNotReady
from hypemand.workers import Lent, Pool

# What is kept in memory. Most files that are copied singly are smaller.
IN_MEMORY = 1024 * 1024
_BLOCK = 256 * 1024


class _File:
    """A file without a name, made when something is to be stored. Used in threads."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._fd: int | None = None

    def store(self, block: bytearray) -> None:
        try:
            if self._fd is None:
                self._fd = os.open(self._folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
            write_all(self._fd, block)
        except OSError as error:
            raise HostNotReady(f"the host cannot keep the file meanwhile: {error.strerror}") from None

    def read(self, size: int, offset: int) -> bytes:
        assert self._fd is not None
        return os.pread(self._fd, size, offset)

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)


class Spool:
    """In memory while it is small, then in a file of `folder` that has no name and so outlives nobody."""

    def __init__(self, folder: Path) -> None:
        self.size = 0
        self._memory = bytearray()
        self._file = Lent(Pool.SPOOL, _File(folder), _File.close)

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    async def write(self, data: bytes) -> None:
        """Add to its end. HostNotReady when the host has no room for it."""
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
