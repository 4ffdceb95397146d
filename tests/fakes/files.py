# SPDX-License-Identifier: Apache-2.0
"""The files of a guest, in memory, and what an agent does with them: stat, and copies both ways as items
(docs/protocol.md, "Files")."""

from __future__ import annotations

import asyncio
import os
import posixpath
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from hypemand.model.files import FileInfo, FileKind
from tests.fakes.stream import Stream
from tests.unit.agent.support import DATA, END, ENTRY, HOLE, pack, records

BLOCK = 8192
MTIME = 1_700_000_000_500_000_000


class Fault(Exception):
    """What a copy ends with: `code` as in END."""

    def __init__(self, message: str, code: str = "failed") -> None:
        super().__init__(message)
        self.code = code


@dataclass
class GuestFile:
    """A file; `info.path` is where it is."""

    info: FileInfo
    data: bytes = b""


@dataclass
class GuestFiles:
    """Everything below /. `failure`: what a copy ends with once `fails_after` bytes have passed; `gate`: what
    they wait for. `strange_names`: folders that a copy out tells of beside. `copies_open`: copies under way;
    `given_up`: those into the guest that were left in the middle of a file."""

    files: dict[str, GuestFile] = field(default_factory=dict)
    failure: str = ""
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
        self.files[path] = GuestFile(info, data)

    def find(self, path: str, *, follow: bool) -> GuestFile | None:
        """As by stat(2) or lstat(2)."""
        found = self.files.get(posixpath.normpath(path))
        if found is not None and follow and found.info.target is not None:
            return self.find(posixpath.join(posixpath.dirname(path), found.info.target), follow=True)
        return found

    def below(self, path: str) -> list[str]:
        """The paths below a path, parents first."""
        prefix = path.rstrip("/") + "/"
        return sorted(name for name in self.files if name.startswith(prefix) and name != "/")

    def take_out(self, path: str) -> dict[str, GuestFile]:
        """Remove a tree: its files by their path in it."""
        paths = [name for name in (path, *self.below(path)) if name in self.files]
        return {posixpath.relpath(name, path): self.files.pop(name) for name in paths}

    def bring_in(self, path: str, tree: dict[str, GuestFile]) -> None:
        """Have a tree at a path, which is a folder."""
        self.put(path, FileKind.DIRECTORY, mode=0o755)
        for name, file in tree.items():
            place = posixpath.normpath(posixpath.join(path, name))
            self.files[place] = GuestFile(replace(file.info, path=place), file.data)

    async def serve(self, operation: str, path: str, stream: Stream, *, follow: bool) -> int:
        """One FILES stream; its exit status."""
        if operation == "stat":
            await self._stat(path, stream, follow=follow)
            return 0
        self.copies_open += 1
        try:
            await (self._copy_in(path, stream) if operation == "in" else self._copy_out(path, stream))
        finally:
            self.copies_open -= 1
        return 0

    async def _stat(self, path: str, stream: Stream, *, follow: bool) -> None:
        found = self.find(path, follow=follow)
        if found is None:
            await stream.write(_end(code="missing", message=f"there is no {path}"))
        else:
            await stream.write(_entry(replace(found.info, path=path)) + _end())

    async def _pass_bytes(self, count: int) -> None:
        if self.gate is not None:
            await self.gate.wait()
        self.fails_after -= count
        if self.failure and self.fails_after <= 0:
            raise Fault(self.failure)

    async def _copy_out(self, path: str, stream: Stream) -> None:
        top = posixpath.normpath(path)
        if top not in self.files:
            await stream.write(_end(code="missing", message=f"there is no {path}"))
            return
        fault = None
        for place in (top, *self.below(top)):
            file = self.files[place]
            name = "" if place == top else posixpath.relpath(place, top)
            await stream.write(_entry(replace(file.info, path=name)))
            left = len(file.data)
            for block in _blocks(file.data):
                try:
                    await self._pass_bytes(len(block))
                except Fault as error:
                    # the missing bytes come as zeros, and the first fault is told at the end
                    fault = error
                    await stream.write(_hole(left))
                    break
                await stream.write(pack(DATA, 0, block) if any(block) else _hole(len(block)))
                left -= len(block)
        for name in self.strange_names:
            await stream.write(_entry(FileInfo(name, FileKind.DIRECTORY, 0o755, 0, 0, 0, MTIME)))
        await stream.write(_end() if fault is None else _end(code=fault.code, message=str(fault)))

    async def _copy_in(self, path: str, stream: Stream) -> None:
        copy = _CopyIn(self, posixpath.normpath(path))
        try:
            buffer = b""
            while data := await stream.read():
                buffer += data
                while len(buffer) >= 12 and len(buffer) >= 12 + (
                    size := int.from_bytes(buffer[:4], "little")
                ):
                    kind, payload, buffer = buffer[8], buffer[12 : 12 + size], buffer[12 + size :]
                    if kind == END:
                        await self._pass_bytes(0)
                        copy.end_file()
                        await stream.write(_end(bytes=copy.written))
                        return
                    copy.take(kind, payload)
                    await self._pass_bytes(len(payload))
        except Fault as fault:
            await stream.write(_end(code=fault.code, message=str(fault)))
        finally:
            self.given_up += copy.entry is not None


