# SPDX-License-Identifier: Apache-2.0
"""Tar streams, written and read piece by piece: the size of an archive costs no memory.

Written is POSIX pax. Read are pax, ustar and GNU tar's long names; what cannot be carried over (hard links,
sparse members, devices) is an error in words, never left out in silence. A stream whose writer could not
complete it ends, wherever it is, after a global header with the keyword HYPEMAND.error.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import IO

from hypemand.errors import InvalidRequest
from hypemand.model.files import FileInfo, FileKind, Hole

BLOCK = 512
END = bytes(2 * BLOCK)
MAX_META = 1024 * 1024
# PATH_MAX of Linux, limits.h; other values are shorter
MAX_VALUE = 4096
MAX_SIZE = 2**63 - 1
# Runs of zeros shorter than this are written like anything else.
MIN_HOLE = 4096
_MAX_ERROR = 1000
ERROR_BYTES = 8192
_ERROR_KEY = "HYPEMAND.error"
_SPARSE = "GNU.sparse."
_KEYS = {
    key.encode("ascii"): key
    for key in (
        "path", "linkpath", "size", "uid", "gid", "mtime",
        "GNU.sparse.name", "GNU.sparse.realsize", "GNU.sparse.major", "GNU.sparse.minor",
    )
}  # fmt: skip
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
_META = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
# Of a GNU sparse member: do blocks follow with more of its map? Of the first block, and of those.
_EXTENDED, _EXTENDED_MORE = 482, 504
_REFUSED = {
    tarfile.LNKTYPE: "is a hard link, which cannot be copied; create the archive with tar --hard-dereference",
    tarfile.CHRTYPE: "is a device, which cannot be copied",
    tarfile.BLKTYPE: "is a device, which cannot be copied",
    tarfile.GNUTYPE_SPARSE: "is a sparse member, which cannot be read; create the archive without --sparse",
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


def format_sparse_member(name: str, size: int, real_size: int, mode: int) -> bytes:
    """The header of a file with holes, which GNU tar and bsdtar unpack as one: pax, GNU.sparse 1.0. Its
    contents, `size` bytes, are `format_sparse_map`, and then the data of all extents."""
    info = tarfile.TarInfo(f"GNUSparseFile.0/{name}")
    info.size, info.mode = size, mode
    info.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": name,
        "GNU.sparse.realsize": str(real_size),
    }
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def format_sparse_map(extents: Sequence[tuple[int, int]], real_size: int) -> bytes:
    """Where the data of a file with holes belongs. `extents`: first byte and the one after the last of each,
    in order. An empty one marks a hole at the end."""
    found = list(extents)
    if not found or found[-1][1] < real_size:
        found.append((real_size, real_size))
    text = f"{len(found)}\n" + "".join(f"{start}\n{end - start}\n" for start, end in found)
    return text.encode() + padding(len(text))


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
    """The reason of a stream that was not completed, in its last `ERROR_BYTES` bytes or more."""
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


class _Meta:
    """What extended headers say of the next member and of all that follow. Its size does not grow."""

    def __init__(self) -> None:
        self.next: dict[str, str] = {}
        self._global: dict[str, str] = {}

    def add(self, kind: bytes, data: bytes) -> None:
        match kind:
            case tarfile.GNUTYPE_LONGNAME:
                self.next["path"] = _decode_value(data.rstrip(b"\0"))
            case tarfile.GNUTYPE_LONGLINK:
                self.next["linkpath"] = _decode_value(data.rstrip(b"\0"))
            case tarfile.XGLTYPE:
                self._global |= parse_pax(data)
            case _:
                self.next |= parse_pax(data)

    def take(self) -> dict[str, str]:
        """All that counts for the member that comes now."""
        found = self._global | self.next
        self.next = {}
        return found


def _parse_block(block: bytes) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        raise InvalidArchive(
            "this is not a tar archive; a compressed archive must be decompressed first"
        ) from None


def _check_meta_size(info: tarfile.TarInfo) -> None:
    if not 0 < info.size <= MAX_META:
        raise InvalidArchive(f"an extended header of the archive has {info.size} bytes")


@dataclass(frozen=True, slots=True)
class Header:
    """A member as its headers describe it, of any kind. `offset`: where its contents begin in the archive."""

    name: str
    linkname: str
    is_file: bool
    is_hard_link: bool
    offset: int
    size: int


def read_headers(archive: IO[bytes], look: Callable[[int, bytes], None] | None = None) -> Iterator[Header]:
    """The members of an archive in a file that can be sought in; their contents are passed over. `look` gets
    each extended header of pax that could be read, with its offset.

    Keeps one header, whatever the archive has: `tarfile` itself reads extended headers of any size, and calls
    itself for each that follows another. InvalidArchive.
    """
    meta = _Meta()
    while block := archive.read(BLOCK):
        if not any(block):
            break
        if len(block) < BLOCK:
            raise InvalidArchive(f"the archive ends in {_State.HEADER.value}")
        info = _parse_block(block)
        if info.type in _META:
            _check_meta_size(info)
            start = archive.tell()
            data = _read_padded(archive, info.size)
            meta.add(info.type, data)
            if look is not None and info.type not in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
                look(start, data)
            continue
        pax = meta.take()
        name = pax.get("GNU.sparse.name", pax.get("path", info.name))
        has_contents = info.isreg() or info.type not in tarfile.SUPPORTED_TYPES
        size = _parse_number(pax, "size", info.size, MAX_SIZE) if has_contents else 0
        link, start = pax.get("linkpath", info.linkname), archive.tell()
        yield Header(name, link, info.isreg(), info.islnk(), start, size)
        extended = info.type == tarfile.GNUTYPE_SPARSE and block[_EXTENDED]
        while extended:
            extended = _read_padded(archive, BLOCK)[_EXTENDED_MORE]
        if has_contents:
            _pass_over(archive, size + -size % BLOCK)
    if meta.next:
        raise InvalidArchive(f"the archive ends in {_State.META.value}")


def _read_padded(archive: IO[bytes], size: int) -> bytes:
    data = archive.read(size + -size % BLOCK)
    if len(data) < size:
        raise InvalidArchive(f"the archive ends in {_State.META.value}")
    return data[:size]


def _pass_over(archive: IO[bytes], size: int) -> None:
    if size:
        archive.seek(size - 1, os.SEEK_CUR)
        if not archive.read(1):
            raise InvalidArchive(f"the archive ends in {_State.DATA.value}")


class _State(Enum):
    HEADER = "a header"
    META = "an extended header"
    DATA = "the contents of a file"
    PADDING = "the end of a file's last block"
    OVER = "nothing"


class TarReader:
    """Takes an archive in pieces of any size and gives its members, each file's contents after it.

    `path` of a member is relative and clean: never absolute, without "." and ".."; "" is the archive's own
    root. Raises InvalidArchive. `sparse`: files with holes (GNU.sparse 1.0) are given as they are stored,
    with their `sparse_size`; else they are refused.
    """

    def __init__(self, *, sparse: bool = False) -> None:
        self._sparse = sparse
        self._state = _State.HEADER
        self._buffer = bytearray()
        self._left = 0
        self._padding = 0
        self._meta_type = b""
        self._meta_size = 0
        self._meta = _Meta()

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
        if self._state is _State.HEADER and not self._buffer and not self._meta.next:
            return
        if self._state is not _State.OVER:
            raise InvalidArchive(f"the archive ends in {self._state.value}")

    def _take_block(self) -> Iterator[FileInfo]:
        block = bytes(self._buffer)
        self._buffer.clear()
        if self._state is _State.META:
            self._state = _State.HEADER
            self._meta.add(self._meta_type, block[: self._meta_size])
        elif not any(block):
            self._state = _State.OVER
        else:
            member = self._parse_header(block)
            if member is not None:
                yield member

    def _parse_header(self, block: bytes) -> FileInfo | None:
        info = _parse_block(block)
        if info.type in _META:
            _check_meta_size(info)
            self._meta_type, self._state = info.type, _State.META
            self._left = info.size + -info.size % BLOCK
            self._meta_size = info.size
            return None
        return self._make_member(info)

    def _make_member(self, info: tarfile.TarInfo) -> FileInfo:
        pax = self._meta.take()
        path = clean_name(pax.get("GNU.sparse.name", pax.get("path", info.name)))
        sparse_size = self._parse_sparse(pax, path)
        kind = _KINDS.get(info.type)
        if kind is None:
            why = _REFUSED.get(info.type, f"has an unknown type, {info.type!r}")
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
            sparse_size=sparse_size,
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

    def _parse_sparse(self, pax: dict[str, str], path: str) -> int | None:
        """The size of a file with holes, None for any other."""
        if _SPARSE not in pax:
            return None
        version = (pax.get("GNU.sparse.major"), pax.get("GNU.sparse.minor"))
        if not self._sparse or version != ("1", "0"):
            raise InvalidArchive(f"{path[:200]} {_REFUSED[tarfile.GNUTYPE_SPARSE]}")
        return _parse_number(pax, "GNU.sparse.realsize", 0, MAX_SIZE)

    def _pass_padding(self) -> None:
        self._left = self._padding
        self._state = _State.PADDING if self._left else _State.HEADER


def clean_name(name: str) -> str:
    """The relative path of a member's name. InvalidArchive for one that leads elsewhere."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in name:
        raise InvalidArchive(f"the archive has a member whose name leads out of it: {name[:200]!r}")
    return "/".join(parts)


def parse_pax(data: bytes) -> dict[str, str]:
    """Those records of an extended header that mean something here: `LENGTH KEY=VALUE` and a newline each.
    Those of a sparse member are reported by the key GNU.sparse. alone."""
    found = {}
    at = 0
    while at < len(data):
        head, space, _ = data[at : at + 32].partition(b" ")
        if not space or not head.isdigit() or len(head) > 8:
            raise InvalidArchive("an extended header of the archive cannot be read")
        end = at + int(head)
        record = data[at + len(head) + 1 : end]
        key, equals, value = record[:-1].partition(b"=")
        if not equals or not record.endswith(b"\n") or end > len(data):
            raise InvalidArchive("an extended header of the archive cannot be read")
        at = end
        if key.startswith(_SPARSE.encode()):
            found[_SPARSE] = ""
        if key in _KEYS:
            found[_KEYS[key]] = _decode_value(value)
    return found


def _decode_value(value: bytes) -> str:
    """A global header's values count for every member: what is kept of them is small."""
    if len(value) > MAX_VALUE:
        raise InvalidArchive(f"an extended header of the archive has a value of {len(value)} bytes")
    return _decode(value)


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
