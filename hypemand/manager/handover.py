# SPDX-License-Identifier: Apache-2.0
"""VMs that one host of a cluster puts into Standby, and another one starts. The caller holds the VM's
operation.

They wait in a pool of which they have a volume that they write to. A boot changes that volume, whichever host
it is on, so that a save is of no use afterwards; and a host that cannot read the pool cannot start the VM.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from hypemand.config.definition import Definition
from hypemand.config.specifiers import read_specifier_host
from hypemand.errors import HostNotReady, HypemandError, WrongState
from hypemand.fulldisk import name_full_disk_beside
from hypemand.manager.parts import Parts
from hypemand.manager.restorable import find_build, find_standby_problem, refuse_restore
from hypemand.manager.standby import gather_facts
from hypemand.model.restores import cure_standby
from hypemand.model.state import State
from hypemand.recordfile import BadRecord
from hypemand.storage.disks import check_disk_unused
from hypemand.storage.pools import VolumePool
from hypemand.tasks import finish
from hypemand.vm.handover import (
    Handover,
    HostFiles,
    drop_handover,
    find_handover,
    find_place,
    put_handover,
    take_handover,
)
from hypemand.vm.saved import SavedRun, UnusableError
from hypemand.vm.vm import Vm
from hypemand.vmm.host import find_vmm_host
from hypemand.workers import Pool, run_in

_AT_REST = (State.STOPPED, State.STANDBY)


@dataclass(frozen=True, slots=True)
class Move:
    """To where a VM is to be moved. `shared`: the files of its devices that are in shared pools; `hashes`: of
    those that each host has."""

    pool: str
    directory: Path
    shared: frozenset[str]
    hashes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Waiting:
    """What a VM can go on from, in a folder of that pool."""

    pool: str
    folder: Path
    handover: Handover


class Handovers:
    """Saves of VMs in shared pools, of the hosts of a cluster."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    # to a pool

    async def plan(self, vm: Vm, pool: str) -> Move:
        """Before its guest is touched: how it can be moved. WrongState, NotFound, HostNotReady, GuestError,
        OSError."""
        if self._parts.config().cluster is None:
            raise WrongState(
                "this host is in no cluster, so a VM is not the same one on another host",
                hint="set cluster: in the host configuration",
            )
        await self._parts.pools.read([f"{pool}/"])
        there = self._parts.volumes.get_pool(pool)
        if not there.shared:
            raise WrongState(f"the pool {pool} is on this host only", hint="name a shared pool")
        if vm.state is State.STANDBY:
            await self._parts.compressions.cancel(vm.record.id)
            saved = vm.standby.saved
            if saved is None or saved.fork is not None:
                raise WrongState(f"VM {vm.name} has to be restored on this host first", hint="start it here")
            definition, image, files = (
                saved.definition,
                saved.image,
                [Path(mark.path) for mark in saved.files],
            )
        else:
            facts = await gather_facts(self._parts, vm)
            definition, image, files = facts.definition, facts.image, list(facts.files)
        if not _writes_to(definition, pool):
            raise WrongState(
                f"VM {vm.name} has no read-write volume in the pool {pool}, by which other hosts would know"
                " whether it has run since",
                hint="give it one, or name the pool in which it has one",
            )
        own = await self._find_own(definition, image)
        shared = self._find_shared(vm, definition, files, own)
        return Move(pool, there.folder.parent, shared, await run_in(Pool.ARCHIVES, own.hash))

    async def give(self, vm: Vm, move: Move) -> None:
        """Have a VM in Standby wait in that pool, and not here any more. HostNotReady,
        InsufficientResources, WrongState: it is in Standby here."""
        saved, operation = vm.standby.saved, vm.operations.current
        assert saved is not None, "it was saved"
        assert operation is not None, "it is held"

        def check() -> None:
            if operation.is_cancelled:
                raise WrongState(f"the move of VM {vm.name} to the pool {move.pool} was cancelled")

        def put() -> None:
            if (changed := saved.find_changed()) is not None:
                raise refuse_restore(vm, f"{changed} was changed or removed since it was saved")
            in_pools = tuple(mark for mark in saved.files if mark.path in move.shared)
            host, has_disk = read_specifier_host().name, _has_own_disk(saved.definition)
            handover = Handover(host, replace(saved, files=in_pools), move.hashes, has_disk)
            put_handover(move.directory, vm.places.state, handover, check)

        async def put_and_forget() -> None:
            await run_in(Pool.ARCHIVES, put)
            await vm.standby.discard()

        what = f"the move of VM {vm.name} to the pool {move.pool}"
        look = await self._parts.fleet.look_at_disks()
        promise = self._parts.fleet.promise_room
        try:
            async with name_full_disk_beside(what, move.directory):
                with promise(look, what, saved.stored, key=f"{move.pool}/{vm.record.id}"):
                    await finish(put_and_forget(), what)
        except OSError as error:
            raise HostNotReady(
                f"VM {vm.name} is in Standby on this host, and was not moved to the pool {move.pool}: {error}"
            ) from error
        await vm.refresh()
        vm.log(
            logging.INFO, f"VM {vm.name} is in Standby in the pool {move.pool}, for any host of the cluster"
        )

    def _find_shared(
        self, vm: Vm, definition: Definition, files: Iterable[Path], own: HostFiles
    ) -> frozenset[str]:
        """The files of its devices that are in shared pools; WrongState for one that no other host has."""
        folders = [pool.folder for pool in self._parts.volumes.pools if pool.shared]
        known = {*own.list(), *([vm.places.disk] if _has_own_disk(definition) else [])}
        rest = set(files) - known
        shared = {path for path in rest if any(folder in path.parents for folder in folders)}
        for path in sorted(rest - shared):
            what = "its disk" if path == vm.places.disk else str(path)
            raise WrongState(
                f"VM {vm.name} cannot be moved with its memory: {what} is on this host only",
                hint="hypemanctl check shows what of a VM differs between hosts",
            )
        return frozenset(map(str, shared))

    # from a pool

    async def find(self, vm: Vm) -> Waiting | None:
        """What a VM at rest can go on from that a host has left in a pool. HostNotReady for a pool that
        cannot be read; what is there and cannot be, is logged."""
        if vm.state not in _AT_REST or self._parts.config().cluster is None:
            return None
        definition = vm.record.definition
        pools = [
            pool for pool in self._parts.volumes.pools if pool.shared and _writes_to(definition, pool.name)
        ]
        if not pools:
            return None
        await self._parts.pools.read([f"{pool.name}/" for pool in pools])
        for pool in pools:
            if (found := await self._find_in(vm, pool)) is not None:
                return found
        return None

    async def _find_in(self, vm: Vm, pool: VolumePool) -> Waiting | None:
        if pool.problem:
            raise HostNotReady(f"the pool {pool.name} is not available: {pool.problem}")
        folder = find_place(pool.folder.parent, vm.record.id)
        try:
            found = await run_in(Pool.POOLS, find_handover, folder)
        except (OSError, BadRecord) as error:
            vm.log(logging.WARNING, f"VM {vm.name} is not restored from the pool {pool.name}: {error}")
            return None
        return None if found is None else Waiting(pool.name, folder, found)

    async def take(self, vm: Vm, waiting: Waiting) -> None:
        """Have the VM be in Standby on this host with that. WrongState, InsufficientResources, HypemandError:
        it is in the pool as before."""
        handover, saved, here = waiting.handover, waiting.handover.saved, vm.standby.saved
        await self._parts.compressions.cancel(vm.record.id)
        if here is not None and here.run == saved.run:
            # put there by a daemon that was cut off before it has removed its own
            await run_in(Pool.POOLS, drop_handover, waiting.folder, saved)
            return
        own = await self._check_fits(vm, handover)

        def take() -> SavedRun:
            if own.hash() != handover.hashes:
                raise UnusableError(
                    f"its image or the kernel's headers are not the same as on {handover.host}"
                )
            if handover.has_disk:
                check_disk_unused(vm.places.disk)
            return take_handover(waiting.folder, vm.places.state, handover, own.list(), vm.record.uid)

        async def take_and_know() -> None:
            vm.standby.take(await run_in(Pool.ARCHIVES, take))

        what = f"restore VM {vm.name} from the pool {waiting.pool}"
        look = await self._parts.fleet.look_at_disks()
        try:
            async with name_full_disk_beside(what, vm.places.state):
                with self._parts.fleet.promise_room(look, what, saved.stored, key=vm.record.id):
                    await finish(take_and_know(), what)
        except (UnusableError, BadRecord, OSError) as error:
            raise refuse_restore(vm, str(error)) from None
        await vm.refresh()
        words = f"VM {vm.name} goes on from the pool {waiting.pool}, as it was saved on {handover.host}"
        vm.log(logging.INFO, words)

    async def _check_fits(self, vm: Vm, handover: Handover) -> HostFiles:
        """WrongState where what was saved does not fit this host, by what is known without reading it."""
        saved, definition = handover.saved, vm.record.definition
        build = await find_build(self._parts)
        if why := await find_standby_problem(self._parts, vm, saved, build):
            raise refuse_restore(vm, why)
        if replace(saved.definition, volumes=()) != replace(definition, volumes=()):
            raise refuse_restore(vm, f"its definition is not the one that it ran with on {handover.host}")
        own = await self._find_own(saved.definition, saved.image)
        network = self._parts.networks.allocation.plan(vm.network_member)
        if saved.lease != (None if network is None else network.lease):
            raise refuse_restore(vm, "its addresses on this host are not those that it was saved with")
        return own

    async def discard(self, vm: Vm, waiting: Waiting) -> None:
        """It was booted: what it could have gone on from is of no use. What fails is logged."""
        try:
            await run_in(Pool.POOLS, drop_handover, waiting.folder)
        except (OSError, BadRecord, HypemandError) as error:
            what = f"what VM {vm.name} was saved with stays in the pool {waiting.pool}: {error}"
            vm.log(logging.WARNING, what)

    async def _find_own(self, definition: Definition, digest: str) -> HostFiles:
        image = await self._parts.images.get_for(definition.image, digest)
        host = await run_in(Pool.STARTS, find_vmm_host, self._parts.config())
        return HostFiles(image.rootfs, host.kernel.headers if definition.wants_headers else None)


def refuse_restart(vm: Vm, waiting: Waiting) -> WrongState:
    """Why a VM is not restarted that waits in a pool: that would be a boot."""
    return WrongState(
        f"VM {vm.name} is in Standby in the pool {waiting.pool}",
        hint=f"hypemanctl start {vm.name} restores it; {cure_standby(vm.name)}",
    )


def _writes_to(definition: Definition, pool: str) -> bool:
    """Has the VM a volume in that pool that every boot of it changes?"""
    return any(
        mount.writes and mount.required and not mount.is_device and mount.volume.startswith(f"{pool}/")
        for mount in definition.volumes
    )


def _has_own_disk(definition: Definition) -> bool:
    """Has it a disk that goes with it, since every start makes it anew?"""
    return definition.root_volume is None and not definition.persistent
