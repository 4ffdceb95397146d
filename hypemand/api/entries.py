# SPDX-License-Identifier: Apache-2.0
"""Paths in requests and names in responses, for both ways of copying files of guests."""

from __future__ import annotations

import posixpath

from hypemand.errors import GuestError, InvalidRequest
from hypemand.model.files import CopyIn, FileInfo
from hypemand.tar import find_hole

MAX_PATH = 4095
# Larger pieces of a file are sent in parts: the published client takes frames of at most 1 MiB.
PIECE = 256 * 1024
ZEROS = bytes(PIECE)


def parse_guest_path(value: object, key: str) -> str:
    """An absolute path in a guest. InvalidRequest names `key`."""
    if not isinstance(value, str) or not value.startswith("/"):
        raise InvalidRequest(f"{key}: must be an absolute path in the guest", hint="use an absolute path")
    if "\0" in value or len(value.encode(errors="surrogateescape")) > MAX_PATH:
        raise InvalidRequest(f"{key}: contains a NUL byte, or more than {MAX_PATH} bytes")
    return value


def name_entry(root: str, entry: FileInfo) -> str:
    """The name of an entry in a copy of `root`: the last component of `root`, and the entry's path below it.
    The guest is hostile: GuestError for a path that leads out of the copy."""
    parts = entry.path.split("/") if entry.path else []
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise GuestError(f"the guest sent a file whose name leads out of the copy: {entry.path[:200]!r}")
    base = posixpath.basename(posixpath.normpath(root))
    return "/".join([base, *parts] if base not in ("", ".", "..") else parts) or "."


async def put_block(copy: CopyIn, block: bytes) -> None:
    """Write the next block of a file, as a hole if it is all zeros."""
    hole = find_hole(block)
    await (copy.write(block) if hole is None else copy.skip(hole))
