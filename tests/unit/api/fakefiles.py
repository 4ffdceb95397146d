# SPDX-License-Identifier: Apache-2.0
"""The files of a guest, in memory, with the two kinds of copies that a manager gives."""

from __future__ import annotations

import asyncio
import posixpath
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace

from hypemand.errors import GuestError, HypemandError, NotFound
from hypemand.model.files import FileInfo, FileKind, Hole

BLOCK = 8192
MTIME = 1_700_000_000_500_000_000


@dataclass
class FakeFile:
    """A file; `info.path` is where it is."""

    info: FileInfo
    data: bytes = b""


@dataclass
class FakeFiles:
    """Everything below /. `failure`: what a copy ends with once `fails_after` bytes have passed."""

    files: dict[str, FakeFile] = field(default_factory=dict)
    failure: HypemandError | None = None
    fails_after: int = 0
    strange_names: tuple[str, ...] = ()
    given_up: int = 0
    copies_open: int = 0
    gate: asyncio.Event | None = None

    def __post_init__(self) -> None:
        for path in ("/", "/tmp", "/etc"):
            self.put(path, FileKind.DIRECTORY, mode=0o755)

    def put(
        self, path: str, kind: FileKind = FileKind.FILE, data: bytes = b"", *, mode: int = 0o644,
        uid: int = 0, gid: int = 0, target: str | None = None, mtime_ns: int = MTIME,
    ) -> None:  # fmt: skip
        """Make a file."""
        info = FileInfo(path, kind, mode, uid, gid, len(data), mtime_ns, target)
        self.files[path] = FakeFile(info, data)

    def stat(self, path: str, *, follow: bool) -> FileInfo | None:
        """As stat(2) or lstat(2)."""
        found = self.files.get(posixpath.normpath(path))
        if found is not None and follow and found.info.target is not None:
            return self.stat(posixpath.join(posixpath.dirname(path), found.info.target), follow=True)
        return None if found is None else replace(found.info, path=path)

    def below(self, path: str) -> list[str]:
        """The paths below a path, parents first."""
        prefix = path.rstrip("/") + "/"
        return sorted(name for name in self.files if name.startswith(prefix) and name != "/")

    async def pass_bytes(self, count: int) -> None:
        """Bytes go through the channel."""
        if self.gate is not None:
            await self.gate.wait()
        self.fails_after -= count
        if self.failure is not None and self.fails_after <= 0:
            raise self.failure


class FakeCopyOut:
    """Implements CopyOut."""

    def __init__(self, files: FakeFiles, path: str) -> None:
        self._files = files
        self._path = posixpath.normpath(path)
        self._closed = False
        if self._path not in files.files:
            raise NotFound(f"there is no {path}", code="path_not_found")
        files.copies_open += 1

    async def events(self) -> AsyncIterator[FileInfo | bytes | Hole]:
        for path in [self._path, *self._files.below(self._path)]:
            file = self._files.files[path]
            yield replace(file.info, path=posixpath.relpath(path, self._path) if path != self._path else "")
            for start in range(0, len(file.data), BLOCK):
                block = file.data[start : start + BLOCK]
                await self._files.pass_bytes(len(block))
                yield Hole(len(block)) if not any(block) else block
        for name in self._files.strange_names:
            yield FileInfo(name, FileKind.DIRECTORY, 0o755, 0, 0, 0, MTIME)

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._files.copies_open -= 1


class FakeCopyIn:
    """Implements CopyIn."""

    def __init__(self, files: FakeFiles, path: str) -> None:
        self._files = files
        self._path = posixpath.normpath(path)
        self._entry: FileInfo | None = None
        self._data = bytearray()
        self._written = 0
        self._closed = False
        files.copies_open += 1

    async def add(self, entry: FileInfo) -> None:
        self._end_file()
        old = self._files.files.get(posixpath.join(self._path, entry.path).rstrip("/"))
        if old is not None and (old.info.kind is FileKind.DIRECTORY) != (entry.kind is FileKind.DIRECTORY):
            raise GuestError(f"{entry.path} is there, and of another kind")
        self._entry, self._data = entry, bytearray()

    def _end_file(self) -> None:
        if self._entry is not None:
            if self._entry.kind is FileKind.FILE and self._entry.size != len(self._data):
                raise GuestError(f"the contents of {self._entry.path} are not as long as its size")
            path = posixpath.join(self._path, self._entry.path).rstrip("/")
            uid, gid = max(self._entry.uid, 0), max(self._entry.gid, 0)
            info = replace(self._entry, path=path, size=len(self._data), uid=uid, gid=gid)
            self._files.files[path] = FakeFile(info, bytes(self._data))
        self._entry = None

    async def write(self, data: bytes) -> None:
        await self._files.pass_bytes(len(data))
        self._data += data
        self._written += len(data)

    async def skip(self, hole: Hole) -> None:
        self._data += bytes(hole.size)

    async def finish(self) -> int:
        await self._files.pass_bytes(0)
        self._end_file()
        return self._written

    async def close(self) -> None:
        if self._entry is not None:
            self._files.given_up += 1
            self._entry = None
        if not self._closed:
            self._closed = True
            self._files.copies_open -= 1
