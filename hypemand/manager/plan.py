# SPDX-License-Identifier: Apache-2.0
"""Derives everything that a start needs from a definition. Pure."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hypemand.config.definition import Definition, HostShutdown, Restart, VolumeMount
from hypemand.config.mode import Mode
from hypemand.errors import InvalidDefinition, Problem
from hypemand.model.limits import DiskLimits
from hypemand.network.port import PortPlan
from hypemand.network.wire import TAP_SOCKET
from hypemand.protocol.configdisk import (
    RESET_SSH_HOST_KEYS,
    GuestConfig,
    GuestHost,
    GuestInterface,
    GuestVolume,
)
from hypemand.storage.devices import Device
from hypemand.storage.hostfiles import NO_FILES, DirectoryImage, HostFiles
from hypemand.storage.images import Image
from hypemand.storage.program import resolve_program
from hypemand.storage.volume import Volume
from hypemand.systemd.journal import JOURNAL_SOCKET
from hypemand.systemd.rootdir import Own, outside_usr
from hypemand.systemd.units import DeviceAccess, UnitPlan
from hypemand.unitnames import unit_name
from hypemand.vm.places import CONFIG_DISK, FILES_DISK, Places
from hypemand.vm.record import Lease, VmRecord
from hypemand.vm.restarts import derive_start_limit
from hypemand.vm.saved import MEMORY, STATE, FileMark
from hypemand.vmm.accel import AccelKind
from hypemand.vmm.commandline import (
    WORKER_TASKS,
    NetDevice,
    SavedFiles,
    VmmFiles,
    VmmPlan,
    VolumeFile,
    memory_overhead,
    restore_arguments,
    start_line,
    warm_arguments,
)
from hypemand.vmm.host import VmmHost

_CONSOLE = "/usr/lib/hypemand/hypeman-console"
_LAUNCHER = Path("/usr/lib/hypemand/launcher")
# of a QEMU that maps a file of memory privately (launcher/preload)
_PRELOAD = Path("/usr/lib/hypemand/preload.lib")
# ExecStop= and ExecStopPost= (launcher/ending); and what the latter executes where the end is to be found out
_ENDING = "/usr/lib/hypemand/ending"
_FIND_END = (sys.executable, "-I", "-m", "hypemand.unit.exit")
# Seconds beyond the grace of the guest's program, as launcher/ending has it: to sync, to power off and for
# the VMM to end.
_POWER_OFF = 5
# what the VMM's own threads may take beside the guest's CPUs: less than one slows down a guest's random IO
_VMM_CPUS = 1.0
_FOREVER = 86400  # the guest knows no longer one
# TimeoutStopSec= at most, which is systemd's default: of each step of an end but ExecStop=, which may take as
# long as the guest may (launcher/ending). A step that hangs keeps the VM from being started meanwhile.
_LONGEST_STEP = 90.0
# of such a step, seconds that hypeman-console leaves to the end of others
_CONSOLE_SPARE = 2


@dataclass(frozen=True, slots=True)
class Attached:
    """A volume or device that a VM gets, and where."""

    volume: Volume | Device
    mount: VolumeMount


@dataclass(frozen=True, slots=True)
class Connection:
    """The network connection of a VM: its lease, its port on the host, and the guest's configuration. `dns`
    are addresses, `hosts` the names that the guest knows."""

    lease: Lease
    port: PortPlan
    interface: GuestInterface
    dns: tuple[str, ...]
    hosts: tuple[GuestHost, ...] = ()


@dataclass(frozen=True, slots=True)
class Restore:
    """A start that goes on from what was saved in the VM's `standby`. `boot`: the boot id that its guest has
    then; `is_shared`: see `SavedFiles`."""

    boot: str
    is_shared: bool

    @property
    def folder(self) -> Path | None:
        """Where that is; None: in the VM's own."""
        return None

    def options(self, own: Own, count: int) -> list[str]:
        """For the launcher, of which the last `count` arguments are for this."""
        return [f"--restore={own.saved},{self.boot},{count}", _preload(own)]


@dataclass(frozen=True, slots=True)
class Warm:
    """A start that goes on from the template in `folder`, unless by then it is damaged, or the VMM, `binary`,
    is another one. `is_shared`: see `SavedFiles`."""

    folder: Path
    crc: int
    memory: FileMark
    binary: FileMark
    is_shared: bool

    def options(self, own: Own, count: int) -> list[str]:
        """For the launcher, of which the last `count` arguments are for this."""
        marks = ((own.memory, self.memory), (self.binary.path, self.binary))
        files = ",".join(f"{path}:{mark.size}:{mark.mtime_ns}" for path, mark in marks)
        return [f"--warm={own.saved},{self.crc},{count},{files}", _preload(own)]


