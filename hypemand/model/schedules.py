# SPDX-License-Identifier: Apache-2.0
"""When snapshots of a VM are made by itself, and which are kept. Times are seconds since the epoch."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TypeVar

from hypemand.config.durations import MAX_DURATION
from hypemand.errors import InvalidRequest

MIN_INTERVAL = 60.0
MAX_PREFIX = 47
"""Characters: the time behind it makes a name of at most 63."""
PREFIX_PATTERN = f"[a-z0-9][a-z0-9-]{{0,{MAX_PREFIX - 1}}}"
MAX_KEPT = 10_000
_PREFIX_RULE = re.compile(PREFIX_PATTERN)
_PREFIX = "scheduled"
# of the interval, by which VMs that have the same schedule are apart
_MAX_JITTER = 0.1
_LONGEST_JITTER = 600.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Retention:
    """What is kept of the snapshots that a schedule has made: so many, and those of so many seconds; 0: no
    limit. One of both is set."""

    max_count: int = 0
    max_age: float = 0.0

    def find_surplus(self, made: Sequence[tuple[T, float]], now: float) -> list[T]:
        """Of snapshots with the times when they were made, the oldest first: those that are deleted. The last
        one is kept."""
        others = made[:-1]
        count = max(len(made) - self.max_count, 0) if self.max_count else 0
        return [
            one
            for number, (one, at) in enumerate(others)
            if number < count or (self.max_age and at < now - self.max_age)
        ]


@dataclass(frozen=True, slots=True)
class ScheduleWanted:
    """What a client asks for. `interval`: seconds; `name_prefix`: of the names of snapshots; `tags`: which
    they get."""

    interval: float
    retention: Retention
    name_prefix: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)

    def check(self) -> None:
        """InvalidRequest, with the names that the API has. The owner of snapshots checks their tags."""
        if not MIN_INTERVAL <= self.interval <= MAX_DURATION:
            raise InvalidRequest("interval: must be at least 1m", hint="write it like 1h or 24h")
        if self.name_prefix is not None and _PREFIX_RULE.fullmatch(self.name_prefix) is None:
            hint = f"use at most {MAX_PREFIX} characters of a-z, 0-9 and '-', not starting with '-'"
            raise InvalidRequest(f"name_prefix: {self.name_prefix[:80]!r} is not valid", hint=hint)
        if not self.retention.max_count and not self.retention.max_age:
            raise InvalidRequest(
                "retention: sets no limit, and the disk would fill up",
                hint="give max_count, the number of snapshots to keep, or max_age, such as 168h, or both",
            )


@dataclass(frozen=True, slots=True)
class SnapshotSchedule:
    """The schedule of a VM. `last_*`: of the last slot that was not left out; `last_snapshot_id`: of the last
    one that was made; `last_error`: why the last one could not be."""

    wanted: ScheduleWanted
    created_at: float
    updated_at: float
    next_run_at: float
    last_run_at: float | None = None
    last_snapshot_id: str | None = None
    last_error: str | None = None

    def change(self, wanted: ScheduleWanted, vm_id: str, now: float) -> SnapshotSchedule:
        """With what is wanted now. Its slots stay those that they were, unless the interval is another."""
        slot = self.next_run_at
        if wanted.interval != self.wanted.interval:
            slot = derive_first_slot(wanted.interval, vm_id, now)
        return replace(self, wanted=wanted, updated_at=now, next_run_at=slot)

    def derive_next_slot(self, vm_id: str, now: float) -> float:
        """The next slot after `now`; slots that are over are left out. Where the clock was set back, as for a
        new schedule."""
        interval = self.wanted.interval
        first = derive_first_slot(interval, vm_id, now)
        if self.next_run_at > first:
            return first
        passed = max(math.floor((now - self.next_run_at) / interval) + 1, 0)
        return self.next_run_at + passed * interval

    def is_due(self, now: float) -> bool:
        """Is it time for a snapshot?"""
        return self.next_run_at <= now

    def derive_name(self, now: float) -> str:
        """Of a snapshot that is made now."""
        return f"{self.wanted.name_prefix or _PREFIX}-{datetime.fromtimestamp(now, UTC):%Y%m%d-%H%M%S}"


def begin_schedule(wanted: ScheduleWanted, vm_id: str, now: float) -> SnapshotSchedule:
    """A new one."""
    return SnapshotSchedule(wanted, now, now, derive_first_slot(wanted.interval, vm_id, now))


def derive_first_slot(interval: float, vm_id: str, now: float) -> float:
    """After an interval, and a part of it that is the VM's own: not all at once where many are defined."""
    share = int(vm_id[:8], 16) / 2**32
    return now + interval + share * min(interval * _MAX_JITTER, _LONGEST_JITTER)
