# SPDX-License-Identifier: Apache-2.0
"""A VM whose memory is on the disk: its files, and whether it can be restored.

A folder with three files: `memory`, sparse, of the guest's size, or `memory.zst`, the same compressed
(`compression`); `state`, what the VMM needs beside that (`Vmm.save`); and `snapshot.json`, written last.
docs/architecture.md describes it. It belongs to the disks as they were at that moment: once a guest has
written to one of them it is of no use any more.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from hypemand.config.definition import Definition
from hypemand.config.vmdef import definition_to_json, parse_definition
from hypemand.model.compression import Compression, CompressionAlgorithm, CompressionState, CompressionView
from hypemand.protocol.thaw import ForkIdentity, identity_from_json, identity_to_json
from hypemand.recordfile import BadRecord, load_record, read_regular, store_record
from hypemand.vm.folders import RECORD
from hypemand.vm.record import Lease, lease_from_json, lease_to_json
from hypemand.vm.tracker import BootNotes, notes_to_json, parse_notes
from hypemand.vmm.build import VmmBuild

STATE, MEMORY, PACKED = "state", "memory", "memory.zst"
PLAIN_VERSION, PACKED_VERSION = 1, 2
"""Of a record, with plain memory and with compressed memory, of which a daemon before that reads none."""
VERSIONS = (PLAIN_VERSION, PACKED_VERSION)
MAX_STATE = 16 * 1024 * 1024
"""Bytes that the state of a VM's devices may have."""
_BLOCK = 512


class UnusableError(Exception):
    """It cannot be restored: why, in words."""


@dataclass(frozen=True, slots=True)
class FileMark:
    """A file as it was: a change of its content changes one of these. `path` on the host."""

    path: str
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> FileMark:
        """The file as it is now. Blocks; OSError."""
        about = path.stat()
        return cls(str(path), about.st_size, about.st_mtime_ns)

    def has_changed(self) -> bool:
        """Is it another one by now, or gone? Blocks."""
        try:
            return FileMark.of(Path(self.path)) != self
        except OSError:
            return True


@dataclass(frozen=True, slots=True)
class Packing:
    """How memory was compressed: `size` bytes, which took `stored` on the disk."""

    wanted: Compression
    size: int
    stored: int


@dataclass(frozen=True, slots=True)
class SavedRun:
    """A run that was saved, of the VM with that id. `boot`: the boot id that its guest has; `next_boot`: the
    one that it has from its restore on. Times in seconds since the epoch; `started_at`: when the run has
    begun in which it booted. `definition`, `image` (the digest of its content), `build`: with what it ran;
    `files`: its disks, and what else of the host its devices are. `state`: the SHA-256 of that file;
    `stored`: bytes that both files take on the disk. `fork`: who its guest is to be from its restore on;
    None: it stays who it is. `packing`: of the memory, if that is
    compressed."""

    run: str
    vm_id: str
    boot: str
    next_boot: str
    saved_at: float
    started_at: float | None
    build: VmmBuild
    definition: Definition
    image: str
    lease: Lease | None
    notes: BootNotes
    files: tuple[FileMark, ...]
    memory: FileMark
    state: str
    stored: int
    fork: ForkIdentity | None = None
    packing: Packing | None = None

    @property
    def memory_name(self) -> str:
        """The file of the memory."""
        return MEMORY if self.packing is None else PACKED

    @property
    def version(self) -> int:
        """Of its record."""
        return PLAIN_VERSION if self.packing is None else PACKED_VERSION

    def move(self, folder: Path) -> SavedRun:
        """As it is in another folder, to which its files were moved."""
        memory = replace(self.memory, path=str(folder / self.memory_name))
        return replace(self, memory=memory)

    def view_compression(self) -> CompressionView:
        """As clients see it."""
        if self.packing is None:
            return CompressionView()
        return CompressionView(CompressionState.COMPRESSED, self.packing.wanted, self.memory.size)

    def find_changed(self) -> str | None:
        """A disk that is not what it was when it was saved, if there is one. Blocks."""
        return next((mark.path for mark in self.files if mark.has_changed()), None)


def hash_state(folder: Path) -> str:
    """Blocks; OSError."""
    return hashlib.sha256(read_regular(folder / STATE, MAX_STATE)).hexdigest()


def measure_stored(folder: Path, memory: str = MEMORY) -> int:
    """Bytes that what was saved there takes on the disk, with that file of the memory. Blocks; OSError."""
    return sum((folder / name).stat().st_blocks * _BLOCK for name in (STATE, memory))


def drop_other_form(folder: Path, saved: SavedRun) -> None:
    """Remove the memory in the form that does not count: the record says which one does. Blocks; OSError."""
    (folder / (PACKED if saved.packing is None else MEMORY)).unlink(missing_ok=True)


