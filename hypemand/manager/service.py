# SPDX-License-Identifier: Apache-2.0
"""The manager: operations on VMs, with one lock per VM."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial

from hypemand.config.definition import Definition, ImagePull, VolumeMount
from hypemand.errors import AlreadyExists, HypemandError, WrongState
from hypemand.fulldisk import name_full_disk_beside
from hypemand.manager.compression import compress_standby
from hypemand.manager.ends import SIGKILL, Ends, has_ended
from hypemand.manager.expiry import Expiry, Term
from hypemand.manager.handover import Handovers, Waiting, refuse_restart
from hypemand.manager.limits import change_limits, query_limits
from hypemand.manager.logs import read_log
from hypemand.manager.parts import Parts
from hypemand.manager.rename import rename
from hypemand.manager.resources.volumeuse import change_volume
from hypemand.manager.restorable import Restorables
from hypemand.manager.sharedquery import SharedQuery
from hypemand.manager.snapshotends import list_terms
from hypemand.manager.standby import enter_standby
from hypemand.manager.starts import Starter, derive_pin, logged_start, refuse_of_file
from hypemand.model.change import VmChange
from hypemand.model.compression import Compression
from hypemand.model.events import StartKind
from hypemand.model.lifetime import Lifetime
from hypemand.model.limits import RuntimeLimits
from hypemand.model.logs import LogLine, LogSource
from hypemand.model.state import FromStandby, Operation, Origin, State, check_allowed
from hypemand.model.timeline import Timeline
from hypemand.model.vm import Program, RunReport, VmView
from hypemand.storage.images import Image
from hypemand.systemd.log import MessageId
from hypemand.tasks import finish
from hypemand.vm.facts import boot_facts
from hypemand.vm.pause import pause, resume
from hypemand.vm.record import VmRecord
from hypemand.vm.runfiles import Past
from hypemand.vm.timeline import derive_timeline
from hypemand.vm.tracker import Moment
from hypemand.vm.vm import Vm
from hypemand.workers import Pool, run_in

# so long a list of VMs waits for what systemd and the network service say now: on a busy host that takes
# seconds, and what was seen last is not old
_LOOK_DEADLINE = 0.5
# so long is waited for the operation that is under way by what is no start and no end
_PATIENCE = 10.0
# and for what a cancelled creation has to undo, when the daemon ends
_UNDO_DEADLINE = 5.0


# what starts take that waits in a pool, by the state that the VM has here
_TAKES = {
    State.STOPPED: (FromStandby.REFUSE, FromStandby.RESTORE),
    State.STANDBY: (FromStandby.RESTORE,),
}


class VmManager:
    """Implements `hypemand.model.services.Manager`."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._fleet, self._records, self._volumes = parts.fleet, parts.records, parts.volumes
        self._pools = parts.pools
        self._images, self._networks, self._units = parts.images, parts.networks, parts.units
        self._starter = Starter(parts)
        self._all = SharedQuery("look at all VMs", self._look_at_all)
        self.expiry = Expiry(self._list_terms)
        self._ends = Ends(parts, self.expiry)
        self.restorables = Restorables(parts)
        self._handovers = Handovers(parts)

    async def close(self) -> None:
        """Stop following all VMs. They keep running."""
        await self._all.close()
        await self.expiry.close()
        await self.restorables.close()
        await self._parts.tasks.close(patience=_UNDO_DEADLINE)
        await self._parts.compressions.close()
        await self._parts.disk_watch.close()
        await self._starter.close()
        await self._parts.easing.close()
        await self._parts.templates.close()
        await self._parts.names.close()
        await self._networks.close()
        await asyncio.gather(*(vm.detach() for vm in self._fleet))

    # looking

    async def list_vms(self) -> list[VmView]:
        """See `Manager`."""
        await self._all.take_within(_LOOK_DEADLINE)
        # as they are now: also one that came meanwhile
        return [vm.view() for vm in sorted(self._fleet, key=lambda vm: vm.name)]

    async def _look_at_all(self) -> None:
        active = [vm for vm in self._fleet if vm.state.is_vmm_active]
        looks = (vm.refresh(with_memory=True, wait_vmm=False, patient=True) for vm in active)
        others = (self._networks.read_counters(), self.look_at_files(), self.restorables.judge_vms())
        await asyncio.gather(*others, *looks)

    async def look_at_files(self) -> None:
        """Learn whose definition file is another one than was loaded."""
        changed = await run_in(Pool.RECORDS, self._parts.files.find_changed, self._parts.config().vm_dir)
        for vm in self._fleet:
            has_file = vm.record.origin is Origin.FILE and not vm.removed
            file = self._parts.files.find(vm.name) if has_file else None
            vm.set_file(file, stale=has_file and vm.name in changed)

    async def get_vm(self, ref: str) -> VmView:
        """See `Manager`."""
        vm = self._fleet.get(ref)
        counting, refresh = self._networks.read_counters(), vm.refresh(with_memory=True)
        await asyncio.gather(counting, self.look_at_files(), refresh)
        if vm.state is State.STANDBY:
            await self.restorables.judge_vms()
        return vm.view()

    def view_vm(self, ref: str) -> VmView:
        """See `Manager`."""
        return self._fleet.get(ref).view()

    # volumes and room

    async def attach_volume(self, ref: str, mount: VolumeMount) -> VmView:
        """See `Manager`."""
        return await self._change_volumes(ref, mount.volume, mount)

    async def detach_volume(self, ref: str, volume: str) -> VmView:
        """See `Manager`."""
        return await self._change_volumes(ref, volume, None)

    async def _change_volumes(self, ref: str, volume_ref: str, mount: VolumeMount | None) -> VmView:
        vm = self._fleet.get(ref)
        await self._pools.read([volume_ref, *(one.volume for one in vm.record.definition.volumes)])
        volume = self._volumes.get(volume_ref)
        async with vm.operations.hold(Operation.CHANGE, patience=_PATIENCE):
            await vm.refresh()
            self._check_not_of_file(vm, "change volumes: in that file, then systemctl reload hypemand")
            if vm.state is not State.STOPPED:
                raise WrongState(
                    f"VM {vm.name} is {vm.state}, and its machine type (microvm) does not support hot plug",
                    hint=f"stop {vm.name}, then try again",
                )
            definition = change_volume(self._volumes, vm.record.definition, volume, mount)
            await self._records.update(vm.name, definition, vm.record.origin)
            vm.changes.tell()
        return vm.view()

    # defining

    async def change_vm(self, ref: str, change: VmChange) -> VmView:
        """See `Manager`."""
        vm = self._fleet.get(ref)
        async with vm.operations.hold(Operation.CHANGE, patience=_PATIENCE):
            await self._records.change(vm.name, lambda record: self._apply(change, vm, record))
            self.expiry.schedule()
            vm.changes.tell()
        return vm.view()

    def _apply(self, change: VmChange, vm: Vm, record: VmRecord) -> VmRecord:
        expires = "" if change.lifetime is None else "a VM with a file does not expire; "
        rest = "the rest" if change.lifetime is not None and change.redefine is not None else "it"
        self._check_not_of_file(vm, f"{expires}change {rest} in that file")
        return record.apply(change, time.time())

    def _check_not_of_file(self, vm: Vm, hint: str) -> None:
        if vm.record.origin is Origin.FILE and not vm.removed:
            raise refuse_of_file(self._parts, vm, hint)

    async def create_vm(
        self,
        definition: Definition,
        *,
        start: bool,
        short_name: bool = True,
        lifetime: Lifetime | None = None,
        patience: float | None = None,
    ) -> VmView:
        """See `Manager`."""
        add = partial(self._records.add, origin=Origin.API, short_name=short_name, lifetime=lifetime)
        return await self._create(definition, add, start=start, patience=patience)

    async def create_helper(self, definition: Definition) -> VmView:
        """Create and start a VM that works for the daemon itself."""
        return await self._create(definition, partial(self._records.add, origin=Origin.HELPER), start=True)

    async def _create(
        self,
        definition: Definition,
        add: Callable[..., Awaitable[VmRecord]],
        *,
        start: bool,
        patience: float | None = None,
    ) -> VmView:
        self.check_name_free(definition.name)
        places = self._parts.places(definition.name)
        async with name_full_disk_beside(f"create VM {definition.name}", places.state):
            image = await self._images.have_within(patience, definition.image, definition.image_pull)
            return await self._create_of(definition, image, add, start=start)

    async def _create_of(
        self, definition: Definition, image: Image, add: Callable[..., Awaitable[VmRecord]], *, start: bool
    ) -> VmView:
        requested = time.monotonic()  # a pull is no part of the boot
        async with self._images.choosing:
            # it may have gone while we looked, and another VM may have come
            self.check_name_free(definition.name)
            image = await self._images.keep(image)
            pin = derive_pin(definition, image)
            vm = self._parts.adopt(await add(definition, pin=pin), Past())
            self.expiry.schedule()
        try:
            if start:
                async with vm.operations.hold(Operation.START):
                    await vm.refresh()
                    check_allowed(Operation.START, vm.state, vm.name, vm.state_error)
                    with logged_start(vm):
                        await self._starter.start(vm, requested, image)
        except BaseException:
            await self._parts.tasks.run_shielded(f"undo of VM {vm.name}", self._take_back(vm))
            raise
        return vm.view()

    async def _take_back(self, vm: Vm) -> None:
        """Remove a VM whose creation failed. One that systemd may have taken is ended first, and kept if it
        does not end: its disk and uid are its own for as long. Without a disk systemd was not asked yet, and
        need not be."""
        try:
            has_disk = vm.record.definition.root_volume is not None
            has_disk = has_disk or await run_in(Pool.STARTS, vm.places.disk.exists)
            if vm.operations.is_busy or has_disk:
                await self._ends.end(vm)
                await self._ends.forget(vm)
            else:
                await finish(self._ends.remove(vm), f"removal of {vm.name}")
        except (HypemandError, OSError) as error:
            vm.log(logging.ERROR, f"VM {vm.name} was not created completely, and is kept: {error}")

    def check_name_free(self, name: str) -> None:
        if self._fleet.find(name) is not None:
            raise AlreadyExists(f"a VM {name} already exists", hint="choose another name, or remove that VM")

    async def define(self, definition: Definition) -> Vm:
        """Take a definition from a file: a VM that is new, or has it anew. It waits for no start or stop of
        that VM, which may take as long as a pull. AlreadyExists, NotFound for one that was just deleted."""
        vm = self._fleet.find(definition.name)
        if vm is None:
            return self._parts.adopt(await self._records.add(definition, Origin.FILE), Past())
        await self._records.update(vm.name, definition, Origin.FILE)
        self.expiry.schedule()
        vm.set_removed(False)
        vm.changes.tell()
        return vm

    async def rename_vm(self, ref: str, name: str, *, by_root: bool = True) -> VmView:
        """See `Manager`."""
        vm = self._fleet.get(ref)
        async with vm.operations.hold(Operation.RENAME, patience=_PATIENCE):
            renamed = await rename(self._parts, vm, name, by_root=by_root)
        self.expiry.schedule()
        return renamed.view()

    async def delete_vm(self, ref: str, *, kill: bool = False) -> None:
        """See `Manager`."""
        vm = self._fleet.get(ref)
        self._check_not_of_file(vm, "remove that file and run systemctl reload hypemand first")
        with vm.operations.announce(Operation.DELETE):
            if kill:
                with suppress(WrongState):  # it does not run, or has ended meanwhile
                    await self.kill_vm(ref)
            vm.operations.cancel_wait()
            # not held up by a stop that is under way: that holds the VM until its guest has ended
            await self._ends.end_for_good(vm, kill=kill)
            async with vm.operations.hold(Operation.DELETE):
                await self._ends.end(vm)
                await self._ends.forget(vm)

    def _list_terms(self) -> Iterator[Term]:
        """VMs and snapshots that have an end."""
        for vm in self._fleet:
            if vm.record.expires_at is not None:
                what, delete = f"VM {vm.name}", partial(self._delete_expired, vm)
                yield Term(vm.record.id, what, vm.record.expires_at, vm.name, vm.record.id, delete)
        yield from list_terms(self._parts)

    async def _delete_expired(self, vm: Vm) -> None:
        """Delete a VM if its lifetime is over, which may have changed until nothing else is done with it."""
        # an export refuses what would wait for its end
        await vm.changes.wait_for(lambda: vm.operations.closed or not vm.operations.is_busy, None)
        async with vm.operations.hold(Operation.DELETE):
            if not vm.record.has_expired(time.time()):
                return
            with vm.operations.announce(Operation.DELETE):
                vm.log(logging.INFO, f"VM {vm.name} has expired, and is deleted", MessageId.EXPIRED)
                await self._ends.end_for_good(vm)
                await self._ends.forget(vm)

    # starting

    async def start_vm(
        self,
        ref: str,
        *,
        pull: ImagePull | None = None,
        program: Program | None = None,
        standby: FromStandby = FromStandby.REFUSE,
        kind: StartKind = StartKind.REQUEST,
    ) -> VmView:
        """See `Manager`. `kind`: what has asked for it."""
        requested, vm = time.monotonic(), self._fleet.get(ref)
        if not vm.state.is_vmm_active:
            self._parts.easing.begin()  # it takes longer than all that comes before PID 1 needs it
        looking = self._parts.tasks.start("look at definition files", self.look_at_files())
        async with vm.operations.hold(Operation.START):
            await vm.refresh()
            waiting = await self._handovers.find(vm)
            if waiting is not None and standby in _TAKES[vm.state]:
                await self._take(vm, waiting)
                standby, waiting = FromStandby.RESTORE, None
            is_cold = vm.state is State.STANDBY and standby is FromStandby.COLD
            if vm.state is State.STANDBY and standby is FromStandby.RESTORE:
                await self._restore(vm, requested)
            elif not is_cold:
                check_allowed(Operation.START, vm.state, vm.name, vm.state_error)
            if program is not None and vm.state is not State.STOPPED and not is_cold:
                raise WrongState(
                    f"a start with another program needs state Stopped, and {vm.name} is {vm.state}",
                    hint="stop it first",
                )
            if vm.state is State.STOPPED or is_cold:
                with logged_start(vm):
                    async with self._starter.with_program(vm, program):
                        image, waited = await self._starter.ensure_image(vm, pull)
                        # a pull is no part of the boot
                        await self._starter.start(vm, time.monotonic() if waited else requested, image, kind)
            if is_cold:
                await self._parts.compressions.cancel(vm.record.id)
                await vm.standby.discard()
            if waiting is not None:
                await self._handovers.discard(vm, waiting)
        await asyncio.wait([looking])
        return vm.view()

    # standby

    async def standby_vm(
        self, ref: str, compression: Compression | None = None, pool: str | None = None
    ) -> VmView:
        """See `Manager`."""
        vm = self._fleet.get(ref)
        async with vm.operations.hold(Operation.STANDBY, patience=_PATIENCE):
            move = None
            if pool is not None:
                await vm.refresh()
                check_allowed(Operation.STANDBY, vm.state, vm.name, vm.state_error)
                move = await self._handovers.plan(vm, pool)
            if compression is not None:
                await vm.refresh()
                if vm.state is State.STANDBY:
                    raise WrongState(
                        f"VM {vm.name} is in Standby, and its memory is compressed when it is saved",
                        hint="restore it first: hypemanctl restore",
                    )
            await enter_standby(self._parts, vm)
            if compression is not None:
                compress_standby(self._parts.compressions, vm, compression)
            if move is not None:
                await self._handovers.give(vm, move)
        return vm.view()

    async def restore_vm(self, ref: str) -> VmView:
        """See `Manager`."""
        requested, vm = time.monotonic(), self._fleet.get(ref)
        if not vm.state.is_vmm_active:
            self._parts.easing.begin()
        async with vm.operations.hold(Operation.RESTORE, patience=_PATIENCE):
            await vm.refresh()
            check_allowed(Operation.RESTORE, vm.state, vm.name, vm.state_error)
            if vm.state is State.STANDBY:
                if (waiting := await self._handovers.find(vm)) is not None:
                    await self._take(vm, waiting)
                await self._restore(vm, requested)
        return vm.view()

    async def _take(self, vm: Vm, waiting: Waiting) -> None:
        """Have it be in Standby here, if a start of it would be possible."""
        with logged_start(vm):
            image, _ = await self._starter.ensure_image(vm, None)
            await self._starter.check(vm, image)
            await self._handovers.take(vm, waiting)

    async def _restore(self, vm: Vm, requested: float) -> None:
        await self._parts.compressions.cancel(vm.record.id)
        with logged_start(vm):
            await self._starter.restore(vm, requested)

    # ending

    async def stop_vm(self, ref: str, *, timeout: float | None = None) -> VmView:
        """See `Manager`."""
        (vm := self._fleet.get(ref)).operations.cancel_wait()
        async with vm.operations.hold(Operation.STOP):
            await vm.refresh()
            check_allowed(Operation.STOP, vm.state, vm.name)
            is_restored = vm.runs.start is StartKind.RESTORE and vm.state in (
                State.CREATED,
                State.INITIALIZING,
            )
            await self._ends.stop(vm, timeout)
            if is_restored and vm.state is State.STANDBY:
                await vm.standby.discard()  # it was asked to end, not to be in Standby again
                await vm.refresh()
            await vm.runs.settle()  # its handle has ended too, and can be started again
        return vm.view()

    async def restart_vm(self, ref: str, *, pull: ImagePull | None = None) -> VmView:
        """See `Manager`."""
        requested, vm = time.monotonic(), self._fleet.get(ref)
        async with vm.operations.hold(Operation.RESTART):
            await asyncio.gather(vm.refresh(), self.look_at_files())
            check_allowed(Operation.RESTART, vm.state, vm.name)
            if vm.state is State.STOPPED and (waiting := await self._handovers.find(vm)) is not None:
                raise refuse_restart(vm, waiting)
            # it runs on meanwhile
            image, waited = await self._starter.ensure_image(vm, pull)
            await self._starter.check(vm, image)
            try:
                async with vm.handle.held():
                    await self._ends.stop(vm, None)
                    asked = time.monotonic() if waited else requested
                    with logged_start(vm):
                        await self._starter.start(vm, asked, image, StartKind.RESTART)
            finally:
                if has_ended(vm):
                    await vm.handle.release()
        return vm.view()

    async def kill_vm(self, ref: str, signal: int = SIGKILL) -> VmView:
        """See `Manager`."""
        vm = self._fleet.get(ref)
        await vm.refresh()
        check_allowed(Operation.KILL, vm.state, vm.name)
        await self._ends.kill(vm, signal)
        return vm.view()

    async def end_tampered(self, name: str, what: str) -> None:
        """End a VM whose VMM seems to have been taken over, at once and for good, whatever `restart` says."""
        if (vm := self._fleet.find(name)) is None:
            return
        vm.log(logging.ERROR, f"VM {name} is stopped, because {what}", MessageId.TAMPERED)
        await self._ends.kill_for_good(vm)

    # pausing

    async def pause_vm(self, ref: str) -> VmView:
        """See `Manager`."""
        vm = self._fleet.get(ref)
        async with vm.operations.hold(Operation.PAUSE, patience=_PATIENCE):
            await pause(vm)
        return vm.view()

    async def resume_vm(self, ref: str) -> VmView:
        """See `Manager`."""
        vm = self._fleet.get(ref)
        async with vm.operations.hold(Operation.RESUME, patience=_PATIENCE):
            await resume(vm)
        return vm.view()

    # limits

    async def get_limits(self, ref: str) -> RuntimeLimits:
        """See `Manager`."""
        vm = self._fleet.get(ref)
        check_allowed(Operation.LIMIT, vm.state, vm.name, vm.state_error)
        return await query_limits(vm, self._units)

    async def set_limits(self, ref: str, keys: Mapping[str, object]) -> RuntimeLimits:
        """See `Manager`."""
        vm = self._fleet.get(ref)
        async with vm.operations.hold(Operation.LIMIT, patience=_PATIENCE):
            await vm.refresh()
            check_allowed(Operation.LIMIT, vm.state, vm.name, vm.state_error)
            limits = await change_limits(vm, self._units, keys)
        vm.log(logging.INFO, f"limits of VM {vm.name} were changed: {', '.join(sorted(keys))}")
        return limits

    # watching

    async def wait_vm(self, ref: str, state: State, timeout: float) -> tuple[VmView, bool]:
        """See `Manager`."""
        vm = self._fleet.get(ref)
        ends = {State.UNKNOWN, State.STOPPED, State.STANDBY}

        def is_over() -> bool:
            # one that ends to be deleted is waited for until it is gone
            has_ended = vm.state in ends and not vm.operations.is_announced(Operation.DELETE)
            return vm.operations.closed or vm.state is state or has_ended

        reached = await vm.changes.wait_for(is_over, timeout)
        if vm.state in (State.STOPPED, State.STANDBY):
            await vm.runs.settle()  # its handle has ended too, and can be started again
        vm.operations.check_open()
        return vm.view(), not reached

    async def watch_vm(self, ref: str) -> AsyncIterator[VmView]:
        """See `Manager`."""
        async for view in self._fleet.get(ref).views():
            yield view

    def logs(
        self,
        ref: str,
        *,
        source: LogSource,
        tail: int | None,
        follow: bool,
        sentinels: bool,
        since: float | None = None,
    ) -> AsyncIterator[LogLine]:
        """See `Manager`."""
        vm, journal = self._fleet.get(ref), self._parts.services.log_journal
        return read_log(journal, vm, source, tail, follow=follow, sentinels=sentinels, since=since)

    async def list_runs(self, ref: str) -> Sequence[RunReport]:
        """See `Manager`."""
        return await self._fleet.get(ref).list_runs()

    async def timeline(self, ref: str) -> Timeline:
        """See `Manager`."""
        vm = self._fleet.get(ref)
        if vm.session is not None:
            await vm.session.await_stages()
        notes = vm.runs.notes
        if notes is None or Moment.REQUESTED not in notes.moments:
            raise WrongState(f"VM {vm.name} has not been started yet", hint="start it first")
        return derive_timeline(boot_facts(vm.name, notes))
