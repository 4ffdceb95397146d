# SPDX-License-Identifier: Apache-2.0
"""The markers of one run and of the boot that it carries, from whichever source reported them first.

Witnesses: the journal, the report port (a copy of the same lines), and the agent's HELLO. A line of
another boot counts for nothing, wherever it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from hypemand.model.evidence import Marker, list_missing
from hypemand.model.state import HeadersState, HeadersStatus
from hypemand.protocol.sentinels import (
    AgentReady,
    Emergency,
    EmergencyState,
    Exit,
    HeadersFailed,
    HeadersReady,
    HeadersStart,
    ProgramStart,
    Ready,
    Sentinel,
    Stage,
    Waiting,
    parse_sentinel,
)
from hypemand.recordfile import BadRecord, load_record, store_record
from hypemand.vmm.shutdown import Shutdown

_MAX_STAGES = 64
# with one of these init's report of its stages ends, in exec and in systemd mode (guest/init)
_LAST_STAGES = ("program", "inject")
_MAX_FILE = 1024 * 1024


class Moment(StrEnum):
    """Points in time of a start, on the host's CLOCK_MONOTONIC."""

    REQUESTED = "requested"  # the start was asked for
    PREPARED = "prepared"  # disk and config disk are there
    QUEUED = "queued"  # systemd has the job
    HELD = "held"  # the same, where it waits for other units first
    VMM_STARTED = "vmm_started"  # systemd has spawned the VMM
    AGENT_READY = "agent_ready"  # marker or HELLO seen
    PROGRAM_STARTED = "program_started"  # marker seen
    READY = "ready"  # marker of the definition's check seen
    NOTIFIED = "notified"  # READY=1 sent
    RUNNING = "running"  # the unit is active


@dataclass(frozen=True, slots=True)
class BootNotes:
    """What was seen of a run, as it is kept beside the VM's data. Times in seconds. `boot`: the id of the
    boot that it carries; None as long as nothing was seen of it. `waiting`: why the definition's check has
    not succeeded, in the guest's words; `unhealthy`: why the run is ended by systemd's watchdog. `booted_at`:
    of a VM that was restored, when the run began in which it has booted (seconds since the epoch)."""

    run: str
    boot: str | None = None
    markers: frozenset[Marker] = frozenset()
    exit: Exit | None = None
    moments: Mapping[Moment, float] = field(default_factory=dict)
    stages: tuple[Stage, ...] = ()
    headers: HeadersStatus = field(default_factory=HeadersStatus)
    emergency: bool = False
    shutdown: Shutdown | None = None
    waiting: str | None = None
    unhealthy: str | None = None
    booted_at: float | None = None

    @property
    def ready_ms(self) -> float | None:
        """Milliseconds from the request to Running, without the wait for other units."""
        start, end = self.moments.get(Moment.REQUESTED), self.moments.get(Moment.RUNNING)
        return None if start is None or end is None else (end - start) * 1000 - self.held_ms

    @property
    def held_ms(self) -> float:
        """Milliseconds in which systemd had it wait for other units."""
        held, started = self.moments.get(Moment.HELD), self.moments.get(Moment.VMM_STARTED)
        return 0.0 if held is None or started is None else max(started - held, 0.0) * 1000