def _preload(own: Own) -> str:
    return f"--preload={_PRELOAD},{own.memory}"


FindWarm = Callable[[VmmPlan, VmmHost], Warm | None]
"""The template for a start, if there is one."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A start, worked out."""

    guest: GuestConfig
    unit: UnitPlan


def derive_cpu_quota(definition: Definition) -> float:
    """CPU time of the VM's unit per second, in CPUs."""
    return definition.cpu_limit or definition.vcpus + _VMM_CPUS


def make_plan(
    record: VmRecord,
    definition: Definition,
    image: Image,
    host: VmmHost,
    places: Places,
    volumes: Sequence[Attached] = (),
    network: Connection | None = None,
    host_files: HostFiles = NO_FILES,
    origin: Restore | FindWarm | None = None,
    *,
    in_root: Callable[[Path], bool],
) -> Plan:
    """Derive the unit and the guest's configuration of a start. Raises InvalidDefinition when definition and
    image together have no program. `host_files`: what was read for it; `origin`: it goes on from what was
    saved, or from a template, if there is one. `in_root`: is a file of the host in the root directory of
    VMMs already?"""
    guest = resolve_program(definition, image, host_files.env)
    others = [attached for attached in volumes if not attached.mount.is_root]
    mounts = (*map(_guest_volume, others), *map(_guest_directory, host_files.directories))
    guest = replace(guest, volumes=mounts, machine_id=record.id, former_ids=record.former_ids)
    if record.former_ids:
        guest = replace(guest, reset_ssh_host_keys=RESET_SSH_HOST_KEYS in definition.fork_reset)
    if network is not None:
        guest = replace(guest, interfaces=(network.interface,), dns=network.dns, hosts=network.hosts)
    _check_mode(guest, definition)
    shared = _place_shared(definition, image, host, places.own)
    shared = {path: path if in_root(path) else place for path, place in shared.items()}
    files = _vmm_files(definition, places.own, others, image, host, shared, host_files)
    net = None if network is None else NetDevice(network.port.mac)
    vmm = _make_vmm_plan(record.name, record.id, definition, guest.mode, host, files, net)
    bound = {path: place for path, place in shared.items() if path != place}
    source = origin if origin is None or isinstance(origin, Restore) else origin(vmm, host)
    unit = _make_unit_plan(record, definition, guest, vmm, host, places, volumes, bound, host_files, source)
    return Plan(guest, unit)


def _make_vmm_plan(
    name: str,
    vm_id: str,
    definition: Definition,
    mode: Mode,
    host: VmmHost,
    files: VmmFiles,
    net: NetDevice | None,
) -> VmmPlan:
    return VmmPlan(
        vm=name,
        vm_id=vm_id,
        binary=host.binary,
        accel=host.accel.kind,
        memory=definition.memory,
        vcpus=definition.vcpus,
        tsc_khz=host.tsc_khz,
        mode=mode,
        files=files,
        net=net,
        disk_limits=DiskLimits(**definition.disk_io),
        balloon=definition.balloon,
    )


def plan_template(
    definition: Definition, host: VmmHost, own: Own, *, in_root: Callable[[Path], bool]
) -> VmmPlan:
    """As `make_plan` plans it for a start of that VM with all of its volumes, as far as its template depends
    on it: what the disks hold, what they are called and which address the guest gets, it does not."""
    wants_headers = definition.wants_headers and host.kernel.headers is not None
    files = VmmFiles(
        kernel=host.kernel.path if in_root(host.kernel.path) else own.kernel,
        initrd=host.initrd if in_root(host.initrd) else own.initrd,
        config=own.runtime / CONFIG_DISK,
        image=own.image,
        disk=own.disk,
        headers=own.headers if wants_headers else None,
        volumes=tuple(
            VolumeFile(own.volume(number), "", readonly=False)
            for number in range(len(definition.other_volumes) + len(definition.directories))
        ),
        placed=own.runtime / FILES_DISK if definition.files else None,
        secrets=bool(definition.secrets),
    )
    net = None if definition.network is None else NetDevice("")
    return _make_vmm_plan(definition.name, "", definition, Mode.EXEC, host, files, net)


