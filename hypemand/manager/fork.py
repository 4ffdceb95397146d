# SPDX-License-Identifier: Apache-2.0
"""Forks of VMs and of snapshots: a VM of its own that begins with the disk, and where there is one with the
memory, of another.

All of it is made in the folder that becomes the new VM's. Its guest gets its identity when it is resumed,
before anything in it runs on (`ForkIdentity`).
"""

from __future__ import annotations

import logging
import os
import shutil
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from hypemand.config.definition import Definition
from hypemand.config.vmdef import definition_to_json, parse_definition
from hypemand.errors import InvalidRequest, WrongState
from hypemand.fulldisk import name_full_disk_beside
from hypemand.manager.parts import Parts
from hypemand.manager.service import VmManager
from hypemand.manager.snapshots import (
    ApiSnapshots,
    Content,
    Copying,
    find_source,
    is_own,
    measure_used,
    take_memory,
)
from hypemand.model.fork import ForkWanted
from hypemand.model.state import FromStandby, Operation, Origin, State, check_allowed
from hypemand.model.vm import VmView
from hypemand.protocol.configdisk import RESET_SSH_HOST_KEYS, GuestInterface
from hypemand.protocol.thaw import ForkIdentity, ForkInterface
from hypemand.storage.disks import DISK
from hypemand.tasks import finish
from hypemand.vm.folders import STANDBY
from hypemand.vm.record import ImagePin, Imported
from hypemand.vm.runfiles import load_past
from hypemand.vm.saved import FileMark, SavedRun, measure_stored, store_saved
from hypemand.vm.snapshots import Snapshot
from hypemand.vm.vm import Vm
from hypemand.workers import Pool, run_in

_PATIENCE = 10.0
_DISK_MODE = 0o600
Fill = Callable[[Path], Awaitable[Content]]


@dataclass(frozen=True, slots=True)
class _New:
    """The VM that is made: its id, its definition, and where its folder will be; that of its source; and the
    ids of that."""

    id: str
    former_ids: tuple[str, ...]
    definition: Definition
    folder: Path
    source: Path


class ApiForks:
    """Implements `hypemand.model.services.ForkService`."""

    def __init__(self, parts: Parts, manager: VmManager, snapshots: ApiSnapshots) -> None:
        self._parts = parts
        self._manager = manager
        self._snapshots = snapshots

    async def fork_vm(self, ref: str, wanted: ForkWanted) -> VmView:
        """See `ForkService`."""
        self._manager.check_name_free(wanted.name)
        vm = self._parts.fleet.get(ref)
        async with vm.operations.hold(Operation.FORK, patience=_PATIENCE):
            await vm.refresh()
            check_allowed(Operation.FORK, vm.state, vm.name, vm.state_error)
            if vm.state is State.RUNNING and not wanted.from_running:
                raise WrongState(
                    f"{vm.name} is Running, and stands still while it is forked",
                    hint="say that it may (hypemanctl fork --from-running), or stop it first",
                )
            target = check_target(wanted, has_memory=vm.state is not State.STOPPED, default=vm.state)
            definition = find_source(vm)
            _check_volumes(vm.name, definition)
            what = f"a fork of VM {vm.name}"

            async def fill(making: Path) -> Content:
                return await self._snapshots.fill(vm, making, what)

            former = (vm.record.id, *vm.record.former_ids)
            new = self._plan(wanted, definition, vm.places.state, former)
            used = await run_in(Pool.RECORDS, measure_used, vm.places.disk)
            made = await self._make(new, wanted, what, used, fill)
        return await self._begin(made, target)

    async def fork_snapshot(self, snapshot: str, wanted: ForkWanted) -> VmView:
        """See `ForkService`."""
        self._manager.check_name_free(wanted.name)
        found = self._parts.snapshots.get(snapshot)
        target = check_target(wanted, has_memory=found.run is not None, default=found.kind.default_target)
        _check_volumes(found.shown, found.definition)
        what, folder = f"a fork of the snapshot {found.shown}", self._parts.snapshots.folder(found)

        async def fill(making: Path) -> Content:
            copying = Copying(what, making, self._parts.config().disk.reserve)
            try:
                return await run_in(Pool.TOOLS, _copy_snapshot, found, folder, making, copying)
            finally:
                copying.give_up()

        found = await self._snapshots.settle(found)
        with self._parts.snapshots.using(found):
            former = (found.vm_id, *self._list_former(found.vm_id))
            new = self._plan(wanted, found.definition, self._parts.records.folder(found.vm), former)
            made = await self._make(new, wanted, what, found.stored, fill)
        return await self._begin(made, target)

    def _plan(
        self, wanted: ForkWanted, definition: Definition, source: Path, former_ids: tuple[str, ...]
    ) -> _New:
        return _New(
            uuid.uuid4().hex,
            former_ids,
            derive_fork(definition, wanted.name),
            self._parts.records.folder(wanted.name),
            source,
        )

    def _list_former(self, vm_id: str) -> tuple[str, ...]:
        """Of a VM that may be no more."""
        return next((vm.record.former_ids for vm in self._parts.fleet if vm.record.id == vm_id), ())

    async def _make(self, new: _New, wanted: ForkWanted, what: str, used: int, fill: Fill) -> Vm:
        """Make the VM, in the state that its files have. Nothing is left if that fails."""
        making = self._parts.records.making_folder(new.id)
        look = await self._parts.fleet.look_at_disks()
        room = used + new.definition.memory
        async with name_full_disk_beside(f"make {what}", making.parent):
            with self._parts.fleet.promise_room(look, what, room, key=new.id):
                try:
                    await run_in(Pool.TOOLS, _begin, making)
                    content = await fill(making / STANDBY)
                    await run_in(Pool.TOOLS, _settle, making, new, content)
                except BaseException:
                    undo = run_in(Pool.TOOLS, partial(shutil.rmtree, making, ignore_errors=True))
                    await finish(undo, f"undo of {what}")
                    raise
                pin = ImagePin(new.definition.image, content.image) if content.image else None
                record = await self._parts.records.add(
                    new.definition,
                    Origin.API,
                    pin,
                    short_name=wanted.short_name,
                    imported=Imported(new.id, former_ids=new.former_ids),
                )
        past = await run_in(Pool.RECORDS, load_past, record.name, self._parts.places(record.name))
        vm = self._parts.adopt(record, past)
        await vm.refresh()
        vm.log(logging.INFO, f"VM {vm.name} was made: {what}")
        return vm

    async def _begin(self, vm: Vm, target: State) -> VmView:
        if target is not State.RUNNING:
            return vm.view()
        try:
            return await self._manager.start_vm(vm.record.id, standby=FromStandby.RESTORE)
        except BaseException:
            removal = self._manager.delete_vm(vm.record.id, kill=True)
            await self._parts.tasks.run_shielded(f"undo of VM {vm.name}", removal)
            raise


