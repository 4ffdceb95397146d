# SPDX-License-Identifier: Apache-2.0
"""Snapshots of VMs: made of a VM that runs, is in Standby or has stopped, and restored in its place."""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from hypemand.config.definition import Definition
from hypemand.errors import HypemandError, InvalidRequest, WrongState
from hypemand.fulldisk import name_full_disk_beside
from hypemand.manager.compression import Subject
from hypemand.manager.parts import Parts
from hypemand.manager.restorable import (
    find_build,
    find_snapshot_problem,
    refuse_restore,
    refuse_snapshot,
)
from hypemand.manager.service import VmManager
from hypemand.manager.snapshotends import remove_snapshot, tell_snapshot
from hypemand.manager.standby import save_beside
from hypemand.model.compression import Compression
from hypemand.model.events import SnapshotAction, SnapshotCause
from hypemand.model.lifetime import Lifetime
from hypemand.model.snapshots import SnapshotKind, SnapshotView, SnapshotWanted
from hypemand.model.state import FromStandby, Operation, State, check_allowed
from hypemand.model.vm import VmView
from hypemand.storage.disks import DISK, copy_disk
from hypemand.storage.locks import hold_disk
from hypemand.storage.room import RoomWatch
from hypemand.tasks import finish
from hypemand.vm.pause import reach_session
from hypemand.vm.revert import begin_revert, commit_revert, drop_revert
from hypemand.vm.saved import (
    STATE,
    FileMark,
    SavedRun,
    UnusableError,
    check_whole,
    load_saved,
    measure_stored,
    store_saved,
)
from hypemand.vm.snapshots import Snapshot, measure_folder
from hypemand.vm.standbyfiles import load_standby
from hypemand.vm.vm import Vm
from hypemand.vmm.commandline import can_share
from hypemand.workers import Pool, run_in

# so long is waited for the operation on the VM that is under way
_PATIENCE = 10.0


@dataclass(frozen=True, slots=True)
class Content:
    """What a snapshot has: with what the VM ran, or is defined; the digest of its image."""

    definition: Definition
    image: str
    run: SavedRun | None = None