def _check_mode(guest: GuestConfig, definition: Definition) -> None:
    """Raise InvalidDefinition for what the mode does not have, which is known with the image alone."""
    if guest.mode is Mode.SYSTEMD and not guest.argv[0].startswith("/"):
        what = f"in systemd mode the program must be an absolute path, not {guest.argv[0]}"
        raise InvalidDefinition(
            [Problem("", 0, 0, "cmd", what, ("use the path of the init, such as /sbin/init"))]
        )
    if guest.mode is Mode.EXEC and definition.ready is not None and definition.ready.unit is not None:
        what = f"names the unit {definition.ready.unit}, which there is only in systemd mode"
        raise InvalidDefinition([Problem("", 0, 0, "ready.notify", what, "write notify: true")])


def _make_unit_plan(
    record: VmRecord,
    definition: Definition,
    guest: GuestConfig,
    vmm: VmmPlan,
    host: VmmHost,
    places: Places,
    volumes: Sequence[Attached],
    bound: Mapping[Path, Path],
    host_files: HostFiles,
    source: Restore | Warm | None,
) -> UnitPlan:
    """`bound`: files of the host that VMs share, and their places in the VMM's root."""
    limit = derive_start_limit(definition)
    disk = next((one.volume.disk for one in volumes if one.mount.is_root), places.disk)
    others = [one for one in volumes if not one.mount.is_root]
    return UnitPlan(
        vm=record.name,
        vm_id=record.id,
        uid=record.uid,
        start=_start_command(vmm, definition, places.own, host, source),
        stop=_stop_command(definition, places),
        stop_post=_stop_post_command(record, definition, guest, places, source),
        root=places.root,
        readable=(
            *bound.items(),
            *_volume_places(others, places.own, writable=False),
            *(
                (directory.image, places.own.volume(number))
                for number, directory in enumerate(host_files.directories, start=len(others))
            ),
            *outside_usr([host.binary]),
        ),
        writable=(
            (places.runtime, places.own.runtime),
            (disk, places.own.disk),
        ),
        volumes=tuple(_volume_places(others, places.own, writable=True)),
        # of a pool, which may be on a file system of its own
        mounts=tuple(sorted({found.folder.parent for found in _list_volumes(volumes) if found.pool})),
        devices=tuple(
            DeviceAccess(one.volume.disk, one.volume.group, one.mount.writes)
            for one in volumes
            if isinstance(one.volume, Device)
        ),
        # the page cache of its disks counts too: without room for it the kernel would reclaim all the time
        memory_max=definition.memory + memory_overhead(vmm.accel) + host.page_cache,
        cpu_quota=derive_cpu_quota(definition),
        tasks_max=WORKER_TASKS + definition.vcpus,
        boot_timeout=definition.boot_timeout,
        stop_timeout=_derive_stop_timeout(definition),
        restart=_derive_restart(definition),
        restart_delay=(definition.restart_backoff, definition.restart_backoff_max),
        start_limit=(limit.burst, None if math.isinf(limit.interval) else limit.interval),
        kvm=vmm.accel is AccelKind.KVM,
        watchdog=definition.health is not None,
        sockets=(
            (JOURNAL_SOCKET, places.own.journal),
            *(() if vmm.net is None else ((TAP_SOCKET, places.own.tap),)),
        ),
        saved=() if source is None else _place_saved(source.folder or places.standby, places.own),
        extra=definition.unit,
        secrets=definition.secrets,
    )


def _derive_restart(definition: Definition) -> str:
    """Restart= of its unit: that of its policy, or for a check that has failed alone."""
    health, policy = definition.health, definition.restart
    if policy is Restart.NO and health is not None and health.restarts(policy):
        return "on-watchdog"
    return policy.value


def _guest_volume(attached: Attached) -> GuestVolume:
    mount = attached.mount
    return GuestVolume(
        serial=attached.volume.serial,
        path=mount.mount_path,
        readonly=not mount.writes,
        required=mount.required,
        overlay=mount.overlay,
    )


def _guest_directory(directory: DirectoryImage) -> GuestVolume:
    path = directory.mount.mount_path
    return GuestVolume(serial=directory.serial, path=path, readonly=True, fstype="erofs")


def _list_volumes(attached: Sequence[Attached]) -> list[Volume]:
    return [one.volume for one in attached if isinstance(one.volume, Volume)]


def _volume_places(volumes: Sequence[Attached], own: Own, *, writable: bool) -> list[tuple[Path, Path]]:
    """Of those that the VM writes to, or of the others: the place on the host, the one in its root."""
    return [
        (attached.volume.disk, own.volume(number))
        for number, attached in enumerate(volumes)
        if attached.mount.writes is writable
    ]


