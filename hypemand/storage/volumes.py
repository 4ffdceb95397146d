# SPDX-License-Identifier: Apache-2.0
"""Volumes: disks that outlive VMs, in pools (storage/pools.py). The functions that touch files block."""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from hypemand.atomic import sync_folder
from hypemand.config.names import is_name
from hypemand.config.pools import PoolConfig
from hypemand.config.sizes import format_size
from hypemand.config.tags import check_tags
from hypemand.errors import AlreadyExists, Ambiguous, HostNotReady, HypemandError, InvalidRequest, NotFound
from hypemand.model.volumes import VolumeRoot
from hypemand.storage.devices import Device, find_device
from hypemand.storage.disks import (
    MAX_SIZE,
    MIN_SIZE,
    derive_disk_size,
    ensure_disk,
    has_journal_to_replay,
    set_root,
)
from hypemand.storage.locks import hold_disk
from hypemand.storage.pools import VolumePool, delete_marked
from hypemand.storage.volume import (
    DISK,
    DISK_MODE,
    FOLDER_MODE,
    MAKING,
    REMOVED,
    Volume,
    join_name,
    write_record,
)
from hypemand.storage.volumelock import lock_volume

_log = logging.getLogger(__name__)
_MIN_PREFIX = 4


class VolumeStore:
    """The volumes under `folder`, and those of the pools of the host config; `templates` is where templates
    of file systems are. `devices`: pools that have devices."""

    def __init__(
        self,
        folder: Path,
        templates: Path,
        pools: Mapping[str, PoolConfig] | None = None,
        devices: Mapping[str, Path] | None = None,
    ) -> None:
        self._own = VolumePool("", folder)
        self._templates = templates
        self._pools = {name: VolumePool.from_config(name, config) for name, config in (pools or {}).items()}
        self._devices = dict(devices or {})

    @property
    def pools(self) -> list[VolumePool]:
        """Those of the host config."""
        return list(self._pools.values())

    @property
    def unreadable(self) -> Mapping[str, str]:
        """Folders in the state folder that hold no volume that can be read, by name, with the reason."""
        return self._own.unreadable

    def load(self) -> None:
        """Read all that this host alone has. OSError when the folder of the state folder cannot be listed."""
        for pool in self._pools.values():
            if not pool.shared:
                pool.read()
        self._own.read()

    def take_pools(self, configs: Mapping[str, PoolConfig], devices: Mapping[str, Path]) -> None:
        """These are the pools of the host config from now on. VMs that run with volumes of others keep
        them."""
        pools = {}
        for name, config in configs.items():
            before = self._pools.get(name)
            is_new = before is None or before.config != config
            pool = pools[name] = VolumePool.from_config(name, config) if before is None or is_new else before
            if not pool.shared and (is_new or pool.problem):
                pool.read()
        self._pools = pools
        self._devices = dict(devices)

    def find_device(self, name: str) -> Device:
        """A block device by the name of its pool and its own, whether or not it is there. NotFound."""
        return find_device(name, self._devices)

    def list_pools(self, refs: Collection[str] | None = None) -> list[VolumePool]:
        """The pools of the host config: all, or those that names or ids of volumes name."""
        wanted = None if refs is None else {ref.rpartition("/")[0] for ref in refs}
        return [pool for pool in self.pools if wanted is None or pool.name in wanted]

    def clean_up(self) -> None:
        """Delete what was being made or removed when `load` found it, where this host alone has the pool."""
        for pool in (self._own, *self._pools.values()):
            if not pool.shared:
                pool.clean_up()

    @property
    def unfilled(self) -> list[Volume]:
        """Those that `load` has found not filled to their end, and that are still there."""
        pools = (self._own, *self._pools.values())
        return [volume for pool in pools for volume in pool.unfilled if pool.volumes.get(volume.id) is volume]

    def remove_unfilled(self, volume: Volume) -> None:
        """Remove a volume that was not filled to its end. What cannot be removed is logged, and tried again
        when the daemon starts: it is used by nobody until then."""
        _log.info("removing the volume %s, which was not filled completely", volume.name)
        try:
            self.remove(volume)
        except (OSError, HypemandError) as error:
            _log.error("cannot remove the volume %s: %s", volume.name, error)

    def __iter__(self) -> Iterator[Volume]:
        pools = (self._own, *self._pools.values())
        found = [volume for pool in pools for volume in pool.volumes.copy().values()]
        return iter(sorted(found, key=lambda volume: (volume.pool, volume.name)))

    def _find_pool(self, name: str) -> VolumePool | None:
        return self._pools.get(name) if name else self._own

    def get_pool(self, name: str) -> VolumePool:
        """The pool of that name, "" for the state folder. NotFound, HostNotReady."""
        pool = self._find_pool(name)
        if pool is None:
            there = ", ".join(self._pools) or "none"
            raise NotFound(
                f"there is no pool {name[:80]}", hint=f"pools: of the host configuration has {there}"
            )
        if pool.problem:
            raise HostNotReady(f"the pool {name} is not available: {pool.problem}")
        return pool

    def find(self, ref: str) -> Volume | None:
        """By name or id, each behind the name of its pool."""
        name, _, word = ref.rpartition("/")
        pool = self._find_pool(name)
        return None if pool is None else pool.find(word)

    def find_disk(self, ref: str) -> Path | None:
        """The file of the volume of that name or id."""
        volume = self.find(ref)
        return None if volume is None else volume.disk

    def get(self, ref: str) -> Volume:
        """By name, id or an unambiguous start of an id. NotFound, Ambiguous, HostNotReady."""
        name, _, word = ref.rpartition("/")
        pool = self.get_pool(name)
        volume = pool.find(word)
        if volume is not None:
            return volume
        volumes = sorted(pool.volumes.copy().values(), key=lambda volume: volume.name)
        found = [v for v in volumes if v.id.startswith(word)] if len(word) >= _MIN_PREFIX else []
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
        pool, _, own = name.rpartition("/")
        words = [("name", own), *([("id", volume_id)] if volume_id is not None else [])]
        for key, word in (*words, *([("name", pool)] if pool else [])):
            if not is_name(word):
                raise InvalidRequest(
                    f"{key}: {word[:80]!r} cannot be the {key} of a volume",
                    hint="use a-z, 0-9 and '-', at most 63 characters, not starting or ending with '-'",
                )
        self.get_pool(pool)
        for key, word in words:
            if self.find(there := join_name(pool, word)) is not None:
                raise AlreadyExists(f"a volume {there} already exists", hint=f"choose another {key}")
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
        pool = self.get_pool(name.rpartition("/")[0])
        with pool.changing():
            self.check_new(name, size, tags, volume_id)
            if volume_id is not None and os.path.lexists(pool.folder / volume_id):
                raise AlreadyExists(
                    f"{pool.folder / volume_id} exists, and contains no readable volume",
                    hint=(
                        "see journalctl -u hypemand for the reason; "
                        "repair it or move it away, or choose another id"
                    ),
                )
            volume_id = volume_id or uuid.uuid4().hex
            folder = pool.folder / volume_id
            volume = Volume(volume_id, name, derive_disk_size(size), time.time(), dict(tags), folder, ready)
            self._make(pool, volume, size, root)
        return volume

    def _make(self, pool: VolumePool, volume: Volume, size: int, root: VolumeRoot | None) -> None:
        making = pool.new_mark(MAKING)
        making.mkdir(mode=FOLDER_MODE)
        try:
            with lock_volume(making / DISK, "made"):
                ensure_disk(making / DISK, size, -1, self._templates, mode=DISK_MODE)
                if root is not None:
                    set_root(making / DISK, root)
                self._add(pool, volume, making)
        except BaseException:
            delete_marked(making)
            raise

    def _add(self, pool: VolumePool, volume: Volume, making: Path) -> None:
        """Have what was made in a folder be a volume, which lasts. One that would not is none, unless not
        even that can be taken back."""
        write_record(making, volume)
        making.rename(volume.folder)
        pool.volumes[volume.id] = volume
        try:
            sync_folder(pool.folder)
        except OSError:
            volume.folder.rename(making)
            del pool.volumes[volume.id]
            raise

    def plan_import(
        self, name: str, size: int, tags: Mapping[str, str], volume_id: str, vm_id: str
    ) -> tuple[Volume, Path]:
        """A volume that is to come with a VM, and the folder that its disk is to be put into. It keeps its id
        where that is free: the overlays of VMs are found by it. As `check_new`. Blocks."""
        free = is_name(volume_id) and self.find(volume_id) is None
        if not free or os.path.lexists(self._own.folder / volume_id):
            volume_id = uuid.uuid4().hex
        if "/" in name:
            raise InvalidRequest(
                f"name: the volume {name[:80]!r} would be in a pool, and cannot come with a VM",
                hint="use a name without a pool, or hypemanctl volume import",
            )
        self.check_new(name, size, tags, volume_id)
        folder, making = self._own.folder / volume_id, self._own.new_mark(MAKING)
        return Volume(volume_id, name, size, time.time(), dict(tags), folder, False, vm_id), making

    def add_imported(self, volume: Volume, making: Path) -> None:
        """Take what `plan_import` has planned, with its disk in `making`. It is not ready yet. Blocks."""
        self.check_new(volume.name, volume.size, volume.tags, volume.id)
        has_journal_to_replay(making / DISK)  # it is an ext4
        self._add(self._own, volume, making)

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
            ensure_disk(volume.disk, size, -1, self._templates, mode=DISK_MODE)
            larger = replace(volume, size=derive_disk_size(size))
            self.get_pool(volume.pool).volumes[volume.id] = larger
            return self._store(larger)

    def remove(self, volume: Volume) -> None:
        """Remove a volume and all that is in it. It is gone with the rename: what cannot be deleted after
        that is deleted by `clean_up`. InUse."""
        pool = self.get_pool(volume.pool)
        removed = pool.new_mark(REMOVED)
        with lock_volume(volume.disk, "removed"):
            with hold_disk(volume.disk, "removed"):
                volume.folder.rename(removed)
            pool.volumes.pop(volume.id, None)
            sync_folder(pool.folder)
            delete_marked(removed)

    def _store(self, volume: Volume) -> Volume:
        write_record(volume.folder, volume)
        self.get_pool(volume.pool).volumes[volume.id] = volume
        return volume


def check_size(size: int) -> None:
    """Raise InvalidRequest unless a volume can have `size` bytes."""
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise InvalidRequest(
            f"size: {format_size(size)} is not a valid size",
            hint=f"give {format_size(MIN_SIZE)} to {format_size(MAX_SIZE)}",
        )
