# SPDX-License-Identifier: Apache-2.0
"""Items: what the byte streams of stat and copies consist of (docs/protocol.md, "Files"). No I/O.

Each is a frame of its own inside of the stream's DATA. The guest is hostile: nothing but ProtocolError comes
of what it sends, and what is kept of it does not grow with it.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

from hypemand.model.files import FileInfo, FileKind
from hypemand.protocol.frames import Channel, Frame, FrameParser, FrameType
from hypemand.protocol.records import ProtocolError, Records, encode_records, parse_records

MAX_PATH = 4095
_MAX_ID = 2**32 - 1
_MAX_SIZE = 2**63 - 1
_MAX_MODE = 0o7777
_U64 = struct.Struct("<Q")
_KINDS = {kind.value: kind for kind in FileKind}


@dataclass(frozen=True, slots=True)
class End:
    """The last item. `code`: ok, missing or failed; `bytes` of contents that were moved."""

    code: str
    message: str
    bytes: int


class ItemParser:
    """Bytes to items."""

    def __init__(self) -> None:
        self._frames = FrameParser()

    def feed(self, data: bytes) -> list[FileInfo | bytes | int | End]:
        """Take bytes, give the items that are whole now; an int is the size of a hole. After a ProtocolError
        it is of no more use."""
        return [_parse_item(frame) for frame in self._frames.feed(data)]


def _parse_item(frame: Frame) -> FileInfo | bytes | int | End:
    if frame.stream or frame.channel is not Channel.STDIN:
        raise ProtocolError("an item with a stream or a channel")
    match frame.type:
        case FrameType.ENTRY:
            return parse_entry(frame.payload)
        case FrameType.DATA:
            return frame.payload
        case FrameType.HOLE if len(frame.payload) == _U64.size:
            size: int = _U64.unpack(frame.payload)[0]
            return size
        case FrameType.END:
            return _parse_end(frame.payload)
    raise ProtocolError(f"a {frame.type.name} of {len(frame.payload)} bytes is no item")


def _parse_end(payload: bytes) -> End:
    records = parse_records(payload)
    code = records.get("code")
    if code not in ("ok", "missing", "failed"):
        raise ProtocolError(f"END with the unknown code {code[:40]!r}")
    return End(code, records.find("message") or "no reason given", records.get_int("bytes", 0, _MAX_SIZE))


def parse_entry(payload: bytes) -> FileInfo:
    """The records of an ENTRY. The form of its path is not judged here."""
    records = parse_records(payload)
    kind = _KINDS.get(records.get("kind"))
    if kind is None:
        raise ProtocolError(f"ENTRY of the unknown kind {records.get('kind')[:40]!r}")
    target = _parse_name(records, "target")
    if (kind is FileKind.SYMLINK) != bool(target):
        raise ProtocolError("ENTRY of a symlink without a target, or a target of something else")
    size = records.get_int("size", 0, _MAX_SIZE)
    return FileInfo(
        path=_parse_name(records, "path") or "",
        kind=kind,
        mode=records.get_int("mode", 0, _MAX_MODE),
        uid=records.get_int("uid", 0, _MAX_ID),
        gid=records.get_int("gid", 0, _MAX_ID),
        size=size if kind is FileKind.FILE else 0,
        mtime_ns=_parse_time(records),
        target=target,
    )


def _parse_name(records: Records, key: str) -> str | None:
    """A path or a target: bytes that are kept as they are."""
    values = records.all(key)
    if len(values) > 1 or any(len(value) > MAX_PATH for value in values):
        raise ProtocolError(f"ENTRY with more than one {key}, or too long a one")
    return os.fsdecode(values[0]) if values else None


def _parse_time(records: Records) -> int:
    text = records.get("mtime")
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 19):
        raise ProtocolError(f"ENTRY with the time {text[:40]!r}")
    return int(text)


def encode_entry(entry: FileInfo) -> bytes:
    """The item of an entry. ValueError if it cannot be one."""
    pairs = [
        ("path", entry.path),
        ("kind", entry.kind.value),
        ("mode", str(entry.mode & _MAX_MODE)),
        ("uid", str(entry.uid)),
        ("gid", str(entry.gid)),
        ("size", str(entry.size)),
        ("mtime", str(entry.mtime_ns)),
    ]
    pairs += [("target", entry.target)] if entry.target is not None else []
    return Frame(FrameType.ENTRY, payload=encode_records(pairs)).encode()


def encode_data(data: bytes) -> bytes:
    """The item of some contents, at most a frame's."""
    return Frame(FrameType.DATA, payload=data).encode()


def encode_hole(size: int) -> bytes:
    """The item of a hole."""
    return Frame(FrameType.HOLE, payload=_U64.pack(size)).encode()


def encode_end() -> bytes:
    """The item that says that all has been sent."""
    return Frame(FrameType.END).encode()


class Tree:
    """The entries of a copy in their order: each in a folder that came before it and that no entry since has
    left, so that none can be below something that is no folder. Keeps one path for each level."""

    def __init__(self) -> None:
        self._folders: list[str] = []
        self._begun = False

    def take(self, entry: FileInfo) -> None:
        """ProtocolError if it may not come here."""
        if not self._begun:
            if entry.path:
                raise ProtocolError("the first entry of a copy is not its root")
            self._begun = True
        else:
            self._leave_up_to(entry.path)
        if entry.kind is FileKind.DIRECTORY:
            self._folders.append(entry.path)

    def _leave_up_to(self, path: str) -> None:
        if any(part in ("", ".", "..") for part in path.split("/")):
            raise ProtocolError(f"an entry whose path leads out of the copy: {path[:80]!r}")
        folder = path.rpartition("/")[0]
        while self._folders and self._folders[-1] != folder:
            self._folders.pop()
        if not self._folders:
            raise ProtocolError(f"an entry whose folder did not come before it: {path[:80]!r}")