def _place_shared(definition: Definition, image: Image, host: VmmHost, own: Own) -> dict[Path, Path]:
    """The files that VMs share, and what is made for each in a VMM's root."""
    places = {host.kernel.path: own.kernel, host.initrd: own.initrd, image.rootfs: own.image}
    if definition.wants_headers and host.kernel.headers is not None:
        places[host.kernel.headers] = own.headers
    return places


def _vmm_files(
    definition: Definition,
    own: Own,
    volumes: Sequence[Attached],
    image: Image,
    host: VmmHost,
    shared: Mapping[Path, Path],
    host_files: HostFiles,
) -> VmmFiles:
    headers = host.kernel.headers
    return VmmFiles(
        kernel=shared[host.kernel.path],
        initrd=shared[host.initrd],
        config=own.runtime / CONFIG_DISK,
        image=shared[image.rootfs],
        disk=own.disk,
        headers=None if headers is None else shared.get(headers),
        volumes=(
            *(
                VolumeFile(
                    own.volume(number),
                    attached.volume.serial,
                    readonly=not attached.mount.writes,
                    is_device=attached.mount.is_device,
                )
                for number, attached in enumerate(volumes)
            ),
            *(
                VolumeFile(own.volume(number), directory.serial, readonly=True)
                for number, directory in enumerate(host_files.directories, start=len(volumes))
            ),
        ),
        placed=own.runtime / FILES_DISK if definition.files else None,
        secrets=bool(definition.secrets),
        is_disk_device=definition.root_volume is not None and definition.root_volume.is_device,
    )


def _place_saved(folder: Path, own: Own) -> tuple[tuple[Path, Path], ...]:
    return ((folder / MEMORY, own.memory), (folder / STATE, own.saved))


def _start_command(
    vmm: VmmPlan, definition: Definition, own: Own, host: VmmHost, source: Restore | Warm | None
) -> tuple[str, ...]:
    """What bounds the console comes first: all that follows has its pipe for standard output. Then the
    launcher, see launcher/main.c."""
    runtime = str(own.runtime)
    limits = (str(host.journal.burst), str(host.journal.per_hour))
    end = str(math.floor(_derive_stop_timeout(definition)) - _CONSOLE_SPARE)
    trial = ("--trial",) if isinstance(source, Warm) else ()
    console = (_CONSOLE, runtime, *limits, "--journal", str(own.journal), vmm.vm, end, *trial)
    tap = "-" if vmm.net is None else str(own.tap)
    names = ",".join(secret.name for secret in definition.secrets)
    options = [f"--secrets={names}"] if names else []
    line = start_line(vmm)
    if source is not None:
        saved = SavedFiles(own.memory, own.saved, source.is_shared)
        further = restore_arguments(vmm, saved) if isinstance(source, Restore) else warm_arguments(vmm, saved)
        options += source.options(own, len(further))
        line += further
    return (*console, str(_LAUNCHER), *options, runtime, tap, *line)


def _derive_stop_timeout(definition: Definition) -> float:
    """TimeoutStopSec= of the unit."""
    return min(_LONGEST_STEP, stop_grace(definition.stop_timeout) + _POWER_OFF)


def _stop_command(definition: Definition, places: Places) -> tuple[str, ...]:
    grace = stop_grace(definition.stop_timeout)
    at_shutdown = (definition.name,) if definition.on_host_shutdown is HostShutdown.STANDBY else ()
    return (_ENDING, "stop", str(places.runtime), str(grace), str(places.state), *at_shutdown)


def _stop_post_command(
    record: VmRecord,
    definition: Definition,
    guest: GuestConfig,
    places: Places,
    source: Restore | Warm | None,
) -> tuple[str, ...]:
    needed = "1" if definition.guest_agent else "0"
    if isinstance(source, Warm):
        needed += f"@{source.folder.name}"
    if definition.ready is not None:
        needed += ":" + definition.ready.words.replace("$", "$$")  # systemd replaces variables
    unit = unit_name(record.name)
    judged = (str(guest.stop_signal), needed, guest.mode.value)
    own = (_ENDING, "record", str(places.state), unit, str(places.runtime))
    arguments = (str(places.state), unit, *judged, str(places.runtime))
    fresh = () if definition.persistent else (str(definition.disk), str(record.uid), str(places.templates))
    return (*own, *_FIND_END, *arguments, *fresh)


def stop_grace(stop_timeout: float | None) -> int:
    """Whole seconds that the guest's program gets to end."""
    return _FOREVER if stop_timeout is None else min(math.ceil(stop_timeout), _FOREVER)