class BootTracker:
    """Takes evidence of one run and remembers what it proves. `find_boot` gives the id of the boot that it
    carries, and None while that is not known: it is asked when the guest has said something."""

    def __init__(self, run: str, find_boot: Callable[[], str | None], notes: BootNotes | None = None) -> None:
        notes = notes or BootNotes(run)
        self.run = run
        self._find_boot = find_boot
        self._boot = notes.boot
        # it has said something: until then a guest that does not go on from its template may be replaced by
        # one that boots
        self._is_heard = bool(notes.markers or notes.stages)
        self.exit = notes.exit
        self.headers = notes.headers
        self._markers = set(notes.markers)
        self._moments = dict(notes.moments)
        self._stages = {stage.name: stage for stage in notes.stages}
        self.emergency = notes.emergency
        self._shutdown = notes.shutdown
        self.waiting = notes.waiting
        self.unhealthy = notes.unhealthy
        self._booted_at = notes.booted_at

    @property
    def boot(self) -> str | None:
        """The id of the boot that the run carries; None while it is not known."""
        if self._boot is None or not self._is_heard:
            self._boot = self._find_boot() or self._boot
        return self._boot

    def take_line(self, line: bytes, at: float) -> bool:
        """A console line that was seen at `at` (CLOCK_MONOTONIC). True: it told something new."""
        sentinel = parse_sentinel(line)
        if sentinel is None or sentinel.boot != self.boot:
            return False
        self._is_heard = True
        return self._take(sentinel, at)

    def _take(self, sentinel: Sentinel, at: float) -> bool:
        match sentinel:
            case ProgramStart():
                return self._mark(Marker.PROGRAM, Moment.PROGRAM_STARTED, at)
            case AgentReady():
                return self.take_agent(at)
            case Ready():
                return self._mark(Marker.READY, Moment.READY, at)
            case Waiting(reason=reason) if Marker.READY not in self._markers:
                changed = self.waiting != reason
                self.waiting = reason
                return changed
            case Exit():
                # the last report of the boot wins
                changed = self.exit != sentinel
                self.exit = sentinel
                return changed
            case HeadersStart():
                return self._take_headers(HeadersStatus(HeadersState.RUNNING))
            case HeadersReady():
                return self._take_headers(HeadersStatus(HeadersState.READY))
            case HeadersFailed():
                return self._take_headers(HeadersStatus(HeadersState.FAILED, sentinel.error))
            case Emergency(state=state):
                changed = self.emergency != (state is EmergencyState.ENTERED)
                self.emergency = state is EmergencyState.ENTERED
                return changed
            case Stage() if sentinel.name not in self._stages and len(self._stages) < _MAX_STAGES:
                self._stages[sentinel.name] = sentinel
                return True
            case _:
                return False

    def _take_headers(self, status: HeadersStatus) -> bool:
        changed = self.headers != status and not self.headers.state.is_settled
        if changed:
            self.headers = status
        return changed

    def take_agent(self, at: float) -> bool:
        """The agent has shown itself, by its marker or by its HELLO."""
        self._is_heard = True
        return self._mark(Marker.AGENT, Moment.AGENT_READY, at)

    def resume(self, saved: BootNotes, booted_at: float | None) -> None:
        """The boot goes on that was saved with these notes. Its VM was Running, whatever a daemon has noted
        of that: all was there, but for its agent, which has to be heard again."""
        self._is_heard = True
        self._markers |= frozenset(Marker) - {Marker.AGENT}
        self._stages = {stage.name: stage for stage in saved.stages}
        self.headers, self.emergency = saved.headers, saved.emergency
        self._booted_at = booted_at

    def take_shutdown(self, reason: Shutdown | None) -> None:
        """The VMM has said that it ends, and why. It ends once: the first reason counts."""
        self._shutdown = self._shutdown or reason

    def _mark(self, marker: Marker, moment: Moment, at: float) -> bool:
        if marker in self._markers:
            return False
        self._markers.add(marker)
        self.set_moment(moment, at)
        return True

    def set_moment(self, moment: Moment, at: float) -> None:
        """Note a point in time; the first one stays."""
        self._moments.setdefault(moment, at)

    @property
    def markers(self) -> frozenset[Marker]:
        """Those that were seen."""
        return frozenset(self._markers)

    def has(self, marker: Marker) -> bool:
        """Was it seen?"""
        return marker in self._markers

    def is_ready(self, *, guest_agent: bool, ready: bool = False) -> bool:
        """Is all there that Running needs? `ready`: that of the definition's check too."""
        return not list_missing(self._markers, guest_agent=guest_agent, ready=ready)

    @property
    def has_stages(self) -> bool:
        """Has the guest reported all stages of its boot?"""
        return any(name in self._stages for name in _LAST_STAGES)

    @property
    def notes(self) -> BootNotes:
        """What is known now."""
        return BootNotes(
            self.run,
            self._boot,
            self.markers,
            self.exit,
            dict(self._moments),
            tuple(self._stages.values()),
            self.headers,
            self.emergency,
            self._shutdown,
            self.waiting,
            self.unhealthy,
            self._booted_at,
        )


def notes_to_json(notes: BootNotes) -> dict[str, Any]:
    """The notes as a JSON document, for `parse_notes`."""
    return {
        "run": notes.run,
        "boot": notes.boot,
        "markers": sorted(notes.markers),
        "exit": None if notes.exit is None else [notes.exit.code, notes.exit.message],
        "moments": notes.moments,
        "stages": [[stage.name, stage.start, stage.end] for stage in notes.stages],
        "headers": [notes.headers.state, notes.headers.error],
        "emergency": notes.emergency,
        "shutdown": notes.shutdown,
        "waiting": notes.waiting,
        "unhealthy": notes.unhealthy,
        "booted_at": notes.booted_at,
    }


def store_notes(path: Path, notes: BootNotes) -> None:
    """Write the notes to their file. Blocks; OSError."""
    store_record(path, notes_to_json(notes))


def load_notes(path: Path, run: str | None = None) -> BootNotes | None:
    """Notes from their file; None when there are none, they are broken, or of another run."""
    try:
        notes = load_record(path, parse_notes, limit=_MAX_FILE)
    except (OSError, BadRecord):
        return None
    return notes if run in (None, notes.run) else None


def parse_notes(document: Any) -> BootNotes:
    """The opposite of `notes_to_json`. Raises as `load_record` says."""
    boot = document["boot"]
    if not isinstance(document["run"], str) or not isinstance(boot, str | None):
        raise ValueError("an id is not a string")
    return BootNotes(
        run=document["run"],
        boot=boot,
        markers=frozenset(Marker(word) for word in document["markers"]),
        exit=None if document["exit"] is None else Exit(boot or "", *document["exit"]),
        moments={Moment(word): float(at) for word, at in document["moments"].items()},
        stages=tuple(Stage(boot or "", *stage) for stage in document["stages"]),
        headers=_load_headers(*document.get("headers", (HeadersState.PENDING, None))),
        emergency=bool(document.get("emergency", False)),
        shutdown=Shutdown(word) if (word := document.get("shutdown")) else None,
        waiting=None if (words := document.get("waiting")) is None else str(words),
        unhealthy=None if (words := document.get("unhealthy")) is None else str(words),
        booted_at=None if (at := document.get("booted_at")) is None else float(at),
    )


def _load_headers(state: str, error: str | None) -> HeadersStatus:
    return HeadersStatus(HeadersState(state), error)
