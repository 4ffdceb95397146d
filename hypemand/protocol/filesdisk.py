# SPDX-License-Identifier: Apache-2.0
"""The files disk: files that a start writes in the guest (docs/protocol.md, "Files disk"). The launcher makes
one of the same form with the secrets (launcher/secrets.h)."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hypemand.atomic import write_file
from hypemand.protocol.records import encode_fields

MAGIC = b"HYPEFIL1"
SECTOR = 512
MAX_CONTENT = 8 * 1024 * 1024
"""Bytes of all files together."""
_HEADER = struct.Struct("<8sII")
_ENTRY = struct.Struct("<II")


@dataclass(frozen=True, slots=True)
class DiskFile:
    """A file and what the guest is to make of it, as `fields`."""

    fields: Mapping[str, str]
    content: bytes


def encode_files_disk(files: Iterable[DiskFile]) -> bytes:
    """The bytes of the disk."""
    body = bytearray()
    count = 0
    for file in files:
        fields = encode_fields(file.fields.items()).encode("utf-8") + b"\0"
        body += _ENTRY.pack(len(fields), len(file.content)) + fields + file.content
        count += 1
    data = _HEADER.pack(MAGIC, len(body), count) + bytes(body)
    return data + bytes(-len(data) % SECTOR)


def write_files_disk(path: Path, files: Iterable[DiskFile], *, uid: int = -1) -> None:
    """Write the disk to `path`, atomically: mode 0400, owned by `uid`, the user of the VM's VMM."""
    write_file(path, encode_files_disk(files), mode=0o400, uid=uid)
