# SPDX-License-Identifier: Apache-2.0
"""QEMU's command line for a VM: one concern a function, option and value on one line.

The kernel's words stand apart, since the launcher adds the boot id to them: that is the unit's invocation
id, so that every start, also one that systemd makes alone, has one of its own. What the VMM talks by are
descriptors that the launcher gives it (launcher/ports.h): its sockets and its TAP device.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hypemand.config.mode import Mode
from hypemand.model.limits import DiskLimits
from hypemand.vmm.accel import AccelKind
from hypemand.vmm.control import CONTROL
from hypemand.vmm.driver import Drive

# descriptors: launcher/ports.h
TAP_FD = 3
PORT_FDS = {CONTROL: 4, "agent": 5, "report": 6, "stop": 7}
SECRETS_FD = 8
STATE_FD = 9
_TCG_BUFFER_MIB = 64
# To move a process to another control group the kernel waits for a grace period of RCU, 20 to 30 ms at 100 Hz
# unless it is expedited: twice for a VM that is put into Standby and restored (guest/agent/freezer.c).
# No dummy0, as there is none on a machine: its MAC address would be one for all that start from a template.
_KERNEL_WORDS = ("console=hvc0", "quiet", "rcupdate.rcu_expedited=1", "dummy.numdummies=0")
# TCG emulates the host's time stamp counter, and nothing that a busy host lets a guest calibrate it with:
# it would hang for ever. guest/kernel/README.md has the measurements.
_TCG_WORDS = (
    "tsc=reliable",
    "no_timer_check",
    "lapic_timer_hz=1000000000",
    "mitigations=off",
    "noreplace-smp",
)


@dataclass(frozen=True, slots=True)
class VolumeFile:
    """A volume of a VM. The guest finds its drive by `serial`, at most 20 bytes. `is_device`: it is a block
    device of the host."""

    path: Path
    serial: str
    readonly: bool
    is_device: bool = False


@dataclass(frozen=True, slots=True)
class VmmFiles:
    """Where everything of one VM stands. `headers` None: it gets no disk with kernel headers; `placed` None:
    none with files. `secrets`: does the launcher bring a disk with secrets? `is_disk_device`: its own disk is
    a block device of the host."""

    kernel: Path
    initrd: Path
    config: Path
    image: Path
    disk: Path
    headers: Path | None = None
    volumes: tuple[VolumeFile, ...] = ()
    placed: Path | None = None
    secrets: bool = False
    is_disk_device: bool = False


@dataclass(frozen=True, slots=True)
class SavedFiles:
    """What a restore goes on from: the guest's memory and the state of its devices (`Vmm.save`), in the VMM's
    root. `is_shared`: the VMM may not write to the file of the memory, which may be others' too; QEMU cannot
    do with that before 8.2 (`can_share`)."""

    memory: Path
    state: Path
    is_shared: bool


@dataclass(frozen=True, slots=True)
class NetDevice:
    """A network device, on the TAP device that the launcher brings."""

    mac: str


@dataclass(frozen=True, slots=True)
class VmmPlan:
    """What QEMU is to run. Memory in bytes; `tsc_khz` None: not known; `net` None: it has no network."""

    vm: str
    vm_id: str
    binary: Path
    accel: AccelKind
    memory: int
    vcpus: int
    tsc_khz: int | None
    mode: Mode
    files: VmmFiles
    net: NetDevice | None = None
    disk_limits: DiskLimits = field(default_factory=DiskLimits)
    balloon: bool = False


def start_line(plan: VmmPlan) -> tuple[str, ...]:
    """What the launcher executes: the kernel's words, to which it adds the boot id, and the command line.
    What comes behind it for a VM that goes on is `restore_arguments` or `warm_arguments`."""
    return (kernel_words(plan), *qemu_arguments(plan))


_VERSION = re.compile(r"([0-9]+)\.([0-9]+)")


def can_share(version: str) -> bool:
    """Can a QEMU of that version map memory of a file privately that it may not write to?"""
    found = _VERSION.match(version)
    return found is not None and (int(found[1]), int(found[2])) >= (8, 2)


def restore_arguments(plan: VmmPlan, saved: SavedFiles) -> tuple[str, ...]:
    """What makes of a boot a VM that was saved with the same command line: its memory is the file, mapped
    privately, so that pages are read when they are used. The guest's CPUs wait for `Vmm.resume`."""
    return (*warm_arguments(plan, saved), "-S")


