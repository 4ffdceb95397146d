# SPDX-License-Identifier: Apache-2.0
"""A volume: what is known of it, and its record.

A volume has a folder of its own, named by its id:

    volume.ext4   the file system, sparse
    volume.json   name, tags, and when it was made
    volume.lock   who works on it now, by a lock, and who was given it last (storage/volumelock.py)

The functions block.
"""

from __future__ import annotations

import hashlib
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hypemand.config.names import is_name
from hypemand.recordfile import load_record, store_record
from hypemand.storage.disks import read_size

DISK = "volume.ext4"
"""The name of a volume's disk in its folder."""
FOLDER_MODE, DISK_MODE = 0o700, 0o666
"""Any process that sees a disk can open it; systemd shows it to the VMM of each of its VMs, with the rights
of a reader or of a writer. So owner and mode are the same for all of them, on every host; nobody else gets to
it through its folder."""
MAKING, REMOVED = "making", "removed"
"""How the names of folders end which are no volume yet, or none any more."""
_RECORD = "volume.json"
_SERIAL_DIGITS = 16
# no volume can have an id that begins with a dot
_MARKED = re.compile(rf"\.[0-9a-f]{{32}}\.({MAKING}|{REMOVED})")


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume. `name`: its own, behind that of its pool if it is in one, as "san/data". `size` in bytes,
    `created_at` seconds since the epoch; `ready` False: it is being filled from an archive, and not to be
    used yet. `imported_for`: the id of the VM that it is imported with, while that is so: it is complete, and
    counts once that VM does."""

    id: str
    name: str
    size: int
    created_at: float
    tags: Mapping[str, str]
    folder: Path
    ready: bool = True
    imported_for: str = ""

    @property
    def disk(self) -> Path:
        """Its file system."""
        return self.folder / DISK

    @property
    def pool(self) -> str:
        """The pool that it is in; "" for the state folder."""
        return self.name.rpartition("/")[0]

    @property
    def ref(self) -> str:
        """Its id, as definitions may have it: there is no other volume that has it."""
        return join_name(self.pool, self.id)

    @property
    def serial(self) -> str:
        """The serial number of its drive in a guest; 20 bytes, the most of virtio-blk."""
        return f"vol-{hashlib.sha256(self.id.encode()).hexdigest()[:_SERIAL_DIGITS]}"

    @property
    def used(self) -> int:
        """Bytes that it takes on the host. Blocks."""
        return self.disk.stat().st_blocks * 512


def join_name(pool: str, name: str) -> str:
    """The name of a volume that is in a pool, or in none."""
    return f"{pool}/{name}" if pool else name


def is_marked(folder: Path) -> bool:
    """Is a volume being made there, or removed?"""
    return _MARKED.fullmatch(folder.name) is not None


def load_volume(folder: Path, pool: str) -> Volume:
    """The volume that is there. OSError, ValueError."""
    if not is_name(folder.name):
        raise ValueError("its directory has no valid name of a volume")
    return load_record(folder / _RECORD, partial(_parse_record, folder, pool))


def _parse_record(folder: Path, pool: str, document: Any) -> Volume:
    if not stat.S_ISREG((folder / DISK).lstat().st_mode):
        raise ValueError(f"{DISK} is not a regular file")
    return Volume(
        id=folder.name,
        name=join_name(pool, str(document["name"])),
        size=read_size(folder / DISK),
        created_at=float(document["created_at"]),
        tags={str(key): str(value) for key, value in document["tags"].items()},
        folder=folder,
        ready=bool(document["ready"]),
        imported_for=str(document.get("imported_for", "")),
    )


def write_record(folder: Path, volume: Volume) -> None:
    """Write the record of a volume into a folder. OSError."""
    document = {
        "name": volume.name.rpartition("/")[2],
        "created_at": volume.created_at,
        "tags": dict(volume.tags),
        "ready": volume.ready,
        "imported_for": volume.imported_for,
    }
    store_record(folder / _RECORD, document, indent=2)
