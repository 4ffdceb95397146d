# SPDX-License-Identifier: Apache-2.0
"""What a VM's unit and its session prove, and where the record of a boot begins. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hypemand.model.evidence import Evidence, Marker, UnitEvidence
from hypemand.systemd.units import UnitStatus
from hypemand.vm.fulldrives import describe_full
from hypemand.vm.runrecord import find_boot_id
from hypemand.vm.session import Session
from hypemand.vm.tracker import BootNotes, BootTracker, Moment


def derive_evidence(
    unit: UnitStatus,
    session: Session | None,
    *,
    bus_up: bool,
    guest_agent: bool,
    ready: bool,
    has_snapshot: bool = False,
) -> Evidence:
    """What the state is derived from. `bus_up`: systemd has answered; `has_snapshot`: it can go on from what
    was saved of it."""
    if not bus_up:
        return Evidence(UnitEvidence.NO_ANSWER)
    state = UnitEvidence.from_active_state(unit.active_state)
    if session is None:
        return Evidence(state, has_snapshot=has_snapshot)
    # READY=1 was sent for this invocation, by us or by the daemon before us: all markers were there
    seen = frozenset(Marker) if state is UnitEvidence.ACTIVE else session.tracker.markers
    return Evidence(
        state,
        session.run_state,
        seen,
        guest_agent=guest_agent,
        ready=ready,
        emergency=session.tracker.emergency,
        full=describe_full(session.full),
    )


def derive_start(unit: UnitStatus, notes: BootNotes | None) -> float | None:
    """When its run has begun, in seconds since the epoch. systemd begins to count anew with another main
    process (guest/console/candidate.h): `notes` of the run, from before that, have it."""
    first = None if notes is None else notes.moments.get(Moment.VMM_STARTED)
    if first is None or unit.started_at is None or unit.start_monotonic is None:
        return unit.started_at
    return unit.started_at - max(unit.start_monotonic - first, 0.0)


def make_tracker(
    run: str,
    runtime: Path,
    unit: UnitStatus,
    known: BootNotes | None,
    requested: Mapping[Moment, float],
) -> BootTracker:
    """A tracker for a run that is on: what is `known` of it already, and the moments of its request."""
    tracker = BootTracker(run, lambda: find_boot_id(runtime, run), known)
    if not requested and known is None and unit.start_monotonic is not None:
        # systemd started it alone: the request is the start itself
        tracker.set_moment(Moment.REQUESTED, unit.start_monotonic)
    for moment, at in requested.items():
        tracker.set_moment(moment, at)
    if unit.start_monotonic is not None:
        tracker.set_moment(Moment.VMM_STARTED, unit.start_monotonic)
    return tracker
