# SPDX-License-Identifier: Apache-2.0
"""Limits of a VM that runs: what it has, and what it is given until it is started again.

Nothing of this is recorded: the VMM and the VM's unit say what holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from hypemand.config.definition import Definition
from hypemand.config.rates import format_byte_rate
from hypemand.config.sizes import format_size
from hypemand.config.vmdef import definition_to_json, parse_definition
from hypemand.errors import InvalidDefinition, Problem
from hypemand.manager.plan import derive_cpu_quota
from hypemand.model.limits import DiskLimits, RuntimeLimits
from hypemand.systemd.units import Units
from hypemand.vm.pause import reach_session
from hypemand.vm.vm import Vm
from hypemand.vmm.driver import Vmm

KEYS = ("memory", "cpu_limit", "disk_io")
"""The keys of a definition that can be changed while the VM runs."""
# for a guest to give memory back; then it goes on by itself
_BALLOON_DEADLINE = 10.0


async def query_limits(vm: Vm, units: Units) -> RuntimeLimits:
    """What a VM with a VMM has now. GuestError, TimedOut."""
    with reach_session(vm, f"read the limits of VM {vm.name}") as session:
        return await _query(vm, await session.reach_vmm(), units)


async def change_limits(vm: Vm, units: Units, keys: Mapping[str, object]) -> RuntimeLimits:
    """Change what `keys` name, as in a definition; null: as it was started. What it has then: a guest may
    take a while to give memory back. InvalidDefinition, GuestError, TimedOut. The caller holds the VM's lock.
    """
    with reach_session(vm, f"change the limits of VM {vm.name}") as session:
        vmm = await session.reach_vmm()
        wanted = derive_wanted(vm.runs.definition, await vmm.query_disk_limits(), keys)
        if "disk_io" in keys:
            await vmm.set_disk_limits(DiskLimits(**wanted.disk_io))
        if "cpu_limit" in keys:
            await units.set_cpu_quota(vm.unit, derive_cpu_quota(wanted))
        if "memory" in keys:
            await vmm.set_memory(wanted.memory, _BALLOON_DEADLINE)
        return await _query(vm, vmm, units)


async def _query(vm: Vm, vmm: Vmm, units: Units) -> RuntimeLimits:
    return RuntimeLimits(
        memory=await vmm.query_memory() if vm.runs.definition.balloon else None,
        cpu_limit=await units.find_cpu_quota(vm.unit),
        disk_io=await vmm.query_disk_limits(),
    )


def derive_wanted(started: Definition, current: DiskLimits, keys: Mapping[str, object]) -> Definition:
    """The definition with which the VM was started, and what is to be another now. Keys of `disk_io` that are
    not named stay as they are. InvalidDefinition. Pure."""
    fixed = [key for key in keys if key not in KEYS]
    if fixed:
        hint = f"{', '.join(KEYS)} can; for others change its definition and restart it"
        raise InvalidDefinition(
            [Problem("", 0, 0, key, "cannot be changed while the VM runs", hint) for key in fixed]
        )
    before = definition_to_json(started)
    after = before | {key: value for key, value in keys.items() if value is not None}
    if isinstance(changed := keys.get("disk_io"), Mapping):
        merged = {**_write_disk_limits(current), **changed}
        after["disk_io"] = {key: value for key, value in merged.items() if value is not None}
    wanted = parse_definition(started.name, after)
    if "memory" in keys:
        _check_memory(started, wanted.memory)
    return wanted


def _write_disk_limits(limits: DiskLimits) -> Mapping[str, object]:
    """As a definition has them."""
    given = {key: value for key, value in asdict(limits).items() if value is not None}
    return {key: value if key == "iops" else format_byte_rate(value) for key, value in given.items()}


def _check_memory(started: Definition, memory: int) -> None:
    if not started.balloon:
        what, hint = "the VM has no memory balloon", "set balloon: true in its definition and restart it"
    elif memory > started.memory:
        what = f"is more than the {format_size(started.memory)} with which the VM was started"
        hint = "change its definition and restart it"
    else:
        return
    raise InvalidDefinition([Problem("", 0, 0, "memory", what, hint)])
