# SPDX-License-Identifier: Apache-2.0
"""Tar streams, written and read piece by piece: the size of an archive costs no memory.

Written is POSIX pax. Read are pax, ustar and GNU tar's long names; what cannot be carried over (hard links,
sparse members, devices) is an error in words, never left out in silence. A stream whose writer could not
complete it breaks off, wherever it is, after a global header with the keyword HYPEMAND.error.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import replace
from enum import Enum

from hypemand.errors import InvalidRequest
from hypemand.manager.view import FileInfo, FileKind, Hole

BLOCK = 512
END = bytes(2 * BLOCK)
MAX_META = 1024 * 1024
MAX_SIZE = 2**63 - 1
# Runs of zeros shorter than this are written like anything else.
MIN_HOLE = 4096
_MAX_ERROR = 1000
ERROR_BYTES = 8192
_ERROR_KEY = "HYPEMAND.error"
_SPARSE = "GNU.sparse."
_KEYS = ("path", "linkpath", "size", "uid", "gid", "mtime")
_MAX_ID = 2**32 - 2
_NS = 1_000_000_000
_ZEROS = bytes(64 * 1024)

_TYPES = {
    FileKind.FILE: tarfile.REGTYPE,
    FileKind.DIRECTORY: tarfile.DIRTYPE,
    FileKind.SYMLINK: tarfile.SYMTYPE,
    FileKind.FIFO: tarfile.FIFOTYPE,
}
_KINDS = {kind: member for member, kind in _TYPES.items()} | {
    tarfile.AREGTYPE: FileKind.FILE,
    tarfile.CONTTYPE: FileKind.FILE,
}
_REFUSED = {
    tarfile.LNKTYPE: "is a hard link, which cannot be copied; make the archive with tar --hard-dereference",
    tarfile.CHRTYPE: "is a device, which cannot be copied",
    tarfile.BLKTYPE: "is a device, which cannot be copied",
    tarfile.GNUTYPE_SPARSE: "is a sparse member, which cannot be read; make the archive without --sparse",
}


class InvalidArchive(InvalidRequest):
    """What was sent is no tar archive, or holds what cannot be copied."""

    code = "invalid_archive"


def is_archivable(entry: FileInfo) -> bool:
    """Can an archive hold it? Devices and sockets it cannot."""
    return entry.kind in _TYPES


def format_member(name: str, entry: FileInfo) -> bytes:
    """The header of a member; the contents follow, and then `padding` of their size."""
    info = tarfile.TarInfo(name)
    info.type = _TYPES[entry.kind]
    info.mode, info.uid, info.gid = entry.mode, entry.uid, entry.gid
    info.size = entry.size if entry.kind is FileKind.FILE else 0
    info.linkname = entry.target or ""
    seconds, nanoseconds = divmod(entry.mtime_ns, _NS)
    if nanoseconds or seconds < 0:
        info.pax_headers = {"mtime": _format_time(entry.mtime_ns)}
    info.mtime = max(seconds, 0)
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _format_time(nanoseconds: int) -> str:
    sign = "-" if nanoseconds < 0 else ""
    return f"{sign}{abs(nanoseconds) // _NS}.{abs(nanoseconds) % _NS:09}"


def padding(size: int) -> bytes:
    """What follows the contents of a member."""
    return bytes(-size % BLOCK)


def format_error(text: str) -> bytes:
    """The last words of a writer that cannot complete its archive."""
    return tarfile.TarInfo.create_pax_global_header({_ERROR_KEY: text[:_MAX_ERROR]})


def find_error(tail: bytes | bytearray) -> str | None:
    """The last words of a stream that has broken off, in its last `ERROR_BYTES` bytes or more."""
    _, found, words = tail.rpartition(f" {_ERROR_KEY}=".encode())
    return _decode(bytes(words.partition(b"\n")[0])) if found else None


def format_zeros(size: int) -> Iterator[bytes]:
    """A hole, as an archive has it."""
    for offset in range(0, size, len(_ZEROS)):
        yield _ZEROS[: size - offset]


def find_hole(data: bytes) -> Hole | None:
    """The hole that a piece of a file may be stored as."""
    size = len(data)
    if size < MIN_HOLE or data[0] or data[-1] or data.count(0) != size:
        return None
    return Hole(size)


class _State(Enum):
    HEADER = "a header"
    META = "an extended header"
    DATA = "the contents of a file"
    PADDING = "the end of a file's last block"
    OVER = "nothing"


class TarReader:
    """Takes an archive in pieces of any size and gives its members, each file's contents after it.

    `path` of a member is relative and clean: never absolute, without "." and ".."; "" is the archive's own
    root. Raises InvalidArchive, and WriterFailed.
    """

    def __init__(self) -> None:
        self._state = _State.HEADER
        self._buffer = bytearray()
        self._left = 0
        self._padding = 0
        self._meta_type = b""
        self._meta_size = 0
        self._next: dict[str, str] = {}
        self._global: dict[str, str] = {}

    def feed(self, data: bytes) -> Iterator[FileInfo | bytes]:
        """The members and contents that `data` completes; the whole of it must be asked for."""
        view = memoryview(data)
        while view:
            match self._state:
                case _State.OVER:
                    return
                case _State.DATA:
                    piece = bytes(view[: self._left])
                    view = view[len(piece) :]
                    self._left -= len(piece)
                    yield piece
                    if not self._left:
                        self._pass_padding()
                case _State.PADDING:
                    count = min(self._left, len(view))
                    view = view[count:]
                    self._left -= count
                    if not self._left:
                        self._state = _State.HEADER
                case _State.HEADER | _State.META:
                    wanted = BLOCK if self._state is _State.HEADER else self._left
                    piece = bytes(view[: wanted - len(self._buffer)])
                    view = view[len(piece) :]
                    self._buffer += piece
                    if len(self._buffer) == wanted:
                        yield from self._take_block()

    def finish(self) -> None:
        """The archive has ended. One that was cut off is none."""
        if self._state is _State.HEADER and not self._buffer and not self._next:
            return
        if self._state is not _State.OVER:
            raise InvalidArchive(f"the archive ends in {self._state.value}")

    def _take_block(self) -> Iterator[FileInfo]:
        block = bytes(self._buffer)
        self._buffer.clear()
        if self._state is _State.META:
            self._state = _State.HEADER
            self._take_meta(block)
        elif not any(block):
            self._state = _State.OVER
        else:
            member = self._parse_header(block)
            if member is not None:
                yield member

    def _parse_header(self, block: bytes) -> FileInfo | None:
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.HeaderError, ValueError):
            raise InvalidArchive("this is no tar archive; a compressed one must be unpacked first") from None
        if info.type in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE,
                         tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):  # fmt: skip
            if not 0 < info.size <= MAX_META:
                raise InvalidArchive(f"an extended header of the archive has {info.size} bytes")
            self._meta_type, self._state = info.type, _State.META
            self._left = info.size + -info.size % BLOCK
            self._meta_size = info.size
            return None
        return self._make_member(info)

    def _take_meta(self, block: bytes) -> None:
        data = block[: self._meta_size]
        match self._meta_type:
            case tarfile.GNUTYPE_LONGNAME:
                self._next["path"] = _decode(data.rstrip(b"\0"))
            case tarfile.GNUTYPE_LONGLINK:
                self._next["linkpath"] = _decode(data.rstrip(b"\0"))
            case tarfile.XGLTYPE:
                self._global |= parse_pax(data)
            case _:
                self._next |= parse_pax(data)

    def _make_member(self, info: tarfile.TarInfo) -> FileInfo:
        pax = self._global | self._next
        self._next = {}
        path = clean_name(pax.get("path", info.name))
        if any(key.startswith(_SPARSE) for key in pax):
            raise InvalidArchive(f"{path[:200]} {_REFUSED[tarfile.GNUTYPE_SPARSE]}")
        kind = _KINDS.get(info.type)
        if kind is None:
            why = _REFUSED.get(info.type, f"is of a kind that is not known, {info.type!r}")
            raise InvalidArchive(f"{path[:200]} {why}")
        size = _parse_number(pax, "size", info.size, MAX_SIZE)
        entry = FileInfo(
            path=path,
            kind=kind,
            mode=info.mode & 0o7777,
            uid=_parse_number(pax, "uid", info.uid, _MAX_ID),
            gid=_parse_number(pax, "gid", info.gid, _MAX_ID),
            size=size if kind is FileKind.FILE else 0,
            mtime_ns=_parse_time(pax.get("mtime", str(int(info.mtime)))),
        )
        self._left = entry.size
        self._padding = -entry.size % BLOCK
        if entry.size:
            self._state = _State.DATA
        if kind is FileKind.SYMLINK:
            entry = replace(entry, target=pax.get("linkpath", info.linkname))
            if "\0" in (entry.target or ""):
                raise InvalidArchive(f"the target of the link {path[:200]} holds a NUL byte")
        return entry

    def _pass_padding(self) -> None:
        self._left = self._padding
        self._state = _State.PADDING if self._left else _State.HEADER


def clean_name(name: str) -> str:
    """The relative path that a member's name stands for. InvalidArchive for one that leads elsewhere."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in name:
        raise InvalidArchive(f"the archive has a member whose name leads out of it: {name[:200]!r}")
    return "/".join(parts)