class _CopyIn:
    """A copy into the guest. A file takes its place when it is whole."""

    def __init__(self, files: GuestFiles, path: str) -> None:
        self._files = files
        self._path = path
        self.entry: FileInfo | None = None
        self._data = bytearray()
        self.written = 0

    def take(self, kind: int, payload: bytes) -> None:
        if kind == ENTRY:
            self.end_file()
            entry = _parse_entry(payload)
            old = self._files.files.get(self._place(entry))
            is_folder = entry.kind is FileKind.DIRECTORY
            if old is not None and (old.info.kind is FileKind.DIRECTORY) != is_folder:
                raise Fault(f"{entry.path} is there, and of another kind")
            self.entry = entry
            self._data.clear()
        elif kind == HOLE:
            self._data += bytes(struct.unpack("<Q", payload)[0])
        else:
            self._data += payload
            self.written += len(payload)

    def _place(self, entry: FileInfo) -> str:
        return posixpath.join(self._path, entry.path).rstrip("/")

    def end_file(self) -> None:
        entry = self.entry
        if entry is None:
            return
        if entry.kind is FileKind.FILE and entry.size != len(self._data):
            raise Fault(f"the contents of {entry.path} are not as long as its size")
        place = self._place(entry)
        old = self._files.files.get(place)
        if old is None or place != self._path or entry.kind is not FileKind.DIRECTORY:
            owner = {"uid": max(entry.uid, 0), "gid": max(entry.gid, 0)}
            info = replace(entry, path=place, size=len(self._data), uid=owner["uid"], gid=owner["gid"])
            self._files.files[place] = GuestFile(info, bytes(self._data))
        self.entry = None


def _blocks(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), BLOCK):
        yield data[start : start + BLOCK]


def _hole(size: int) -> bytes:
    return pack(HOLE, 0, struct.pack("<Q", size))


def _end(**values: object) -> bytes:
    pairs = {"code": "ok", "bytes": 0, **values}
    return pack(END, 0, records(*((key, str(value)) for key, value in pairs.items())))


def _entry(info: FileInfo) -> bytes:
    pairs = {
        "path": info.path, "kind": info.kind, "mode": info.mode, "uid": info.uid, "gid": info.gid,
        "size": info.size, "mtime": info.mtime_ns, **({} if info.target is None else {"target": info.target}),
    }  # fmt: skip
    payload = b"".join(os.fsencode(f"{key}={value}") + b"\0" for key, value in pairs.items())
    return pack(ENTRY, 0, payload)


def _parse_entry(payload: bytes) -> FileInfo:
    pairs = (record.partition(b"=") for record in payload.split(b"\0") if record)
    values = {key.decode(): os.fsdecode(value) for key, _, value in pairs}
    mode, uid, gid, size, mtime = (int(values[key]) for key in ("mode", "uid", "gid", "size", "mtime"))
    kind = FileKind(values["kind"])
    return FileInfo(values["path"], kind, mode, uid, gid, size, mtime, values.get("target"))
