# SPDX-License-Identifier: Apache-2.0
"""The snapshot schedule of a VM in its record."""

from __future__ import annotations

import math
from typing import Any

from hypemand.model.document import decode, encode
from hypemand.model.schedules import SnapshotSchedule


def schedule_to_json(schedule: SnapshotSchedule) -> Any:
    """In the format of the VM's record."""
    return encode(schedule)


def schedule_from_json(document: Any) -> SnapshotSchedule:
    """The opposite. ValueError, InvalidRequest for anything else."""
    schedule: SnapshotSchedule = decode(SnapshotSchedule, document)
    times = (schedule.created_at, schedule.updated_at, schedule.next_run_at, schedule.last_run_at or 0.0)
    spans = (schedule.wanted.interval, schedule.wanted.retention.max_age)
    if not all(map(math.isfinite, (*times, *spans))):
        raise ValueError("the snapshot schedule has a time that is none")
    schedule.wanted.check()
    return schedule
