# SPDX-License-Identifier: Apache-2.0
"""Reading an erofs that `make_erofs` has written: its files as a tar, with nothing mounted.

The format is that of Linux's fs/erofs/erofs_fs.h, as far as mkfs.erofs makes use of it without compression.
Anything else is a ValueError.
"""

from __future__ import annotations

import os
import stat
import struct
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_SUPER_AT = 1024
_MAGIC = 0xE0F5E1E2
_SLOT = 32
_EXTENDED = 1
_PLAIN, _INLINE = 0, 2
_COPY = 1024 * 1024
_XATTR_HEADER = 12
_XATTR_PREFIXES = {
    1: "user.",
    2: "system.posix_acl_access",
    3: "system.posix_acl_default",
    4: "trusted.",
    6: "security.",
}
_KINDS = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
}


@dataclass(frozen=True, slots=True)
class _Inode:
    """A file. `start`: of its blocks, in bytes; `tail`: of what is kept beside the inode, if anything is."""

    nid: int
    mode: int
    size: int
    uid: int
    gid: int
    mtime: float
    device: int
    start: int
    tail: int | None
    xattrs: dict[str, bytes]


class _Reader:
    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        block = self._read(_SUPER_AT, 96)
        (magic,) = struct.unpack_from("<I", block, 0)
        if magic != _MAGIC:
            raise ValueError("this is no erofs")
        self._block = 1 << block[12]
        (self.root,) = struct.unpack_from("<H", block, 14)
        self._built, nanoseconds = struct.unpack_from("<QI", block, 24)
        self._built += nanoseconds / 1e9
        meta, shared = struct.unpack_from("<II", block, 40)
        self._meta, self._shared = meta * self._block, shared * self._block

    def _read(self, at: int, size: int) -> bytes:
        try:
            data = os.pread(self._file.fileno(), size, at)
        except OverflowError:
            data = b""
        if len(data) != size:
            raise ValueError("it ends too early")
        return data

    def inode(self, nid: int) -> _Inode:
        """The file with that number."""
        at = self._meta + nid * _SLOT
        (form, icount, mode) = struct.unpack("<HHH", self._read(at, 6))
        if form & _EXTENDED:
            size, where, _, uid, gid, seconds, nanoseconds = struct.unpack_from(
                "<QIIIIQI", self._read(at, 64), 8
            )
            mtime, end = seconds + nanoseconds / 1e9, at + 64
        else:
            size, _, where, _, uid, gid = struct.unpack_from("<IIIIHH", self._read(at, 32), 8)
            mtime, end = self._built, at + 32
        xattr_size = _XATTR_HEADER + (icount - 1) * 4 if icount else 0
        xattrs = self._xattrs(self._read(end, xattr_size)) if icount else {}
        layout = form >> 1 & 7
        if layout not in (_PLAIN, _INLINE):
            raise ValueError(f"it has a file of layout {layout}")
        tail = end + xattr_size if layout == _INLINE else None
        is_device = stat.S_ISCHR(mode) or stat.S_ISBLK(mode)
        start = where * self._block
        return _Inode(nid, mode, size, uid, gid, mtime, where if is_device else 0, start, tail, xattrs)

    def _xattrs(self, body: bytes) -> dict[str, bytes]:
        found = {}
        at = _XATTR_HEADER + body[4] * 4
        for (number,) in struct.iter_unpack("<I", body[_XATTR_HEADER:at]):
            entry = self._shared + number * 4
            length, _, size = struct.unpack("<BBH", self._read(entry, 4))
            name, value, _ = _parse_xattr(self._read(entry, 4 + length + size), 0)
            found[name] = value
        while at < len(body) and body[at : at + 4] != bytes(4):
            name, value, at = _parse_xattr(body, at)
            found[name] = value
        return found

    def chunks(self, inode: _Inode) -> Iterator[bytes]:
        """What a file holds."""
        whole = inode.size if inode.tail is None else inode.size - inode.size % self._block
        for at in range(0, whole, _COPY):
            yield self._read(inode.start + at, min(_COPY, whole - at))
        if inode.tail is not None and inode.size > whole:
            yield self._read(inode.tail, inode.size - whole)

    def entries(self, inode: _Inode) -> Iterator[tuple[bytes, int]]:
        """Names and numbers of what is in a folder."""
        data = b"".join(self.chunks(inode))
        for at in range(0, len(data), self._block):
            yield from _parse_folder(data[at : at + self._block])


