# SPDX-License-Identifier: Apache-2.0
"""All VMs: their list, and the resources that they use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from hypemand.config.definition import Definition, VolumeMount
from hypemand.config.host import HostConfig
from hypemand.config.vmfile import VmDir
from hypemand.errors import Ambiguous, NotFound
from hypemand.manager.resources.admission import (
    check_disk,
    check_memory,
    derive_usable,
    read_total_memory,
)
from hypemand.manager.resources.volumeuse import Holder
from hypemand.model.space import PoolSpace, Room
from hypemand.model.state import Origin
from hypemand.storage.room import read_room
from hypemand.storage.store import ImageUse
from hypemand.storage.volumes import VolumeStore
from hypemand.vm.networkmember import NetworkMember
from hypemand.vm.record import VmRecord
from hypemand.vm.snapshots import Snapshot
from hypemand.vm.vm import Vm
from hypemand.workers import Pool, run_in

_MIN_PREFIX = 4
_UNKNOWN = "(unknown)"


@dataclass(frozen=True, slots=True)
class DiskLook:
    """Free space of the file system of the state folder at one moment, and the VMs that had a disk, or were
    about to have one; `number`: how many starts had begun before it."""

    room: Room
    with_disk: Set[str]
    number: int


class Fleet:
    """The VMs that there are. `config` gives the host config that is in force; `unreadable`: VMs of which no
    more than the name is known, and why. `broken`: names of VMs whose files have problems."""

    def __init__(
        self,
        config: Callable[[], HostConfig],
        volumes: VolumeStore,
        unreadable: Mapping[str, str] = MappingProxyType({}),
        snapshots: Iterable[Snapshot] = (),
    ) -> None:
        self._config = config
        self._volumes = volumes
        self._snapshots = snapshots
        self._vms: dict[str, Vm] = {}
        # of the VMs that are being started and that systemd does not know yet
        self.starting: dict[str, Definition] = {}
        # bytes of the volumes that are being made, or made larger, by id or by name
        self._promises: dict[str, int] = {}
        # the number of its last start, by the VM's name
        self._starts: dict[str, int] = {}
        self._start_count = 0
        self.broken: Set[str] = frozenset()
        self._templates: Set[str] = frozenset()
        self.unreadable = unreadable

    # who there is

    def __iter__(self) -> Iterator[Vm]:
        return iter(list(self._vms.values()))

    def add(self, vm: Vm) -> None:
        """One more."""
        self._vms[vm.name] = vm

    def remove(self, vm: Vm) -> None:
        """One less."""
        del self._vms[vm.name]
        self._starts.pop(vm.name, None)

    def take_record(self, record: VmRecord) -> None:
        """The record of a VM is another one."""
        if (vm := self.find(record.name)) is not None:
            vm.take_record(record)

    def take_files(self, found: VmDir) -> None:
        """This is what the definition files are."""
        self.broken = found.broken
        self._templates = frozenset(file.stem for file in found.templates)

    def find(self, name: str) -> Vm | None:
        """The VM of that very name."""
        return self._vms.get(name)

    def get(self, ref: str) -> Vm:
        """The VM of that name, id, or unambiguous start of an id. NotFound, Ambiguous."""
        if ref in self._vms:
            return self._vms[ref]
        found = [vm for vm in self._vms.values() if vm.record.id == ref]
        if not found and len(ref) >= _MIN_PREFIX:
            found = [vm for vm in self._vms.values() if vm.record.id.startswith(ref)]
        if len(found) > 1:
            names = ", ".join(sorted(vm.name for vm in found))
            raise Ambiguous(
                f"{ref} is a prefix of the ids of {names}",
                hint=("use a longer prefix of the id, or the name"),
            )
        if not found and ref in self.unreadable:
            raise NotFound(
                f"the record of VM {ref} cannot be read: {self.unreadable[ref]}",
                hint=f"repair {self._config().state_dir}/vms/{ref}/vm.json, then: systemctl restart hypemand",
            )
        if not found and ref in self.broken:
            raise NotFound(
                f"VM {ref} is not defined: its file in {self._config().vm_dir} has errors",
                hint="hypemanctl check",
            )
        if not found and f"{ref}@" in self._templates:
            raise NotFound(
                f"there is no VM {ref}: {ref}@ is a template of definitions",
                hint=f"hypemanctl check {ref}@ shows its VMs",
            )
        if not found:
            raise NotFound(f"there is no VM {ref[:80]}", hint="hypemanctl list shows the VMs")
        return found[0]

    # what they have

    def network_members(self) -> Iterator[NetworkMember]:
        """The VMs as their networks know them."""
        for vm in self._vms.values():
            yield vm.network_member

    def image_uses(self) -> list[ImageUse]:
        """What the VMs need: what they would be started with, and what they run with."""
        uses = []
        for vm in self._vms.values():
            record = vm.record
            uses.append(ImageUse(vm.name, record.definition.image, record.image_digest))
            if record.pin is not None and not record.image_digest and vm.state.is_vmm_active:
                uses.append(ImageUse(vm.name, record.pin.name, record.pin.digest))
            if (saved := vm.standby.saved) is not None and saved.image:
                uses.append(ImageUse(vm.name, saved.definition.image, saved.image))
        for snapshot in self._snapshots:
            user = f"snapshot:{snapshot.name or snapshot.id[:12]}"
            uses.append(ImageUse(user, snapshot.definition.image, snapshot.image))
        return uses

    def holders(self) -> Iterator[Holder]:
        """Who has volumes: each VM as it is defined, and as it runs if it does."""
        for vm in self._vms.values():
            if vm.record.origin is not Origin.HELPER:
                yield Holder(vm.name, vm.record.id, vm.record.definition, running=False)
            if vm.name in self.starting:
                yield Holder(vm.name, vm.record.id, self.starting[vm.name], running=True)
            elif vm.state.is_vmm_active:
                yield Holder(vm.name, vm.record.id, self._derive_held(vm), running=True)

    def _derive_held(self, vm: Vm) -> Definition:
        """What it runs with. Where that is lost it has all that its definition names, and all that its unit
        has: those volumes as the unit has them."""
        definition = vm.runs.definition
        mounts = list(definition.volumes)
        for volume in self._volumes if vm.runs.running.bound else ():
            writes = vm.runs.running.bound.get(volume.disk)
            if writes is not None:
                place = next(
                    (m.mount_path for m in mounts if self._volumes.find(m.volume) == volume), _UNKNOWN
                )
                mounts.append(VolumeMount(volume.ref, place, readonly=not writes))
        return replace(definition, volumes=tuple(mounts))

    # what they take

    def begin_start(self, vm: Vm, definition: Definition) -> None:
        """From now on it counts as one that runs with this, until `starting` has it no more."""
        self.note_disk(vm)
        self.starting[vm.name] = definition

    def note_disk(self, vm: Vm) -> None:
        """It has a disk by now, whatever a look says that was before."""
        self._start_count += 1
        self._starts[vm.name] = self._start_count

    async def look_at_disks(self) -> DiskLook:
        """What `check_room` decides by later, together with what has become of the VMs meanwhile."""
        folder, number = self._config().state_dir, self._start_count
        disks = [(vm.name, vm.places.disk) for vm in self._vms.values()]
        held = {vm.name for vm in self if vm.name in self.starting or vm.state.is_vmm_active}
        room, found = await run_in(Pool.RECORDS, _look_at_disks, folder, disks)
        return DiskLook(room, found | held, number)

    def check_room(self, look: DiskLook, what: str, wanted: int, *, but: str = "") -> None:
        """Raise InsufficientResources unless the host's disk can hold `wanted` bytes more: of the VM `but`,
        or of the volume of that id, in place of what it has now."""
        check_disk(what, wanted, self.promised_room(look, but=but), look.room, self._config().disk)

    @contextmanager
    def promise_room(self, look: DiskLook, what: str, wanted: int, *, key: str) -> Iterator[None]:
        """`check_room` for a volume or a snapshot, `key`: its id, or its name where it is new; both behind
        the name of its pool, if it is in one, which is what has the bytes then. In the block all others find
        those bytes promised."""
        pool = key.rpartition("/")[0]
        if pool:
            there = self._volumes.get_pool(pool)
            check_disk(what, wanted, self._promised_to(pool, key), there.room, self._config().disk)
        else:
            self.check_room(look, what, wanted, but=key)
        self._promises[key] = wanted
        try:
            yield
        finally:
            del self._promises[key]

    def promised_room(self, look: DiskLook, *, but: str = "") -> int:
        """Bytes that disks and volumes may grow to, all but those of `but`, and that snapshots have. A VM
        that is only defined has no disk yet, and is promised nothing."""
        disks = sum(
            vm.record.definition.local_disk for vm in self if vm.name != but and self.has_disk(vm, look)
        )
        kept = sum(snapshot.stored for snapshot in self._snapshots)
        return disks + kept + self._promised_to("", but)

    def _promised_to(self, pool: str, but: str = "") -> int:
        """To the volumes of a pool, or to those of the state folder and to what is being made there."""
        sizes = {volume.ref: volume.size for volume in self._volumes if volume.pool == pool}
        sizes |= {key: size for key, size in self._promises.items() if key.rpartition("/")[0] == pool}
        return sum(size for key, size in sizes.items() if key != but)

    def report_pools(self) -> tuple[PoolSpace, ...]:
        """The space of the pools, as they were read last."""
        policy = self._config().disk
        return tuple(
            PoolSpace(
                pool.name,
                pool.room,
                pool.shared,
                len(pool.volumes),
                self._promised_to(pool.name),
                derive_usable(pool.room.total, policy),
                pool.problem,
            )
            for pool in self._volumes.pools
        )

    def has_disk(self, vm: Vm, look: DiskLook) -> bool:
        """Has it a disk, also where it was started after the look?"""
        held = vm.name in self.starting or vm.state.is_vmm_active
        return held or vm.name in look.with_disk or self._starts.get(vm.name, 0) > look.number

    def list_held(self) -> Iterator[tuple[str, Definition]]:
        """The VMs that have CPUs and memory of the host: as they run, or are being started, by name."""
        for vm in self._vms.values():
            held = self.starting.get(vm.name, vm.held)
            if held is not None:
                yield vm.name, held

    def check_memory(self, definition: Definition) -> None:
        """Raise InsufficientResources unless the host's memory can hold a VM of this definition as well."""
        committed = sum(held.memory for name, held in self.list_held() if name != definition.name)
        total = read_total_memory()
        check_memory(definition.name, definition.memory, committed, total, self._config().memory)


def _look_at_disks(folder: Path, disks: Sequence[tuple[str, Path]]) -> tuple[Room, set[str]]:
    """Blocks."""
    return read_room(folder), {name for name, disk in disks if disk.exists()}
