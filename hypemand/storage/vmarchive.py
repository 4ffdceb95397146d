# SPDX-License-Identifier: Apache-2.0
"""A VM in one file, as docs/vm-archive.md describes: written and read as a stream, and checked to its end.

A pax archive with these members, in this order:

    manifest.json        version, name, id, image, sizes, volumes
    definition.yaml      the definition, with every key
    disk.ext4            the VM's disk, without its holes; if it has one
    volumes/NAME.ext4    the same of each volume that was asked for
    image.tar            the image as an OCI archive, if it was asked for
    SHA256SUMS           the checksum of what is stored of each member above

What is read is hostile: no name in it becomes a path, and all of it is bounded. Nothing of an archive counts
before `ArchiveReader.finish` has returned. All functions block.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hypemand.atomic import write_all
from hypemand.model.files import FileInfo, FileKind
from hypemand.recordfile import parse_json
from hypemand.storage.disks import MAX_SIZE, MIN_SIZE
from hypemand.storage.locks import lock_disk
from hypemand.storage.sparse import list_extents
from hypemand.tar import (
    END,
    InvalidArchive,
    TarReader,
    format_member,
    format_sparse_map,
    format_sparse_member,
    padding,
)
from hypemand.version import VERSION

FORMAT = "hypemand-vm"
FORMAT_VERSION = 1
MANIFEST, DEFINITION, DISK = "manifest.json", "definition.yaml", "disk.ext4"
IMAGE, SUMS = "image.tar", "SHA256SUMS"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_PIECE = 256 * 1024
_MAX_HEAD = 1024 * 1024
_MAX_VOLUMES = 16
_CHECK_EVERY = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ArchivedVolume:
    """A volume in an archive."""

    id: str
    name: str
    size: int
    tags: Mapping[str, str]

    @property
    def member(self) -> str:
        """The name of its member."""
        return f"volumes/{self.name}.ext4"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an archive says of its VM beside the definition. `digest`: the content that the VM keeps to, ""
    for none; `has_image`: the image is in the archive; `disk`: bytes of its disk, None if it has none;
    `lease`: its addresses, as in the VM's record."""

    name: str
    id: str
    image: str
    digest: str
    has_image: bool
    disk: int | None
    volumes: tuple[ArchivedVolume, ...] = ()
    lease: Mapping[str, str | None] | None = None

    def members(self) -> list[str]:
        """The names of all members between the definition and the checksums."""
        disk = [] if self.disk is None else [DISK]
        return [*disk, *(volume.member for volume in self.volumes), *([IMAGE] if self.has_image else [])]

    def sizes(self) -> dict[str, int]:
        """Bytes of each disk, by its member."""
        sizes = {volume.member: volume.size for volume in self.volumes}
        return sizes if self.disk is None else {DISK: self.disk, **sizes}


def format_manifest(manifest: Manifest) -> bytes:
    """The content of manifest.json."""
    document = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "created_by": f"hypemand {VERSION}",
        "name": manifest.name,
        "id": manifest.id,
        "image": {"name": manifest.image, "digest": manifest.digest, "included": manifest.has_image},
        "disk": None if manifest.disk is None else {"size": manifest.disk},
        "volumes": [
            {"id": one.id, "name": one.name, "size": one.size, "tags": dict(one.tags)}
            for one in manifest.volumes
        ],
        "lease": None if manifest.lease is None else dict(manifest.lease),
    }
    return json.dumps(document, indent=2).encode() + b"\n"


def parse_manifest(data: bytes) -> Manifest:
    """The opposite. Keys that are not known are ignored, another version is refused. InvalidArchive."""
    try:
        document = parse_json(data)
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise InvalidArchive("this is not the archive of a VM")
        if document["version"] != FORMAT_VERSION:
            raise InvalidArchive(
                f"the archive has format version {str(document['version'])[:20]}, and this version of"
                f" hypemand reads {FORMAT_VERSION}"
            )
        return _check_manifest(_make_manifest(document))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise InvalidArchive(f"{MANIFEST} of the archive cannot be read: {str(error)[:200]}") from None


def _make_manifest(document: Mapping[str, Any]) -> Manifest:
    image, disk = document["image"], document["disk"]
    return Manifest(
        name=document["name"],
        id=document["id"],
        image=image["name"],
        digest=image["digest"],
        has_image=image["included"],
        disk=None if disk is None else disk["size"],
        volumes=tuple(
            ArchivedVolume(one["id"], one["name"], one["size"], dict(one["tags"]))
            for one in document["volumes"][: _MAX_VOLUMES + 1]
        ),
        lease=document["lease"],
    )


