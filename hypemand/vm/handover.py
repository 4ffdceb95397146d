# SPDX-License-Identifier: Apache-2.0
"""What a VM in Standby goes on from, on its way to another host: in a pool that both have.

`standby/ID` in the directory of the pool has the files of a save (`saved`), the VM's own disk where that goes
with it, and `handover.json`, written last. A folder whose name begins with a dot is being written or removed;
of each VM there is one that is being written, and those that are to be removed go with the next change.

All functions block.
"""

from __future__ import annotations

import hashlib
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hypemand.atomic import make_folder, sync_folder
from hypemand.errors import WrongState
from hypemand.recordfile import load_record, store_record
from hypemand.storage.disks import DISK, copy_disk
from hypemand.storage.volumelock import lock_file
from hypemand.vm.folders import STANDBY
from hypemand.vm.saved import (
    STATE,
    FileMark,
    SavedRun,
    check_whole,
    mark_files,
    measure_stored,
    parse_saved,
    saved_to_json,
    store_saved,
)
from hypemand.vm.standbyfiles import begin_save, commit_save, drop_save

_FOLDER, _RECORD, _LOCK = "standby", "handover.json", ".lock"
_VERSION = 1
# seconds that others may take for a rename
_PATIENCE = 30.0


@dataclass(frozen=True, slots=True)
class HostFiles:
    """What the devices of a VM are of that each host has by itself."""

    rootfs: Path
    headers: Path | None

    def list(self) -> tuple[Path, ...]:
        """Both, or the one that there is."""
        return (self.rootfs,) if self.headers is None else (self.rootfs, self.headers)

    def hash(self) -> tuple[str, ...]:
        """The SHA-256 of each. Reads them; OSError."""
        return tuple(_hash(path) for path in self.list())


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True, slots=True)
class Handover:
    """A save of the VM `saved.vm_id`, which `host` has put there; of its files those in pools alone.
    `hashes`: of what each host has (`HostFiles`); `has_disk`: the VM's own disk goes with it."""

    host: str
    saved: SavedRun
    hashes: tuple[str, ...]
    has_disk: bool


def put_handover(directory: Path, state: Path, handover: Handover, check: Callable[[], None]) -> None:
    """Copy what is saved in `standby` of the folder of the VM to a pool, in place of an earlier one. `check`
    raises when it is to end, and is called every MiB. OSError, InUse, HostNotReady: what is there is as it
    was."""
    folder, saved = directory / _FOLDER, handover.saved
    make_folder(folder, mode=0o700)
    making = folder / f".{saved.vm_id}.making"
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(mode=0o700)
    try:
        source = Path(saved.memory.path).parent
        for name in (STATE, saved.memory_name):
            copy_disk(source / name, making / name, check=check)
        if handover.has_disk:
            copy_disk(state / DISK, making / DISK, check=check)
        moved = replace(saved, memory=FileMark.of(making / saved.memory_name))
        store_record(making / _RECORD, _to_json(replace(handover, saved=moved)))
        with _changing(folder):
            check()
            target = find_place(directory, saved.vm_id)
            with suppress(FileNotFoundError):
                _mark_removed(target)
            making.rename(target)
            sync_folder(folder)
    except BaseException:
        shutil.rmtree(making, ignore_errors=True)
        raise


def find_place(directory: Path, vm_id: str) -> Path:
    """The folder of a VM in the pool of that directory."""
    return directory / _FOLDER / vm_id


def find_handover(source: Path) -> Handover | None:
    """What is in that folder. OSError, BadRecord: it cannot be read."""
    try:
        found = load_record(source / _RECORD, lambda document: _parse(source, document), versions=(_VERSION,))
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found if found.saved.vm_id == source.name else None


def take_handover(source: Path, state: Path, handover: Handover, files: Sequence[Path], uid: int) -> SavedRun:
    """Have it be what the VM of the folder `state` goes on from, in place of what that has; it is not in the
    pool any more then. `source`: its folder there; `files`: what this host has for `hashes`. OSError,
    UnusableError, BadRecord, InUse, HostNotReady, WrongState: it is there as before."""
    check_whole(source, handover.saved)
    making = begin_save(state, was_running=False)
    try:
        _copy_to(making, source, state, handover, files, uid)
        with _changing(source.parent):
            _check_same(source, handover.saved)
            marked = _mark_removed(source)
            try:
                taken = commit_save(state)
            except BaseException:
                marked.rename(source)
                raise
    except BaseException:
        drop_save(state)
        raise
    if handover.has_disk:
        # of a disk that every start makes anew; what was saved knows it by what it is there
        (state / STANDBY / DISK).rename(state / DISK)
        sync_folder(state)
    return taken


def _copy_to(
    making: Path, source: Path, state: Path, handover: Handover, files: Sequence[Path], uid: int
) -> None:
    saved = handover.saved
    for name in (STATE, saved.memory_name):
        copy_disk(source / name, making / name)
    marks = [*saved.files, *mark_files(files)]
    if handover.has_disk:
        copy_disk(source / DISK, making / DISK, uid=uid)
        marks.append(replace(FileMark.of(making / DISK), path=str(state / DISK)))
    here = replace(
        saved,
        files=tuple(marks),
        memory=FileMark.of(making / saved.memory_name),
        stored=measure_stored(making, saved.memory_name),
    )
    store_saved(making, here)


def drop_handover(source: Path, saved: SavedRun | None = None) -> None:
    """Remove what is in that folder of a pool: that very save, if one is named. OSError, BadRecord, InUse,
    HostNotReady, WrongState."""
    with _changing(source.parent):
        if saved is not None:
            _check_same(source, saved)
        with suppress(FileNotFoundError):
            _mark_removed(source)


def _check_same(source: Path, saved: SavedRun) -> None:
    """With the lock: WrongState unless it is still there."""
    now = find_handover(source)
    if now is None or now.saved.run != saved.run:
        raise WrongState(f"another host has taken VM {saved.definition.name} meanwhile")


@contextmanager
def _changing(folder: Path) -> Iterator[None]:
    """Be the only one on any host that renames there; what is to be removed is, afterwards."""
    with lock_file(folder / _LOCK, f"{folder}", "changed", patience=_PATIENCE):
        yield
        for marked in folder.glob(".*.removed"):
            shutil.rmtree(marked, ignore_errors=True)


def _mark_removed(source: Path) -> Path:
    """With the lock; FileNotFoundError. By what name it is to be removed from now on."""
    marked = source.with_name(f".{source.name}.{uuid.uuid4().hex}.removed")
    source.rename(marked)
    sync_folder(source.parent)
    return marked


def _to_json(handover: Handover) -> dict[str, Any]:
    return {
        "version": _VERSION,
        "host": handover.host,
        "saved": saved_to_json(handover.saved),
        "hashes": list(handover.hashes),
        "has_disk": handover.has_disk,
    }


def _parse(folder: Path, document: Any) -> Handover:
    return Handover(
        host=str(document["host"]),
        saved=parse_saved(folder, document["saved"]),
        hashes=tuple(str(text) for text in document["hashes"]),
        has_disk=bool(document["has_disk"]),
    )
