# SPDX-License-Identifier: Apache-2.0
"""The manager: operations on VMs, with one lock per VM."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterable, Set
from dataclasses import replace
from functools import partial
from pathlib import Path

from hypemand.boot.session import AGENT_DEADLINE
from hypemand.boot.timeline import derive_timeline
from hypemand.boot.tracker import Moment
from hypemand.config.definition import Definition, ImagePull, VolumeMount
from hypemand.config.host import HostConfig
from hypemand.errors import AlreadyExists, GuestError, HypemandError, NotFound, TimedOut, WrongState
from hypemand.manager.claims import Claims, change_volume
from hypemand.manager.diskwatch import DiskWatch
from hypemand.manager.facts import boot_facts
from hypemand.manager.fleet import Fleet
from hypemand.manager.guestops import GuestOps
from hypemand.manager.images import Images
from hypemand.manager.inventory import USERDB, Inventory, VmRecord
from hypemand.manager.logs import follow_log, open_log, seek_log
from hypemand.manager.looks import SharedLook
from hypemand.manager.names import Names
from hypemand.manager.networks import Networks
from hypemand.manager.pause import pause, resume, resume_to_end
from hypemand.manager.plan import Places, make_plan
from hypemand.manager.recovery import ask_again, logged, recover_vms, stop_unknown
from hypemand.manager.runfiles import Past, RunFiles, load_past, remove_leftovers
from hypemand.manager.starts import Starter, derive_pin
from hypemand.manager.tenancy import Tenancy
from hypemand.manager.vm import Vm, VmServices
from hypemand.model.evidence import UnitEvidence
from hypemand.model.logs import LogLine, LogSource
from hypemand.model.state import Operation, Origin, State, check_allowed
from hypemand.model.timeline import Timeline
from hypemand.model.vm import VmView
from hypemand.network.port import NetworkHost
from hypemand.qemu.host import find_vmm_host
from hypemand.storage.volumes import VolumeStore
from hypemand.systemd.log import MessageId
from hypemand.systemd.rootdir import Own, is_in_usr, make_root
from hypemand.tasks import Tasks, finish
from hypemand.unitnames import handle_name
from hypemand.workers import Pool, run_in

_log = logging.getLogger(__name__)
# beyond stop_timeout: SIGTERM, SIGKILL and the exit record
_STOP_MARGIN = 30.0
# what a guest may take to sync and power off after its program has ended
_POWER_OFF_MARGIN = 5.0
_SIGKILL = 9
# so long is waited for the operation that is under way by what is no start and no end
_PATIENCE = 10.0
# and for what a cancelled creation has to undo, when the daemon ends
_UNDO_DEADLINE = 5.0


class VmManager:
    """Implements `hypemand.model.vm.Manager`. `guests` answers for what runs in the VMs of `fleet`."""

    def __init__(
        self,
        config: HostConfig,
        images: Images,
        services: VmServices,
        network_host: NetworkHost,
        userdb: Path = USERDB,
    ) -> None:
        self.config = config
        self.tasks = Tasks("the VMs")
        self._images = images
        self.volumes = VolumeStore(config.state_dir / "volumes", self._templates)
        self._services = replace(services, on_change=self._take_change, volume_disk=self.volumes.find_disk)
        self._tell_change = services.on_change
        self.inventory = Inventory(
            config.state_dir / "vms", config.uid_range, userdb, on_change=self._take_record
        )
        self.fleet = Fleet(lambda: self.config, self.volumes)
        self.fleet.unreadable = self.inventory.unreadable
        images.in_use, images.check_uses = self.fleet.image_uses, self.inventory.check_complete
        self.claims = Claims(self.volumes, self.fleet.holders)
        tenancy = Tenancy(lambda: self.config.networks, self.fleet.tenants)
        self.networks = Networks(network_host, tenancy, self._list_live, config.state_dir / "vms")
        self.guests = GuestOps(self.fleet, images)
        self._names = Names(config.runtime_dir / "hosts", tenancy.members, self.guests)
        self.networks.listeners.append(self._names.members_changed)
        records, claims, units = self.inventory, self.claims, services.units
        self._starter = Starter(
            lambda: self.config, self.fleet, records, images, claims, self.networks, self._names, units
        )
        self.disk_watch = DiskWatch(lambda: self.config, self.fleet)
        images.on_freed = self.disk_watch.note_removal
        self._all = SharedLook("look at all VMs", self._look_at_all)
        # helper VMs of a daemon before this one
        self._cut_off: set[str] = set()

    # life of the daemon

    async def recover(self) -> None:
        """Learn what there is, and what of it runs: from the records, then from systemd. Nothing that is
        found there keeps the rest from being learned: what fails is logged, and what is not known counts as
        in use."""
        with logged("the VMs' records"):
            await run_in(Pool.RECORDS, self.inventory.load)
        with logged("the volumes' records"):
            await run_in(Pool.TOOLS, self.volumes.load)
        with logged("the folders of VMs that run"):
            await run_in(Pool.RECORDS, self.prepare_runtime)
        for record in self.inventory:
            with logged(f"the record of VM {record.name}"):
                past = await run_in(Pool.RECORDS, load_past, record.name, self._places(record.name))
                vm = self._adopt(record, past)
                if record.origin is Origin.HELPER:
                    self._cut_off.add(vm.name)
        await recover_vms(tuple(self.fleet))
        with logged("what VMs have of their networks"):
            await self.networks.recover(lambda name: self.fleet.get(name).state.is_vmm_active)
        # beside all else: VMs without a network do not need it
        self.networks.begin_sync()
        ended = [vm.files for vm in self.fleet if not vm.state.is_vmm_active]
        with logged("the folders of VMs that have ended"):
            await run_in(Pool.TOOLS, _remove_runtimes, ended)

    def prepare_runtime(self) -> None:
        """Make what all VMs that run have in common, or complete it. Blocks; OSError."""
        self._runtime_root.mkdir(mode=0o711, parents=True, exist_ok=True)
        make_root(self._vmm_root, self._vmm_own)

    async def clean_up(self) -> None:
        """End and delete what a daemon that was cut off has left: VMs that worked on a volume, what was being
        made or removed, and units of VMs that are not known. What fails is logged, and keeps nothing else
        from being done."""
        await ask_again(tuple(self.fleet))
        await asyncio.gather(
            *(
                self._remove_helper(vm)
                for vm in self.fleet
                if vm.record.origin is Origin.HELPER and vm.name in self._cut_off
            )
        )
        for volume in self.volumes.unfilled:
            with logged(f"the volume {volume.name}"), self.claims.work_on(volume, "removed"):
                await run_in(Pool.TOOLS, self.volumes.remove_unfilled, volume)
        with logged("what is left of volumes"):
            await run_in(Pool.TOOLS, self.volumes.clean_up)
        with logged("what is left of VMs"):
            await run_in(Pool.TOOLS, self.inventory.clean_up)
        with logged("what is left of VMs that are not known"):
            units = await self._services.units.list_vms()
            with logged("runtime folders of VMs that neither hypemand nor systemd knows"):
                await remove_leftovers(self._runtime_root, lambda name: name in units or self._is_known(name))
            with logged("units that belong to no VM"):
                await stop_unknown(self._services.units, units, self.inventory, self._is_known)

    async def _remove_helper(self, vm: Vm) -> None:
        _log.info("removing VM %s, whose work on a volume was interrupted", vm.name)
        with logged(f"VM {vm.name} is left, which worked on a volume"):
            await self.delete_vm(vm.name)

    def _is_known(self, name: str) -> bool:
        known = (self.fleet.find(name), self.inventory.find(name))
        return known != (None, None) or self.inventory.is_unreadable(name)

    async def resync(self) -> None:
        """Look at everything again, after signals may have been missed."""
        await asyncio.gather(*(vm.refresh() for vm in self.fleet))

    async def close(self) -> None:
        """Let go of all VMs. They go on."""
        await self.tasks.close(patience=_UNDO_DEADLINE)
        await self.disk_watch.close()
        await self._starter.close()
        await self._names.close()
        await self.networks.close()
        await asyncio.gather(*(vm.detach() for vm in self.fleet))

    @property
    def _templates(self) -> Path:
        return self.config.state_dir / "templates"

    @property
    def _runtime_root(self) -> Path:
        return self.config.runtime_dir / "vms"

    @property
    def _vmm_root(self) -> Path:
        return self.config.runtime_dir / "root"

    @property
    def _vmm_own(self) -> Own:
        return Own(self.config.runtime_dir / "self")

    def _places(self, name: str) -> Places:
        return Places(self.inventory.folder(name), self._runtime_root / name, self._vmm_root, self._vmm_own)

    def _adopt(self, record: VmRecord, past: Past) -> Vm:
        vm = Vm(record, self._places(record.name), self._services, self.networks, past)
        self.fleet.add(vm)
        vm.attach()
        return vm

    def _take_record(self, record: VmRecord) -> None:
        """The record of a VM is another one."""
        vm = self.fleet.find(record.name)
        if vm is not None:
            vm.record = record

    # looking

    async def list_vms(self) -> list[VmView]:
        """See `Manager`."""
        await self._all.take()
        # as they are now: also one that came meanwhile
        return [vm.view() for vm in sorted(self.fleet, key=lambda vm: vm.name)]

    async def _look_at_all(self) -> None:
        active = [vm for vm in self.fleet if vm.state.is_vmm_active]
        looks = (vm.refresh(with_memory=True, wait_vmm=False) for vm in active)
        await asyncio.gather(self.networks.read_counters(), *looks)

    async def get_vm(self, ref: str) -> VmView:
        """See `Manager`."""
        vm = self.fleet.get(ref)
        await asyncio.gather(self.networks.read_counters(), vm.refresh(with_memory=True))
        return vm.view()

    # networks

    async def _list_live(self) -> Set[str]:
        self.inventory.check_readable()  # else it is not known what they have
        states = await self._services.units.list_vms()
        return {name for name, state in states.items() if UnitEvidence.from_active_state(state).is_live}

    def _take_change(self) -> None:
        """A VM has another state."""
        self._names.states_changed()
        self._tell_change()

    # volumes and room

    async def attach_volume(self, ref: str, mount: VolumeMount) -> VmView:
        """See `Manager`."""
        return await self._change_volumes(ref, mount.volume, mount)

    async def detach_volume(self, ref: str, volume: str) -> VmView:
        """See `Manager`."""
        return await self._change_volumes(ref, volume, None)

    async def _change_volumes(self, ref: str, volume_ref: str, mount: VolumeMount | None) -> VmView:
        vm = self.fleet.get(ref)
        volume = self.volumes.get(volume_ref)
        async with vm.operations.hold(Operation.CHANGE, patience=_PATIENCE):
            await vm.refresh()
            if vm.record.origin is Origin.FILE and not vm.removed:
                raise WrongState(
                    f"VM {vm.name} is defined in {self.config.vm_dir}/{vm.name}.yaml",
                    hint="change volumes: in that file, then systemctl reload hypemand",
                )
            if vm.state is not State.STOPPED:
                raise WrongState(
                    f"VM {vm.name} is {vm.state}, and its machine type (microvm) does not support hot plug",
                    hint=f"stop {vm.name}, then try again",
                )
            definition = change_volume(self.volumes, vm.record.definition, volume, mount)
            await self.inventory.update(vm.name, definition, vm.record.origin)
            vm.changes.tell()
        return vm.view()

    # defining

    async def create_vm(self, definition: Definition, *, start: bool, short_name: bool = True) -> VmView:
        """See `Manager`."""
        return await self.create_vm_of(definition, Origin.API, start=start, short_name=short_name)

    async def create_vm_of(
        self, definition: Definition, origin: Origin, *, start: bool, short_name: bool = True
    ) -> VmView:
        """`create_vm`, or a VM that works for the daemon itself."""
        self._check_name_free(definition.name)
        image = await self._images.have(definition.image, "", definition.image_pull)
        host = None
        if start:
            finding = run_in(Pool.STARTS, find_vmm_host, self.config)
            host, disks = await asyncio.gather(finding, self.fleet.look_at_disks())
            self.fleet.check_memory(definition)
            self.fleet.check_room(disks, f"VM {definition.name}", definition.disk)
        async with self._images.choosing:
            # it may have gone while we looked, and another VM may have come
            self._check_name_free(definition.name)
            image = await self._images.keep(image)
            pin = derive_pin(definition, image)
            record = await self.inventory.add(definition, origin, pin, short_name=short_name)
            vm = self._adopt(record, Past())
        try:
            if host is not None:
                plan = partial(make_plan, in_root=is_in_usr)
                await run_in(Pool.STARTS, plan, vm.record, definition, image, host, vm.places)
                # the image has just been asked for
                await self.start_vm(vm.name, pull=ImagePull.NEVER)
        except BaseException:
            await self.tasks.run_shielded(f"undo of VM {vm.name}", self._take_back(vm))
            raise
        return vm.view()

    async def _take_back(self, vm: Vm) -> None:
        """Remove a VM whose creation failed. One that systemd may have taken is ended first, and kept if it
        does not end: its disk and uid are its own for as long. Without a disk systemd was not asked yet, and
        need not be."""
        try:
            if vm.operations.is_busy or await run_in(Pool.STARTS, vm.places.disk.exists):
                await self._end(vm, _SIGKILL)
                await self._forget(vm)
            else:
                await finish(self._remove(vm), f"removal of {vm.name}")
        except (HypemandError, OSError) as error:
            vm.log(logging.ERROR, f"VM {vm.name} was not created completely, and is kept: {error}")

    def _check_name_free(self, name: str) -> None:
        if self.fleet.find(name) is not None:
            raise AlreadyExists(f"a VM {name} already exists", hint="choose another name, or remove that VM")

    async def define(self, definition: Definition) -> Vm:
        """Take a definition from a file: a VM that is new, or has it anew. It waits for no start or stop of
        that VM, which may take as long as a pull. AlreadyExists, NotFound for one that was just deleted."""
        vm = self.fleet.find(definition.name)
        if vm is None:
            return self._adopt(await self.inventory.add(definition, Origin.FILE), Past())
        await self.inventory.update(vm.name, definition, Origin.FILE)
        vm.removed = False
        vm.changes.tell()
        return vm

    async def delete_vm(self, ref: str) -> None:
        """See `Manager`."""
        vm = self.fleet.get(ref)
        if vm.record.origin is Origin.FILE and not vm.removed:
            raise WrongState(
                f"VM {vm.name} is defined in {self.config.vm_dir}/{vm.name}.yaml",
                hint="remove that file and run systemctl reload hypemand first",
            )
        vm.operations.cancel_wait()
        # not held up by a stop that is under way: that holds the VM until its guest has ended
        await self._end(vm, _SIGKILL)
        async with vm.operations.hold(Operation.DELETE):
            await self._end(vm, _SIGKILL)
            await self._forget(vm)

    async def _forget(self, vm: Vm) -> None:
        await vm.settle()
        await run_in(Pool.TOOLS, self.inventory.check_removable, vm.name)
        for unit in (vm.unit, handle_name(vm.name)):
            await self._services.units.reset_failed(unit)
        await vm.files.flush_notes()
        await finish(self._remove(vm), f"removal of {vm.name}")

    async def _remove(self, vm: Vm) -> None:
        """It is gone when its folder is, and not before."""
        await run_in(Pool.STARTS, vm.files.remove_runtime)
        try:
            await self.inventory.remove(vm.name)
        finally:
            if self.inventory.find(vm.name) is None:
                await run_in(Pool.STARTS, vm.files.remove_exit)
                await vm.detach()
                self.fleet.remove(vm)
                vm.mark_deleted()
                self.networks.tell()
                self.disk_watch.note_removal()

    # starting

    async def start_vm(self, ref: str, *, pull: ImagePull | None = None) -> VmView:
        """See `Manager`."""
        requested = time.monotonic()
        vm = self.fleet.get(ref)
        if not vm.state.is_vmm_active:
            self._starter.ease_moves()  # it takes longer than all that comes before PID 1 needs it
        async with vm.operations.hold(Operation.START):
            await vm.refresh()
            check_allowed(Operation.START, vm.state, vm.name, vm.state_error)
            if vm.state is State.STOPPED:
                try:
                    image, waited = await self._starter.have_image(vm, pull)
                    # a pull is no part of the boot
                    await self._starter.start(vm, time.monotonic() if waited else requested, image)
                except HypemandError as error:
                    vm.log(logging.ERROR, f"VM {vm.name} was not started: {error}", MessageId.START_FAILED)
                    raise
        return vm.view()

    # ending

    async def stop_vm(self, ref: str, *, timeout: float | None = None) -> VmView:
        """See `Manager`."""
        vm = self.fleet.get(ref)
        if vm.handle.releasing and vm.state is State.STOPPED:
            # that is the handle asking; a start may hold the VM meanwhile and wait until it has ended
            return vm.view()
        vm.operations.cancel_wait()
        async with vm.operations.hold(Operation.STOP):
            await vm.refresh()
            check_allowed(Operation.STOP, vm.state, vm.name)
            await self._stop(vm, timeout)
            await vm.settle()  # its handle has ended too, and can be started again
        return vm.view()

    async def _stop(self, vm: Vm, timeout: float | None) -> None:
        if not vm.state.is_vmm_active:
            return
        await resume_to_end(vm)
        if timeout is None:
            await self._services.units.stop(vm.unit)
            limit = vm.record.definition.stop_timeout
            deadline = None if limit is None else limit + _STOP_MARGIN
            if not await vm.changes.wait_for(lambda: _has_ended(vm), deadline):
                raise TimedOut(f"VM {vm.name} did not stop in {deadline:.0f} s", hint="use hypemanctl kill")
            return
        await self._ask_guest_to_end(vm, timeout)
        await self._services.units.stop(vm.unit)
        if not await vm.changes.wait_for(lambda: _has_ended(vm), timeout + _POWER_OFF_MARGIN):
            await self._end(vm, _SIGKILL)

    async def _ask_guest_to_end(self, vm: Vm, grace: float) -> None:
        """Another grace than ExecStop= gives: of two orders the guest keeps to the one that ends it sooner.
        A guest that cannot be told is ended by force later."""
        if vm.session is None or not vm.record.definition.guest_agent or vm.state is not State.RUNNING:
            return
        try:
            channel = await vm.session.open_agent(AGENT_DEADLINE)
            await channel.shutdown(grace)
        except (OSError, GuestError) as error:
            _log.warning("VM %s: cannot ask the guest to shut down: %s", vm.name, error)

    async def _end(self, vm: Vm, signal: int) -> None:
        """End a VM by force, and wait for it."""
        await vm.refresh()
        if vm.state.is_vmm_active:
            await self._services.units.stop(vm.unit)
            await self._services.units.kill(vm.unit, signal)
            if not await vm.changes.wait_for(lambda: _has_ended(vm), _STOP_MARGIN):
                raise TimedOut(
                    f"VM {vm.name} did not stop in {_STOP_MARGIN:.0f} s", hint="see the status of its unit"
                )

    async def restart_vm(self, ref: str, *, pull: ImagePull | None = None) -> VmView:
        """See `Manager`."""
        requested = time.monotonic()
        vm = self.fleet.get(ref)
        async with vm.operations.hold(Operation.RESTART) as operation:
            await vm.refresh()
            check_allowed(Operation.RESTART, vm.state, vm.name)
            # it runs on meanwhile
            image, waited = await self._starter.have_image(vm, pull)
            await self._starter.check(vm, image)
            operation.keeps_handle = True
            try:
                await self._stop(vm, None)
                await self._starter.start(vm, time.monotonic() if waited else requested, image)
            finally:
                operation.keeps_handle = False
                if _has_ended(vm):
                    await vm.release_handle()
        return vm.view()

    async def kill_vm(self, ref: str, signal: int = _SIGKILL) -> VmView:
        """See `Manager`."""
        vm = self.fleet.get(ref)
        await vm.refresh()
        check_allowed(Operation.KILL, vm.state, vm.name)
        run = vm.run
        await self._services.units.kill(vm.unit, signal)
        if signal == _SIGKILL:
            # another run: systemd has started it again
            await vm.changes.wait_for(lambda: _has_ended(vm) or vm.run != run, _STOP_MARGIN)
            await vm.settle()
        return vm.view()

    async def end_tampered(self, name: str, what: str) -> None:
        """End a VM whose VMM seems to have been taken over, at once and for good, whatever `restart` says."""
        vm = self.fleet.find(name)
        if vm is None:
            return
        vm.log(logging.ERROR, f"VM {name} is stopped, because {what}", MessageId.TAMPERED)
        # the stop first: systemd would start it again
        await self._services.units.stop(vm.unit)
        await self._services.units.kill(vm.unit, _SIGKILL)

    # pausing

    async def pause_vm(self, ref: str) -> VmView:
        """See `Manager`."""
        vm = self.fleet.get(ref)
        async with vm.operations.hold(Operation.PAUSE, patience=_PATIENCE):
            await pause(vm)
        return vm.view()

    async def resume_vm(self, ref: str) -> VmView:
        """See `Manager`."""
        vm = self.fleet.get(ref)
        async with vm.operations.hold(Operation.RESUME, patience=_PATIENCE):
            await resume(vm)
        return vm.view()

    # watching

    async def wait_vm(self, ref: str, state: State, timeout: float) -> tuple[VmView, bool]:
        """See `Manager`."""
        vm = self.fleet.get(ref)
        ends = {state, State.UNKNOWN, State.STOPPED, State.STANDBY}
        reached = await vm.changes.wait_for(lambda: vm.operations.closed or vm.state in ends, timeout)
        if vm.operations.closed:
            raise NotFound(f"VM {vm.name} has been deleted meanwhile")
        return vm.view(), not reached

    async def watch_vm(self, ref: str) -> AsyncIterator[VmView]:
        """See `Manager`."""
        async for view in self.fleet.get(ref).views():
            yield view

    async def logs(
        self, ref: str, *, source: LogSource, tail: int | None, follow: bool, sentinels: bool
    ) -> AsyncIterator[LogLine]:
        """See `Manager`."""
        vm = self.fleet.get(ref)
        opened = open_log(vm.name, vm.record.id, source, sentinels=sentinels)
        with vm.changes.watching() as changed:
            async with opened as log:
                await seek_log(log, tail)
                async for line in follow_log(
                    log, follow=follow, is_live=lambda: vm.state.is_vmm_active, state_changed=changed
                ):
                    yield line

    async def timeline(self, ref: str) -> Timeline:
        """See `Manager`."""
        vm = self.fleet.get(ref)
        notes = vm.notes
        if notes is None or Moment.REQUESTED not in notes.moments:
            raise WrongState(f"VM {vm.name} has not been started yet", hint="start it first")
        return derive_timeline(boot_facts(vm.name, notes))


def _has_ended(vm: Vm) -> bool:
    return not vm.state.is_vmm_active


def _remove_runtimes(ended: Iterable[RunFiles]) -> None:
    """Remove what runs that have ended have left in the runtime folder. Blocks."""
    for files in ended:
        files.remove_runtime()
