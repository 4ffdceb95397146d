# SPDX-License-Identifier: Apache-2.0
"""A template's command line: of a VM that is saved before its guest has read what it is (docs/protocol.md,
"Warm start"). It has the machine and the number of devices of a VM that is to go on from it, and nothing else
of that."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hypemand.config.mode import Mode
from hypemand.model.templates import TemplateKind
from hypemand.vmm.commandline import (
    NetDevice,
    VmmPlan,
    count_disks,
    disk_arguments,
    kernel_words,
    machine_arguments,
    network_arguments,
)

SECTOR = 512
PLACEHOLDER = 1024**4 + SECTOR
"""Bytes of a template's disks, which are empty: the guest knows by that what a disk of a template is, since
no VM has one of such a size (guest/init/warmstart.c)."""
_MAC = "52:54:00:00:00:00"
_NAME, _ID = "template", "0" * 32
_WORD = "hypeman.template"


def can_have_template(plan: VmmPlan) -> bool:
    """Can it go on from one? A balloon gives memory back by cutting it out of the file that others have."""
    return not plan.balloon


def derive_kind(plan: VmmPlan) -> TemplateKind:
    """What VMs that go on from its template have in common, in words of their definitions."""
    return TemplateKind(plan.memory, plan.vcpus, count_disks(plan.files), plan.net is not None)


def list_placeholders(plan: VmmPlan, folder: Path) -> tuple[Path, ...]:
    """The files of a template's disks in its runtime folder."""
    return tuple(folder / f"disk{number}" for number in range(count_disks(plan.files)))


def template_line(plan: VmmPlan, folder: Path) -> tuple[str, ...]:
    """What the launcher executes for the template of a VM: as `commandline.start_line`. `folder`: its runtime
    folder, as the VMM sees it."""
    plan = replace(plan, vm=_NAME, vm_id=_ID, mode=Mode.EXEC)
    arguments = machine_arguments(plan)
    for number, path in enumerate(list_placeholders(plan, folder)):
        # all can be written to: what a disk is not told to be able to do, it cannot do later
        arguments += disk_arguments(f"disk{number}", path, "")
    if plan.net is not None:
        # on a TAP device as that of a VM: what the guest has agreed on with it stays
        arguments += network_arguments(NetDevice(_MAC))
    # it is saved while it is paused, and is not to be that when it goes on
    arguments += ["-global", "migration.store-global-state=off"]
    return (f"{kernel_words(plan)} {_WORD}", *arguments)