def warm_arguments(plan: VmmPlan, saved: SavedFiles) -> tuple[str, ...]:
    """The same; the guest continues as soon as it is loaded."""
    memory = (
        f"memory-backend-file,id={MEMORY_BLOCK},x-use-canonical-path-for-ramblock-id=off,"
        f"mem-path={_quote(saved.memory)},size={plan.memory // (1024 * 1024)}M,share=off"
    )
    # QEMU 9.1 takes a file by its path, and warns of a descriptor
    source = f"file:{saved.state}" if saved.is_shared else f"fd:{STATE_FD}"
    return (
        "-object", memory + (",readonly=on,rom=off" if saved.is_shared else ""),
        "-machine", f"memory-backend={MEMORY_BLOCK}",
        # it tells when it has loaded
        "-global", "migration.x-events=on",
        # One announcement by the guest's kernel, before the guest does anything else, rather than five: a
        # kernel without guest/kernel/patches/virtio-net-announce.patch, which runs on where the package is
        # upgraded under it, hangs if the device gets another address meanwhile. With none, QEMU ends by
        # SIGSEGV when the device is reset.
        "-global", "migration.announce-rounds=1",
        "-incoming", source,
    )  # fmt: skip


def qemu_arguments(plan: VmmPlan) -> tuple[str, ...]:
    """The command line, less -append."""
    arguments = machine_arguments(plan)
    if plan.files.secrets:
        arguments += ["-add-fd", f"fd={SECRETS_FD},set=1"]
    arguments += _disks(plan.files, plan.disk_limits)
    if plan.net is not None:
        arguments += network_arguments(plan.net)
    if plan.balloon:
        arguments += ["-device", f"virtio-balloon-device,id={BALLOON},free-page-reporting=on"]
    return tuple(arguments)


def machine_arguments(plan: VmmPlan) -> list[str]:
    """Its beginning: all that comes before the disks."""
    return [
        str(plan.binary), *_machine(plan), *_isolation(), *_boot(plan), *_console(), *_ports()
    ]  # fmt: skip


WORKER_TASKS = 64 + 32
"""Threads that the VMM may have beside the guest's CPUs: it serves up to 64 requests to disks with a thread
each (util/thread-pool.c), and aborts if it cannot make one."""


def memory_overhead(accel: AccelKind) -> int:
    """Bytes that the VMM takes beside the guest's memory, with room to spare."""
    mib = 128 if accel is AccelKind.KVM else 160 + _TCG_BUFFER_MIB
    return mib * 1024 * 1024


def _machine(plan: VmmPlan) -> list[str]:
    """TCG has a guest's CPUs take turns: with a thread each, one boot in a hundred of a guest with two dies
    on QEMU 7.2, since a CPU may execute code that another has just patched.

    No interval timer and no 8259: nobody sets them up, and an early tick ends the kernel with a divide error
    (guest/kernel/README.md)."""
    kvm = plan.accel is AccelKind.KVM
    return [
        "-name", f"guest={plan.vm},debug-threads=on",
        "-uuid", _uuid(plan.vm_id),
        "-machine", MACHINE,
        "-accel", "kvm" if kvm else f"tcg,thread=single,tb-size={_TCG_BUFFER_MIB},split-wx=on",
        "-cpu", cpu_model(plan.accel),
        "-smp", str(plan.vcpus),
        "-m", f"{plan.memory // (1024 * 1024)}M",
    ]  # fmt: skip


def cpu_model(accel: AccelKind) -> str:
    """QEMU's word: the host's own, or all that this build of QEMU can emulate."""
    return "host" if accel is AccelKind.KVM else "max"


def _uuid(vm_id: str) -> str:
    return "-".join((vm_id[:8], vm_id[8:12], vm_id[12:16], vm_id[16:20], vm_id[20:]))


