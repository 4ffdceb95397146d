# SPDX-License-Identifier: Apache-2.0
"""Another name for a VM that is stopped.

What is keyed by the name is cleared first: all that is left of its runs is in its folder then, and nothing is
in the way of the new name. The rename of the folder commits. So whenever the daemon ends, the next one finds
the whole VM, by one of both names. In the daemon the VM with the new name is another one, made from what the
old one knew.
"""

from __future__ import annotations

import logging
import os
from functools import partial
from pathlib import Path

from hypemand.config.names import NAME_RULE, is_name
from hypemand.config.templates import parse_file_name
from hypemand.config.vmfile import SUFFIXES, list_definition_files
from hypemand.errors import AlreadyExists, Forbidden, InUse, InvalidRequest, WrongState
from hypemand.fulldisk import name_full_disk_beside
from hypemand.manager.parts import Parts
from hypemand.manager.starts import refuse_of_file
from hypemand.model.events import Rename
from hypemand.model.state import Operation, Origin, check_allowed
from hypemand.systemd.log import MessageId
from hypemand.tasks import Tasks, finish
from hypemand.unitnames import handle_name, unit_name
from hypemand.vm.runfiles import Past, RunFiles
from hypemand.vm.vm import Vm
from hypemand.workers import Pool, run_in


async def rename(parts: Parts, vm: Vm, name: str, *, by_root: bool) -> Vm:
    """Give a VM another name; the caller holds its operation. Gives the VM of that name: this one has gone.
    InvalidRequest, AlreadyExists, WrongState, InUse, InsufficientResources for a full disk; it keeps its name
    then."""
    if not is_name(name):
        raise InvalidRequest(f"{name[:80]!r} cannot be the name of a VM", hint=f"use {NAME_RULE}")
    if name == vm.name:
        return vm
    _check_may_change(parts, vm, name, by_root=by_root)
    parts.records.check_free(name)
    await vm.refresh()
    check_allowed(Operation.RENAME, vm.state, vm.name, vm.state_error)
    await vm.runs.settle()
    async with name_full_disk_beside(f"rename VM {vm.name}", vm.places.state):
        await run_in(Pool.RECORDS, _check_no_file, parts.config().vm_dir, name)
        await parts.networks.check_released(vm.name)
        for unit in (vm.unit, handle_name(vm.name), unit_name(name), handle_name(name)):
            if (await parts.units.status(unit)).is_live:
                raise InUse(f"the unit {unit} has not ended", hint=f"systemctl stop {unit}")
            await parts.units.reset_failed(unit)
        await vm.handle.remove_files()
        await vm.runs.files.flush_notes()
        return await finish(_commit(parts, vm, name), f"new name of {vm.name}")


def _check_may_change(parts: Parts, vm: Vm, name: str, *, by_root: bool) -> None:
    record = vm.record
    if record.origin is Origin.HELPER:
        raise WrongState(f"VM {vm.name} works for hypemand itself, and ends soon", hint="wait for that")
    if record.origin is Origin.FILE and not vm.removed:
        raise refuse_of_file(
            parts,
            vm,
            "move the file to another directory, run systemctl reload hypemand, rename the VM,"
            f" {_say_how_to_return(parts, vm, name)}, and reload again",
        )
    if record.short_name and not by_root:
        raise Forbidden(
            f"VM {vm.name} has a short name on this host: only root may rename it, on the host's own socket",
            hint="use sudo",
        )


def _say_how_to_return(parts: Parts, vm: Vm, name: str) -> str:
    """How the file of the VM comes back for the new name."""
    file = parts.files.name_file(parts.config().vm_dir, vm.name)
    before = parse_file_name(file.stem)
    if before.instance is None:
        return f"put the file back as {name}{file.suffix}"
    if name.startswith(f"{before.prefix}-"):
        return f"put the file back as {before.prefix}@{name.removeprefix(f'{before.prefix}-')}{file.suffix}"
    return f"write its definition to {name}{SUFFIXES[0]} (hypemanctl show --definition {name})"


def _check_no_file(vm_dir: Path, name: str) -> None:
    """Raise AlreadyExists if a file defines, or would define, the VM of that name. Blocks."""
    try:
        files = list_definition_files(vm_dir)
    except OSError:
        return
    for defined, file in files:
        if defined.vm == name:
            raise AlreadyExists(
                f"{file} defines a VM {name}", hint="choose another name, or put that file there afterwards"
            )


def _clear(vm: Vm, others: RunFiles) -> None:
    """Have nothing of the VM's runs outside of its folder, and nothing of an earlier VM of the new name.
    Blocks; InUse, OSError."""
    vm.runs.files.take_in_ends()
    others.remove_exit()
    for files in (vm.runs.files, others):
        files.remove_runtime()
        if os.path.lexists(files.runtime):
            raise InUse(
                f"{files.runtime} is left of a run that has not ended", hint="see journalctl -u hypemand"
            )


async def _commit(parts: Parts, vm: Vm, name: str) -> Vm:
    others = RunFiles(name, parts.places(name), Tasks(name))
    record = await parts.records.rename(vm.name, name, partial(_clear, vm, others))
    # up to where the old one is detached nothing waits: a VM that gets its name meanwhile loses nothing
    past = Past(vm.runs.notes, vm.runs.exit, vm.runs.ended)
    parts.fleet.remove(vm)
    renamed = parts.adopt(record, past)
    parts.fleet.note_disk(renamed)
    renamed.set_removed(vm.removed)
    renamed.log(
        logging.INFO, f"VM {vm.name} was renamed to {name}", MessageId.RENAMED, HYPEMAN_OLD_NAME=vm.name
    )
    renamed.tell(Rename(vm.name, name), f"renamed from {vm.name} to {name}")
    vm.mark_gone(f"been renamed to {name}")
    parts.networks.tell()
    await vm.detach()
    return renamed
