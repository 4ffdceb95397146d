# SPDX-License-Identifier: Apache-2.0
"""Files of a guest, and copies of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class FileKind(StrEnum):
    """What a file of a guest is."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    FIFO = "fifo"
    SOCKET = "socket"
    BLOCK = "block"
    CHARACTER = "character"


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A file of a guest. `path`: as asked for in a stat; in a copy relative to its root, "" for the root.

    `mode` the twelve permission bits, `size` bytes (of a FILE), `mtime_ns` since the epoch, `target` of a
    SYMLINK. Bytes of names that are no UTF-8 are kept as os.fsdecode does. `sparse_size`: of a file that an
    archive stores without its holes, its real size.
    """

    path: str
    kind: FileKind
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    target: str | None = None
    sparse_size: int | None = None


@dataclass(frozen=True, slots=True)
class Hole:
    """Zero bytes that a file need not store."""

    size: int


class CopyOut(Protocol):
    """A file or a tree that comes out of a guest. Leaving it unread stops only this copy (flow control)."""

    def events(self) -> AsyncIterator[FileInfo | bytes | Hole]:
        """Entries, parents first, each FILE's followed by its contents: exactly `size` bytes of data and
        holes. The guest is hostile: of a path here only its form is certain (no `..`, its folder given
        before as a DIRECTORY), not that nothing else lies there where it is written. GuestError."""

    async def close(self) -> None:
        """Lose interest. May be called at any time."""


class CopyIn(Protocol):
    """A file or a tree that goes into a guest. Each method raises GuestError as soon as the guest has said
    what it could not do."""

    async def add(self, entry: FileInfo) -> None:
        """The next entry; ends the file before. uid or gid -1: the agent's own (root)."""

    async def write(self, data: bytes) -> None:
        """The next bytes of the FILE that was added last."""

    async def skip(self, hole: Hole) -> None:
        """A hole in it."""

    async def finish(self) -> int:
        """All was taken and is in place: bytes written. GuestError says what was not."""

    async def close(self) -> None:
        """Give up: what is half there is removed. At any time."""
