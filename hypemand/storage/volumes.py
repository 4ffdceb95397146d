# SPDX-License-Identifier: Apache-2.0
"""Volumes: disks that outlive VMs. One folder each under STATE/volumes, named by the volume's id.

    volume.ext4   the file system, sparse
    volume.json   name, tags, and when it was made
    volume.lock   who works on it now, by a lock, and who was given it last (storage/volumelock.py)

A folder becomes a volume, and stops being one, by a rename. `.HEX.making` is being made and `.HEX.removed` is
being removed: these two, and a volume whose record says that it was not filled to its end, are all that is
ever deleted unasked, and none of them while a VMM has it open. Any other folder without a record that can be
read is reported and left: the record may be what is missing.

The records are read once and kept: finding one costs a start nothing. The functions that touch files block.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from hypemand.atomic import make_folder, sync_folder
from hypemand.config.names import is_name
from hypemand.config.sizes import format_size
from hypemand.config.tags import check_tags
from hypemand.errors import AlreadyExists, Ambiguous, HypemandError, InUse, InvalidRequest, NotFound
from hypemand.fulldisk import name_full_disk
from hypemand.model.volumes import VolumeRoot
from hypemand.recordfile import load_record, store_record
from hypemand.run import CommandFailed
from hypemand.storage.disks import (
    MAX_SIZE,
    MIN_SIZE,
    derive_disk_size,
    ensure_disk,
    has_journal_to_replay,
    read_size,
    set_root,
)
from hypemand.storage.locks import has_others, hold_disk, lock_disk
from hypemand.storage.replay import Replay, replay_in_unit
from hypemand.storage.volumelock import lock_volume

_log = logging.getLogger(__name__)
DISK = "volume.ext4"
"""The name of a volume's disk in its folder."""
_RECORD = "volume.json"
_MIN_PREFIX = 4
_SERIAL_DIGITS = 16
_MAKING = "making"
_REMOVED = "removed"
# no volume can have an id that begins with a dot
_MARKED = re.compile(rf"\.[0-9a-f]{{32}}\.({_MAKING}|{_REMOVED})")
_FOLDER_MODE, _DISK_MODE = 0o700, 0o666
# seconds that a start waits for others who work on the volume, as by a replay of its journal
_PATIENCE = 60.0
# of fsck(8), at the root of every ext4
_LOST_AND_FOUND = "lost+found"


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume. `size` in bytes, `created_at` seconds since the epoch; `ready` False: it is being filled from
    an archive, and not to be used yet. `imported_for`: the id of the VM that it is imported with, while that
    is so: it is complete, and counts once that VM does."""

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
    def serial(self) -> str:
        """The serial number of its drive in a guest; 20 bytes, the most of virtio-blk."""
        return f"vol-{hashlib.sha256(self.id.encode()).hexdigest()[:_SERIAL_DIGITS]}"

    @property
    def used(self) -> int:
        """Bytes that it takes on the host. Blocks."""
        return self.disk.stat().st_blocks * 512


class VolumeStore:
    """The volumes under `folder`; `templates` is where templates of file systems are."""

    def __init__(self, folder: Path, templates: Path) -> None:
        self._folder = folder
        self._templates = templates
        self._volumes: dict[str, Volume] = {}
        # what a daemon before this one has left
        self._marked: list[Path] = []
        self._unfilled: list[Volume] = []
        self.unreadable: dict[str, str] = {}
        """Folders that hold no volume that can be read, by name, with the reason."""

    def load(self) -> None:
        """Read all records. A folder that is no volume is reported and not changed. Raises OSError when the
        folder of volumes cannot be listed."""
        make_folder(self._folder, mode=0o711)
        for folder in sorted(self._folder.iterdir()):
            if folder.name == _LOST_AND_FOUND:
                continue
            if _MARKED.fullmatch(folder.name):
                self._marked.append(folder)
                continue
            try:
                volume = _load(folder)
            except (OSError, ValueError, HypemandError) as error:
                _log.error("cannot read the volume in %s, which is not changed: %s", folder, error)
                self.unreadable[folder.name] = str(error)
                continue
            self._volumes[volume.id] = volume
            if not volume.ready:
                self._unfilled.append(volume)

    def clean_up(self) -> None:
        """Delete what was being made or removed when `load` found it, but what another daemon is still at.
        What fails is logged: the mark stays, and so the next try."""
        marked, self._marked = self._marked, []
        for folder in marked:
            try:
                with lock_volume(folder / DISK, "removed"):
                    _log.info("removing %s: a volume that was being made or removed", folder)
                    _delete(folder)
            except InUse:
                _log.info("leaving %s: it is being worked on", folder)
            except FileNotFoundError:
                continue
            except (OSError, HypemandError) as error:
                _log.warning("cannot remove %s: %s", folder, error)

    @property
    def unfilled(self) -> list[Volume]:
        """Those that `load` has found not filled to their end, and that are still there."""
        return [volume for volume in self._unfilled if self._volumes.get(volume.id) is volume]

    def remove_unfilled(self, volume: Volume) -> None:
        """Remove a volume that was not filled to its end. What cannot be removed is logged, and tried again
        when the daemon starts: it is used by nobody until then."""
        _log.info("removing the volume %s, which was not filled completely", volume.name)
        try:
            self.remove(volume)
        except (OSError, HypemandError) as error:
            _log.error("cannot remove the volume %s: %s", volume.name, error)

    def __iter__(self) -> Iterator[Volume]:
        return iter(sorted(self._volumes.copy().values(), key=lambda volume: volume.name))

    def find(self, ref: str) -> Volume | None:
        """By name or id."""
        by_name = (volume for volume in self._volumes.copy().values() if volume.name == ref)
        return self._volumes.get(ref) or next(by_name, None)

    def find_disk(self, ref: str) -> Path | None:
        """The file of the volume of that name or id."""
        volume = self.find(ref)
        return None if volume is None else volume.disk

    def get(self, ref: str) -> Volume:
        """By name, id or an unambiguous start of an id. NotFound, Ambiguous."""
        volume = self.find(ref)
        if volume is not None:
            return volume
        found = [v for v in self if v.id.startswith(ref)] if len(ref) >= _MIN_PREFIX else []
        if len(found) > 1:
            names = ", ".join(volume.name for volume in found)
            raise Ambiguous(
                (f"{ref} is a prefix of the ids of the volumes {names}"), hint="use a longer prefix of the id"
            )
        if not found:
            raise NotFound(f"there is no volume {ref[:80]}", hint="hypemanctl volume list shows the volumes")
        return found[0]

    def check_new(self, name: str, size: int, tags: Mapping[str, str], volume_id: str | None = None) -> None:
        """Raise unless there can be a volume like this: AlreadyExists, InvalidRequest."""
        for key, word in (("name", name), *([("id", volume_id)] if volume_id is not None else [])):
            if not is_name(word):
                raise InvalidRequest(
                    f"{key}: {word[:80]!r} cannot be the {key} of a volume",
                    hint="use a-z, 0-9 and '-', at most 63 characters, not starting or ending with '-'",
                )
            if self.find(word) is not None:
                raise AlreadyExists(f"a volume {word} already exists", hint=f"choose another {key}")
        check_size(size)
        check_tags(tags)

    def create(
        self,
        name: str,
        size: int,
        tags: Mapping[str, str],
        volume_id: str | None = None,
        *,
        ready: bool = True,
        root: VolumeRoot | None = None,
    ) -> Volume:
        """Make an empty volume. With a `root`, guests put nothing of their images there; else, into a new
        one, once. Nothing is left when that fails. InsufficientResources, and as `check_new`.
        Blocks."""
        self.check_new(name, size, tags, volume_id)
        if volume_id is not None and os.path.lexists(self._folder / volume_id):
            raise AlreadyExists(
                f"{self._folder / volume_id} exists, and contains no readable volume",
                hint=(
                    "see journalctl -u hypemand for the reason; "
                    "repair it or move it away, or choose another id"
                ),
            )
        volume_id = volume_id or uuid.uuid4().hex
        folder, making = self._folder / volume_id, self._new_mark(_MAKING)
        volume = Volume(volume_id, name, derive_disk_size(size), time.time(), dict(tags), folder, ready)
        making.mkdir(mode=_FOLDER_MODE)
        try:
            with lock_volume(making / DISK, "made"):
                ensure_disk(making / DISK, size, -1, self._templates, mode=_DISK_MODE)
                if root is not None:
                    set_root(making / DISK, root)
                _write_record(making, volume)
                making.rename(folder)
                self._volumes[volume.id] = volume
                self._sync_new(volume, making)
        except BaseException:
            _delete(making)
            raise
        return volume

    def plan_import(
        self, name: str, size: int, tags: Mapping[str, str], volume_id: str, vm_id: str
    ) -> tuple[Volume, Path]:
        """A volume that is to come with a VM, and the folder that its disk is to be put into. It keeps its id
        where that is free: the overlays of VMs are found by it. As `check_new`. Blocks."""
        free = is_name(volume_id) and self.find(volume_id) is None
        if not free or os.path.lexists(self._folder / volume_id):
            volume_id = uuid.uuid4().hex
        self.check_new(name, size, tags, volume_id)
        folder = self._folder / volume_id
        return Volume(volume_id, name, size, time.time(), dict(tags), folder, False, vm_id), self._new_mark(
            _MAKING
        )

    def add_imported(self, volume: Volume, making: Path) -> None:
        """Take what `plan_import` has planned, with its disk in `making`. It is not ready yet. Blocks."""
        self.check_new(volume.name, volume.size, volume.tags, volume.id)
        has_journal_to_replay(making / DISK)  # it is an ext4
        _write_record(making, volume)
        making.rename(volume.folder)
        self._volumes[volume.id] = volume
        self._sync_new(volume, making)

    def _sync_new(self, volume: Volume, making: Path) -> None:
        """Have a volume last. One that would not is none, unless not even that can be taken back."""
        try:
            sync_folder(self._folder)
        except OSError:
            volume.folder.rename(making)
            del self._volumes[volume.id]
            raise

    def _new_mark(self, mark: str) -> Path:
        return self._folder / f".{uuid.uuid4().hex}.{mark}"

    def finish(self, volume: Volume) -> Volume:
        """What was being filled can be used now."""
        return self._store(replace(volume, ready=True, imported_for=""))

    def resize(self, volume: Volume, size: int) -> Volume:
        """Let a volume that no VM has grow. InvalidRequest for less than it has, InsufficientResources,
        InUse."""
        check_size(size)
        if derive_disk_size(size) < volume.size:
            raise InvalidRequest(
                f"size: {format_size(size)} is less than the {format_size(volume.size)} that the volume"
                f" {volume.name} has",
                hint="a volume cannot shrink; create a smaller one and copy the data",
            )
        with lock_volume(volume.disk, "resized"):
            ensure_disk(volume.disk, size, -1, self._templates, mode=_DISK_MODE)
            larger = self._volumes[volume.id] = replace(volume, size=derive_disk_size(size))
            return self._store(larger)

    def remove(self, volume: Volume) -> None:
        """Remove a volume and all that is in it. It is gone with the rename: what cannot be deleted after
        that is deleted when the daemon starts again. InUse."""
        removed = self._new_mark(_REMOVED)
        with lock_volume(volume.disk, "removed"):
            with hold_disk(volume.disk, "removed"):
                volume.folder.rename(removed)
            del self._volumes[volume.id]
            sync_folder(self._folder)
            _delete(removed)

    def _store(self, volume: Volume) -> Volume:
        _write_record(volume.folder, volume)
        self._volumes[volume.id] = volume
        return volume


def _write_record(folder: Path, volume: Volume) -> None:
    document = {
        "name": volume.name,
        "created_at": volume.created_at,
        "tags": dict(volume.tags),
        "ready": volume.ready,
        "imported_for": volume.imported_for,
    }
    store_record(folder / _RECORD, document, indent=2)


def _delete(marked: Path) -> None:
    """Delete a folder that is marked for it. What fails is logged: the mark stays, and so the next try."""
    try:
        shutil.rmtree(marked)
    except FileNotFoundError:
        return
    except OSError as error:
        _log.warning("cannot delete all of %s: %s", marked, error)


def prepare_volume(disk: Path, vm: str, uid: int, *, writes: bool, replay: Replay = replay_in_unit) -> None:
    """Let the VMM of `vm`, which runs as `uid`, have a volume. InUse if another on any host has it, unless
    all of them only read; then nothing of the volume was changed.

    A journal that was left by a crash is replayed first for readers, since a guest cannot do it for them.
    """
    what = "given to a VM"
    with lock_volume(disk, what, patience=_PATIENCE) as lock:
        fd = os.open(disk, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            lock_disk(fd, disk, what, beside_readers=not writes)
            # nobody writes to it by now; a file system that is mounted looks like one that a crash has left
            replays = not writes and has_journal_to_replay(disk)
            if replays:
                # readers may be beside a reader, but the first would have had that done
                lock_disk(fd, disk, what)
            beside_others = has_others(fd)
            if not beside_others:
                _open_to_vmms(fd, disk.parent)
            if replays:
                _replay(disk, uid, replay)
            lock.note(vm, beside_others=beside_others)
        finally:
            os.close(fd)


def _open_to_vmms(fd: int, folder: Path) -> None:
    """A disk can be opened by whom it is shown, which systemd does for the VMM of each of its VMs, with the
    rights of a reader or of a writer: its owner and mode are the same for all of them, on every host, and
    nobody else gets to it through its folder."""
    if stat.S_IMODE(folder.stat().st_mode) != _FOLDER_MODE:
        folder.chmod(_FOLDER_MODE)
    about = os.fstat(fd)
    if stat.S_IMODE(about.st_mode) == _DISK_MODE and about.st_uid == os.geteuid():
        return
    os.fchown(fd, os.geteuid(), os.getegid())
    os.fchmod(fd, _DISK_MODE)


def _replay(disk: Path, uid: int, replay: Replay) -> None:
    try:
        with name_full_disk(f"replay the journal of {disk}", disk):
            replay(disk, uid)
    except CommandFailed as error:
        said = error.result.stdout.decode(errors="replace") + error.result.stderr
        why = next((line.strip() for line in said.splitlines() if line.strip()), error.message)
        raise HypemandError(
            f"the volume in {disk.parent} was not closed cleanly, and cannot be repaired for a read-only VM:"
            f" {why}",
            hint="start a VM that writes to it, or restore it from a backup",
        ) from error


def check_size(size: int) -> None:
    """Raise InvalidRequest unless a volume can have `size` bytes."""
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise InvalidRequest(
            f"size: {format_size(size)} is not a valid size",
            hint=f"give {format_size(MIN_SIZE)} to {format_size(MAX_SIZE)}",
        )


def _load(folder: Path) -> Volume:
    if not is_name(folder.name):
        raise ValueError("its directory has no valid name of a volume")
    return load_record(folder / _RECORD, partial(_parse_record, folder))


def _parse_record(folder: Path, document: Any) -> Volume:
    if not stat.S_ISREG((folder / DISK).lstat().st_mode):
        raise ValueError(f"{DISK} is not a regular file")
    return Volume(
        id=folder.name,
        name=str(document["name"]),
        size=read_size(folder / DISK),
        created_at=float(document["created_at"]),
        tags={str(key): str(value) for key, value in document["tags"].items()},
        folder=folder,
        ready=bool(document["ready"]),
        imported_for=str(document.get("imported_for", "")),
    )
