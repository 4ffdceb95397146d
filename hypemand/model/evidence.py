# SPDX-License-Identifier: Apache-2.0
"""From evidence to the state of a VM, which is derived and never stored.

Everything here is pure and total: every combination of evidence has a state. The evidence is what systemd
says of the unit, what the VMM says of itself, which markers of this boot were seen, and whether a snapshot is
on the disk.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum, auto

from hypemand.model.state import State


class UnitEvidence(StrEnum):
    """ActiveState of the VM's unit in systemd's words, and three cases in which systemd gives none.

    The words are all that `systemctl --state=help` lists with systemd 252 and 257; `refreshing` is of 257
    alone.
    """

    ACTIVE = "active"
    RELOADING = "reloading"
    REFRESHING = "refreshing"
    INACTIVE = "inactive"
    FAILED = "failed"
    ACTIVATING = "activating"
    DEACTIVATING = "deactivating"
    MAINTENANCE = "maintenance"
    NO_UNIT = "no-unit"
    NO_ANSWER = "no-answer"
    UNRECOGNISED = "unrecognised"

    @classmethod
    def from_active_state(cls, word: str | None) -> UnitEvidence:
        """What `ActiveState` says; None: there is no such unit. NO_ANSWER is for the caller to use."""
        if word is None:
            return cls.NO_UNIT
        return _UNIT_WORDS.get(word, cls.UNRECOGNISED)

    @property
    def is_live(self) -> bool:
        """Does the unit hold processes, or may it, or is it about to (auto-restart is `activating`)? What is
        not known counts as live, so that nothing is given away that a VMM may have."""
        return self not in _GONE_UNITS


_UNIT_WORDS = {
    u.value: u
    for u in UnitEvidence
    if u not in (UnitEvidence.NO_UNIT, UnitEvidence.NO_ANSWER, UnitEvidence.UNRECOGNISED)
}
# `maintenance` is systemd cleaning the directories of a unit that has ended (systemctl clean).
_GONE_UNITS = frozenset(
    {UnitEvidence.NO_UNIT, UnitEvidence.INACTIVE, UnitEvidence.FAILED, UnitEvidence.MAINTENANCE}
)


class RunState(Enum):
    """The run state that the VMM reports, as its driver has it (hypemand/vmm), and four cases in which there
    is none.

    NOT_STARTED: the guest's CPUs have not run yet. PAUSED: they were stopped on request. HALTED: they stand
    still for another reason that is no fault, such as a save. IO_ERROR, WATCHDOG, PANICKED, INTERNAL_ERROR:
    see `_RUN_ERRORS`. SHUTDOWN: the guest has ended.

    AWAITED: the control socket has not been connected to yet, in the first 10 s of a look at the run. ABSENT:
    nothing has listened there for so long (the VMM has not made it, or has gone). NO_ANSWER: something
    listens and has not answered for 10 s (boot.session).
    """

    NOT_STARTED = auto()
    RUNNING = auto()
    PAUSED = auto()
    HALTED = auto()
    IO_ERROR = auto()
    WATCHDOG = auto()
    SHUTDOWN = auto()
    PANICKED = auto()
    INTERNAL_ERROR = auto()
    AWAITED = auto()
    ABSENT = auto()
    NO_ANSWER = auto()
    UNRECOGNISED = auto()

    @property
    def is_halted(self) -> bool:
        """Does the guest stand still, to go on later?"""
        return self in _HALTED


_HALTED = frozenset({RunState.PAUSED, RunState.HALTED, RunState.IO_ERROR, RunState.WATCHDOG})
_ENDED = frozenset({RunState.SHUTDOWN, RunState.PANICKED, RunState.INTERNAL_ERROR})

# Why the guest does not run, where nobody has asked for that. Shown beside the state.
_RUN_ERRORS = {
    RunState.IO_ERROR: "the VMM stopped the guest because a disk could not be written",
    RunState.WATCHDOG: "the VMM stopped the guest because its watchdog expired",
    RunState.PANICKED: "the guest's kernel has panicked",
    RunState.INTERNAL_ERROR: "the VMM had an internal error and cannot run the guest on",
}


# in the text of one that waits for units
_MAX_UNITS = 3
EMERGENCY = "the guest's systemd is in emergency mode"


class Marker(StrEnum):
    """What must have been seen of a boot before the VM is usable."""

    PROGRAM = "program"
    AGENT = "agent"
    READY = "ready"


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of a VM at one moment. The markers are those of this boot only. `ready`: the definition
    has a check, whose marker is needed too. `emergency`: the guest's systemd has said that it is in emergency
    mode. `full`: which disk could not be written since its file
    system is full, and what lets the guest go on, in words; of RunState.IO_ERROR."""

    unit: UnitEvidence
    vmm: RunState = RunState.ABSENT
    markers: frozenset[Marker] = frozenset()
    guest_agent: bool = True
    ready: bool = False
    has_snapshot: bool = False
    emergency: bool = False
    full: str | None = None


