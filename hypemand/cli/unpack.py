# SPDX-License-Identifier: Apache-2.0
"""A guest's files onto this host. The guest is hostile: whatever names, kinds and links it sends, nothing is
written but below the place that the user named, and nothing there gets rights that the user did not ask for.

Every folder is entered by a descriptor and without following a link, so that a link that the guest has sent
before, or that somebody puts there meanwhile, leads nowhere. A file takes its place once it is whole.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hypemand.cli.pack import LocalError
from hypemand.model.files import FileInfo, FileKind

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_KEPT_MODE = 0o7777
_SAFE_MODE = 0o777

Parts = tuple[str, ...]


@dataclass(slots=True)
class _File:
    """The file whose contents are under way."""

    fd: int
    folder: int
    temporary: str
    name: str
    shown: str
    entry: FileInfo


class Unpacker:
    """Puts entries below `target`: the entry of path "" becomes `target` itself, whose folder must be there.

    `is_named`: the user has said this very path, and where it leads if it is a link to a folder is his will.
    `keep`: owners (where we are root), set-user-id and the like, FIFOs. Use it as a context manager: what is
    half there at the end is removed. Raises LocalError. `size` counts the bytes that have come.
    """

    def __init__(self, target: Path, *, is_named: bool, keep: bool, warn: Callable[[str], None]) -> None:
        self.size = 0
        self._target = target
        self._is_named = is_named
        self._keep = keep
        self._warn = warn
        self._stack = contextlib.ExitStack()
        self._root: int | None = None
        self._here: tuple[Parts, int] | None = None
        self._file: _File | None = None
        self._folders: list[tuple[Parts, FileInfo]] = []

    def __enter__(self) -> Unpacker:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            os.close(self._file.fd)
            with contextlib.suppress(OSError):
                os.unlink(self._file.temporary, dir_fd=self._file.folder)
            self._file = None
        self._leave()
        self._stack.close()

    def add(self, path: str, entry: FileInfo) -> None:
        """The next entry; ends the file before. `path` is relative and normalized, which is checked again."""
        parts = tuple(path.split("/")) if path else ()
        if any(part in ("", ".", "..") or "\0" in part for part in parts):
            raise LocalError(f"the guest sent a file with an unsafe path: {path[:200]!r}")
        shown = str(self._target.joinpath(*parts))
        try:
            self._end_file()
            self._place(parts, shown, entry)
        except OSError as error:
            raise _explain(shown, error) from None

    def _place(self, parts: Parts, shown: str, entry: FileInfo) -> None:
        if not parts and entry.kind is FileKind.DIRECTORY:
            self._begin_root(entry)
            return
        folder = self._enter(parts[:-1]) if parts else self._open_above()
        name = parts[-1] if parts else self._target.name
        match entry.kind:
            case FileKind.FILE:
                temporary = f".hypemanctl-{os.urandom(8).hex()}"
                fd = os.open(temporary, _NEW, 0o600, dir_fd=folder)
                self._file = _File(fd, folder, temporary, name, shown, entry)
                if not entry.size:
                    self._end_file()
            case FileKind.DIRECTORY:
                self._make_folder(folder, parts, entry)
            case FileKind.SYMLINK:
                self._make_special(folder, name, entry)
            case FileKind.FIFO if self._keep:
                self._make_special(folder, name, entry)
            case _:
                self._warn(f"{shown} is a {entry.kind}, skipped")

    def _open_above(self) -> int:
        fd = os.open(self._target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._stack.callback(os.close, fd)
        return fd

    def _begin_root(self, entry: FileInfo) -> None:
        """`target` as a folder: made, or the one that is there. A link to one may be of an earlier copy, and
        so of the guest's making, unless the user has named it."""
        try:
            os.mkdir(self._target, 0o700)
            self._folders.append(((), entry))
        except FileExistsError:
            pass
        self._root = os.open(self._target, _FOLDER & ~os.O_NOFOLLOW if self._is_named else _FOLDER)
        self._stack.callback(os.close, self._root)

    def _enter(self, parts: Parts) -> int:
        """The folder of these parts below the target."""
        if self._here is not None and self._here[0] == parts:
            return self._here[1]
        fd = self._walk(parts)
        self._leave()
        self._here = (parts, fd)
        return fd

    def _walk(self, parts: Parts) -> int:
        if self._root is None:
            raise LocalError("the guest sent a file before its directory")
        fd = os.dup(self._root)
        for part in parts:
            try:
                below = os.open(part, _FOLDER, dir_fd=fd)
            finally:
                os.close(fd)
            fd = below
        return fd

    def _leave(self) -> None:
        if self._here is not None:
            os.close(self._here[1])
            self._here = None

    def _make_folder(self, folder: int, parts: Parts, entry: FileInfo) -> None:
        try:
            os.mkdir(parts[-1], 0o700, dir_fd=folder)
            self._folders.append((parts, entry))
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(parts[-1], dir_fd=folder, follow_symlinks=False).st_mode):
                raise
            if self._keep:
                self._folders.append((parts, entry))

    def _make_special(self, folder: int, name: str, entry: FileInfo) -> None:
        """A link or a FIFO."""
        temporary = f".hypemanctl-{os.urandom(8).hex()}"
        if entry.kind is FileKind.SYMLINK:
            os.symlink(entry.target or "", temporary, dir_fd=folder)
        else:
            os.mkfifo(temporary, entry.mode & _SAFE_MODE, dir_fd=folder)
        try:
            if self._keep:
                self._give(temporary, folder, entry)
            times = (entry.mtime_ns, entry.mtime_ns)
            os.utime(temporary, ns=times, dir_fd=folder, follow_symlinks=False)
            os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            os.unlink(temporary, dir_fd=folder)
            raise

    def write(self, data: bytes) -> None:
        """The next bytes of the file that was added last."""
        file = self._file
        if file is None:
            raise LocalError("the guest sent data without a file")
        try:
            if data.count(0) == len(data):
                os.lseek(file.fd, len(data), os.SEEK_CUR)  # a hole
            else:
                view = memoryview(data)
                while view:
                    view = view[os.write(file.fd, view) :]
        except OSError as error:
            raise _explain(file.shown, error) from None
        self.size += len(data)

    def _end_file(self) -> None:
        file = self._file
        if file is None:
            return
        os.ftruncate(file.fd, file.entry.size)
        self._set_all(file.fd, file.entry)
        os.rename(file.temporary, file.name, src_dir_fd=file.folder, dst_dir_fd=file.folder)
        self._file = None
        os.close(file.fd)

    def _set_all(self, fd: int, entry: FileInfo) -> None:
        """Owner before mode: a change of owner takes set-user-id away."""
        if self._keep:
            self._give(fd, None, entry)
        os.fchmod(fd, entry.mode & (_KEPT_MODE if self._keep else _SAFE_MODE))
        os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))

    def _give(self, what: int | str, folder: int | None, entry: FileInfo) -> None:
        """To its owner, which only root can."""
        if os.geteuid() == 0:
            if isinstance(what, int):
                os.fchown(what, entry.uid, entry.gid)
            else:
                os.chown(what, entry.uid, entry.gid, dir_fd=folder, follow_symlinks=False)

    def finish(self) -> None:
        """All has come: folders get their modes and times, which what was put into them has changed."""
        shown = str(self._target)
        try:
            self._end_file()
            for parts, entry in reversed(self._folders):
                shown = str(self._target.joinpath(*parts))
                fd = self._walk(parts)
                try:
                    self._set_all(fd, entry)
                finally:
                    os.close(fd)
        except OSError as error:
            raise _explain(shown, error) from None


def _explain(shown: str, error: OSError) -> LocalError:
    if isinstance(error, NotADirectoryError) or error.errno == errno.ELOOP:
        return LocalError(f"{shown}: a link or a file is in place of a directory; it is not followed")
    return LocalError(f"{shown}: {error.strerror or error}")