def _check_manifest(manifest: Manifest) -> Manifest:
    """The types alone, and what bounds the rest: what names may be is for those who use them."""
    texts = [manifest.name, manifest.id, manifest.image, manifest.digest]
    texts += [text for one in manifest.volumes for text in (one.id, one.name, *one.tags, *one.tags.values())]
    if not all(isinstance(text, str) for text in texts) or type(manifest.has_image) is not bool:
        raise ValueError("a value has another type")
    if manifest.digest and _DIGEST.fullmatch(manifest.digest) is None:
        raise ValueError("the digest of the image is not one")
    if manifest.lease is not None and not isinstance(manifest.lease, dict):
        raise ValueError("lease is not an object")
    if any(type(size) is not int or not MIN_SIZE <= size <= MAX_SIZE for size in manifest.sizes().values()):
        raise ValueError("the size of a disk is not valid")
    if len(manifest.volumes) > _MAX_VOLUMES or len(set(manifest.members())) < len(manifest.members()):
        raise ValueError("its volumes are not valid")
    return manifest


# writing


@dataclass(frozen=True, slots=True)
class Source:
    """A disk to be stored. `shared`: others may read it meanwhile."""

    member: str
    path: Path
    shared: bool = False


class ArchiveWriter:
    """An archive, piece by piece. `make_manifest` gets the size of each disk that there is, by its member.
    The disks are locked from `open` to `close`: no VMM can write to them meanwhile."""

    def __init__(
        self,
        make_manifest: Callable[[Mapping[str, int]], Manifest],
        definition: bytes,
        disks: Sequence[Source],
        image: Path | None,
    ) -> None:
        self._make_manifest = make_manifest
        self._definition = definition
        self._disks = disks
        self._image = image
        self._stack = ExitStack()
        self._open: dict[str, int] = {}
        self._sums: list[str] = []
        self._pieces: Iterator[bytes] = iter(())

    def open(self) -> None:
        """Open and lock all. The VM's own disk may be missing. InUse, OSError."""
        for source in self._disks:
            try:
                fd = os.open(source.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            except FileNotFoundError:
                if source.member != DISK:
                    raise
                continue
            self._stack.callback(os.close, fd)
            lock_disk(fd, source.path, "exported", beside_readers=source.shared)
            self._open[source.member] = fd
        if self._image is not None:
            fd = os.open(self._image, os.O_RDONLY | os.O_CLOEXEC)
            self._stack.callback(os.close, fd)
            self._open[IMAGE] = fd
        self._pieces = filter(None, self._write())

    def read(self) -> bytes:
        """The next piece; empty at the end."""
        return next(self._pieces, b"")

    def close(self) -> None:
        """Unlock the disks; may be called again."""
        self._pieces = iter(())
        self._stack.close()

    def _write(self) -> Iterator[bytes]:
        sizes = {member: os.fstat(fd).st_size for member, fd in self._open.items()}
        yield from self._write_text(MANIFEST, format_manifest(self._make_manifest(sizes)))
        yield from self._write_text(DEFINITION, self._definition)
        for member, fd in self._open.items():
            if member != IMAGE:
                extents = list_extents(fd, sizes[member])
                table = format_sparse_map(extents, sizes[member])
                stored = len(table) + sum(end - start for start, end in extents)
                yield format_sparse_member(member, stored, sizes[member], 0o600)
                yield from self._write_contents(member, table, fd, extents)
            else:
                yield _format_header(member, sizes[member])
                yield from self._write_contents(member, b"", fd, [(0, sizes[member])])
        yield from self._write_text(SUMS, "".join(self._sums).encode())
        yield END

    def _write_text(self, member: str, text: bytes) -> Iterator[bytes]:
        self._note(member, hashlib.sha256(text))
        yield _format_header(member, len(text)) + text + padding(len(text))

    def _write_contents(
        self, member: str, table: bytes, fd: int, extents: Sequence[tuple[int, int]]
    ) -> Iterator[bytes]:
        digest, size = hashlib.sha256(table), len(table)
        yield table
        for start, end in extents:
            for at in range(start, end, _PIECE):
                piece = _read_exactly(fd, min(_PIECE, end - at), at)
                digest.update(piece)
                size += len(piece)
                yield piece
        self._note(member, digest)
        yield padding(size)

    def _note(self, member: str, digest: hashlib._Hash) -> None:
        self._sums.append(_format_sum(member, digest))


def _format_header(member: str, size: int) -> bytes:
    return format_member(member, FileInfo(member, FileKind.FILE, 0o600, 0, 0, size, 0))


def _format_sum(member: str, digest: hashlib._Hash) -> str:
    return f"{digest.hexdigest()}  {member}\n"


def _read_exactly(fd: int, size: int, at: int) -> bytes:
    piece = os.pread(fd, size, at)
    while len(piece) < size:
        more = os.pread(fd, size - len(piece), at + len(piece))
        if not more:
            raise OSError("a disk has become smaller while it was exported")
        piece += more
    return piece


# reading


class Target(Protocol):
    """Where the contents of a member go."""

    def begin(self, stored: int) -> None:
        """It has so many bytes."""

    def write(self, data: bytes) -> None:
        """The next of them."""

    def finish(self) -> None:
        """That was all of it."""

    def close(self) -> None:
        """Nothing more comes; may be called again."""


class PlainFile:
    """A new file at `path`. `check_room` raises when the host has no free space left."""

    def __init__(self, path: Path, check_room: Callable[[], None] = lambda: None) -> None:
        self._check_room = check_room
        self._unchecked = 0
        self._fd: int | None = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def begin(self, stored: int) -> None:
        """See `Target`."""

    def write(self, data: bytes) -> None:
        """See `Target`."""
        assert self._fd is not None
        write_all(self._fd, data)
        self._unchecked += len(data)
        if self._unchecked >= _CHECK_EVERY:
            self._unchecked = 0
            self._check_room()

    def finish(self) -> None:
        """See `Target`."""
        self.close()

    def close(self) -> None:
        """See `Target`."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            os.close(fd)


class Discarded:
    """A member that is checked and not kept."""

    def begin(self, stored: int) -> None:
        """See `Target`."""

    def write(self, data: bytes) -> None:
        """See `Target`."""

    def finish(self) -> None:
        """See `Target`."""

    def close(self) -> None:
        """See `Target`."""


class _Text:
    """A small member that is kept in memory."""

    def __init__(self) -> None:
        self.data = bytearray()

    def begin(self, stored: int) -> None:
        if stored > _MAX_HEAD:
            raise InvalidArchive(f"a text in the archive has {stored} bytes, more than {_MAX_HEAD}")

    def write(self, data: bytes) -> None:
        self.data += data

    def finish(self) -> None:
        pass

    def close(self) -> None:
        pass


class ArchiveReader:
    """Takes an archive in pieces of any size. When `manifest` and `definition` are there, `feed` stops, and
    `go_on` takes the places for the rest. InvalidArchive for anything else than an archive of a VM."""

    def __init__(self) -> None:
        self.manifest: Manifest | None = None
        self.definition = b""
        self._tar = TarReader(sparse=True)
        self._events: Iterator[FileInfo | bytes] = iter(())
        self._texts = {member: _Text() for member in (MANIFEST, DEFINITION, SUMS)}
        self._targets: dict[str, Target] = dict(self._texts)
        # the members that are to come, in order
        self._due = [MANIFEST, DEFINITION]
        self._sums: list[str] = []
        self._member, self._left = "", 0
        self._digest = hashlib.sha256()
        self._is_whole = False

    def feed(self, data: bytes) -> bool:
        """Take the next piece. True: the manifest and the definition are there, and `go_on` is next."""
        self._events = self._tar.feed(data)
        return self._advance()

    def go_on(self, targets: Mapping[str, Target]) -> None:
        """Take what is left of the piece. `targets`: where each disk and the image go, by the member."""
        assert self.manifest is not None
        self._targets |= targets
        self._due = [*self.manifest.members(), SUMS]
        self._advance()

    def _advance(self) -> bool:
        for event in self._events:
            if isinstance(event, FileInfo):
                self._begin(event)
            else:
                self._digest.update(event)
                self._targets[self._member].write(event)
                self._left -= len(event)
            if not self._left and self._end():
                return True
        return False

    def _begin(self, entry: FileInfo) -> None:
        if not self._due or entry.path != self._due[0] or entry.kind is not FileKind.FILE:
            wanted = self._due[0] if self._due else "its end"
            raise InvalidArchive(
                f"this is not the archive of a VM: it has {entry.path[:80]!r} in place of {wanted}"
            )
        size = None if self.manifest is None else self.manifest.sizes().get(entry.path)
        if entry.sparse_size != size:
            raise InvalidArchive(f"the size of {entry.path} in the archive is not that of its {MANIFEST}")
        self._member, self._left = self._due.pop(0), entry.size
        self._digest = hashlib.sha256()
        self._targets[self._member].begin(entry.size)

    def _end(self) -> bool:
        """A member is complete. True: it was the last before the disks."""
        self._targets[self._member].finish()
        if self._member == MANIFEST:
            self.manifest = parse_manifest(bytes(self._texts[MANIFEST].data))
        elif self._member == DEFINITION:
            self.definition = bytes(self._texts[DEFINITION].data)
        elif self._member == SUMS:
            self._check_sums()
        self._sums.append(_format_sum(self._member, self._digest))
        return self._member == DEFINITION

    def _check_sums(self) -> None:
        given = self._texts[SUMS].data.decode(errors="replace").splitlines(keepends=True)
        for wrong in (line for line in self._sums if line not in given):
            raise InvalidArchive(f"the archive is damaged: the checksum of {wrong.split()[1]} is another one")
        if given != self._sums:
            raise InvalidArchive(f"the archive is damaged: {SUMS} does not fit its members")
        self._is_whole = True

    def finish(self) -> None:
        """The archive has ended. InvalidArchive if it is not complete."""
        self._tar.finish()
        if not self._is_whole:
            raise InvalidArchive("the archive is not complete: it has no checksums at its end")

    def close(self) -> None:
        """Nothing more comes; may be called again."""
        for target in self._targets.values():
            target.close()