def _parse_xattr(body: bytes, at: int) -> tuple[str, bytes, int]:
    """Name, value, and where the next one is."""
    length, index, size = struct.unpack_from("<BBH", body, at)
    prefix = _XATTR_PREFIXES.get(index)
    if prefix is None:
        raise ValueError(f"it has an attribute of kind {index}")
    name = prefix + body[at + 4 : at + 4 + length].decode("utf-8", "surrogateescape")
    end = at + 4 + length + size
    return name, body[at + 4 + length : end], end + -end % 4


def _parse_folder(block: bytes) -> Iterator[tuple[bytes, int]]:
    count = struct.unpack_from("<H", block, 8)[0] // 12
    heads = [struct.unpack_from("<QH", block, number * 12) for number in range(count)]
    ends = [start for _, start in heads[1:]] + [len(block)]
    for (nid, start), end in zip(heads, ends, strict=True):
        name = block[start:end].rstrip(b"\0")
        if name not in (b".", b".."):
            yield name, nid


class _Chunks:
    """An iterator of bytes as the file that tarfile wants."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""

    def read(self, size: int) -> bytes:
        while len(self._rest) < size and (chunk := next(self._chunks, None)) is not None:
            self._rest += chunk
        data, self._rest = self._rest[:size], self._rest[size:]
        return data


def write_tar(rootfs: Path, tar: Path) -> None:
    """All files of an erofs as a new tar: owners, modes, times, links, devices and extended attributes."""
    with open(rootfs, "rb") as file, open(tar, "xb") as target:
        reader = _Reader(file)
        seen: dict[int, str] = {}
        with tarfile.open(
            fileobj=target, mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8", errors="surrogateescape"
        ) as archive:
            todo: list[tuple[str, int]] = [("./", reader.root)]
            while todo:
                path, nid = todo.pop()
                inode = reader.inode(nid)
                _add(archive, reader, path, inode, seen)
                if stat.S_ISDIR(inode.mode):
                    below = [(os.fsdecode(name), number) for name, number in reader.entries(inode)]
                    todo += [(f"{path.rstrip('/')}/{name}", number) for name, number in reversed(below)]
                # it would keep them all
                archive.members.clear()  # type: ignore[attr-defined]


def _add(archive: tarfile.TarFile, reader: _Reader, path: str, inode: _Inode, seen: dict[int, str]) -> None:
    info = tarfile.TarInfo(path)
    kind = _KINDS.get(stat.S_IFMT(inode.mode))
    if kind is None:
        return  # a socket: no tar has one, and it is nothing without who listens
    info.type, info.mode = kind, stat.S_IMODE(inode.mode)
    info.uid, info.gid, info.mtime = inode.uid, inode.gid, inode.mtime
    info.pax_headers = {
        f"SCHILY.xattr.{name}": value.decode("utf-8", "surrogateescape")
        for name, value in inode.xattrs.items()
    }
    if kind != tarfile.DIRTYPE and inode.nid in seen:
        info.type, info.linkname = tarfile.LNKTYPE, seen[inode.nid]
    elif kind == tarfile.SYMTYPE:
        info.linkname = os.fsdecode(b"".join(reader.chunks(inode)))
    elif kind in (tarfile.CHRTYPE, tarfile.BLKTYPE):
        info.devmajor = inode.device >> 8 & 0xFFF
        info.devminor = (inode.device & 0xFF) | (inode.device >> 12 & 0xFFF00)
    seen.setdefault(inode.nid, path)
    if info.type == tarfile.REGTYPE:
        info.size = inode.size
        archive.addfile(info, _Chunks(reader.chunks(inode)))  # type: ignore[arg-type]
    else:
        archive.addfile(info)
