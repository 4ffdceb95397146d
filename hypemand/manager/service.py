# SPDX-License-Identifier: Apache-2.0
"""The manager: what happens to VMs, and in which order. One lock for each VM."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import time
from collections.abc import AsyncIterator, Iterator, Sequence, Set
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from hypemand.agent.channel import AgentChannel
from hypemand.boot.tracker import Moment
from hypemand.config.definition import Definition, ImagePull, Origin, VolumeMount
from hypemand.config.host import HostConfig
from hypemand.config.vmdef import definition_to_json, parse_definition
from hypemand.errors import (
    AlreadyExists,
    Ambiguous,
    GuestError,
    HypemandError,
    InvalidDefinition,
    NotFound,
    TimedOut,
    WrongState,
)
from hypemand.log import MessageId
from hypemand.manager.admission import check_disk, check_memory, read_room, read_total_memory
from hypemand.manager.claims import Claims, Holder
from hypemand.manager.facts import boot_facts
from hypemand.manager.images import Images
from hypemand.manager.inventory import ImagePin, Inventory, VmRecord
from hypemand.manager.leases import Lease
from hypemand.manager.logs import VmLog, follow_log
from hypemand.manager.names import Names
from hypemand.manager.networks import Networks, Surroundings, Tenant
from hypemand.manager.plan import Attached, Connection, Places, Plan, make_plan
from hypemand.manager.view import (
    CopyIn,
    CopyOut,
    ExecRequest,
    ExecSession,
    FileInfo,
    LogLine,
    LogSource,
    Timeline,
    VmView,
)
from hypemand.manager.vm import Vm, VmServices
from hypemand.network.port import NetworkHost
from hypemand.qemu.host import find_vmm_host
from hypemand.state import Operation, State, check_allowed
from hypemand.storage.configdisk import GuestConfig, write_config_disk
from hypemand.storage.disks import ensure_disk, find_size_problem, make_fresh_disk
from hypemand.storage.images import Image
from hypemand.storage.program import resolve_program
from hypemand.storage.store import ImageUse
from hypemand.storage.volumes import Volume, VolumeStore, prepare_volume
from hypemand.systemd.cgroups import ease_moves
from hypemand.systemd.rootdir import Own, copy_linker_cache, is_in_usr, make_root
from hypemand.systemd.units import handle_name
from hypemand.timeline import derive_timeline

_log = logging.getLogger(__name__)
_AGENT_DEADLINE = 5.0
# beyond stop_timeout: SIGTERM, SIGKILL and the exit record
_STOP_MARGIN = 30.0
# what a guest may take to sync and power off after its program has ended
_POWER_OFF_MARGIN = 5.0
_SIGKILL = 9
_MIN_PREFIX = 4


class VmManager:
    """Implements `hypemand.manager.view.Manager`."""

    def __init__(
        self,
        config: HostConfig,
        images: Images,
        services: VmServices,
        network_host: NetworkHost,
        userdb: Path = Path("/run/userdb"),
    ) -> None:
        self.config = config
        self._images = images
        images.in_use = self.image_uses
        self._services = replace(services, on_change=self._take_change)
        self._tell_change = services.on_change
        self.inventory = Inventory(config.state_dir / "vms", config.uid_range, userdb)
        self._vms: dict[str, Vm] = {}
        # of the VMs that are being started and that systemd does not know yet
        self._starting: dict[str, Definition] = {}
        self.volumes = VolumeStore(config.state_dir / "volumes", self._templates)
        self.claims = Claims(self.volumes, self._holders)
        around = Surroundings(lambda: self.config.networks, self._tenants, self._list_live)
        self.networks = Networks(network_host, config.state_dir / "vms", around)
        self._names = Names(config.runtime_dir / "hosts", self.networks.members, self)
        self.networks.listeners.append(self._names.members_changed)
        self._easing: asyncio.Task[None] | None = None
        # names of VMs whose files have problems; set by the reloader
        self.broken: frozenset[str] = frozenset()

    # life of the daemon

    async def recover(self) -> None:
        """Learn what there is, and what of it runs: from the records, then from systemd."""
        self.inventory.load()
        await asyncio.to_thread(self.volumes.load)
        self._runtime_root.mkdir(mode=0o711, parents=True, exist_ok=True)
        make_root(self._vmm_root, self._vmm_own)
        for record in self.inventory:
            self._adopt(record)
        await asyncio.gather(*(vm.recover() for vm in self._vms.values()))
        self.networks.recover(lambda name: self._vms[name].state.is_vmm_active)
        # beside all else: VMs without a network do not need it
        self.networks.begin_sync()
        for vm in self._vms.values():
            if not vm.state.is_vmm_active:
                vm.remove_runtime()
        for leftover in self._runtime_root.iterdir():
            if leftover.name not in self._vms:
                shutil.rmtree(leftover, ignore_errors=True)
        for name in await self._services.units.list_vms():
            if name not in self._vms:
                _log.warning("the unit of VM %s belongs to no VM that is known here: stopping it", name)
                await self._services.units.stop(f"hypeman-vm-{name}.service")
        for vm in self:
            if vm.record.origin is Origin.HELPER:
                _log.info("removing VM %s, whose work on a volume was cut off", vm.name)
                await self.delete_vm(vm.name)

    async def resync(self) -> None:
        """Look at everything again, after signals may have been missed."""
        await asyncio.gather(*(vm.refresh() for vm in self._vms.values()))

    async def close(self) -> None:
        """Let go of all VMs. They go on."""
        if self._easing is not None:
            await self._easing
        await self._names.close()
        await self.networks.close()
        await asyncio.gather(*(vm.detach() for vm in self._vms.values()))

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

    def _adopt(self, record: VmRecord) -> Vm:
        vm = Vm(record, self._places(record.name), self._services, self.networks)
        self._vms[record.name] = vm
        vm.attach()
        return vm

    # finding

    def __iter__(self) -> Iterator[Vm]:
        return iter(list(self._vms.values()))

    def find(self, name: str) -> Vm | None:
        """The VM of that very name."""
        return self._vms.get(name)

    def _get(self, ref: str) -> Vm:
        if ref in self._vms:
            return self._vms[ref]
        found = [vm for vm in self._vms.values() if vm.record.id == ref]
        if not found and len(ref) >= _MIN_PREFIX:
            found = [vm for vm in self._vms.values() if vm.record.id.startswith(ref)]
        if len(found) > 1:
            names = ", ".join(sorted(vm.name for vm in found))
            raise Ambiguous(f"{ref} fits the ids of {names}", hint="write more of the id, or the name")
        if not found and ref in self.broken:
            raise NotFound(
                f"there is no VM {ref}: its file in {self.config.vm_dir} has errors", hint="hypemanctl check"
            )
        if not found:
            raise NotFound(f"there is no VM {ref[:80]}", hint="hypemanctl list shows those that there are")
        return found[0]

    async def list_vms(self) -> list[VmView]:
        """See `Manager`."""
        vms = sorted(self._vms.values(), key=lambda vm: vm.name)
        active = [vm for vm in vms if vm.state.is_vmm_active]
        looks = (vm.refresh(with_memory=True) for vm in active)
        await asyncio.gather(self.networks.read_counters(), *looks)
        return [vm.view() for vm in vms]

    async def get_vm(self, ref: str) -> VmView:
        """See `Manager`."""
        vm = self._get(ref)
        await asyncio.gather(self.networks.read_counters(), vm.refresh(with_memory=True))
        return vm.view()

    def image_uses(self) -> list[ImageUse]:
        """What the VMs need: what they would be started with, and what they run with."""
        uses = []
        for vm in self._vms.values():
            record = vm.record
            uses.append(ImageUse(vm.name, record.definition.image, record.image_digest))
            if record.pin is not None and not record.image_digest and vm.state.is_vmm_active:
                uses.append(ImageUse(vm.name, record.pin.name, record.pin.digest))
        return uses

    # networks

    def _tenants(self) -> Iterator[Tenant]:
        for vm in self._vms.values():
            yield vm.tenant

    async def _list_live(self) -> Set[str]:
        states = await self._services.units.list_vms()
        return {name for name, state in states.items() if state not in ("inactive", "failed")}

    def _take_change(self) -> None:
        """A VM has another state."""
        self._names.states_changed()
        self._tell_change()

    def running_boot(self, vm: str) -> str | None:
        """See `hypemand.manager.names.Guests`."""
        found = self._vms.get(vm)
        if found is None or found.state is not State.RUNNING or not found.definition_in_use.guest_agent:
            return None
        return found.boot

    # volumes and room

    def _holders(self) -> Iterator[Holder]:
        for vm in self._vms.values():
            if vm.record.origin is not Origin.HELPER:
                yield Holder(vm.name, vm.record.id, vm.record.definition, running=False)
            if vm.name in self._starting:
                yield Holder(vm.name, vm.record.id, self._starting[vm.name], running=True)
            elif vm.state.is_vmm_active:
                yield Holder(vm.name, vm.record.id, vm.definition_in_use, running=True)

    def check_room(self, what: str, wanted: int, *, but: str = "") -> None:
        """Raise InsufficientResources unless the host's disk can hold `wanted` bytes more: of the VM `but`,
        or of the volume of that id, in place of what it has now."""
        room = read_room(self.config.state_dir)
        check_disk(what, wanted, self.promised_room(but=but), room, self.config.disk)

    def promised_room(self, *, but: str = "") -> int:
        """Bytes that disks and volumes may grow to, all but those of `but`."""
        disks = sum(vm.record.definition.disk for vm in self if vm.name != but)
        return disks + sum(volume.size for volume in self.volumes if volume.id != but)

    async def attach_volume(self, ref: str, mount: VolumeMount) -> VmView:
        """See `Manager`."""
        return await self._change_volumes(ref, mount.volume, mount)

    async def detach_volume(self, ref: str, volume: str) -> VmView:
        """See `Manager`."""
        return await self._change_volumes(ref, volume, None)

    async def _change_volumes(self, ref: str, volume_ref: str, mount: VolumeMount | None) -> VmView:
        vm = self._get(ref)
        volume = self.volumes.get(volume_ref)
        async with _hold(vm):
            await vm.refresh()
            if vm.record.origin is Origin.FILE and not vm.removed:
                raise WrongState(
                    f"VM {vm.name} is defined in {self.config.vm_dir}/{vm.name}.yaml",
                    hint="change volumes: in that file, then systemctl reload hypemand",
                )
            if vm.state is not State.STOPPED:
                raise WrongState(
                    f"VM {vm.name} is {vm.state}, and its machine type (microvm) cannot plug disks meanwhile",
                    hint=f"stop {vm.name}, then try again",
                )
            definition = _with_volumes(self.volumes, vm.record.definition, volume, mount)
            vm.record = self.inventory.update(vm.name, definition, vm.record.origin)
            vm.poke()
        return vm.view()

    # defining

    async def create_vm(self, definition: Definition, *, start: bool) -> VmView:
        """See `Manager`."""
        return await self.create_vm_of(definition, Origin.API, start=start)

    async def create_vm_of(self, definition: Definition, origin: Origin, *, start: bool) -> VmView:
        """`create_vm`, or a VM that works for the daemon itself."""
        self._check_name_free(definition.name)
        image = await self._images.have(definition.image, "", definition.image_pull)
        host = find_vmm_host(self.config) if start else None
        if host is not None:
            self._check_memory(definition)
            self.check_room(f"VM {definition.name}", definition.disk)
        async with self._images.choosing:
            # it may have gone while we looked, and another VM may have come
            self._check_name_free(definition.name)
            image = await self._images.keep(image)
            vm = self._adopt(self.inventory.add(definition, origin, _derive_pin(definition, image)))
        try:
            if host is not None:
                places = self._places(vm.name)
                make_plan(vm.record, definition, image, host, places, in_root=is_in_usr)
                # the image has just been asked for
                await self.start_vm(vm.name, pull=ImagePull.NEVER)
        except BaseException:
            await self._forget(vm)
            raise
        return vm.view()

    def _check_name_free(self, name: str) -> None:
        if name in self._vms:
            raise AlreadyExists(
                f"there is a VM {name} already", hint="choose another name, or remove that one"
            )

    def define(self, definition: Definition) -> Vm:
        """Take a definition from a file: a VM that is new, or has it anew."""
        vm = self._vms.get(definition.name)
        if vm is None:
            return self._adopt(self.inventory.add(definition, Origin.FILE))
        if vm.record.definition != definition or vm.record.origin is not Origin.FILE:
            vm.record = self.inventory.update(vm.name, definition, Origin.FILE)
        vm.removed = False
        vm.poke()
        return vm

    async def delete_vm(self, ref: str) -> None:
        """See `Manager`."""
        vm = self._get(ref)
        if vm.record.origin is Origin.FILE and not vm.removed:
            raise WrongState(
                f"VM {vm.name} is defined in {self.config.vm_dir}/{vm.name}.yaml",
                hint="remove that file and run systemctl reload hypemand first",
            )
        vm.give_up_image()
        # not held up by a stop that is under way: that holds the VM until its guest has ended
        await self._end(vm, _SIGKILL)
        async with _hold(vm):
            await self._end(vm, _SIGKILL)
            await self._forget(vm)

    async def _forget(self, vm: Vm) -> None:
        await vm.settle()
        for unit in (vm.unit, handle_name(vm.name)):
            await self._services.units.reset_failed(unit)
        await vm.detach()
        vm.remove_runtime()
        del self._vms[vm.name]
        await asyncio.to_thread(self.inventory.remove, vm.name)
        vm.mark_deleted()
        self.networks.tell()

    # starting

    def _check_memory(self, definition: Definition) -> None:
        held = {vm.name: vm.committed_memory for vm in self._vms.values()}
        held |= {name: starting.memory for name, starting in self._starting.items()}
        committed = sum(memory for name, memory in held.items() if name != definition.name)
        total = read_total_memory()
        check_memory(definition.name, definition.memory, committed, total, self.config.memory)

    async def _have_image(self, vm: Vm, pull: ImagePull | None) -> tuple[Image, bool]:
        """The image that it is to be started with. The bool: was it waited for? While that lasts its status
        text says so, and a stop ends it."""
        definition = vm.record.definition
        pull = pull or definition.image_pull
        if pull is not ImagePull.ALWAYS:
            image = await self._images.find_for(definition.image, vm.record.image_digest)
            if image is not None:
                return image, False
        state = vm.state
        work = self._images.have(
            definition.image, vm.record.image_digest, pull, lambda words: vm.say(f"{state}: {words}")
        )
        vm.image_wait = asyncio.create_task(work, name=f"image of {vm.name}")
        try:
            return await vm.image_wait, True
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                vm.image_wait.cancel()
                raise
            raise WrongState(
                f"the start of VM {vm.name} was given up while its image was being pulled",
                hint="start it again; the pull goes on",
            ) from None
        finally:
            vm.image_wait = None
            vm.say("")

    async def _pin_image(self, vm: Vm, image: Image) -> Image:
        """Have the VM keep to a content, which cannot be removed from now on."""
        async with self._images.choosing:
            image = await self._images.keep(image)
            vm.record = self.inventory.pin(vm.name, _derive_pin(vm.record.definition, image))
        return image

    async def start_vm(self, ref: str, *, pull: ImagePull | None = None) -> VmView:
        """See `Manager`."""
        requested = time.monotonic()
        vm = self._get(ref)
        if not vm.state.is_vmm_active:
            self._ease_moves()  # it takes longer than all that comes before PID 1 needs it
        async with _hold(vm):
            await vm.refresh()
            check_allowed(Operation.START, vm.state, vm.name)
            if vm.state is State.STOPPED:
                try:
                    image, waited = await self._have_image(vm, pull)
                    # a pull is no part of the boot
                    await self._start(vm, time.monotonic() if waited else requested, image)
                except HypemandError as error:
                    vm.log(logging.ERROR, f"VM {vm.name} was not started: {error}", MessageId.START_FAILED)
                    raise
        return vm.view()

    def _ease_moves(self) -> None:
        """Have the kernel's wait before PID 1 can move the VMM into its unit over by the time it does."""
        if self._easing is None or self._easing.done():
            self._easing = asyncio.create_task(asyncio.to_thread(ease_moves), name="ease moves")

    async def _start(self, vm: Vm, requested: float, image: Image) -> None:
        self._ease_moves()
        await vm.settle()
        image = await self._pin_image(vm, image)
        definition = vm.record.definition
        self._check_memory(definition)
        self.check_room(f"VM {vm.name}", definition.disk, but=vm.name)
        volumes = self.claims.claim(vm.name, definition)
        # with the volumes that it gets: what it goes without, others may have
        definition = replace(definition, volumes=tuple(attached.mount for attached in volumes))
        network, had_lease = self.networks.claim(vm.tenant), vm.record.lease
        had_disk = self._places(vm.name).disk.exists()
        self._starting[vm.name] = definition
        try:
            if network is not None:
                vm.record = self.inventory.lease(vm.name, network.lease)
                self._names.set_disk(vm.name, network.hosts)
            plan = await self._make(vm, image, volumes, network)
            vm.expect_boot({Moment.REQUESTED: requested, Moment.PREPARED: time.monotonic()}, definition)
            if vm.has_unit:
                await self._services.units.reset_failed(vm.unit)
            await self._services.units.start_transient(plan.unit)
        except BaseException:
            vm.expect_boot({}, definition)
            vm.remove_runtime()
            if not had_disk:
                self._places(vm.name).disk.unlink(missing_ok=True)
            await asyncio.shield(self.networks.give_up(vm.name))
            self._take_back_lease(vm, had_lease)
            raise
        finally:
            del self._starting[vm.name]
        vm.add_moment(Moment.QUEUED, time.monotonic())
        vm.take_start()
        await asyncio.to_thread(vm.keep_running_definition, definition)

    def _take_back_lease(self, vm: Vm, before: Lease | None) -> None:
        """Addresses that a VM was given for a start that came to nothing are others' to have again."""
        if vm.record.lease != before:
            vm.record = self.inventory.lease(vm.name, before)
            self.networks.tell()

    async def _make(
        self, vm: Vm, image: Image, volumes: Sequence[Attached], network: Connection | None
    ) -> Plan:
        """Make what a start needs on the host's disk and in its network, both at once."""
        preparing = asyncio.create_task(
            asyncio.to_thread(self._prepare, vm, image, volumes, network), name=f"files of {vm.name}"
        )
        try:
            if network is not None:
                await self.networks.attach(vm.name)
            return await asyncio.shield(preparing)
        finally:
            # a thread cannot be ended: what it makes can be removed only when it has made it
            await asyncio.gather(preparing, return_exceptions=True)

    def _plan(
        self, vm: Vm, image: Image, volumes: Sequence[Attached] = (), network: Connection | None = None
    ) -> Plan:
        """Work out its start. Blocks; run in a thread."""
        host, places = find_vmm_host(self.config), self._places(vm.name)
        return make_plan(
            vm.record, vm.record.definition, image, host, places, volumes, network, in_root=is_in_usr
        )

    async def _check_start(self, vm: Vm, image: Image) -> None:
        """Raise what a start would: a VM that runs is not stopped for a definition that cannot be started."""
        definition = vm.record.definition
        self._check_memory(definition)
        self.check_room(f"VM {vm.name}", definition.disk, but=vm.name)
        self.claims.claim(vm.name, definition)
        network = self.networks.plan(vm.tenant)
        if network is not None:
            await self.networks.check_usable(network.port.bridge.network)
        await asyncio.to_thread(self._plan, vm, image)
        problem = await asyncio.to_thread(find_size_problem, self._places(vm.name).disk, definition.disk)
        if problem is not None:
            raise InvalidDefinition([problem])

    def _prepare(self, vm: Vm, image: Image, volumes: Sequence[Attached], network: Connection | None) -> Plan:
        """Make what the unit needs. Blocks; run in a thread."""
        record, definition = vm.record, vm.record.definition
        places = self._places(record.name)
        runtime = places.runtime
        plan = self._plan(vm, image, volumes, network)
        copy_linker_cache(places.root)
        shutil.rmtree(runtime, ignore_errors=True)
        runtime.mkdir(mode=0o700)
        os.chown(runtime, record.uid, record.uid)
        os.mkfifo(runtime / "leader", 0o600)
        os.chown(runtime / "leader", record.uid, record.uid)
        make_disk = ensure_disk if definition.persistent else make_fresh_disk
        make_disk(places.disk, definition.disk, record.uid, places.templates)
        for attached in volumes:
            prepare_volume(attached.volume.disk, record.uid, writes=attached.mount.writes)
        write_config_disk(places.config, plan.guest, uid=record.uid)
        return plan

    # ending

    async def stop_vm(self, ref: str, *, timeout: float | None = None) -> VmView:
        """See `Manager`."""
        vm = self._get(ref)
        if vm.releasing_handle and vm.state is State.STOPPED:
            # that is the handle asking; a start may hold the VM meanwhile and wait until it has ended
            return vm.view()
        vm.give_up_image()
        async with _hold(vm):
            await vm.refresh()
            check_allowed(Operation.STOP, vm.state, vm.name)
            await self._stop(vm, timeout)
            await vm.settle()  # its handle has ended too, and can be started again
        return vm.view()

    async def _stop(self, vm: Vm, timeout: float | None) -> None:
        if not vm.state.is_vmm_active:
            return
        if timeout is None:
            await self._services.units.stop(vm.unit)
            limit = vm.record.definition.stop_timeout
            deadline = None if limit is None else limit + _STOP_MARGIN
            if not await vm.wait_for(_has_ended, deadline):
                raise TimedOut(
                    f"VM {vm.name} did not stop in {deadline:.0f} s", hint="hypemanctl kill ends it at once"
                )
            return
        await self._ask_guest_to_end(vm, timeout)
        await self._services.units.stop(vm.unit)
        if not await vm.wait_for(_has_ended, timeout + _POWER_OFF_MARGIN):
            await self._end(vm, _SIGKILL)

    async def _ask_guest_to_end(self, vm: Vm, grace: float) -> None:
        """Another grace than ExecStop= gives: of two orders the guest keeps to the one that ends it sooner.
        A guest that cannot be told is ended by force later."""
        if vm.session is None or not vm.record.definition.guest_agent or vm.state is not State.RUNNING:
            return
        try:
            channel = await vm.session.open_agent(_AGENT_DEADLINE)
            await channel.shutdown(grace)
        except (OSError, GuestError) as error:
            _log.warning("VM %s: cannot tell the guest to end: %s", vm.name, error)

    async def _end(self, vm: Vm, signal: int) -> None:
        """End a VM by force, and wait for it."""
        await vm.refresh()
        if vm.state.is_vmm_active:
            await self._services.units.stop(vm.unit)
            await self._services.units.kill(vm.unit, signal)
            if not await vm.wait_for(_has_ended, _STOP_MARGIN):
                raise TimedOut(
                    f"VM {vm.name} did not end in {_STOP_MARGIN:.0f} s", hint="see its unit's status"
                )

    async def restart_vm(self, ref: str, *, pull: ImagePull | None = None) -> VmView:
        """See `Manager`."""
        requested = time.monotonic()
        vm = self._get(ref)
        async with _hold(vm):
            await vm.refresh()
            check_allowed(Operation.RESTART, vm.state, vm.name)
            # it runs on meanwhile
            image, waited = await self._have_image(vm, pull)
            await self._check_start(vm, image)
            vm.restarting = True
            try:
                await self._stop(vm, None)
                await self._start(vm, time.monotonic() if waited else requested, image)
            finally:
                vm.restarting = False
        return vm.view()

    async def kill_vm(self, ref: str, signal: int = _SIGKILL) -> VmView:
        """See `Manager`."""
        vm = self._get(ref)
        await vm.refresh()
        check_allowed(Operation.KILL, vm.state, vm.name)
        boot = vm.boot
        await self._services.units.kill(vm.unit, signal)
        if signal == _SIGKILL:
            # another boot: systemd has started it again
            await vm.wait_for(lambda vm: _has_ended(vm) or vm.boot != boot, _STOP_MARGIN)
            await vm.settle()
        return vm.view()

    # watching

    async def wait_vm(self, ref: str, state: State, timeout: float) -> tuple[VmView, bool]:
        """See `Manager`."""
        vm = self._get(ref)
        ends = {state, State.UNKNOWN, State.STOPPED, State.STANDBY}
        reached = await vm.wait_for(lambda vm: vm.deleted or vm.state in ends, timeout)
        if vm.deleted:
            raise NotFound(f"VM {vm.name} was deleted meanwhile")
        return vm.view(), not reached

    async def watch_vm(self, ref: str) -> AsyncIterator[VmView]:
        """See `Manager`."""
        async for view in self._get(ref).changes():
            yield view

    async def logs(
        self, ref: str, *, source: LogSource, tail: int | None, follow: bool, sentinels: bool
    ) -> AsyncIterator[LogLine]:
        """See `Manager`."""
        vm = self._get(ref)
        log = VmLog(vm.name, vm.record.id, source, sentinels=sentinels)
        with vm.watching() as changed:
            log.seek(tail)
            async for line in follow_log(
                log, follow=follow, is_live=lambda: vm.state.is_vmm_active, state_changed=changed
            ):
                yield line

    async def exec_vm(self, ref: str, request: ExecRequest) -> ExecSession:
        """See `Manager`."""
        vm, channel = await self._reach_agent(ref, Operation.EXEC)
        definition, pin = vm.definition_in_use, vm.record.pin
        digest = pin.digest if pin is not None and pin.name == definition.image else ""
        image = await self._images.get_for(definition.image, digest)
        return await channel.exec(_like_the_program(request, resolve_program(definition, image)))

    async def stat_path(self, ref: str, path: str, *, follow: bool = False) -> FileInfo | None:
        """See `Manager`."""
        _, channel = await self._reach_agent(ref, Operation.STAT)
        return await channel.stat(path, follow=follow)

    async def copy_out(self, ref: str, path: str, *, follow: bool = False) -> CopyOut:
        """See `Manager`."""
        _, channel = await self._reach_agent(ref, Operation.COPY)
        return await channel.copy_out(path, follow=follow)

    async def copy_in(self, ref: str, path: str) -> CopyIn:
        """See `Manager`."""
        _, channel = await self._reach_agent(ref, Operation.COPY)
        return await channel.copy_in(path)

    async def _reach_agent(self, ref: str, operation: Operation) -> tuple[Vm, AgentChannel]:
        """A VM whose state allows the operation, and the channel to its agent."""
        vm = self._get(ref)
        check_allowed(operation, vm.state, vm.name)
        if not vm.definition_in_use.guest_agent or vm.session is None:
            raise WrongState(f"VM {vm.name} has no guest agent", hint="set guest_agent: true and restart it")
        return vm, await vm.session.open_agent(_AGENT_DEADLINE)

    async def timeline(self, ref: str) -> Timeline:
        """See `Manager`."""
        vm = self._get(ref)
        notes = vm.notes
        if notes is None or Moment.REQUESTED not in notes.moments:
            raise WrongState(f"VM {vm.name} has not been started yet", hint="start it, then ask again")
        return derive_timeline(boot_facts(vm.name, notes))