@dataclass(frozen=True, slots=True)
class Derived:
    """The state, what is wrong (always said in Unknown), and the markers that are still missing.

    `missing` is empty where no guest boots. `stopping`: systemd is ending the unit. `vmm_absent`: the VMM
    does not listen yet. `requested`: it is Paused because somebody asked for that.
    """

    state: State
    state_error: str | None = None
    missing: tuple[Marker, ...] = ()
    stopping: bool = False
    vmm_absent: bool = False
    requested: bool = False


def list_missing(seen: Collection[Marker], *, guest_agent: bool, ready: bool) -> tuple[Marker, ...]:
    """The markers that Running needs and that were not seen; none are missing: the boot is ready.
    `guest_agent`, `ready`: are those of the agent and of the definition's check needed?"""
    needed = {Marker.PROGRAM: True, Marker.AGENT: guest_agent, Marker.READY: ready}
    return tuple(marker for marker, is_needed in needed.items() if is_needed and marker not in seen)


def _list_missing(evidence: Evidence) -> tuple[Marker, ...]:
    return list_missing(evidence.markers, guest_agent=evidence.guest_agent, ready=evidence.ready)


def _derive_error(evidence: Evidence) -> str | None:
    """Why the guest does not run, where nobody has asked for that."""
    if evidence.vmm is RunState.IO_ERROR and evidence.full is not None:
        return evidence.full
    return _RUN_ERRORS.get(evidence.vmm)


def derive_state(evidence: Evidence) -> Derived:
    """The state that the evidence proves. Total and pure.

    A deactivating unit is Shutdown whatever the VMM says: the guest was asked to end and is not usable any
    more, and a VMM on its way out often does not answer, which is no reason for Unknown.
    """
    unit = evidence.unit
    if unit is UnitEvidence.NO_ANSWER:
        return Derived(State.UNKNOWN, "systemd does not answer on D-Bus")
    if unit is UnitEvidence.UNRECOGNISED:
        return Derived(State.UNKNOWN, "systemd reports a unit state that is not known here")
    if not unit.is_live:
        return Derived(State.STANDBY if evidence.has_snapshot else State.STOPPED)
    if unit is UnitEvidence.DEACTIVATING:
        return Derived(State.SHUTDOWN, _derive_error(evidence), stopping=True)
    return _derive_live(evidence)


