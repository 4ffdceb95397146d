# SPDX-License-Identifier: Apache-2.0
"""The resources of the host, and what VMs have of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ResourceUse:
    """One resource. `capacity`: what the host has; `limit`: what VMs may have of it together, by
    `overcommit`; `allocated`: what they have, those that are being started included. Bytes, but for CPUs,
    which are a number, and networks, of which it is bytes a second."""

    capacity: int
    limit: int
    allocated: int
    overcommit: float = 1.0

    @property
    def available(self) -> int:
        """What is left of the limit."""
        return max(self.limit - self.allocated, 0)


@dataclass(frozen=True, slots=True)
class Allocation:
    """What one VM has, by its definition: CPUs and memory while it runs or is being started; `disk`: its own
    and its volumes, in bytes; `disk_io`, of both together, `download` and `upload`: its limits in bytes a
    second, None without one."""

    vm: str
    vm_id: str
    vcpus: int
    memory: int
    disk: int
    download: int | None
    upload: int | None
    disk_io: int | None


@dataclass(frozen=True, slots=True)
class ResourceReport:
    """All resources, and what each VM that has something of them has. `network`: the sums of the limits; the
    host's own rate is not known, and is 0."""

    cpu: ResourceUse
    memory: ResourceUse
    disk: ResourceUse
    network: ResourceUse
    allocations: tuple[Allocation, ...]