class ApiSnapshots:
    """Implements `hypemand.model.services.SnapshotService`."""

    def __init__(self, parts: Parts, manager: VmManager) -> None:
        self._parts = parts
        self._store, self._fleet = parts.snapshots, parts.fleet
        self._manager = manager

    async def list_snapshots(self) -> Sequence[SnapshotView]:
        """See `SnapshotService`."""
        problems = await self._manager.restorables.find_problems(self._store)
        return [self._store.view(snapshot, problems.get(snapshot.id)) for snapshot in self._store]

    async def get_snapshot(self, ref: str) -> SnapshotView:
        """See `SnapshotService`."""
        snapshot = self._store.get(ref)
        problems = await self._manager.restorables.find_problems((snapshot,))
        # as it is by now: its memory may have been compressed meanwhile
        return self._store.view(self._store.get(snapshot.id), problems.get(snapshot.id))

    async def remove_snapshot(self, ref: str) -> None:
        """See `SnapshotService`."""
        await remove_snapshot(self._parts, self._store.get(ref), SnapshotCause.REQUEST)
        self._manager.expiry.schedule()

    async def settle(self, snapshot: Snapshot) -> Snapshot:
        """As it is when it is not being compressed any more. NotFound where it has gone."""
        await self._parts.compressions.cancel(snapshot.id)
        return self._store.get(snapshot.id)

    # making

    async def create_snapshot(
        self,
        ref: str,
        kind: SnapshotKind | None,
        name: str | None,
        tags: Mapping[str, str],
        lifetime: Lifetime | None = None,
        compression: Compression | None = None,
    ) -> SnapshotView:
        """See `SnapshotService`."""
        wanted = SnapshotWanted(kind, name, tags, lifetime or Lifetime(), compression)
        return self._store.view(await self.make_snapshot(ref, wanted))

    async def make_snapshot(self, ref: str, wanted: SnapshotWanted) -> Snapshot:
        """One of a VM, as `create_snapshot`."""
        vm = self._fleet.get(ref)
        self._store.check_new(vm.record.id, wanted.name, wanted.tags)
        async with vm.operations.hold(Operation.SNAPSHOT, patience=_PATIENCE):
            await vm.refresh()
            check_allowed(Operation.SNAPSHOT, vm.state, vm.name, vm.state_error)
            default = SnapshotKind.STOPPED if vm.state is State.STOPPED else SnapshotKind.STANDBY
            kind = wanted.kind or default
            _check_source(vm, kind, wanted.compression)
            # one of that name may have come meanwhile
            self._store.check_new(vm.record.id, wanted.name, wanted.tags)
            async with name_full_disk_beside(f"make a snapshot of VM {vm.name}", vm.places.state):
                snapshot = await self._make(vm, kind, wanted)
        self._parts.space.outdate()
        self._manager.expiry.schedule()
        tell_snapshot(self._parts, snapshot, SnapshotAction.CREATED, wanted.cause, "was made")
        vm.log(logging.INFO, f"VM {vm.name}: made the snapshot {snapshot.name or snapshot.id}")
        run = snapshot.run
        if wanted.compression is not None and run is not None and run.packing is None:
            self._begin_compression(vm, snapshot, run, wanted.compression)
        return snapshot

    def _begin_compression(self, vm: Vm, snapshot: Snapshot, run: SavedRun, wanted: Compression) -> None:
        async def commit(packed: SavedRun) -> None:
            await run_in(Pool.TOOLS, self._store.replace_run, snapshot, packed)

        subject = Subject(
            f"the compression of the snapshot {snapshot.shown}",
            self._store.folder(snapshot),
            run,
            vm.name,
            vm.record.uid,
            snapshot.id,
            partial(self._store.show_compression, snapshot),
            commit,
        )
        self._parts.compressions.begin(snapshot.id, subject, wanted)

    async def _make(self, vm: Vm, kind: SnapshotKind, wanted: SnapshotWanted) -> Snapshot:
        what, number = f"a snapshot of VM {vm.name}", uuid.uuid4().hex
        look = await self._fleet.look_at_disks()
        memory = 0 if kind is SnapshotKind.STOPPED else find_source(vm).memory
        size = await run_in(Pool.RECORDS, measure_used, vm.places.disk) + memory
        with self._fleet.promise_room(look, what, size, key=number):
            making = await run_in(Pool.TOOLS, self._store.begin)
            try:
                content = await self.fill(vm, making, what)
                snapshot = Snapshot(
                    id=number,
                    name=wanted.name,
                    kind=kind,
                    created_at=(now := time.time()),
                    vm_id=vm.record.id,
                    vm=vm.name,
                    tags=dict(wanted.tags),
                    definition=content.definition,
                    image=content.image,
                    disk=await run_in(Pool.TOOLS, FileMark.of, making / DISK),
                    stored=await run_in(Pool.TOOLS, measure_folder, making),
                    run=content.run,
                    expires_at=wanted.lifetime.derive_end(now),
                    is_scheduled=wanted.cause is SnapshotCause.SCHEDULE,
                )
                adding = run_in(Pool.TOOLS, self._store.add, making, snapshot)
                return await finish(adding, f"commit of {what}")
            except BaseException:
                await finish(run_in(Pool.TOOLS, self._store.drop, making), f"undo of {what}")
                raise

    async def fill(self, vm: Vm, making: Path, what: str) -> Content:
        """Write all of its files but the record."""
        reserve = self._parts.config().disk.reserve
        copying = Copying(what, making, reserve)
        try:
            if vm.state is State.RUNNING:
                copy = partial(run_in, Pool.TOOLS, copying.copy, vm.places.disk, making / DISK)
                with reach_session(vm, f"make {what}") as session:
                    run = await save_beside(self._parts, vm, session, making, copy)
                await run_in(Pool.TOOLS, _keep_others, run, vm.places.state, making)
            elif vm.state is State.STANDBY:
                await self._parts.compressions.cancel(vm.record.id)
                run = await run_in(Pool.TOOLS, _copy_standby, vm, vm.standby.saved, making, copying)
            else:
                await vm.runs.settle()
                await run_in(Pool.TOOLS, _copy_stopped, vm, making, copying)
                return Content(vm.record.definition, vm.record.image_digest)
            return Content(run.definition, run.image, run)
        finally:
            copying.give_up()

    # restoring

    async def restore_snapshot(self, ref: str, snapshot_ref: str, target: State | None) -> VmView:
        """See `SnapshotService`."""
        vm, snapshot = self._fleet.get(ref), self._store.get(snapshot_ref)
        target = target or snapshot.kind.default_target
        if snapshot.vm_id != vm.record.id:
            raise InvalidRequest(
                f"the snapshot {snapshot.shown} is not of VM {vm.name}", hint="name its own VM"
            )
        if target not in snapshot.kind.targets:
            allowed = ", ".join(state for state in State if state in snapshot.kind.targets)
            raise InvalidRequest(
                f"target_state: a snapshot of kind {snapshot.kind} cannot be restored to {target}",
                hint=f"use one of {allowed}",
            )
        async with vm.operations.hold(Operation.REVERT, patience=_PATIENCE):
            await vm.refresh()
            check_allowed(Operation.REVERT, vm.state, vm.name, vm.state_error)
            await vm.runs.settle()
            await self._parts.compressions.cancel(vm.record.id)
            snapshot = await self.settle(snapshot)
            async with name_full_disk_beside(f"restore a snapshot of VM {vm.name}", vm.places.state):
                with self._store.using(snapshot):
                    await self._revert(vm, snapshot, None if target is State.STOPPED else snapshot.run)
            vm.log(
                logging.INFO, f"VM {vm.name} was restored from the snapshot {snapshot.name or snapshot.id}"
            )
        if target is State.RUNNING:
            return await self._manager.start_vm(vm.record.id, standby=FromStandby.RESTORE)
        return vm.view()

    async def _revert(self, vm: Vm, snapshot: Snapshot, run: SavedRun | None) -> None:
        """`run`: what the VM is to go on from."""
        state, folder, what = vm.places.state, self._store.folder(snapshot), f"VM {vm.name}"
        if run is None and (root := vm.record.definition.root_volume) is not None:
            raise WrongState(
                f"{vm.name} has the volume {root.volume} for its disk, and would not start from a snapshot",
                hint="fork the snapshot, or remove the volume with mount_path / from its definition",
            )
        if run is not None:
            build = await find_build(self._parts)
            if why := await find_snapshot_problem(self._parts, snapshot, build):
                raise refuse_snapshot(vm.name, snapshot, why)
            try:
                await run_in(Pool.TOOLS, check_whole, folder, run)
            except UnusableError as error:
                raise refuse_snapshot(vm.name, snapshot, str(error)) from None
        copying = Copying(f"the restored disk of {what}", state, self._parts.config().disk.reserve)
        try:
            new = await run_in(Pool.TOOLS, _prepare, vm, snapshot, folder, run, copying)
            if new is not None:
                await self._unpack(vm, snapshot, new)
            await finish(self._commit(vm), f"commit of {what}")
        except BaseException:
            copying.give_up()
            await finish(run_in(Pool.TOOLS, drop_revert, state), f"undo of {what}")
            raise

    async def _unpack(self, vm: Vm, snapshot: Snapshot, folder: Path) -> None:
        """Before what it has now is gone: only then is it known that the memory is whole."""
        saved = await run_in(Pool.TOOLS, load_saved, folder)
        try:
            what = f"the memory of the snapshot that VM {vm.name} is restored from"
            await self._parts.compressions.unpack(what, folder, saved, vm.record.uid)
        except UnusableError as error:
            raise refuse_snapshot(vm.name, snapshot, str(error)) from None

    async def _commit(self, vm: Vm) -> None:
        def commit() -> tuple[SavedRun | None, str]:
            with hold_disk(vm.places.disk, "replaced"):
                commit_revert(vm.places.state)
            return load_standby(vm.places.state)

        vm.standby.saved, vm.standby.problem = await run_in(Pool.TOOLS, commit)
        self._fleet.note_disk(vm)
        await vm.refresh()
        self._parts.disk_watch.note_removal()


