# SPDX-License-Identifier: Apache-2.0
"""Starts of VMs: from the pull of the image to the unit that systemd has accepted."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from hypemand.config.definition import Definition, ImagePull, VolumeMount
from hypemand.config.specifiers import read_specifier_host
from hypemand.config.vmdef import expand_unit, replace_program
from hypemand.errors import HypemandError, InvalidDefinition, WrongState
from hypemand.fulldisk import name_full_disk_beside
from hypemand.manager.compression import unpack_standby
from hypemand.manager.fleet import DiskLook
from hypemand.manager.parts import Parts
from hypemand.manager.plan import Attached, Connection, FindWarm, Plan, Restore, make_plan
from hypemand.manager.restorable import find_build, find_standby_problem, refuse_restore
from hypemand.manager.templates import Choice
from hypemand.model.events import Failure, StartKind
from hypemand.model.state import Origin, State
from hypemand.model.vm import Program
from hypemand.protocol.configdisk import write_config_disk
from hypemand.protocol.filesdisk import write_files_disk
from hypemand.storage.devices import Device, examine_device
from hypemand.storage.directory import ensure_directory_image, find_directory_image, look_at
from hypemand.storage.disks import (
    check_disk_unused,
    ensure_disk,
    find_size_problem,
    make_fresh_disk,
    remove_disk,
)
from hypemand.storage.hostfiles import DirectoryImage, HostFiles, read_host_files
from hypemand.storage.images import Image
from hypemand.storage.volumestart import check_available, prepare_volume
from hypemand.systemd.log import MessageId
from hypemand.systemd.rootdir import copy_linker_cache, is_in_usr, make_root
from hypemand.tasks import Tasks, finish
from hypemand.vm.happenings import derive_refusal
from hypemand.vm.leftunit import start_unit
from hypemand.vm.operation import OperationCancelled
from hypemand.vm.record import ImagePin, Lease
from hypemand.vm.saved import SavedRun, UnusableError, check_whole, give_to, store_saved
from hypemand.vm.tracker import Moment
from hypemand.vm.vm import Vm
from hypemand.vmm.build import VmmBuild
from hypemand.vmm.commandline import can_share
from hypemand.vmm.host import find_vmm_host
from hypemand.workers import Pool, run_in

# seconds for the files that are being made
_CLOSE_DEADLINE = 5.0
_BOOTING = (State.CREATED, State.INITIALIZING)


@dataclass(slots=True)
class _Work:
    """How far a start has come, and what was there before. `asked`: systemd was asked for the unit, so that
    only systemd knows whether there is one."""

    had_lease: Lease | None
    had_disk: bool
    asked: bool = False


@dataclass(frozen=True, slots=True)
class _Saved:
    """What a start goes on from. `is_shared`: see `SavedFiles`."""

    run: SavedRun
    is_shared: bool

    def list_directories(self) -> tuple[DirectoryImage, ...]:
        """The images of directories that it has, as they were."""
        paths = [Path(mark.path) for mark in self.run.files]
        mounts = self.run.definition.directories
        found = ((mount, find_directory_image(Path(mount.source), paths)) for mount in mounts)
        return tuple(DirectoryImage(mount, path) for mount, path in found if path is not None)

    def check(self, vm: Vm, volumes: Sequence[Attached], network: Connection | None) -> None:
        """WrongState unless it gets all that it had."""
        if len(volumes) != len(self.run.definition.volumes):
            raise refuse_restore(vm, "it does not get all of its volumes")
        if self.run.fork is None and self.run.lease != (None if network is None else network.lease):
            raise refuse_restore(vm, "its addresses are not those any more that it was saved with")

    async def place(self, vm: Vm, network: Connection | None) -> None:
        """Have a fork get the addresses that it has from now on. OSError."""
        fork = self.run.fork
        if fork is None:
            return
        if network is not None:
            places = (replace(one, interface=network.interface) for one in fork.interfaces)
            fork = replace(fork, interfaces=tuple(places), dns=network.dns, hosts=network.hosts)
        saved = replace(self.run, fork=fork)
        await run_in(Pool.RECORDS, store_saved, vm.places.standby, saved)
        vm.standby.take(saved)


@dataclass(frozen=True, slots=True)
class _Origins:
    """What a start may go on from: what was saved, or a template."""

    saved: _Saved | None
    choice: Choice | None

    def derive(self) -> Restore | FindWarm | None:
        """For its plan."""
        if self.saved is not None:
            return Restore(self.saved.run.next_boot, self.saved.is_shared)
        return None if self.choice is None else self.choice.find


class Starter:
    """Starts VMs. The caller holds the VM's operation, and has checked its state."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._fleet, self._records, self._images = parts.fleet, parts.records, parts.images
        self._volume_use, self._networks = parts.volume_use, parts.networks
        self._tasks = Tasks("starts")

    async def close(self) -> None:
        """Wait for what it has begun."""
        await self._tasks.close(patience=_CLOSE_DEADLINE)

    async def ensure_image(self, vm: Vm, pull: ImagePull | None) -> tuple[Image, bool]:
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
        assert vm.operations.current is not None, "it is held"
        try:
            return await vm.operations.current.await_cancellable(work, f"image of {vm.name}"), True
        except OperationCancelled:
            raise WrongState(
                f"the start of VM {vm.name} was cancelled while its image was being pulled",
                hint="start it again; the pull continues",
            ) from None
        finally:
            vm.say("")

    @asynccontextmanager
    async def with_program(self, vm: Vm, program: Program | None) -> AsyncIterator[None]:
        """Define the VM with another program, which it keeps unless the block fails. WrongState for one that
        a file defines, InvalidDefinition."""
        if program is None:
            yield
            return
        before, origin = vm.record.definition, vm.record.origin
        if origin is Origin.FILE:
            hint = "change entrypoint: and cmd: in that file, then systemctl reload hypemand"
            raise refuse_of_file(self._parts, vm, hint)
        changed = replace_program(before, program.entrypoint, program.cmd)
        await self._records.update(vm.name, changed, origin)
        try:
            yield
        except BaseException:
            if vm.record.definition == changed:
                await finish(self._records.update(vm.name, before, origin), f"definition of {vm.name}")
            raise

    async def _make_directory_images(self, vm: Vm) -> tuple[DirectoryImage, ...]:
        """Of the directories of the host that it gets, those that have changed."""
        images = []
        for mount in vm.record.definition.directories:
            try:
                images.append(DirectoryImage(mount, await self._make_directory_image(vm, Path(mount.source))))
            except InvalidDefinition as error:
                if mount.required:
                    raise
                vm.log(logging.WARNING, f"VM {vm.name} starts without a directory: {error.message}")
        return tuple(images)

    async def _make_directory_image(self, vm: Vm, source: Path) -> Path:
        """While that lasts the VM's status text says so, and a stop ends it."""
        tools, reserve, name = (
            self._parts.make_tools(),
            self._parts.config().disk.reserve,
            f"image of {source}",
        )

        async def make() -> Path:
            arguments = (source, vm.places.state, tools, reserve)
            making = run_in(Pool.TOOLS, ensure_directory_image, *arguments, uid=vm.record.uid)
            task = self._tasks.start(name, making, awaited=True)
            try:
                return await asyncio.shield(task)
            finally:
                if not task.done():
                    await finish(run_in(Pool.TOOLS, tools.cancel), f"end of the {name}")
                    await finish(_wait_for(task), f"end of the {name}")

        vm.say(f"{vm.state}: making an {name}")
        assert vm.operations.current is not None, "it is held"
        try:
            return await vm.operations.current.await_cancellable(make(), name)
        except OperationCancelled:
            what = f"the start of VM {vm.name} was cancelled while the {name} was being made"
            raise WrongState(what, hint="start it again") from None
        finally:
            vm.say("")

    async def check(self, vm: Vm, image: Image) -> None:
        """Raise what a start would: a VM that runs is not stopped for a definition that cannot be started."""
        definition = vm.record.definition
        disks = await self._look(definition)
        self._fleet.check_memory(definition)
        self._fleet.check_room(disks, f"VM {vm.name}", definition.local_disk, but=vm.name)
        volumes = self._volume_use.resolve(vm.name, definition)
        needed = [attached for attached in volumes if attached.mount.required]
        network = self._networks.allocation.plan(vm.network_member)
        if network is not None:
            await self._networks.check_usable(network.port.bridge.network)
        await run_in(Pool.STARTS, self._plan, vm, definition, image, needed)
        for mount in definition.directories:
            if mount.required:
                await run_in(Pool.TOOLS, look_at, Path(mount.source))
        if definition.root_volume is None:
            problem = await run_in(Pool.STARTS, find_size_problem, vm.places.disk, definition.disk)
            if problem is not None:
                raise InvalidDefinition([problem])

    async def _look(self, definition: Definition) -> DiskLook:
        """Learn what the host has on its disks for a start."""
        disks, _, _ = await asyncio.gather(
            self._fleet.look_at_disks(),
            self._networks.learn_servers(),
            self._parts.pools.read([mount.volume for mount in definition.volumes]),
        )
        return disks

    async def _leave_out_taken(self, vm: Vm, definition: Definition) -> set[VolumeMount]:
        """The volumes in pools and devices that the VM may go without, and that a VMM on any host has, or the
        host does not have."""
        taken = set()
        for mount in definition.volumes:
            volume = None if mount.required else self._parts.volumes.find(mount.volume)
            if mount.required or not (mount.is_device or (volume is not None and volume.pool)):
                continue
            try:
                if volume is not None:
                    await run_in(Pool.POOLS, check_available, volume.disk, writes=mount.writes)
                else:
                    device = self._parts.volumes.find_device(mount.volume)
                    await run_in(Pool.STARTS, examine_device, device, writes=mount.writes)
            except (HypemandError, OSError) as error:
                vm.log(logging.WARNING, f"VM {vm.name} starts without its volume {mount.volume}: {error}")
                taken.add(mount)
        return taken

    async def _pin_image(self, vm: Vm, image: Image) -> Image:
        """Have the VM keep to a content, which cannot be removed from now on."""
        async with self._images.choosing:
            image = await self._images.keep(image)
            await self._records.pin(vm.name, derive_pin(vm.record.definition, image))
        return image

    async def restore(self, vm: Vm, requested: float) -> None:
        """Have it go on from Standby; back when systemd has taken the job. Whatever goes wrong, what was
        saved is left. WrongState for what cannot be restored any more; else as `start`."""
        problem, saved = vm.standby.problem, vm.standby.saved
        if saved is None:
            raise refuse_restore(vm, problem or "nothing was saved")
        async with name_full_disk_beside(f"restore VM {vm.name}", vm.places.state):
            build = await find_build(self._parts)
            if why := await find_standby_problem(self._parts, vm, saved, build):
                raise refuse_restore(vm, why)
            image = await self._images.get_for(saved.definition.image, saved.image)
            saved, shared = await self._take_saved(vm, saved, build)
            await self._start(vm, requested, image, StartKind.RESTORE, _Saved(saved, shared))

    async def _take_saved(self, vm: Vm, saved: SavedRun, build: VmmBuild) -> tuple[SavedRun, bool]:
        """Have its VMM get what was saved, which is not compressed then; WrongState unless that is whole. Has
        QEMU no need to write to the memory's file?"""
        try:
            await run_in(Pool.TOOLS, check_whole, vm.places.standby, saved)
            saved = await unpack_standby(self._parts.compressions, vm, saved)
        except UnusableError as error:
            raise refuse_restore(vm, str(error)) from None
        # a balloon gives memory back by cutting it out of that file
        shared = can_share(build.version) and not saved.definition.balloon
        await run_in(Pool.TOOLS, partial(give_to, shared=shared), vm.places.standby, vm.record.uid)
        return saved, shared

    async def start(
        self, vm: Vm, requested: float, image: Image, kind: StartKind = StartKind.REQUEST
    ) -> None:
        """Start it; back when systemd has taken the job. `requested`: when it was asked for. A start that
        comes to nothing leaves nothing behind; a unit that systemd has taken, or may have taken, keeps all
        that is the VM's. InsufficientResources, also for a full disk."""
        async with name_full_disk_beside(f"start VM {vm.name}", vm.places.state):
            await self._start(vm, requested, image, kind)

    async def _start(
        self, vm: Vm, requested: float, image: Image, kind: StartKind, restored: _Saved | None = None
    ) -> None:
        self._parts.easing.begin()
        await vm.runs.settle()
        if restored is None:
            directories = await self._make_directory_images(vm)
        else:
            directories = restored.list_directories()
        async with Tasks(f"the start of VM {vm.name}") as tasks:
            wanted = vm.record.definition if restored is None else restored.run.definition
            looking = tasks.start("look", self._look(wanted), awaited=True)
            if restored is None:
                image = await self._pin_image(vm, image)
            disks = await looking
            taken = await self._leave_out_taken(vm, wanted)
        # From here to `starting` nothing waits, so that of two starts the second sees what the first takes.
        # What it is started with, also if it is defined anew meanwhile
        defined = definition = vm.record.definition if restored is None else restored.run.definition
        self._fleet.check_memory(definition)
        if restored is None:
            self._fleet.check_room(disks, f"VM {vm.name}", definition.local_disk, but=vm.name)
        available = tuple(mount for mount in definition.volumes if mount not in taken)
        volumes = self._volume_use.resolve(vm.name, replace(definition, volumes=available))
        # with the volumes that it gets: what it goes without, others may have
        definition = replace(definition, volumes=tuple(attached.mount for attached in volumes))
        network = self._reserve(vm, definition)
        work = _Work(vm.record.lease, had_disk=vm.name in disks.with_disk)
        self._fleet.begin_start(vm, definition)
        try:
            if restored is not None:
                restored.check(vm, volumes, network)
                await restored.place(vm, network)
            if network is not None:
                await self._records.lease(vm.name, network.lease)
                self._parts.names.set_disk(vm.name, network.hosts)
            choice = None if restored is not None else await self._parts.templates.choose(definition)
            origins = _Origins(restored, choice)
            plan = await self._make_all(vm, defined, image, volumes, network, directories, origins)
            # before systemd is asked: what runs is known to a daemon that comes after this one
            await run_in(Pool.STARTS, vm.runs.files.keep_definition, definition)
            moments = {Moment.REQUESTED: requested, Moment.PREPARED: time.monotonic()}
            vm.runs.expect(moments, definition, kind)
            if vm.has_unit:
                await self._parts.units.reset_failed(vm.unit)
            work.asked = True
            await finish(start_unit(self._parts.units, plan.unit), f"unit of {vm.name}")
        except BaseException:
            await finish(self._undo(vm, work), f"undo of {vm.name}")
            raise
        finally:
            del self._fleet.starting[vm.name]
        vm.runs.add_moment(Moment.QUEUED, time.monotonic())
        vm.take_start()
        has_booted = partial(vm.changes.wait_for, lambda: vm.state not in _BOOTING, None)
        self._parts.templates.follow(choice, has_booted, vm.runs.has_stalled)

    def _reserve(self, vm: Vm, definition: Definition) -> Connection | None:
        """Its place in the network that the definition names."""
        return self._networks.allocation.reserve(replace(vm.network_member, use=definition.network))

    async def _undo(self, vm: Vm, work: _Work) -> None:
        """Take back a start, as far as it had come."""
        if work.asked:
            await vm.refresh()
            if vm.state.is_vmm_active:
                vm.log(
                    logging.WARNING,
                    f"VM {vm.name}: its start failed or was interrupted, but its unit is {vm.state}",
                )
                return
        vm.runs.expect({}, None)
        await run_in(Pool.STARTS, vm.runs.files.remove_runtime)
        if not work.had_disk:
            await self._remove_new_disk(vm)
        await self._networks.give_up(vm.name)
        try:
            await self._take_back_lease(vm, work.had_lease)
        except OSError as error:
            # it keeps its addresses then, which harms nobody
            vm.log(logging.WARNING, f"VM {vm.name}: cannot release its addresses: {error}")

    async def _remove_new_disk(self, vm: Vm) -> None:
        try:
            await run_in(Pool.STARTS, remove_disk, vm.places.disk)
        except (HypemandError, OSError) as error:
            # what the start has failed of is the error to show, and the next start takes this disk
            vm.log(logging.WARNING, f"VM {vm.name}: its new disk is not removed: {error}")

    async def _take_back_lease(self, vm: Vm, before: Lease | None) -> None:
        """Addresses that a VM was given for a start that came to nothing are others' to have again."""
        if vm.record.lease != before:
            await self._records.lease(vm.name, before)
            self._networks.tell()

    async def _make_all(
        self,
        vm: Vm,
        definition: Definition,
        image: Image,
        volumes: Sequence[Attached],
        network: Connection | None,
        directories: tuple[DirectoryImage, ...],
        origins: _Origins,
    ) -> Plan:
        """Make what a start needs on the host's disk and in its network, both at once."""
        what = (vm, definition, image, volumes, network, directories, origins)
        making = run_in(Pool.STARTS, self._make_files, *what)
        preparing = self._tasks.start(f"files of VM {vm.name}", making, awaited=True)
        try:
            if network is not None:
                await self._networks.attach(vm.name)
            return await asyncio.shield(preparing)
        finally:
            # a thread cannot be ended: what it makes can be removed only when it has made it
            await finish(_wait_for(preparing), f"end of {preparing.get_name()}")

    def _plan(
        self,
        vm: Vm,
        definition: Definition,
        image: Image,
        volumes: Sequence[Attached] = (),
        network: Connection | None = None,
    ) -> Plan:
        """Work out its start, with what the files of the host have for it. Blocks; run in a thread."""
        return self._plan_with(vm, definition, image, read_host_files(definition), volumes, network)

    def _plan_with(
        self,
        vm: Vm,
        definition: Definition,
        image: Image,
        host_files: HostFiles,
        volumes: Sequence[Attached],
        network: Connection | None,
        origins: _Origins | None = None,
    ) -> Plan:
        host = find_vmm_host(self._parts.config())
        definition = expand_unit(definition, vm.unit, read_specifier_host())
        origin = None if origins is None else origins.derive()
        volumes = [examine(attached) for attached in volumes]
        what = (vm.record, definition, image, host, vm.places, volumes, network, host_files, origin)
        return make_plan(*what, in_root=is_in_usr)

    def _make_files(
        self,
        vm: Vm,
        definition: Definition,
        image: Image,
        volumes: Sequence[Attached],
        network: Connection | None,
        directories: tuple[DirectoryImage, ...],
        origins: _Origins,
    ) -> Plan:
        """Make what the unit needs. Blocks; run in a thread."""
        record, places, runtime = vm.record, vm.places, vm.places.runtime
        host_files = replace(read_host_files(definition), directories=directories)
        plan = self._plan_with(vm, definition, image, host_files, volumes, network, origins)
        if (places.root / "usr").is_dir():
            copy_linker_cache(places.root)
        else:
            make_root(places.root, places.own)  # it could not be made when the daemon started
        # first of all: a VM that runs unknown to systemd loses nothing then
        if (root := definition.root_volume) is not None:
            for attached in volumes:
                if attached.mount == root and not root.is_device:
                    check_available(attached.volume.disk, writes=True)
        elif origins.saved is not None:
            check_disk_unused(places.disk)
        else:
            make_disk = ensure_disk if definition.persistent else make_fresh_disk
            make_disk(places.disk, definition.disk, record.uid, places.templates)
        shutil.rmtree(runtime, ignore_errors=True)
        runtime.mkdir(mode=0o700)
        os.chown(runtime, record.uid, record.uid)
        for attached in volumes:
            if not attached.mount.is_device:
                prepare_volume(attached.volume.disk, vm.name, record.uid, writes=attached.mount.writes)
        write_config_disk(places.config, plan.guest, uid=record.uid)
        if host_files.files:
            write_files_disk(places.files, host_files.files, uid=record.uid)
        return plan


def examine(attached: Attached) -> Attached:
    """A volume as it is; a device after a look at it. As `examine_device`."""
    if not isinstance(attached.volume, Device):
        return attached
    return replace(attached, volume=examine_device(attached.volume, writes=attached.mount.writes))


async def _wait_for(task: asyncio.Task[Any]) -> None:
    """Until it has ended, however it does."""
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()  # if it fails as well as what it was begun beside, that is told


def derive_pin(definition: Definition, image: Image) -> ImagePin | None:
    """What a VM keeps to. A package's image changes with the package."""
    return None if image.builtin else ImagePin(definition.image, image.digest)


def refuse_of_file(parts: Parts, vm: Vm, hint: str) -> WrongState:
    """Why a VM that a file defines is changed in that alone."""
    file = parts.files.name_file(parts.config().vm_dir, vm.name)
    return WrongState(f"VM {vm.name} is defined in {file}", hint=hint)


@contextmanager
def logged_start(vm: Vm) -> Iterator[None]:
    """Log that it was not started, with the reason."""
    try:
        yield
    except HypemandError as error:
        vm.log(logging.ERROR, f"VM {vm.name} was not started: {error}", MessageId.START_FAILED)
        vm.tell(Failure(derive_refusal(error)), str(error))
        raise
