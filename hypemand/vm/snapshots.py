# SPDX-License-Identifier: Apache-2.0
"""Snapshots of VMs. One folder each under STATE/snapshots, named by the snapshot's id.

    snapshot.json   what it is (docs/snapshots.md)
    disk.ext4       the VM's disk as it was, sparse
    state, memory   for kind Standby: as `saved` has them; or memory.zst
    dir-*.erofs     and the images of directories that the VM had

A folder becomes a snapshot, and stops being one, by a rename. `.HEX.making` is being made and `.HEX.removed`
is being removed: these are all that is ever deleted unasked. Any other folder without a record that can be
read is reported and left.

The records are read once and kept. The functions that touch files block.
"""

from __future__ import annotations

import logging
import math
import re
import shutil
import stat
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from hypemand.atomic import make_folder, sync_folder
from hypemand.config.definition import Definition
from hypemand.config.names import NAME_RULE, is_name
from hypemand.config.tags import check_tags
from hypemand.config.vmdef import definition_to_json, parse_definition
from hypemand.errors import (
    AlreadyExists,
    Ambiguous,
    HostNotReady,
    HypemandError,
    InUse,
    InvalidRequest,
    NotFound,
)
from hypemand.model.compression import CompressionView
from hypemand.model.snapshots import SnapshotKind, SnapshotView
from hypemand.recordfile import load_record, store_record
from hypemand.storage.disks import DISK
from hypemand.vm.folders import RECORD
from hypemand.vm.saved import (
    PLAIN_VERSION,
    VERSIONS,
    FileMark,
    SavedRun,
    drop_other_form,
    has_other_form,
    parse_saved,
    saved_to_json,
)

