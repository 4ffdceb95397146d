# SPDX-License-Identifier: Apache-2.0
"""All that one scrape shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hypemand.histogram import Histogram
from hypemand.manager.metrics.counts import Counts
from hypemand.model.counters import Connections, Counters
from hypemand.model.metrics import ApiCounts
from hypemand.model.space import Room
from hypemand.model.state import State
from hypemand.systemd.usage import UnitUsage


@dataclass(frozen=True, slots=True)
class VmReport:
    """A VM whose VMM is active. `memory` of the guest in bytes; `usage`, `network` and `connections` None:
    not known, or there is none."""

    name: str
    vm_id: str
    image: str
    memory: int
    vcpus: int
    usage: UnitUsage | None
    network: Counters | None
    connections: Connections | None


@dataclass(frozen=True, slots=True)
class ImageReport:
    """Images of this host, each content once: how many, and their bytes."""

    count: int
    size: int


@dataclass(frozen=True, slots=True)
class MetricsReport:
    """`states`: VMs by state; `broken`: files with errors; `volumes`: the size of each in bytes;
    `pulls_in_progress`: pulls that have not ended; `turns`: of the event loop; `dropped`: lines by VM. None:
    not known in time."""

    version: str
    states: Mapping[State, int]
    broken: int
    vms: tuple[VmReport, ...]
    counts: Counts
    volumes: tuple[int, ...]
    disk_reserve: int
    memory_committed: int
    memory_allowed: int
    pulls_in_progress: int
    api: ApiCounts
    turns: Histogram
    images: ImageReport | None = None
    room: Room | None = None
    dropped: Mapping[str, int] | None = None