@asynccontextmanager
async def _hold(vm: Vm) -> AsyncIterator[None]:
    """Be the only one that changes a VM. Raises NotFound when it was deleted while others had it."""
    async with vm.lock:
        if vm.deleted:
            raise NotFound(f"VM {vm.name} was deleted meanwhile")
        yield


def _like_the_program(request: ExecRequest, guest: GuestConfig) -> ExecRequest:
    """A command runs as the VM's program does, where the request does not say otherwise: with its variables,
    in its folder, as its user."""
    return replace(
        request,
        env={**guest.env, **request.env},
        cwd=request.cwd or guest.workdir,
        user=request.user or guest.user,
    )


def _derive_pin(definition: Definition, image: Image) -> ImagePin | None:
    """What a VM keeps to. A package's image changes with the package."""
    return None if image.builtin else ImagePin(definition.image, image.digest)


def _with_volumes(
    store: VolumeStore, definition: Definition, volume: Volume, mount: VolumeMount | None
) -> Definition:
    """A definition with a volume at another place, or without it. NotFound, AlreadyExists, and
    InvalidDefinition for what no definition may say."""
    others = tuple(m for m in definition.volumes if store.find(m.volume) != volume)
    if mount is None and others == definition.volumes:
        raise NotFound(f"VM {definition.name} has no volume {volume.name}")
    if mount is not None and others != definition.volumes:
        raise AlreadyExists(
            f"VM {definition.name} has the volume {volume.name} already", hint="detach it first"
        )
    mounts = others if mount is None else (*others, mount)
    changed = definition_to_json(replace(definition, volumes=mounts))
    return parse_definition(definition.name, changed)


def _has_ended(vm: Vm) -> bool:
    return not vm.state.is_vmm_active