_log = logging.getLogger(__name__)
_MIN_PREFIX = 4
_MAKING, _REMOVED = "making", "removed"
_MARKED = re.compile(rf"\.[0-9a-f]{{32}}\.({_MAKING}|{_REMOVED})")
_ID = re.compile(r"[0-9a-f]{32}")
_LOST_AND_FOUND = "lost+found"
_BLOCK = 512


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot. `vm_id`, `vm`: the VM that it is of, by the name that it had; `definition`, `image` (the
    digest of its content, or ""): with what that ran, or was defined; `disk`: its file; `stored`: bytes on
    the disk of the host; `run`: of kind Standby. `expires_at`: when it is deleted by itself;
    `is_scheduled`: a schedule has made it. Times are seconds since the epoch."""

    id: str
    name: str | None
    kind: SnapshotKind
    created_at: float
    vm_id: str
    vm: str
    tags: Mapping[str, str]
    definition: Definition
    image: str
    disk: FileMark
    stored: int
    run: SavedRun | None
    expires_at: float | None = None
    is_scheduled: bool = False

    @property
    def shown(self) -> str:
        """It in words."""
        return f"{self.name or self.id[:12]} of VM {self.vm}"

    def view(self, problem: str | None = None, compression: CompressionView | None = None) -> SnapshotView:
        """It as clients see it. `problem`: why it can no longer be restored; `compression`: of its memory,
        where that is not what the record says."""
        return SnapshotView(
            id=self.id,
            name=self.name,
            kind=self.kind,
            created_at=self.created_at,
            vm_id=self.vm_id,
            vm=self.vm,
            tags=self.tags,
            size=self.stored,
            disk=self.disk.size,
            memory=None if self.run is None else self.definition.memory,
            definition=self.definition,
            problem=problem,
            expires_at=self.expires_at,
            compression=None if self.run is None else compression or self.run.view_compression(),
            is_scheduled=self.is_scheduled,
        )


class SnapshotStore:
    """The snapshots under `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._snapshots: dict[str, Snapshot] = {}
        # what a daemon before this one has left
        self._marked: list[Path] = []
        self._unreadable: list[Path] = []
        # how many use it, by id
        self._users: Counter[str] = Counter()
        # how far their compression is, by id
        self._compressions: dict[str, CompressionView] = {}
        # ids of those that have memory in both forms
        self._doubled: list[str] = []

    def load(self) -> None:
        """Read all records. A folder that is no snapshot is reported and not changed. OSError when the folder
        of snapshots cannot be listed."""
        make_folder(self._folder, mode=0o700)
        for folder in sorted(self._folder.iterdir()):
            if folder.name == _LOST_AND_FOUND:
                continue
            if _MARKED.fullmatch(folder.name):
                self._marked.append(folder)
                continue
            try:
                snapshot = _load(folder)
            except (OSError, ValueError, HypemandError) as error:
                _log.error("cannot read the snapshot in %s, which is not changed: %s", folder, error)
                self._unreadable.append(folder)
                continue
            self._snapshots[snapshot.id] = snapshot
            if snapshot.run is not None and has_other_form(folder, snapshot.run):
                self._doubled.append(snapshot.id)

    @property
    def has_doubled(self) -> bool:
        """Has a daemon before this one been cut off while it compressed?"""
        return bool(self._doubled)

    def check_readable(self) -> None:
        """Raise HostNotReady if there is one whose record cannot be read: nobody knows what it needs."""
        if self._unreadable:
            raise HostNotReady(
                "cannot determine what is in use: the records of some snapshots cannot be read:"
                f" {', '.join(map(str, self._unreadable))}",
                hint="see journalctl -u hypemand for the reason; repair or move them away, restart hypemand",
            )

    def clean_up(self) -> None:
        """Delete what was being made or removed when `load` found it. What fails is logged: the mark stays,
        and so the next try."""
        marked, self._marked = self._marked, []
        for folder in marked:
            _log.info("removing %s: a snapshot that was being made or removed", folder)
            _delete(folder)
        doubled, self._doubled = self._doubled, []
        for snapshot in [one for one in self if one.id in doubled]:
            if snapshot.run is not None:
                _log.info("the compression of the snapshot %s was cut off", snapshot.shown)
                drop_other_form(self.folder(snapshot), snapshot.run)

    def __iter__(self) -> Iterator[Snapshot]:
        return iter(sorted(self._snapshots.copy().values(), key=lambda one: (one.created_at, one.id)))

    def folder(self, snapshot: Snapshot) -> Path:
        """Where its files are."""
        return self._folder / snapshot.id

    def get(self, ref: str) -> Snapshot:
        """By id, by a name that one alone has, or by an unambiguous start of an id. NotFound, Ambiguous."""
        if (snapshot := self._snapshots.get(ref)) is not None:
            return snapshot
        found = [one for one in self if one.name == ref]
        if not found and len(ref) >= _MIN_PREFIX:
            found = [one for one in self if one.id.startswith(ref)]
        if len(found) > 1:
            which = ", ".join(f"{one.id[:12]} of VM {one.vm}" for one in found[:8])
            raise Ambiguous(f"{ref} can be one of the snapshots {which}", hint="use the id")
        if not found:
            raise NotFound(
                f"there is no snapshot {ref[:80]}", hint="hypemanctl snapshot list shows the snapshots"
            )
        return found[0]

    def check_new(self, vm_id: str, name: str | None, tags: Mapping[str, str]) -> None:
        """Raise unless the VM of that id can have one like this: AlreadyExists, InvalidRequest."""
        if name is not None and not is_name(name):
            raise InvalidRequest(
                f"name: {name[:80]!r} cannot be the name of a snapshot", hint=f"use {NAME_RULE}"
            )
        if name is not None and any(one.name == name and one.vm_id == vm_id for one in self):
            raise AlreadyExists(
                f"the VM has a snapshot {name} already", hint="choose another name, or remove it"
            )
        check_tags(tags)

    def begin(self) -> Path:
        """The folder that one is made in. OSError."""
        making = self._new_mark(_MAKING)
        making.mkdir(mode=0o700)
        return making

    def add(self, making: Path, snapshot: Snapshot) -> Snapshot:
        """It is whole: from now on it is there, with its files at their place. OSError."""
        store_record(making / RECORD, _to_json(snapshot))
        sync_folder(making)
        making.rename(self.folder(snapshot))
        try:
            sync_folder(self._folder)
        except OSError:
            self.folder(snapshot).rename(making)
            raise
        added = self._snapshots[snapshot.id] = _load(self.folder(snapshot))
        return added

    def view(self, snapshot: Snapshot, problem: str | None = None) -> SnapshotView:
        """One as clients see it. `problem`: why it can no longer be restored."""
        return snapshot.view(problem, self._compressions.get(snapshot.id))

    def show_compression(self, snapshot: Snapshot, view: CompressionView | None) -> None:
        """How far the compression of its memory is; None: as its record says."""
        self._compressions.pop(snapshot.id, None)
        if view is not None:
            self._compressions[snapshot.id] = view

    def replace_run(self, snapshot: Snapshot, run: SavedRun) -> None:
        """Its memory is in this form from now on. OSError."""
        assert snapshot.run is not None, "it has memory"
        stored = snapshot.stored - snapshot.run.stored + run.stored
        changed = replace(snapshot, run=run, stored=stored)
        store_record(self.folder(snapshot) / RECORD, _to_json(changed))
        self._snapshots[snapshot.id] = changed
        drop_other_form(self.folder(snapshot), run)

    def drop(self, making: Path) -> None:
        """It came to nothing."""
        _delete(making)

    def remove(self, snapshot: Snapshot) -> None:
        """It is gone with the rename: what cannot be deleted after that is deleted when the daemon starts
        again. OSError."""
        removed = self._new_mark(_REMOVED)
        self.folder(snapshot).rename(removed)
        del self._snapshots[snapshot.id]
        self._compressions.pop(snapshot.id, None)
        sync_folder(self._folder)
        _delete(removed)

    @contextmanager
    def using(self, snapshot: Snapshot, *, alone: bool = False) -> Iterator[None]:
        """It is not removed in the block; and nobody else uses it there, if that is to be `alone`. InUse,
        NotFound where it has gone."""
        self.get(snapshot.id)
        users = self._users[snapshot.id]
        if users < 0 or (alone and users):
            what = "being removed" if users < 0 else "being restored or copied"
            raise InUse(f"the snapshot {snapshot.shown} is {what}", hint="wait for that")
        self._users[snapshot.id] += -1 if alone else 1
        try:
            yield
        finally:
            self._users[snapshot.id] -= -1 if alone else 1

    def _new_mark(self, mark: str) -> Path:
        return self._folder / f".{uuid.uuid4().hex}.{mark}"


def measure_folder(folder: Path) -> int:
    """Bytes that its files take on the disk. Blocks; OSError."""
    return sum(path.lstat().st_blocks * _BLOCK for path in folder.iterdir())


def _delete(folder: Path) -> None:
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        return
    except OSError as error:
        _log.warning("cannot delete all of %s: %s", folder, error)


def _to_json(snapshot: Snapshot) -> Mapping[str, Any]:
    return {
        "version": PLAIN_VERSION if snapshot.run is None else snapshot.run.version,
        "name": snapshot.name,
        "kind": snapshot.kind,
        "created_at": snapshot.created_at,
        "vm_id": snapshot.vm_id,
        "vm": snapshot.vm,
        "tags": dict(snapshot.tags),
        "definition": definition_to_json(snapshot.definition),
        "image": snapshot.image,
        "disk": asdict(snapshot.disk),
        "stored": snapshot.stored,
        "run": None if snapshot.run is None else saved_to_json(snapshot.run),
        "expires_at": snapshot.expires_at,
        "scheduled": snapshot.is_scheduled,
    }


def _load(folder: Path) -> Snapshot:
    if _ID.fullmatch(folder.name) is None:
        raise ValueError("its name is not the id of a snapshot")
    return load_record(folder / RECORD, partial(_parse, folder), versions=VERSIONS)


def _parse(folder: Path, document: Any) -> Snapshot:
    if not stat.S_ISREG((folder / DISK).lstat().st_mode):
        raise ValueError(f"{DISK} is not a regular file")
    name, run, kind = document["name"], document["run"], SnapshotKind(document["kind"])
    if (run is None) is not (kind is SnapshotKind.STOPPED):
        raise ValueError(f"run does not fit the kind {kind}")
    vm, end = str(document["vm"]), document.get("expires_at")
    if end is not None and not math.isfinite(float(end)):
        raise ValueError("expires_at is not a time")
    return Snapshot(
        id=folder.name,
        name=None if name is None else str(name),
        kind=kind,
        created_at=float(document["created_at"]),
        vm_id=str(document["vm_id"]),
        vm=vm,
        tags={str(key): str(value) for key, value in document["tags"].items()},
        definition=parse_definition(vm, document["definition"]),
        image=str(document["image"]),
        disk=FileMark(**{**document["disk"], "path": str(folder / DISK)}),
        stored=int(document["stored"]),
        run=None if run is None else parse_saved(folder, run),
        expires_at=None if end is None else float(end),
        is_scheduled=bool(document.get("scheduled", False)),
    )
