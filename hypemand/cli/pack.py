# SPDX-License-Identifier: Apache-2.0
"""Files of this host as a tar archive, piece by piece."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from hypemand.errors import HypemandError
from hypemand.model.files import FileInfo, FileKind
from hypemand.tar import END, format_member, is_archivable, padding

_BLOCK = 256 * 1024
_KINDS = {
    stat.S_IFREG: FileKind.FILE,
    stat.S_IFDIR: FileKind.DIRECTORY,
    stat.S_IFLNK: FileKind.SYMLINK,
    stat.S_IFIFO: FileKind.FIFO,
    stat.S_IFSOCK: FileKind.SOCKET,
    stat.S_IFBLK: FileKind.BLOCK,
    stat.S_IFCHR: FileKind.CHARACTER,
}


class LocalError(HypemandError):
    """A file of this host that cannot be read or written."""

    code = "local_file"


@dataclass(frozen=True, slots=True)
class Packing:
    """How to pack. `keep`: keep owners and set-id bits, else everything belongs to root. `warn` is called for
    each file that is skipped, `count` for each block of a file."""

    follow: bool
    keep: bool
    warn: Callable[[str], None]
    count: Callable[[int], None]


def pack(source: Path, name: str, packing: Packing) -> Iterator[bytes]:
    """The archive of a file or a tree, whose root is called `name` in it; "" leaves the root itself out."""
    yield from _pack(source, name, packing, frozenset())
    yield END


def _pack(path: Path, name: str, packing: Packing, above: frozenset[tuple[int, int]]) -> Iterator[bytes]:
    """`above`: the directories that it is in, by which a link that leads back is known."""
    try:
        status = os.stat(path, follow_symlinks=packing.follow)
        kind = _KINDS[stat.S_IFMT(status.st_mode)]
        if kind is FileKind.FILE:
            yield from _pack_file(path, name, packing)
            return
        entry = _describe(status, kind, packing)
        if kind is FileKind.SYMLINK:
            entry = replace(entry, target=os.readlink(path))
        if not is_archivable(entry):
            what = f"{path} is a {'socket' if kind is FileKind.SOCKET else 'device'}"
            if not above:
                raise LocalError(f"{what}, which cannot be copied")
            packing.warn(f"{what}, skipped")
            return
        if name:
            yield format_member(name, entry)
        if kind is not FileKind.DIRECTORY:
            return
        here = (status.st_dev, status.st_ino)
        if here in above:
            raise LocalError(f"{path} leads to a directory that contains it", hint="leave out -L")
        children = sorted(os.listdir(path))
    except OSError as error:
        raise _explain(path, error) from None
    for child in children:
        yield from _pack(path / child, f"{name}/{child}" if name else child, packing, above | {here})


def _describe(status: os.stat_result, kind: FileKind, packing: Packing) -> FileInfo:
    return FileInfo(
        path="",
        kind=kind,
        mode=status.st_mode & (0o7777 if packing.keep else 0o777),
        uid=status.st_uid if packing.keep else 0,
        gid=status.st_gid if packing.keep else 0,
        size=status.st_size if kind is FileKind.FILE else 0,
        mtime_ns=status.st_mtime_ns,
    )


def _pack_file(path: Path, name: str, packing: Packing) -> Iterator[bytes]:
    # O_NONBLOCK: what has become a FIFO since must not be waited for.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if packing.follow else os.O_NOFOLLOW)
    with open(os.open(path, flags), "rb", buffering=0) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise LocalError(f"{path} was replaced while it was read")
        yield format_member(name, _describe(status, FileKind.FILE, packing))
        left = status.st_size
        while left:
            block = file.read(min(left, _BLOCK))
            if not block:
                raise LocalError(f"{path} was truncated while it was read")
            left -= len(block)
            packing.count(len(block))
            yield block
        if not status.st_size and file.read(1) and not os.fstat(file.fileno()).st_size:
            raise LocalError(f"{path} has no known size", hint="copy the output of cat instead")
        yield padding(status.st_size)


def measure(source: Path, *, follow: bool) -> int:
    """Bytes of all files together, for showing how far a copy is. What cannot be read counts nothing."""
    try:
        status = os.stat(source, follow_symlinks=follow)
    except OSError:
        return 0
    if not stat.S_ISDIR(status.st_mode):
        return status.st_size if stat.S_ISREG(status.st_mode) else 0
    total = 0
    for folder, _, names in os.walk(source):
        for name in names:
            found = os.lstat(os.path.join(folder, name))
            total += found.st_size if stat.S_ISREG(found.st_mode) else 0
    return total


def _explain(path: Path, error: OSError) -> HypemandError:
    return LocalError(f"{error.filename or path}: {error.strerror or error}")
