# SPDX-License-Identifier: Apache-2.0
"""cp: copies files and directories between this host and a Running VM, with the rules of docker cp."""

from __future__ import annotations

import os
import posixpath
import re
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hypemand.cli.client import Client, parse
from hypemand.cli.context import Context
from hypemand.cli.exitcode import ExitCode
from hypemand.cli.pack import LocalError, Packing, measure, pack
from hypemand.cli.progress import Progress, wants_progress
from hypemand.cli.terminal import print_error, print_json
from hypemand.cli.transfer import download, upload
from hypemand.cli.unpack import Unpacker
from hypemand.errors import InvalidRequest, NotFound
from hypemand.model.answers.guest import ArchiveResult, PathInfo
from hypemand.model.files import FileInfo
from hypemand.tar import InvalidArchive, TarReader

STREAM = "-"
_GUEST = re.compile(r"([a-z0-9][a-z0-9-]*):(.*)", re.DOTALL)
_BLOCK = 128 * 1024
# Links to links, as a kernel bears them.
_MAX_LINKS = 40


@dataclass(frozen=True, slots=True)
class Place:
    """One side of a copy. `path` as written; of a guest absolute."""

    vm: str | None
    path: str

    @property
    def means_contents(self) -> bool:
        """Does it end in `/.`, which means the contents of the directory?"""
        return self.path in (".", "/.") or self.path.endswith("/.")

    @property
    def wants_folder(self) -> bool:
        """Does it end so that it can only be a folder?"""
        return self.path.endswith("/") or self.means_contents

    def __str__(self) -> str:
        return self.path if self.vm is None else f"{self.vm}:{self.path}"


def parse_place(text: str) -> Place:
    """`NAME:PATH` in a VM; anything else here. A path here that has a colon is written with ./ before it."""
    match = _GUEST.fullmatch(text)
    if match is None:
        return Place(None, text)
    return Place(match[1], "/" + match[2].lstrip("/"))


def copy(context: Context) -> int:
    """Copy one way or the other."""
    source, target = (parse_place(text) for text in (context.args.src, context.args.dst))
    if (source.vm is None) == (target.vm is None):
        raise InvalidRequest("exactly one of SRC and DST must be NAME:PATH")
    if source.vm is None:
        size = _Upload(context, source, target).run()
    else:
        size = _Download(context, source, target).run()
    if context.wants_json and target.path != STREAM:
        print_json({"bytes": size})
    return ExitCode.OK


def _stat(client: Client, vm: str, path: str, *, follow: bool) -> PathInfo | None:
    query = {"path": path, "follow_links": "true" if follow else "false"}
    found = parse(PathInfo, client.get("instances", vm, "stat", query=query))
    return found if found.exists else None