def has_other_form(folder: Path, saved: SavedRun) -> bool:
    """Is there one, of a daemon that was cut off? Blocks."""
    return (folder / (PACKED if saved.packing is None else MEMORY)).exists()


def mark_files(paths: Iterable[Path]) -> tuple[FileMark, ...]:
    """Blocks; OSError."""
    return tuple(FileMark.of(path) for path in paths)


def store_saved(folder: Path, saved: SavedRun) -> None:
    """Write its record, when the other files are there. Blocks; OSError."""
    store_record(folder / RECORD, saved_to_json(saved))


def saved_to_json(saved: SavedRun) -> dict[str, Any]:
    """The document of its record."""
    return {
        "version": saved.version,
        "run": saved.run,
        "vm_id": saved.vm_id,
        "boot": saved.boot,
        "next_boot": saved.next_boot,
        "saved_at": saved.saved_at,
        "started_at": saved.started_at,
        "build": saved.build.to_json(),
        "name": saved.definition.name,
        "definition": definition_to_json(saved.definition),
        "image": saved.image,
        "lease": None if saved.lease is None else lease_to_json(saved.lease),
        "notes": notes_to_json(saved.notes),
        "files": [asdict(mark) for mark in saved.files],
        "memory": asdict(saved.memory),
        "state": saved.state,
        "stored": saved.stored,
        "fork": None if saved.fork is None else identity_to_json(saved.fork),
        **({} if saved.packing is None else {"compression": _packing_to_json(saved.packing)}),
    }


def _packing_to_json(packing: Packing) -> dict[str, Any]:
    wanted = packing.wanted
    return {
        "algorithm": wanted.algorithm,
        "level": wanted.level,
        "size": packing.size,
        "stored": packing.stored,
    }


def _parse_packing(document: Any) -> Packing:
    wanted = Compression(int(document["level"]), CompressionAlgorithm(document["algorithm"]))
    return Packing(wanted, int(document["size"]), int(document["stored"]))


def load_saved(folder: Path) -> SavedRun:
    """Read a record. Blocks; FileNotFoundError where there is none, OSError, BadRecord."""
    return load_record(folder / RECORD, partial(parse_saved, folder), versions=VERSIONS)


def parse_saved(folder: Path, document: Any) -> SavedRun:
    """The opposite. KeyError, TypeError, ValueError and HypemandError for what is no such document."""
    started_at, packed = document["started_at"], document.get("compression")
    memory = MEMORY if packed is None else PACKED
    return SavedRun(
        run=str(document["run"]),
        vm_id=str(document["vm_id"]),
        boot=str(document["boot"]),
        next_boot=str(document["next_boot"]),
        saved_at=float(document["saved_at"]),
        started_at=None if started_at is None else float(started_at),
        build=VmmBuild.from_json(document["build"]),
        definition=parse_definition(str(document["name"]), document["definition"]),
        image=str(document["image"]),
        lease=None if (lease := document["lease"]) is None else lease_from_json(lease),
        notes=parse_notes(document["notes"]),
        files=tuple(FileMark(**mark) for mark in document["files"]),
        memory=FileMark(**{**document["memory"], "path": str(folder / memory)}),
        state=str(document["state"]),
        stored=int(document["stored"]),
        fork=None if (fork := document.get("fork")) is None else identity_from_json(fork),
        packing=None if packed is None else _parse_packing(packed),
    )


def find_saved(folder: Path) -> SavedRun | None:
    """What is in a folder; None where nothing is, or nothing that can be read: `check_saved` says why.
    Blocks."""
    try:
        return load_saved(folder)
    except (OSError, BadRecord):
        return None


def check_whole(folder: Path, saved: SavedRun) -> None:
    """Raise UnusableError unless its files are those that were written. (Of the memory a content that has
    changed all by itself is not seen: to read it all would take as long as to load it.) Blocks."""
    try:
        whole = hash_state(folder) == saved.state and not saved.memory.has_changed()
        whole = whole and stat.S_ISREG((folder / saved.memory_name).lstat().st_mode)
    except OSError as error:
        raise UnusableError(f"{error.filename or folder} cannot be read: {error.strerror}") from None
    if not whole:
        raise UnusableError(f"a file in {folder} is damaged, or was changed")


def give_to(folder: Path, uid: int, *, shared: bool) -> None:
    """Let the VMM of that user read its files; and unless they are `shared`, open its memory to write, which
    it maps privately. Only root gets into the folder: the VMM has them by mounts of their own. Blocks;
    OSError."""
    folder.chmod(0o700)
    (folder / STATE).chmod(0o444)
    memory = folder / MEMORY
    if shared:
        # other VMs may have the very same file
        memory.chmod(0o444)
    else:
        os.chown(memory, uid, uid)
        memory.chmod(0o600)


def open_new(paths: Sequence[Path]) -> list[int]:
    """Descriptors of new files, in a folder that is nobody else's. Blocks; OSError."""
    return [os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600) for path in paths]
