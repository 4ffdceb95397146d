# SPDX-License-Identifier: Apache-2.0
"""From a definition to everything that is needed to start it. Pure: nothing is made here."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import hypemand.unit
from hypemand.config.definition import Definition, Mode
from hypemand.errors import InvalidDefinition, Problem
from hypemand.manager.inventory import VmRecord
from hypemand.qemu.accel import AccelKind
from hypemand.qemu.commandline import VmmFiles, VmmPlan, kernel_words, memory_overhead, qemu_arguments
from hypemand.qemu.host import VmmHost
from hypemand.storage.configdisk import GuestConfig
from hypemand.storage.images import Image
from hypemand.storage.program import resolve_program
from hypemand.systemd.units import UnitPlan, unit_name

_VMM_SCRIPT = Path(next(iter(hypemand.unit.__path__))) / "vmm.sh"
# what the VMM's own threads may take beside the guest's CPUs
_VMM_CPUS = 0.5
_VMM_TASKS = 32
# of stop_timeout, what is left to sync, to power off and for the VMM to end
_POWER_OFF_SHARE, _POWER_OFF_LEAST = 0.1, 2.0
_FOREVER = 86400  # the guest knows no longer one


@dataclass(frozen=True, slots=True)
class Plan:
    """A start, worked out. `files` are in the VM's runtime folder but for the disk and what is shared."""

    definition: Definition
    guest: GuestConfig
    files: VmmFiles
    unit: UnitPlan
    runtime: Path


def make_plan(
    record: VmRecord, definition: Definition, image: Image, host: VmmHost, runtime: Path, state: Path
) -> Plan:
    """Work out a start. `runtime` and `state` are the VM's own folders.

    Raises InvalidDefinition when definition and image together do not make a program.
    """
    guest = resolve_program(definition, image)
    if guest.mode is Mode.SYSTEMD:
        problem = Problem(
            "", 0, 0, "mode", "systemd mode is not supported yet", "use mode: exec and a program as cmd"
        )
        raise InvalidDefinition([problem])
    files = VmmFiles(
        kernel=host.kernel.path,
        initrd=host.initrd,
        config=runtime / "config.img",
        image=image.rootfs,
        disk=state / "disk.ext4",
        qmp=runtime / "qmp.sock",
        agent=runtime / "agent.sock",
        report=runtime / "report.sock",
        stop=runtime / "stop.sock",
    )
    vmm = VmmPlan(
        vm=record.name,
        vm_id=record.id,
        binary=host.binary,
        accel=host.accel.kind,
        memory=definition.memory,
        vcpus=definition.vcpus,
        tsc_khz=host.tsc_khz,
        files=files,
    )
    return Plan(definition, guest, files, _unit_plan(record, definition, guest, vmm, runtime, state), runtime)


def _unit_plan(
    record: VmRecord, definition: Definition, guest: GuestConfig, vmm: VmmPlan, runtime: Path, state: Path
) -> UnitPlan:
    python = sys.executable
    agent = "1" if definition.guest_agent else "0"
    unit = unit_name(record.name)
    return UnitPlan(
        vm=record.name,
        vm_id=record.id,
        uid=record.uid,
        start=("/bin/sh", str(_VMM_SCRIPT), str(runtime), python, kernel_words(vmm), *qemu_arguments(vmm)),
        stop=(
            python,
            "-I",
            "-m",
            "hypemand.unit.stop",
            str(runtime),
            str(stop_grace(definition.stop_timeout)),
        ),
        stop_post=(python, "-I", "-m", "hypemand.unit.exit", str(state), unit, str(guest.stop_signal), agent),
        writable=(str(runtime), str(vmm.files.disk)),
        memory_max=definition.memory + memory_overhead(vmm.accel),
        cpu_quota=definition.vcpus + _VMM_CPUS,
        tasks_max=_VMM_TASKS + definition.vcpus,
        boot_timeout=definition.boot_timeout,
        stop_timeout=definition.stop_timeout,
        restart=definition.restart,
        kvm=vmm.accel is AccelKind.KVM,
        extra=definition.unit,
    )


def stop_grace(stop_timeout: float | None) -> int:
    """Whole seconds that the guest's program gets to end, so that the rest still fits."""
    if stop_timeout is None:
        return _FOREVER
    return max(1, int(stop_timeout - max(_POWER_OFF_LEAST, stop_timeout * _POWER_OFF_SHARE)))