class Copying:
    """Copies of files by a thread, which end where the host's disk has no room, and when they are given
    up."""

    def __init__(self, what: str, folder: Path, reserve: int) -> None:
        self._ended = threading.Event()
        self._make_room = partial(RoomWatch, what, folder, reserve, lambda: None)
        self._what = what
        self._room: RoomWatch | None = None

    def give_up(self) -> None:
        """A thread that is still at it ends."""
        self._ended.set()

    def check(self) -> None:
        """Raise where it is to end. Blocks."""
        if self._ended.is_set():
            raise HypemandError(f"{self._what} is given up")
        self._room = self._room or self._make_room()
        self._room.check()

    def copy(self, source: Path, target: Path, *, uid: int = -1, mode: int = 0o400) -> None:
        """Blocks; OSError, InsufficientResources."""
        self.check()
        copy_disk(source, target, uid=uid, mode=mode, check=self.check)


def _check_source(vm: Vm, kind: SnapshotKind, compression: Compression | None) -> None:
    if vm.state not in kind.sources:
        wanted = " or ".join(str(state) for state in State if state in kind.sources)
        raise WrongState(
            f"a snapshot of kind {kind} needs state {wanted}, and {vm.name} is {vm.state}",
            hint="use the other kind, or "
            + ("stop it first" if kind is SnapshotKind.STOPPED else "start it"),
        )
    if kind is SnapshotKind.STOPPED and compression is not None:
        raise InvalidRequest("compression: a snapshot of kind Stopped has no memory", hint="leave it out")
    definition = find_source(vm)
    if definition.root_volume is not None:
        raise WrongState(
            f"{vm.name} has the volume {definition.root_volume.volume} for its disk, which is not part of a"
            " snapshot",
            hint="copy that by the means of its storage"
            if definition.root_volume.is_device
            else f"stop it, and copy that: hypemanctl volume export {definition.root_volume.volume}",
        )
    written = [mount.volume for mount in definition.volumes if mount.writes]
    if kind is SnapshotKind.STANDBY and written:
        raise WrongState(
            f"{vm.name} writes to the volume {written[0]}, which is not part of a snapshot, and would not fit"
            " its memory any more",
            hint="stop it, and make a snapshot of kind Stopped; or let it only read the volume",
        )
    if kind is SnapshotKind.STOPPED and not definition.persistent:
        raise WrongState(f"the disk of {vm.name} does not outlast its runs", hint="set persistent: true")


