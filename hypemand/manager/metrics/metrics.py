# SPDX-License-Identifier: Apache-2.0
"""Metrics of the host: read for each scrape, once for all who ask at once.

What is on a disk may take long: it has a deadline, and is left out when that is over.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Generic, TypeVar

from hypemand.histogram import Histogram
from hypemand.manager.metrics.counts import Counts
from hypemand.manager.metrics.drops import DroppedLines
from hypemand.manager.metrics.report import ImageReport, MetricsReport, VmReport
from hypemand.manager.parts import Parts
from hypemand.manager.resources.admission import derive_usable, read_total_memory
from hypemand.manager.sharedquery import SharedQuery
from hypemand.model.metrics import ApiCounts
from hypemand.model.state import State
from hypemand.storage.room import read_room
from hypemand.systemd.usage import UnitUsage, read_usage
from hypemand.version import VERSION
from hypemand.vm.vm import Vm
from hypemand.vmm.process import read_cpu_seconds, read_memory
from hypemand.workers import Lent, Pool, run_in

_log = logging.getLogger(__name__)
_DEADLINE = 1.0

T = TypeVar("T")


class _Look(Generic[T]):
    """Something that a thread looks at; one look at a time, also where that hangs."""

    def __init__(self, name: str, look: Callable[[], Awaitable[T]]) -> None:
        self._name = name
        self._look = look
        self._query = SharedQuery(f"look at {name}", self._run)
        self._found: T | None = None

    async def _run(self) -> None:
        self._found = None
        self._found = await self._look()

    async def take(self) -> T | None:
        """What was found; None: nothing in time."""
        try:
            is_there = await self._query.take_within(_DEADLINE)
        except (OSError, ValueError) as error:
            _log.debug("no metrics of %s: %s", self._name, error)
            return None
        return self._found if is_there else None

    async def close(self) -> None:
        """Look no more."""
        await self._query.close()


class Metrics:
    """Implements `hypemand.model.services.MetricsService`. `api`: counted by the API; `turns`: by the event
    loop. It counts the events of `parts` from when it is made."""

    def __init__(self, parts: Parts, api: ApiCounts, turns: Histogram) -> None:
        self._parts = parts
        self._api = api
        self._turns = turns
        self.counts = Counts()
        parts.events.follow(self.counts.take)
        self._scrape = SharedQuery("metrics", self._collect)
        self._room = _Look("free space", lambda: run_in(Pool.TOOLS, read_room, parts.config().state_dir))
        self._images = _Look("images", lambda: run_in(Pool.IMAGES, self._read_images))
        self._drops = Lent(Pool.LOGS, DroppedLines(parts.services.log_journal), DroppedLines.close)
        self._dropped = _Look("dropped lines", lambda: self._drops.run(DroppedLines.read))

    async def close(self) -> None:
        """Collect nothing any more."""
        await self._scrape.close()
        await asyncio.gather(self._room.close(), self._images.close(), self._dropped.close())
        self._drops.close()

    async def render(self) -> bytes:
        """See `MetricsService`."""
        return await self._scrape.take()

    async def _collect(self) -> bytes:
        fleet = self._parts.fleet
        active = [vm for vm in fleet if vm.state.is_vmm_active]
        _, _, usages, room, images, dropped = await asyncio.gather(
            self._parts.networks.read_counters(),
            self._parts.networks.read_connections(),
            run_in(
                Pool.RECORDS,
                _read_usages,
                [(vm.unit, None if vm.session is None else vm.session.main_pid) for vm in active],
            ),
            self._room.take(),
            self._images.take(),
            self._dropped.take(),
        )
        self.counts.forget(lambda name: fleet.find(name) is not None)
        report = replace(self._report(active, usages), room=room, images=images, dropped=dropped)
        return await run_in(Pool.RECORDS, _render, report)

    def _report(self, active: Sequence[Vm], usages: Mapping[str, UnitUsage]) -> MetricsReport:
        """What is known without a look at a disk."""
        config, fleet = self._parts.config(), self._parts.fleet
        found_states = Counter(vm.state for vm in fleet)
        return MetricsReport(
            version=VERSION,
            states={state: found_states[state] for state in State},
            broken=len(fleet.broken),
            vms=tuple(self._report_vm(vm, usages.get(vm.unit)) for vm in active),
            counts=self.counts,
            volumes=tuple(volume.size for volume in self._parts.volumes if not volume.pool),
            disk_reserve=config.disk.reserve,
            memory_committed=sum(held.memory for _, held in fleet.list_held()),
            memory_allowed=derive_usable(read_total_memory(), config.memory),
            pulls_in_progress=sum(not pull.view.status.is_settled for pull in self._parts.images.pulls),
            api=self._api,
            turns=self._turns,
        )

    def _report_vm(self, vm: Vm, usage: UnitUsage | None) -> VmReport:
        definition = vm.runs.definition
        networks = self._parts.networks
        return VmReport(
            vm.name,
            vm.record.id,
            definition.image,
            definition.memory,
            definition.vcpus,
            usage,
            networks.find_counters(vm.name),
            networks.find_connections(vm.name),
        )

    def _read_images(self) -> ImageReport:
        sizes = {image.digest: image.size for image in self._parts.images.store.list_images()}
        return ImageReport(len(sizes), sum(sizes.values()))


def _read_usages(units: Sequence[tuple[str, int | None]]) -> dict[str, UnitUsage]:
    return {unit: _read_usage(unit, pid) for unit, pid in units}


def _read_usage(unit: str, pid: int | None) -> UnitUsage:
    """What control groups do not count is that of the VMM, which has nearly all of it."""
    usage = read_usage(unit)
    if pid is None:
        return usage
    memory = read_memory(pid)[1] or None if usage.memory is None else usage.memory
    cpu = read_cpu_seconds(pid) if usage.cpu_seconds is None else usage.cpu_seconds
    return UnitUsage(memory, cpu, usage.disks)


def _render(report: MetricsReport) -> bytes:
    """Blocks."""
    from hypemand.manager.metrics.families import render

    return render(report)
