# SPDX-License-Identifier: Apache-2.0
"""A directory of the host as an image (erofs) that a guest reads: made at a start, if the directory has
changed since the last one.

Whoever may write to the directory is not trusted with more than its content. No file of it is opened here:
the look at it goes by descriptors and through no link, and mkfs.erofs, which may be shown a link in place of
a file that it was about to open, sees nothing but /usr and the directory (`Tools.build`). Above the directory
only root may write, so that it cannot be exchanged for another.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from hypemand.config.sizes import format_size
from hypemand.errors import HypemandError, InvalidDefinition, Problem
from hypemand.storage.room import RoomWatch
from hypemand.storage.rootfs import make_erofs
from hypemand.storage.tools import Tools

MAX_ENTRIES = 200_000
MAX_BYTES = 64 * 1024**3
MAX_DEPTH = 100
_MAKE_TIMEOUT = 600.0
# a change within one tick of the file system's clock leaves no trace in a time
_TICK_NS = 1_000_000_000
_BLOCK = 4096
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_UNSURE = "unsure"


@dataclass(frozen=True, slots=True)
class Look:
    """What a directory was like: a hash of all names and all that changes with a content, the bytes that an
    image needs, and whether a change since could have left no trace."""

    fingerprint: str
    size: int
    unsure: bool


def ensure_directory_image(source: Path, folder: Path, tools: Tools, reserve: int, *, uid: int = -1) -> Path:
    """The image of a directory in `folder`, for the user `uid`: that of the last start, if nothing has
    changed. InvalidDefinition for a directory that no guest can have, InsufficientResources. `reserve`: bytes
    of the disk that are kept. Blocks."""
    prefix = _derive_prefix(source)
    found = look_at(source)
    image = folder / f"{prefix}{_UNSURE if found.unsure else found.fingerprint}.erofs"
    if found.unsure or not image.exists():
        _make(source, image, found.size, tools, reserve, uid)
    for other in folder.glob(f"{prefix}*"):
        if other != image:
            other.unlink(missing_ok=True)
    return image


def find_directory_image(source: Path, images: Sequence[Path]) -> Path | None:
    """That of a directory among its images and others."""
    prefix = _derive_prefix(source)
    return next((image for image in images if image.name.startswith(prefix)), None)


def _derive_prefix(source: Path) -> str:
    return f"dir-{hashlib.sha256(os.fsencode(source)).hexdigest()[:16]}-"


def _make(source: Path, image: Path, size: int, tools: Tools, reserve: int, uid: int) -> None:
    """Under another name until it is whole; in a folder of its own, which alone mkfs.erofs writes to."""
    staging = image.with_suffix(".new")
    _remove_staging(staging)
    staging.mkdir(mode=0o700)
    try:
        room = RoomWatch(f"the image of {source}", staging, reserve, tools.cancel)
        room.need(size)
        made = staging / "image"
        with room.watching():
            make_erofs(source, made, tools, timeout=_MAKE_TIMEOUT)
        os.chown(made, uid, -1)
        made.chmod(0o400)
        made.rename(image)
    finally:
        _remove_staging(staging)


def _remove_staging(staging: Path) -> None:
    (staging / "image").unlink(missing_ok=True)
    if staging.is_dir():
        staging.rmdir()


def look_at(source: Path) -> Look:
    """What a directory is like now. InvalidDefinition for one that no guest can have."""
    try:
        _check_way(source)
        fd = os.open(source, _OPEN)
    except OSError as error:
        raise _refuse(source, f"cannot be read: {error.strerror}", "create the directory") from error
    began = time.time_ns()
    hashed = hashlib.sha256()
    size = newest = 0
    try:
        for line, about in _walk(source, fd):
            size += -(-about.st_size // _BLOCK) * _BLOCK + _BLOCK if stat.S_ISREG(about.st_mode) else _BLOCK
            newest = max(newest, about.st_ctime_ns)
            hashed.update(line)
            if size > MAX_BYTES:
                raise _too_large(source)
    except OSError as error:
        raise _refuse(source, f"cannot be read: {error.strerror}", "check the file system") from error
    return Look(hashed.hexdigest()[:32], size, unsure=newest > began - _TICK_NS)


def _walk(source: Path, top: int) -> Iterator[tuple[bytes, os.stat_result]]:
    """All entries with a line for each that has all that a change changes; the directory itself first. `top`
    is closed at the end."""
    # folders that are open, each with what is left of it: a name's folder is opened in the one above
    stack: list[tuple[int, str, Iterator[str]]] = [(top, "", iter(()))]
    try:
        about = os.fstat(top)
        device = about.st_dev
        yield _describe("", about), about
        names = _list(source, top, MAX_ENTRIES)
        listed = len(names)
        stack[0] = (top, "", iter(names))
        while stack:
            fd, path, left = stack[-1]
            name = next(left, None)
            if name is None:
                os.close(stack.pop()[0])
                continue
            try:
                about = os.stat(name, dir_fd=fd, follow_symlinks=False)
                below = os.open(name, _OPEN, dir_fd=fd) if stat.S_ISDIR(about.st_mode) else -1
            except FileNotFoundError:
                continue  # it has gone since
            if below >= 0:
                stack.append((below, f"{path}/{name}", iter(())))
                about = os.fstat(below)
                names = _list(source, below, MAX_ENTRIES - listed)
                listed += len(names)
                stack[-1] = (*stack[-1][:2], iter(names))
            if about.st_dev != device or len(stack) > MAX_DEPTH:
                what = "is another file system" if about.st_dev != device else "is nested too deeply"
                shown = f"{path}/{name}"[:200]
                raise _refuse(source, f"{shown!r} in it {what}", "use the directories apart, or a volume")
            yield _describe(f"{path}/{name}", about), about
    finally:
        for fd, _, _ in stack:
            os.close(fd)


def _list(source: Path, fd: int, most: int) -> list[str]:
    """The names in a folder, sorted; never more than `most`."""
    with os.scandir(fd) as entries:
        names = [entry.name for entry in islice(entries, most + 1)]
    if len(names) > most:
        raise _too_large(source)
    return sorted(names)


def _describe(path: str, about: os.stat_result) -> bytes:
    size = about.st_size if stat.S_ISREG(about.st_mode) else 0
    what = (
        about.st_mode,
        about.st_uid,
        about.st_gid,
        size,
        about.st_mtime_ns,
        about.st_ctime_ns,
        about.st_ino,
    )
    return b"%s\0%s\n" % (os.fsencode(path), ",".join(map(str, what)).encode())


def _check_way(source: Path) -> None:
    """InvalidDefinition unless the path leads to the directory through no link, and only root can change
    where it leads to. OSError."""
    above = None
    for path in (*reversed(source.parents), source):
        about = path.lstat()
        if stat.S_ISLNK(about.st_mode):
            raise _refuse(source, f"{path} is a link", f"write {source.resolve()}")
        if not stat.S_ISDIR(about.st_mode):
            raise _refuse(source, f"{path} is not a directory", "use files for a single file")
        if above is not None and not _is_roots(above, about):
            what = f"others than root can write to {path.parent}, and so exchange the directory"
            raise _refuse(source, what, "use a directory of which all parents are root's")
        above = about


def _is_roots(folder: os.stat_result, entry: os.stat_result) -> bool:
    """Can only root exchange this entry of a folder? In a sticky one others can only exchange their own."""
    if folder.st_uid != 0:
        return False
    return not folder.st_mode & 0o022 or bool(folder.st_mode & stat.S_ISVTX and entry.st_uid == 0)


def _too_large(source: Path) -> HypemandError:
    what = f"has more than {MAX_ENTRIES} entries or {format_size(MAX_BYTES)}"
    return _refuse(source, what, "use a volume")


def _refuse(source: Path, what: str, hint: str) -> HypemandError:
    return InvalidDefinition([Problem("", 0, 0, "volumes.source", f"{source}: {what}", hint)])
