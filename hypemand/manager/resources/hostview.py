# SPDX-License-Identifier: Apache-2.0
"""The host as its clients see it: can it run VMs, and what is left of its resources?"""

from __future__ import annotations

import os
from collections.abc import Iterator

from hypemand.config.definition import Definition
from hypemand.errors import HostNotReady
from hypemand.manager.fleet import DiskLook
from hypemand.manager.parts import Parts
from hypemand.manager.resources.admission import derive_usable, read_total_memory
from hypemand.manager.sharedquery import SharedQuery
from hypemand.model.host import Allocation, ResourceReport, ResourceUse
from hypemand.vm.vm import Vm
from hypemand.vmm.host import find_vmm_host
from hypemand.workers import Pool, run_in


class HostView:
    """Implements `hypemand.model.services.HostService`."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._resources = SharedQuery("resources", self._measure_resources)

    async def find_vmm_problem(self) -> str:
        """See `HostService`."""
        try:
            await run_in(Pool.STARTS, find_vmm_host, self._parts.config())
        except HostNotReady as error:
            return str(error)
        return ""

    async def measure_resources(self) -> ResourceReport:
        """See `HostService`."""
        return await self._resources.take()

    async def _measure_resources(self) -> ResourceReport:
        config, fleet = self._parts.config(), self._parts.fleet
        look = await fleet.look_at_disks()
        # from here on nothing waits: one picture, in which a start is before or after
        held = dict(fleet.list_held())
        allocations = tuple(self._list_allocations(held, look))
        total = read_total_memory()
        cpus = os.cpu_count() or 1
        return ResourceReport(
            cpu=ResourceUse(cpus, cpus, sum(one.vcpus for one in held.values())),
            memory=ResourceUse(
                total,
                derive_usable(total, config.memory),
                sum(one.memory for one in held.values()),
                config.memory.overcommit,
            ),
            disk=ResourceUse(
                look.room.total,
                derive_usable(look.room.total, config.disk),
                fleet.promised_room(look),
                config.disk.overcommit,
            ),
            network=ResourceUse(0, 0, sum((one.download or 0) + (one.upload or 0) for one in allocations)),
            allocations=allocations,
        )

    def _list_allocations(self, held: dict[str, Definition], look: DiskLook) -> Iterator[Allocation]:
        for vm in sorted(self._parts.fleet, key=lambda vm: vm.name):
            running = held.get(vm.name)
            disk = self._measure_disk(vm, running, look)
            if running is None and not disk:
                continue
            use = None if running is None else running.network
            yield Allocation(
                vm=vm.name,
                vm_id=vm.record.id,
                vcpus=0 if running is None else running.vcpus,
                memory=0 if running is None else running.memory,
                disk=disk,
                download=None if use is None else use.bandwidth.download,
                upload=None if use is None else use.bandwidth.upload,
                disk_io=None if running is None else running.disk_io.get("total"),
            )

    def _measure_disk(self, vm: Vm, running: Definition | None, look: DiskLook) -> int:
        definition = running or vm.record.definition
        own = definition.local_disk if self._parts.fleet.has_disk(vm, look) else 0
        volumes = (self._parts.volumes.find(mount.volume) for mount in definition.volumes)
        return own + sum(volume.size for volume in volumes if volume is not None and not volume.pool)