def _isolation() -> list[str]:
    return [
        "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
        "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    ]  # fmt: skip


def _boot(plan: VmmPlan) -> list[str]:
    return ["-kernel", str(plan.files.kernel), "-initrd", str(plan.files.initrd)]


def kernel_words(plan: VmmPlan) -> str:
    """The kernel's command line, less the boot id."""
    words = list(_KERNEL_WORDS)
    if plan.accel is AccelKind.TCG:
        words += _TCG_WORDS
        if plan.tsc_khz is not None:
            words.append(f"tsc_early_khz={plan.tsc_khz}")
    if plan.mode is Mode.SYSTEMD:
        # the VM's name rather than one that its image was built with; nobody is there whom systemd could ask
        # for language and time zone at a first boot; and the journal shows no colours
        words += [f"systemd.hostname={plan.vm}", "systemd.firstboot=no", "TERM=dumb"]
    return " ".join(words)


def _console() -> list[str]:
    return [
        "-chardev", "stdio,id=console,signal=off",
        "-device", "virtio-serial-device,max_ports=8",
        "-device", "virtconsole,chardev=console",
    ]  # fmt: skip


def _ports() -> list[str]:
    arguments = []
    for name, fd in PORT_FDS.items():
        user = ["-device", f"virtserialport,chardev={name},name=org.hypeman.{name}"]
        if name == CONTROL:
            user = ["-mon", f"chardev={CONTROL},mode=control"]
        arguments += ["-chardev", f"socket,id={name},fd={fd},server=on,wait=off", *user]
    return arguments


# a descriptor that QEMU was given, as a path
_SECRETS_DISK = Path("/dev/fdset/1")
BALLOON = "balloon"
MACHINE = "microvm,pit=off,pic=off,isa-serial=off"
MEMORY_BLOCK = "microvm.ram"
"""QEMU's name for the memory of a guest of this machine."""
THROTTLE_GROUP = "disks"
"""Of the drives whose limits are one for all of them."""
_DISK_DRIVE, _VOLUME_DRIVE = "disk", "volume"
_VOLUME_NAME = re.compile(rf"{_VOLUME_DRIVE}([0-9]{{1,3}})")


@dataclass(frozen=True, slots=True)
class _Disk:
    """A drive. `is_limited`: do the limits of the VM's disks count for it?"""

    name: str
    path: Path
    serial: str
    readonly: bool
    is_limited: bool
    is_device: bool = False


def _list_disks(files: VmmFiles) -> Iterator[_Disk]:
    """What hypemand brings itself is not limited: the guest's configuration and the headers."""
    for name, path, readonly, limited in (
        ("config", files.config, True, False),
        ("image", files.image, True, True),
        (_DISK_DRIVE, files.disk, False, True),
        ("headers", files.headers, True, False),
        ("files", files.placed, True, False),
        ("secrets", _SECRETS_DISK if files.secrets else None, True, False),
    ):
        is_device = name == _DISK_DRIVE and files.is_disk_device
        if path is not None:
            yield _Disk(name, path, f"hypeman-{name}", readonly, limited, is_device)
    for number, volume in enumerate(files.volumes):
        about = (volume.path, volume.serial, volume.readonly, True, volume.is_device)
        yield _Disk(f"{_VOLUME_DRIVE}{number}", *about)


def count_disks(files: VmmFiles) -> int:
    """How many drives a VM has."""
    return sum(1 for _ in _list_disks(files))


def _disks(files: VmmFiles, limits: DiskLimits) -> list[str]:
    limited = _throttle(limits)
    found: list[str] = []
    for disk in _list_disks(files):
        throttle = limited if disk.is_limited else ""
        pauses = not (disk.readonly or disk.is_device)
        about = (disk.name, disk.path, disk.serial, throttle)
        found += disk_arguments(*about, readonly=disk.readonly, pauses=pauses)
    return found


def is_limited(name: str) -> bool:
    """Does the drive that QMP names so count for the limits of disks?"""
    return name in ("image", _DISK_DRIVE) or _VOLUME_NAME.fullmatch(name) is not None


def _throttle(limits: DiskLimits) -> str:
    """The options of a drive; none where there is no limit, which costs nothing then."""
    words = {
        "bps-read": limits.read,
        "bps-write": limits.write,
        "bps-total": limits.total,
        "iops-total": limits.iops,
    }
    options = [f"throttling.{word}={value}" for word, value in words.items() if value is not None]
    return "".join(f",{option}" for option in [*options, f"throttling.group={THROTTLE_GROUP}"] if options)


def find_drive(name: str) -> Drive | None:
    """The disk that QMP names so; None for one that no VM writes to."""
    if name == _DISK_DRIVE:
        return Drive()
    volume = _VOLUME_NAME.fullmatch(name)
    return None if volume is None else Drive(int(volume[1]))


def disk_arguments(
    name: str, path: Path, serial: str, throttle: str = "", *, readonly: bool = False, pauses: bool = True
) -> list[str]:
    """`pauses`: a write for which the host's file system has no space left stops the guest, which sees
    nothing of it and goes on when there is space. All other errors are the guest's to see, as with a real
    disk: also of a thin device that is full, since the host does not learn when it is not any more.

    The host relies on locks on what is written to (hypemand/storage/locks.py): by itself QEMU does without
    where it takes the host to have none."""
    options = "readonly=on" if readonly else "discard=unmap,file.locking=on"
    errors = f"rerror=report,werror={'enospc' if pauses else 'report'}"
    return [
        "-drive", f"if=none,id={name},file={_quote(path)},format=raw,{options}{throttle}",
        "-device", f"virtio-blk-device,drive={name},{errors},serial={serial}",
    ]  # fmt: skip


def network_arguments(net: NetDevice) -> list[str]:
    """No vhost: that is one more device of the host in reach of the VMM, and TCG gains nothing by it."""
    return [
        "-netdev", f"tap,id=net,fd={TAP_FD},vhost=off",
        "-device", f"virtio-net-device,netdev=net,mac={net.mac}",
    ]  # fmt: skip


def _quote(path: Path) -> str:
    """A path in an option list: a comma is doubled."""
    return str(path).replace(",", ",,")
