# SPDX-License-Identifier: Apache-2.0
"""Derives the facts of a timeline from the record of a boot."""

from __future__ import annotations

from hypemand.model.evidence import Marker
from hypemand.vm.timeline import BootFacts
from hypemand.vm.tracker import BootNotes, Moment


def boot_facts(vm: str, notes: BootNotes) -> BootFacts:
    """Needs Moment.REQUESTED among the notes (KeyError)."""
    at = notes.moments.get
    is_restored = Marker.PROGRAM in notes.markers and Moment.PROGRAM_STARTED not in notes.moments
    return BootFacts(
        vm=vm,
        boot=notes.boot or "unknown",
        requested=notes.moments[Moment.REQUESTED],
        unit_asked=at(Moment.PREPARED),
        unit_created=at(Moment.QUEUED),
        held=at(Moment.HELD),
        main_started=at(Moment.VMM_STARTED),
        program_seen=at(Moment.PROGRAM_STARTED),
        agent_seen=at(Moment.AGENT_READY),
        ready_seen=at(Moment.READY),
        running=at(Moment.RUNNING),
        # of a VM that was restored, the stages are those of the run in which it has booted
        stages=() if is_restored else notes.stages,
        is_restored=is_restored,
    )