def parse_pax(data: bytes) -> dict[str, str]:
    """Those records of an extended header that mean something here: `LENGTH KEY=VALUE` and a newline each."""
    found = {}
    while data:
        head, space, _ = data[:32].partition(b" ")
        if not space or not head.isdigit() or len(head) > 8:
            raise InvalidArchive("an extended header of the archive cannot be read")
        length = int(head)
        record, data = data[len(head) + 1 : length], data[length:]
        key, equals, value = record.removesuffix(b"\n").partition(b"=")
        if not equals or not record.endswith(b"\n"):
            raise InvalidArchive("an extended header of the archive cannot be read")
        name = _decode(key)
        if name in _KEYS or name.startswith(_SPARSE):
            found[name] = _decode(value)
    return found


def _decode(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _parse_number(pax: dict[str, str], key: str, default: int, largest: int) -> int:
    text = pax.get(key, str(default))
    if not text.isdecimal() or len(text) > 19 or int(text) > largest:
        raise InvalidArchive(f"the archive has a member whose {key} is {text[:40]!r}")
    return int(text)


def _parse_time(text: str) -> int:
    """Nanoseconds since the epoch of a decimal number of seconds."""
    whole, _, fraction = text.removeprefix("-").partition(".")
    if not whole.isdecimal() or len(whole) > 11 or not (fraction or "0").isdecimal():
        raise InvalidArchive(f"the archive has a member whose time is {text[:40]!r}")
    value = int(whole) * _NS + int(fraction[:9].ljust(9, "0"))
    return -value if text.startswith("-") else value
