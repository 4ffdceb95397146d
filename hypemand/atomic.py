# SPDX-License-Identifier: Apache-2.0
"""Files that are written atomically.

A file is written under a temporary name in its own folder, synced, renamed over the final name, and the
folder is synced. What a crash leaves are temporary names, which `remove_temporaries` knows.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SUFFIX = ".hypemand-tmp"


def sync_folder(folder: Path) -> None:
    """Make renames and removals in `folder` last over a power failure."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_folder(path: Path, *, mode: int) -> None:
    """Make a folder, with that mode, and its parents, if they are missing. They outlast a power failure, as
    what is put into them is to: a file is lost with its folder."""
    if path.is_dir():
        return
    if path.parent != path:
        make_folder(path.parent, mode=0o777)
    path.mkdir(mode=mode, exist_ok=True)
    sync_folder(path.parent)


@contextmanager
def replace_file(path: Path, *, mode: int = 0o644, uid: int = -1, gid: int = -1) -> Iterator[int]:
    """Give a descriptor, open for reading and writing, of a new empty file that becomes `path` at the end.

    `mode` is set whatever the umask is; -1 keeps the owner. When the block raises, nothing is left and an
    earlier `path` is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}{_SUFFIX}")
    fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            yield fd
            os.fchown(fd, uid, gid)
            os.fchmod(fd, mode)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temporary, path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename is None:
            # write(2) and fsync(2) name no file
            error.filename = os.fspath(path)
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_all(fd: int, data: bytes | bytearray) -> None:
    """Write all of `data`: write(2) may take less."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def write_file(path: Path, data: bytes, *, mode: int = 0o644, uid: int = -1, gid: int = -1) -> None:
    """Make `path` hold `data`, atomically; the rest as `replace_file`."""
    with replace_file(path, mode=mode, uid=uid, gid=gid) as fd:
        write_all(fd, data)


def remove_temporaries(folder: Path) -> list[Path]:
    """Remove what a crash left in `folder`; only when nothing writes there. Gives what was removed."""
    found = sorted(folder.glob(f".*{_SUFFIX}")) if folder.is_dir() else []
    for path in found:
        path.unlink(missing_ok=True)
    return found
