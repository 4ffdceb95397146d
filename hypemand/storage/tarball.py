# SPDX-License-Identifier: Apache-2.0
"""Tar files of users: decompresses them, detects their type, and rejects unsafe paths."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from hypemand.errors import ImageNotReady
from hypemand.storage.archives import INDEX, MANIFEST, OCI_LAYOUT, Listed, parse_index, parse_manifest
from hypemand.storage.tools import Tools
from hypemand.tar import Header, InvalidArchive, read_headers

_TIMEOUT = 1800.0
_COPY_BYTES = 1024 * 1024
_MARKERS = {OCI_LAYOUT, INDEX, MANIFEST}
_MAX_MARKER = 4 * 1024 * 1024
_ZSTD = b"\x28\xb5\x2f\xfd"


@dataclass(frozen=True, slots=True)
class Contents:
    """The images of an OCI layout and of a Docker archive that are in a tar; None: it is no such. Neither: it
    is a root file system, whatever the names of its files."""

    oci: list[Listed] | None
    docker: list[Listed] | None


def _open_plain(source: Path, head: bytes) -> IO[bytes]:
    """Open a file for reading without its compression, which follows from `head`, its first bytes."""
    if head.startswith(b"\x1f\x8b"):
        return cast(IO[bytes], gzip.open(source))
    if head.startswith(b"\xfd7zXZ\0"):
        return lzma.open(source)
    if head.startswith(b"BZh"):
        return bz2.open(source)
    return open(source, "rb")


def decompress(source: Path, target: Path, tools: Tools, check: Callable[[], None]) -> None:
    """Copy `source` to the new file `target`, without its gzip, xz, bzip2 or zstd compression. `check` raises
    when it takes too much room."""
    with open(source, "rb") as file:
        head = file.read(8)
    if head.startswith(_ZSTD):
        argv = ["zstd", "-dqf", "-o", os.fspath(target), "--", os.fspath(source)]
        tools.build(argv, folder=target.parent, timeout=_TIMEOUT, readable=[source])
        return
    try:
        with _open_plain(source, head) as reader, open(target, "xb") as writer:
            while data := reader.read(_COPY_BYTES):
                writer.write(data)
                check()
    except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
        raise ImageNotReady(f"{source} is broken: {error}") from error


def _find_escape(member: Header) -> str | None:
    """Why a member may not be unpacked."""
    if ".." in member.name.split("/"):
        return f"the name {member.name!r} leads out of the root"
    if member.is_hard_link and ".." in member.linkname.split("/"):
        return f"{member.name!r} is a hard link out of the root, to {member.linkname!r}"
    return None


def find_contents(tar: Path, source: str) -> Contents:
    """Look through the uncompressed `tar`; ImageNotReady, naming `source`, if it is no tar or escapes."""
    files: dict[str, bytes] = {}
    count = 0
    try:
        with open(tar, "rb") as archive:
            for member in read_headers(archive):
                count += 1
                escape = _find_escape(member)
                if escape is not None:
                    raise ImageNotReady(
                        (f"{source} cannot be imported: {escape}"), hint="create the archive again"
                    )
                name = member.name.removeprefix("./")
                if member.is_file and name in _MARKERS and member.size <= _MAX_MARKER:
                    files[name] = os.pread(archive.fileno(), member.size, member.offset)
    except InvalidArchive as error:
        raise ImageNotReady(
            f"{source} is not a tar file: {error.message}",
            hint=("use a directory, an OCI layout or a tar archive"),
        ) from error
    if count == 0:
        raise ImageNotReady(f"{source} is empty", hint="use a tar archive with a root file system")
    return Contents(oci=parse_index(files, source), docker=parse_manifest(files))
