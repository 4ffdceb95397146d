# SPDX-License-Identifier: Apache-2.0
"""systemd's jobs: one for each unit, installed by modes, run when what they wait for is over.

After systemd's src/core/job.c and transaction.c in their behaviour.
"""

from __future__ import annotations

import errno
import itertools
from collections.abc import Callable
from dataclasses import dataclass

from hypemand.systemd.bus import BusError
from tests.fakes.service import Service


@dataclass
class Job:
    """A job. `kind`: start, stop or restart; `result` "": it is not over."""

    number: int
    unit: str
    kind: str
    runs: bool = False
    result: str = ""

    @property
    def path(self) -> str:
        """Its object."""
        return f"/org/freedesktop/systemd1/job/{self.number}"


class Jobs:
    """The jobs of all units. `on_change` is called with the unit's name when its job is another. `held`: jobs
    to start these units wait until they are taken out of it, as for a unit that has to come first; and
    `held_stops`: jobs to stop these, as for a unit that comes after it and has to stop first."""

    def __init__(self, on_change: Callable[[str], None]) -> None:
        self.held: set[str] = set()
        self.held_stops: set[str] = set()
        self.done: list[Job] = []
        self._jobs: dict[str, Job] = {}
        self._numbers = itertools.count(1)
        self._on_change = on_change

    def find(self, unit: str) -> Job | None:
        """The unit's job."""
        return self._jobs.get(unit)

    def add(self, unit: str, kind: str, mode: str) -> Job:
        """Install a job, by mode `replace` or `fail`. BusError for one that would destroy another."""
        old = self._jobs.get(unit)
        new = Job(next(self._numbers), unit, kind)
        if old is None:
            self._jobs[unit] = new
        elif mode == "fail" and not _covers(kind, old.kind):
            raise BusError(f"Transaction for {unit}/{kind} is destructive", errno.EDEADLK)
        elif "stop" in (kind, old.kind) and kind != old.kind:
            self.finish(old, "canceled")
            self._jobs[unit] = new
        elif _covers(old.kind, kind):
            return old
        else:
            old.kind, old.runs = kind, False
            new = old
        self._on_change(unit)
        return new

    def finish(self, job: Job, result: str) -> None:
        """It is over."""
        job.result = result
        if self._jobs.get(job.unit) is job:
            del self._jobs[job.unit]
        self.done.append(job)
        self._on_change(job.unit)

    def run(self, find: Callable[[str], Service | None]) -> bool:
        """Begin or go on with those that can. True: something has changed."""
        changed = False
        for job in list(self._jobs.values()):
            unit = find(job.unit)
            if job.result or unit is None or self._waits(job, unit):
                continue
            before = (job.kind, job.runs, unit.sub)
            self._run(job, unit)
            changed |= bool(job.result) or before != (job.kind, job.runs, unit.sub)
        return changed

    def _waits(self, job: Job, unit: Service) -> bool:
        """Has a unit that it is ordered after a job to start?"""
        if job.kind == "stop":
            return unit.name in self.held_stops
        return unit.name in self.held or bool(self.list_before(unit))

    def list_before(self, unit: Service) -> list[Job]:
        """Jobs to start that it is ordered after."""
        others = (self._jobs.get(name) for name in unit.properties["After"])
        return [other for other in others if other is not None and other.kind != "stop"]

    def _run(self, job: Job, unit: Service) -> None:
        if job.kind == "stop":
            if not job.runs and not unit.is_gone:
                unit.stop()
            job.runs = True
            if unit.is_gone:
                self.finish(job, "done")
        elif job.kind == "restart":
            if not job.runs and not unit.is_gone:
                unit.stop()
            job.runs = True
            if unit.is_gone:
                job.kind, job.runs = "start", False
        elif unit.active == "active":
            self.finish(job, "done")
        elif unit.is_gone and not job.runs:
            job.runs = True
            unit.start()
            if unit.is_gone:
                self.finish(job, "failed")
        elif unit.sub == "start":
            job.runs = True
        elif job.runs and unit.is_gone:
            self.finish(job, "failed")

    def take_change(self, unit: Service) -> None:
        """The unit has another state: before it has yet another, see what its job makes of this one."""
        job = self._jobs.get(unit.name)
        if job is None or not job.runs:
            return
        if job.kind == "start" and (unit.is_gone or unit.active == "active"):
            self.finish(job, "done" if unit.active == "active" else "failed")
        elif job.kind == "start" and unit.active == "deactivating":
            self.finish(job, "failed")


def _covers(kind: str, other: str) -> bool:
    return kind == other or (kind == "restart" and other == "start")
