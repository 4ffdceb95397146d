# SPDX-License-Identifier: Apache-2.0
"""Templates for warm starts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TemplateKind:
    """What all VMs of a template have in common, in words of their definitions. `memory` in bytes; `disks`:
    of the VMM, with those of volumes."""

    memory: int
    vcpus: int
    disks: int
    network: bool


@dataclass(frozen=True, slots=True)
class TemplateView:
    """A template. `size`: bytes that it takes on the disk; times in seconds since the epoch. `outdated`:
    QEMU, kernel or initrd has changed since, so that no start uses it any more."""

    key: str
    kind: TemplateKind
    size: int
    created_at: float
    used_at: float
    outdated: bool