def _clean(path: str) -> str:
    """Of a guest: without what does not change where it leads. `..` stays: a link may stand before it."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return "/" + "/".join(parts)


class _Upload:
    """From here into a VM."""

    def __init__(self, context: Context, source: Place, target: Place) -> None:
        assert target.vm is not None
        self._context = context
        self._source = source
        self._target = target
        self._vm = target.vm

    def run(self) -> int:
        """Bytes of files."""
        args, total = self._context.args, None
        if self._source.path == STREAM:
            folder, source, name = _clean(self._target.path), None, ""
        else:
            source = Path(self._source.path)
            folder, name = self._find_goal(source)
            if self._source.wants_folder:
                source = source.resolve()  # written so, a link is followed
            total = measure(source, follow=args.follow_link) if wants_progress() else None
        with Progress(f"{self._source} to {self._target}", total) as progress:
            if source is None:
                pieces = _read_input(progress)
            else:
                pieces = pack(
                    source, name, Packing(args.follow_link, args.archive, print_error, progress.count)
                )
            answer = upload(self._context.client, self._vm, {"path": folder}, pieces)
        return parse(ArchiveResult, answer).bytes_written

    def _find_goal(self, path: Path) -> tuple[str, str]:
        """The folder in the guest, and what the source is called there; "" for its contents alone."""
        is_folder = self._look_at_source(path)
        client, target = self._context.client, _clean(self._target.path)
        found = _stat(client, self._vm, target, follow=True)
        if found is not None and found.is_dir:
            return target, "" if self._source.means_contents and is_folder else _base_name(path)
        if found is not None:
            if is_folder:
                raise InvalidRequest(f"{self._target} is not a directory, and {path} is one")
            if self._target.wants_folder:
                raise InvalidRequest(f"{self._target} is not a directory")
            target = self._resolve(target)
        elif self._target.wants_folder and not is_folder:
            raise NotFound(f"there is no directory {self._target}", code="path_not_found")
        return posixpath.dirname(target), posixpath.basename(target)

    def _look_at_source(self, path: Path) -> bool:
        """Is it a directory?"""
        try:
            follow = self._context.args.follow_link or self._source.wants_folder
            is_folder = stat.S_ISDIR((path.stat() if follow else path.lstat()).st_mode)
        except OSError as error:
            raise LocalError(f"{self._source}: {error.strerror}") from None
        if self._source.wants_folder and not is_folder:
            raise LocalError(f"{self._source} is not a directory")
        return is_folder

    def _resolve(self, path: str) -> str:
        """The target of a symbolic link: it is replaced, not the link."""
        for _ in range(_MAX_LINKS):
            found = _stat(self._context.client, self._vm, path, follow=False)
            if found is None or not found.is_symlink:
                return path
            path = _clean(posixpath.join(posixpath.dirname(path), str(found.link_target)))
        raise InvalidRequest(f"{self._target}: too many links")


def _base_name(path: Path) -> str:
    """What `path` is called; of `..` and the like what it is called where it is."""
    return path.name if path.name not in ("", "..") else path.resolve().name


def _read_input(progress: Progress) -> Iterator[bytes]:
    if sys.stdin.isatty():
        raise InvalidRequest("- as SRC reads a tar archive from standard input, which is a terminal")
    while block := os.read(0, _BLOCK):
        progress.count(len(block))
        yield block


class _Download:
    """From a VM to here."""

    def __init__(self, context: Context, source: Place, target: Place) -> None:
        assert source.vm is not None
        self._context = context
        self._source = source
        self._target = target
        self._vm = source.vm
        self._path = _clean(source.path)

    def run(self) -> int:
        """Bytes of files, or of the archive."""
        follow = self._context.args.follow_link or self._source.wants_folder
        found = _stat(self._context.client, self._vm, self._path, follow=follow)
        if found is None:
            raise NotFound(f"there is no {self._source}", code="path_not_found")
        if self._source.wants_folder and not found.is_dir:
            raise InvalidRequest(f"{self._source} is not a directory")
        query = {"path": self._path, "follow_links": "true" if self._context.args.follow_link else "false"}
        if follow and not self._context.args.follow_link:
            # The link itself is followed because of how it was written, those below it are not.
            query["path"] = self._path.rstrip("/") + "/."
        total = found.size if found.is_file else None
        pieces = download(self._context.client, self._vm, query)
        with Progress(f"{self._source} to {self._target}", total) as progress:
            if self._target.path == STREAM:
                return _write_output(pieces, progress)
            return self._unpack(pieces, query["path"], is_folder=found.is_dir, progress=progress)

    def _unpack(self, pieces: Iterator[bytes], asked: str, *, is_folder: bool, progress: Progress) -> int:
        base = posixpath.basename(posixpath.normpath(asked))
        goal = self._find_goal(base, is_folder=is_folder)
        reader = TarReader()
        is_named = goal == Path(self._target.path)
        keep = self._context.args.archive
        with Unpacker(goal, is_named=is_named, keep=keep, warn=print_error) as unpacker:
            try:
                for piece in pieces:
                    for event in reader.feed(piece):
                        if isinstance(event, FileInfo):
                            unpacker.add(_strip_base(event.path, base), event)
                        else:
                            unpacker.write(event)
                            progress.count(len(event))
                reader.finish()
            except InvalidArchive as error:
                raise InvalidArchive(
                    f"the archive from hypemand cannot be unpacked: {error.message}"
                ) from None
            unpacker.finish()
        return unpacker.size

    def _find_goal(self, base: str, *, is_folder: bool) -> Path:
        """What the source becomes."""
        target = Path(self._target.path)
        if target.is_dir():
            return target if (self._source.means_contents and is_folder) or not base else target / base
        if target.exists():
            if is_folder:
                raise LocalError(f"{target} is not a directory, and {self._source} is one")
            if self._target.wants_folder:
                raise LocalError(f"{self._target} is not a directory")
            return target
        if self._target.wants_folder and not is_folder:
            raise LocalError(f"there is no directory {self._target}")
        if not target.parent.is_dir():
            raise LocalError(f"there is no directory {target.parent}")
        return target


def _strip_base(path: str, base: str) -> str:
    """A member's path below the root of the copy, which has the name of the last part of what was asked."""
    if not base:
        return path
    head, _, rest = path.partition("/")
    if head != base:
        raise InvalidArchive(f"{path[:200]!r} is not in {base!r}")
    return rest


def _write_output(pieces: Iterator[bytes], progress: Progress) -> int:
    if sys.stdout.isatty():
        raise InvalidRequest("- as DST writes a tar archive to standard output, which is a terminal")
    size = 0
    for piece in pieces:
        sys.stdout.buffer.write(piece)
        progress.count(len(piece))
        size += len(piece)
    sys.stdout.buffer.flush()
    return size
