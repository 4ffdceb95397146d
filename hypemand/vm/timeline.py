# SPDX-License-Identifier: Apache-2.0
"""Where the time of a boot went: from facts to spans.

Pure. Host times are seconds of CLOCK_MONOTONIC; the guest's stages are seconds of its own CLOCK_BOOTTIME and
hostile: they are moved onto the host's clock by the moment at which PROGRAM-START came, and held within
what the host itself has seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hypemand.model.timeline import Lane, Span, Timeline
from hypemand.protocol.sentinels import Stage

MAX_STAGES = 256
_START = "unit start"
# the first stage of a warm start, whose guest has booted long ago; the clock of its stages begins there
_THAW = "thaw"
_STAGE_LANES = {"agent": Lane.AGENT, "program": Lane.PROGRAM}


@dataclass(frozen=True, slots=True)
class BootFacts:
    """What is known of one boot. Host times in CLOCK_MONOTONIC seconds; None: not known, or not yet.

    `unit_asked` and `unit_created` are before and after StartTransientUnit; `main_started` is the unit's
    ExecMainStartTimestampMonotonic, `held`: since when that has waited for other units; `cpus_started` when
    the guest's CPUs were set going where the VMM waits for that. `program_seen`, `agent_seen` and
    `ready_seen` are when the markers came (the agent's: sentinel or hello, the earlier; the last is that of
    the definition's check). `running`: when systemd was notified of readiness. `until`: the last moment that
    the guest can speak of (now, or when the unit ended); without it the latest of the others. `is_restored`:
    the guest has continued from where it was saved, until its agent answered."""

    vm: str
    boot: str
    requested: float
    unit_asked: float | None = None
    unit_created: float | None = None
    main_started: float | None = None
    cpus_started: float | None = None
    program_seen: float | None = None
    agent_seen: float | None = None
    ready_seen: float | None = None
    running: float | None = None
    until: float | None = None
    stages: tuple[Stage, ...] = ()
    held: float | None = None
    is_restored: bool = False


def derive_timeline(facts: BootFacts) -> Timeline:
    """The spans, by lane and start. Every span lies within the boot, and none ends before it starts."""
    spans = [*_host_spans(facts), *_guest_spans(facts)]
    order = list(Lane)
    spans.sort(key=lambda s: (s.start_ms, order.index(Lane(s.lane)), s.end_ms, s.name))
    running = None if facts.running is None else _to_ms(facts, facts.running)
    return Timeline(facts.vm, facts.boot, tuple(spans), running)


def _to_ms(facts: BootFacts, moment: float) -> float:
    return round(max(moment - facts.requested, 0.0) * 1000, 3)


def _span(facts: BootFacts, name: str, lane: Lane, start: float, end: float) -> Span:
    start_ms = _to_ms(facts, start)
    return Span(name, lane.value, start_ms, max(_to_ms(facts, end), start_ms))


def _host_spans(facts: BootFacts) -> Iterator[Span]:
    """What the host saw itself. A fact that is not known lengthens the span after it."""
    at = facts.requested
    steps = (
        ("prepare", Lane.HOST, facts.unit_asked),
        ("StartTransientUnit", Lane.HOST, facts.unit_created),
        (_START if facts.held is None else "wait for other units", Lane.UNIT, facts.main_started),
        ("VMM start", Lane.UNIT, facts.cpus_started),
    )
    for name, lane, end in steps:
        if end is None:
            continue
        # systemd may have started the VMM before its answer was read: then the two overlap.
        start = at if name != _START else min(at, facts.unit_asked or at)
        yield _span(facts, name, lane, start, end)
        at = max(at, end)
    markers = (facts.program_seen, facts.agent_seen, facts.ready_seen)
    seen = [moment for moment in markers if moment is not None]
    if facts.running is not None and seen:
        yield _span(facts, "tell systemd", Lane.HOST, max(seen), facts.running)


def _guest_spans(facts: BootFacts) -> Iterator[Span]:
    vmm_up = _latest(facts.requested, facts.main_started, facts.cpus_started)
    stages = facts.stages[:MAX_STAGES]
    if facts.is_restored and facts.agent_seen is not None:
        yield _span(facts, "restore", Lane.AGENT, min(vmm_up, facts.agent_seen), facts.agent_seen)
        return
    if facts.program_seen is None and not stages:
        return
    horizon = _latest(
        vmm_up, facts.program_seen, facts.agent_seen, facts.ready_seen, facts.running, facts.until
    )
    if not stages:
        yield _span(facts, "kernel and init", Lane.KERNEL, vmm_up, facts.program_seen or horizon)
    else:
        offset = _derive_offset(facts, vmm_up, horizon)
        first = _clamp(offset + min(stage.start for stage in stages), vmm_up, horizon)
        if facts.cpus_started is None:
            yield _span(facts, "VMM start", Lane.UNIT, vmm_up, offset)
        if all(stage.name != _THAW for stage in stages):
            yield _span(facts, "kernel", Lane.KERNEL, offset, first)
        for stage in stages:
            start = _clamp(offset + stage.start, vmm_up, horizon)
            lane = _STAGE_LANES.get(stage.name, Lane.INIT)
            yield _span(facts, stage.name, lane, start, _clamp(offset + stage.end, start, horizon))
    # Where init does not start the agent (systemd mode), it starts some time after the program.
    if facts.agent_seen is not None and all(stage.name != "agent" for stage in stages):
        started = facts.program_seen if facts.program_seen is not None else vmm_up
        yield _span(facts, "agent", Lane.AGENT, min(started, facts.agent_seen), facts.agent_seen)
    if facts.ready_seen is not None:
        started = facts.program_seen if facts.program_seen is not None else vmm_up
        yield _span(facts, "ready", Lane.PROGRAM, min(started, facts.ready_seen), facts.ready_seen)


def _derive_offset(facts: BootFacts, vmm_up: float, horizon: float) -> float:
    """The host's time at which the guest's clock was 0.

    The stage `program` ends where PROGRAM-START is written; without it, the last stage of all does. The
    guest's clock cannot have started before the VMM.
    """
    stages = facts.stages[:MAX_STAGES]
    written = max((s.end for s in stages if s.name == "program"), default=max(s.end for s in stages))
    seen = facts.program_seen if facts.program_seen is not None else horizon
    return _clamp(seen - written, vmm_up, max(seen, vmm_up))


def _clamp(value: float, low: float, high: float) -> float:
    return min(max(value, low), max(high, low))


def _latest(first: float, *others: float | None) -> float:
    return max([first, *(moment for moment in others if moment is not None)])