def find_source(vm: Vm) -> Definition:
    """With what it runs, or would go on, or be started."""
    if vm.state is State.STANDBY and vm.standby.saved is not None:
        return vm.standby.saved.definition
    return vm.record.definition if vm.state is State.STOPPED else vm.runs.definition


def measure_used(disk: Path) -> int:
    """Blocks."""
    try:
        return disk.stat().st_blocks * 512
    except FileNotFoundError:
        return 0


def _may_link(run: SavedRun) -> bool:
    """Is the memory only read by VMMs that are restored from it? Those of `starts` are."""
    return can_share(run.build.version) and not run.definition.balloon


def take_memory(run: SavedRun, source: Path, target: Path, copying: Copying) -> SavedRun:
    """Have what was saved in another folder too, but for its record: that is what this gives, with marks of
    the files there. Blocks."""
    copying.copy(source / STATE, target / STATE)
    name = run.memory_name
    # no VMM opens what is compressed
    if run.packing is not None or _may_link(run):
        os.link(source / name, target / name)
    else:
        copying.copy(source / name, target / name)
    return replace(run, memory=FileMark.of(target / name), stored=measure_stored(target, name))


def is_own(mark: FileMark, state: Path) -> bool:
    """Is it a file of the VM beside its disk: the image of a directory?"""
    path = Path(mark.path)
    return path.parent == state and path.name != DISK


def _keep_others(run: SavedRun, state: Path, making: Path) -> None:
    """Images of directories that the VM has, which its later starts replace by others. Blocks."""
    for mark in run.files:
        if is_own(mark, state):
            os.link(mark.path, making / Path(mark.path).name)


def _copy_standby(vm: Vm, run: SavedRun | None, making: Path, copying: Copying) -> SavedRun:
    """Blocks; WrongState where it could not be restored."""
    if run is None:
        raise WrongState(f"what VM {vm.name} is restored from cannot be read: {vm.standby.problem}")
    try:
        check_whole(vm.places.standby, run)
    except UnusableError as error:
        raise refuse_restore(vm, str(error)) from None
    if (changed := run.find_changed()) is not None:
        raise refuse_restore(vm, f"{changed} was changed or removed since it was saved")
    with hold_disk(vm.places.disk, "copied"):
        copying.copy(vm.places.disk, making / DISK)
    _keep_others(run, vm.places.state, making)
    return take_memory(run, vm.places.standby, making, copying)


def _copy_stopped(vm: Vm, making: Path, copying: Copying) -> None:
    """Blocks."""
    if not vm.places.disk.exists():
        raise WrongState(f"VM {vm.name} has no disk yet: it was never started", hint="start it first")
    with hold_disk(vm.places.disk, "copied"):
        copying.copy(vm.places.disk, making / DISK)


def _prepare(vm: Vm, snapshot: Snapshot, folder: Path, run: SavedRun | None, copying: Copying) -> Path | None:
    """Write all that takes the place of what the VM has. Gives its folder if there is memory. Blocks."""
    state, disk = vm.places.state, folder / DISK
    if snapshot.disk.has_changed():
        raise WrongState(f"{disk} is damaged, or was changed", hint="remove the snapshot")
    new = begin_revert(state)
    copying.copy(disk, new / DISK, uid=vm.record.uid, mode=0o600)
    if run is None:
        return None
    for mark in run.files:
        if is_own(mark, state):
            os.link(folder / Path(mark.path).name, new / Path(mark.path).name)
    copied = replace(FileMark.of(new / DISK), path=str(state / DISK))
    files = (copied if mark.path == copied.path else mark for mark in run.files)
    store_saved(new, replace(take_memory(run, folder, new, copying), files=tuple(files)))
    return new