def _derive_live(evidence: Evidence) -> Derived:
    """The state while the unit is activating or active: the VMM decides, then the markers."""
    vmm = evidence.vmm
    activating = evidence.unit is UnitEvidence.ACTIVATING
    if vmm in (RunState.ABSENT, RunState.AWAITED) and activating:
        # The VMM is being started, or systemd waits to start it again: not a fault. The guest's CPUs go
        # with the VMM, so this is the beginning of Initializing and not Created.
        return Derived(
            State.INITIALIZING,
            missing=_list_missing(evidence),
            vmm_absent=True,
        )
    if vmm is RunState.ABSENT:
        return Derived(State.UNKNOWN, "nothing listens on the VMM's QMP socket")
    if vmm is RunState.NO_ANSWER:
        return Derived(State.UNKNOWN, "the VMM does not answer on its QMP socket")
    if vmm is RunState.UNRECOGNISED:
        return Derived(State.UNKNOWN, "the VMM reports a run state that is not known here")
    if vmm in _ENDED:
        return Derived(State.SHUTDOWN, _RUN_ERRORS.get(vmm))
    missing = _list_missing(evidence)
    if vmm is RunState.NOT_STARTED:
        return Derived(State.CREATED, missing=missing)
    if vmm in _HALTED and not activating:
        requested = vmm is RunState.PAUSED
        return Derived(State.PAUSED, _derive_error(evidence), missing, requested=requested)
    emergency = EMERGENCY if evidence.emergency else None
    # AWAITED: the unit is active since READY=1 was sent for it, and until the VMM answers that is what counts
    if activating or missing:
        return Derived(State.INITIALIZING, _derive_error(evidence) or emergency, missing)
    return Derived(State.RUNNING, emergency)


def derive_status_text(
    derived: Derived,
    *,
    guest_agent: bool = True,
    check: str = "",
    ready_ms: float | None = None,
    result: str | None = None,
    restart: str = "",
    waits_for: Sequence[str] = (),
    saving: bool = False,
) -> str:
    """One line for STATUS= and for lists: the state, and what it waits for or how it came about.

    `check`: the definition's readiness check in words, and why it has not succeeded; `ready_ms` is the time
    from request to Running, `result` words on how the last run ended; `restart`: on systemd's
    restart of it, or its end; `waits_for`: the units that systemd starts first; `saving`: it stands still
    for that.
    """
    if derived.state is State.STOPPED:
        result = restart or result
    detail = _status_detail(derived, guest_agent, ready_ms, result)
    if derived.state is State.INITIALIZING:
        if waits_for and derived.vmm_absent:
            detail = f"waiting for {_list_units(waits_for)}"
        elif derived.missing == (Marker.READY,) and derived.state_error is None and not derived.vmm_absent:
            detail = f"program started, waiting for {check}"
    if saving and derived.requested:
        detail = "while its memory is being saved"
    if restart and derived.state in (State.CREATED, State.INITIALIZING):
        detail = f"{detail} ({restart})"
    return f"{derived.state}: {detail}" if detail else str(derived.state)


def _list_units(units: Sequence[str]) -> str:
    names = [unit.removesuffix(".service") for unit in units]
    more = [f"{len(names) - _MAX_UNITS} more"] if len(names) > _MAX_UNITS else []
    return ", ".join([*names[:_MAX_UNITS], *more])


def describe_check(check: str, waiting: str | None) -> str:
    """What is waited for, and why it has not come so far where the guest has said that."""
    return f"{check} ({waiting})" if waiting else check


def _status_detail(
    derived: Derived, guest_agent: bool, ready_ms: float | None, result: str | None
) -> str | None:
    if derived.state_error is not None:
        return derived.state_error
    match derived.state:
        case State.CREATED:
            return "VMM up, guest not started"
        case State.INITIALIZING if derived.vmm_absent:
            return "starting the VMM"
        case State.INITIALIZING:
            return _waits_for(derived.missing, guest_agent)
        case State.RUNNING:
            return None if ready_ms is None else f"ready in {ready_ms:.0f} ms"
        case State.SHUTDOWN:
            return "stopping" if derived.stopping else "guest has shut down, VMM still there"
        case State.STOPPED:
            return result
        case State.STANDBY:
            return "can be restored"
        case State.PAUSED if derived.requested:
            return "on request, until hypemanctl resume"
        case State.PAUSED | State.UNKNOWN:
            return None


def _waits_for(missing: tuple[Marker, ...], guest_agent: bool) -> str:
    match tuple(marker for marker in missing if marker is not Marker.READY):
        case (Marker.PROGRAM, Marker.AGENT):
            return "kernel up, waiting for agent and program"
        case (Marker.AGENT,):
            return "program started, waiting for agent"
        case (Marker.PROGRAM,):
            return f"{'agent ready' if guest_agent else 'kernel up'}, waiting for program"
        case _:
            return "guest ready, waiting for systemd"