def check_target(wanted: ForkWanted, *, has_memory: bool, default: State) -> State:
    """The state that a fork is to be in. InvalidRequest."""
    allowed = (State.STANDBY, State.RUNNING) if has_memory else (State.STOPPED, State.RUNNING)
    target = wanted.target or default
    if target not in allowed:
        raise InvalidRequest(
            f"target_state: a fork of it cannot be {target}", hint=f"use {' or '.join(allowed)}"
        )
    return target


def derive_fork(definition: Definition, name: str) -> Definition:
    """The definition of a fork: with addresses of its own, and nothing of what is published of its source."""
    network = definition.network
    if network is not None:
        network = replace(network, mac=None, address=None, address6=None, publish=())
    return parse_definition(name, definition_to_json(replace(definition, name=name, network=network)))


def _check_volumes(source: str, definition: Definition) -> None:
    written = [mount.volume for mount in definition.volumes if mount.writes]
    if written:
        raise WrongState(
            f"{source} writes to the volume {written[0]}, which a fork cannot have as well",
            hint="mount it readonly or as an overlay",
        )


def _begin(making: Path) -> None:
    making.mkdir(mode=0o711)
    (making / STANDBY).mkdir(mode=0o700)


def _copy_snapshot(snapshot: Snapshot, folder: Path, making: Path, copying: Copying) -> Content:
    """Blocks; WrongState for one that is damaged."""
    if snapshot.disk.has_changed():
        raise WrongState(f"{folder / DISK} is damaged, or was changed", hint="remove the snapshot")
    copying.copy(folder / DISK, making / DISK)
    run = snapshot.run
    if run is not None:
        for image in folder.glob("dir-*.erofs"):
            os.link(image, making / image.name)
        run = take_memory(run, folder, making, copying)
    return Content(snapshot.definition, snapshot.image, run)


def _settle(making: Path, new: _New, content: Content) -> None:
    """Have each file at its place, and what was saved be the new VM's. Blocks."""
    folder = making / STANDBY
    (folder / DISK).rename(making / DISK)
    (making / DISK).chmod(_DISK_MODE)
    run = content.run
    if run is None:
        folder.rmdir()
        return
    for image in folder.glob("dir-*.erofs"):
        image.rename(making / image.name)
    files = (_move_mark(mark, making, new) for mark in run.files)
    saved = replace(
        run,
        run=new.id,
        vm_id=new.id,
        next_boot=uuid.uuid4().hex,
        started_at=None,
        definition=new.definition,
        lease=None,
        files=tuple(files),
        memory=FileMark.of(folder / run.memory_name),
        stored=measure_stored(folder, run.memory_name),
    )
    store_saved(folder, replace(saved, fork=_derive_identity(run, saved)))


def _move_mark(mark: FileMark, making: Path, new: _New) -> FileMark:
    """A file of the source's own is one of the new VM's."""
    path = Path(mark.path)
    if path != new.source / DISK and not is_own(mark, new.source):
        return mark
    return replace(FileMark.of(making / path.name), path=str(new.folder / path.name))


def _derive_identity(run: SavedRun, saved: SavedRun) -> ForkIdentity:
    """Its addresses follow when it is resumed."""
    mac = None if run.lease is None else run.lease.mac
    return ForkIdentity(
        boot_id=saved.next_boot,
        hostname=saved.definition.name,
        machine_id=saved.vm_id,
        interfaces=() if mac is None else (ForkInterface(mac, GuestInterface(mac)),),
        reset_ssh_host_keys=RESET_SSH_HOST_KEYS in run.definition.fork_reset,
    )
