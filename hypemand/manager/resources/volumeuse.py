# SPDX-License-Identifier: Apache-2.0
"""Use of volumes by VMs: one writer, or many readers.

Nothing is remembered here. Who holds a volume follows from what runs, which systemd and the VMs' records
tell, so that it is the same after a restart of the daemon. All of it is done at once, without giving the
event loop away: two starts cannot both be let through.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from hypemand.config.definition import Definition, VolumeMount
from hypemand.config.vmdef import definition_to_json, parse_definition
from hypemand.errors import AlreadyExists, HypemandError, InUse, NotFound
from hypemand.manager.plan import Attached
from hypemand.storage.devices import Device
from hypemand.storage.volume import Volume
from hypemand.storage.volumes import VolumeStore

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Holder:
    """A VM with a definition: `running` with that one, or defined so."""

    vm: str
    vm_id: str
    definition: Definition
    running: bool


@dataclass(frozen=True, slots=True)
class Attachment:
    """A volume's place in a VM that is defined, or runs, with it."""

    vm: str
    vm_id: str
    mount: VolumeMount
    running: bool


def derive_filler(volume: Volume) -> str:
    """The name of the VM through which an archive gets into a volume: nobody else has that meanwhile."""
    return f"volume-{volume.serial.removeprefix('vol-')}"


class VolumeUse:
    """`holders` gives all VMs: each as it is defined, and as it runs if it does."""

    def __init__(self, store: VolumeStore, holders: Callable[[], Iterable[Holder]]) -> None:
        self._store = store
        self._holders = holders
        # ids of volumes behind their pools, and what is being done to them
        self._work: dict[str, str] = {}

    def attachments(self, volume: Volume | Device) -> list[Attachment]:
        """All of a volume's, of a VM that runs with it once."""
        found: dict[str, Attachment] = {}
        for holder in self._holders():
            for mount in holder.definition.volumes:
                if self._is(mount, volume) and (holder.vm not in found or holder.running):
                    found[holder.vm] = Attachment(holder.vm, holder.vm_id, mount, holder.running)
        return sorted(found.values(), key=lambda attachment: attachment.vm)

    def _is(self, mount: VolumeMount, volume: Volume | Device) -> bool:
        if mount.is_device or isinstance(volume, Device):
            return mount.is_device and isinstance(volume, Device) and mount.volume == volume.ref
        found = self._store.find(mount.volume)
        return found is not None and found.ref == volume.ref

    def resolve(self, vm: str, definition: Definition) -> tuple[Attached, ...]:
        """The volumes that a VM gets if it is started now. One that is not required and not available is left
        out. NotFound, InUse, HostNotReady."""
        resolved = []
        for mount in definition.volumes:
            try:
                resolved.append(self._resolve_one(vm, mount))
            except HypemandError as error:
                if mount.required:
                    raise
                _log.warning("VM %s starts without its volume %s: %s", vm, mount.volume, error.message)
        return tuple(resolved)

    def _resolve_one(self, vm: str, mount: VolumeMount) -> Attached:
        store = self._store
        volume = store.find_device(mount.volume) if mount.is_device else self._find_volume(vm, mount)
        for other in self.attachments(volume):
            if other.running and other.vm != vm and (other.mount.writes or mount.writes):
                raise _in_use_by(volume, other, writes=mount.writes)
        return Attached(volume, mount)

    def _find_volume(self, vm: str, mount: VolumeMount) -> Volume:
        volume = self._store.find(mount.volume)
        if volume is None:
            self._store.get_pool(mount.volume.rpartition("/")[0])
            raise NotFound(
                f"the volume {mount.volume} of VM {vm} does not exist",
                hint=f"hypemanctl volume create --size SIZE {mount.volume}",
                code="volume_not_found",
            )
        if not volume.ready and vm != derive_filler(volume):
            raise InUse(f"the volume {volume.name} is being filled from an archive", hint="try again later")
        if volume.ref in self._work:
            raise InUse(f"the volume {volume.name} is being {self._work[volume.ref]}", hint="try again later")
        return volume

    @contextmanager
    def work_on(self, volume: Volume, what: str, *, beside_readers: bool = False) -> Iterator[None]:
        """Lock a volume while it is, for example, "removed". InUse while a VM runs with it, or only one that
        writes to it, or another operation has it."""
        if volume.ref in self._work:
            raise InUse(f"the volume {volume.name} is being {self._work[volume.ref]}", hint="try again later")
        for other in self.attachments(volume):
            if other.running and (other.mount.writes or not beside_readers):
                raise InUse(
                    f"the volume {volume.name} is in use by the running VM {other.vm} and cannot be {what}",
                    hint=f"stop {other.vm} first",
                )
        self._work[volume.ref] = what
        try:
            yield
        finally:
            del self._work[volume.ref]


def _in_use_by(volume: Volume | Device, other: Attachment, *, writes: bool) -> InUse:
    what = f"the {'device' if isinstance(volume, Device) else 'volume'} {volume.name}"
    if other.mount.writes:
        what = f"VM {other.vm} writes to {what}, so no other VM can use it"
    else:
        what = f"VM {other.vm} reads {what}, so no VM can write to it"
    readers = "" if not writes else ", or mount it readonly or as an overlay in both"
    return InUse(what, hint=f"stop {other.vm} first{readers}")


def change_volume(
    store: VolumeStore, definition: Definition, volume: Volume, mount: VolumeMount | None
) -> Definition:
    """A definition with a volume at another place, or without it. NotFound, AlreadyExists, and
    InvalidDefinition for what no definition may say."""
    others = tuple(m for m in definition.volumes if store.find(m.volume) != volume)
    if mount is None and others == definition.volumes:
        raise NotFound(f"the volume {volume.name} is not attached to VM {definition.name}")
    if mount is not None and others != definition.volumes:
        raise AlreadyExists(
            f"the volume {volume.name} is already attached to VM {definition.name}",
            hint=f"hypemanctl volume detach {definition.name} {volume.name}",
        )
    mounts = others if mount is None else (*others, mount)
    changed = definition_to_json(replace(definition, volumes=mounts))
    return parse_definition(definition.name, changed)
