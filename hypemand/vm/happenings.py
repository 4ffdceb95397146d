# SPDX-License-Identifier: Apache-2.0
"""Events of one VM, from what its unit and its guest have shown. Each is sent once."""

from __future__ import annotations

from collections.abc import Callable

from hypemand.errors import (
    AlreadyExists,
    HostNotReady,
    HypemandError,
    ImageNotReady,
    InsufficientResources,
    InUse,
    InvalidDefinition,
    NotFound,
    WrongState,
)
from hypemand.model.events import (
    Details,
    Exit,
    Failure,
    FailureReason,
    Ready,
    Restart,
    Start,
    StartKind,
    StateChange,
)
from hypemand.model.evidence import Derived
from hypemand.model.exits import ExitKind
from hypemand.model.state import State
from hypemand.systemd.log import log_state_change
from hypemand.vm.exitrecord import ExitRecord
from hypemand.vm.record import VmRecord
from hypemand.vm.runs import Runs
from hypemand.vm.tracker import BootNotes, Moment

_REFUSALS: tuple[tuple[type[HypemandError], FailureReason], ...] = (
    (ImageNotReady, FailureReason.IMAGE),
    (NotFound, FailureReason.IMAGE),
    (InsufficientResources, FailureReason.RESOURCES),
    (InUse, FailureReason.IN_USE),
    (AlreadyExists, FailureReason.IN_USE),
    (HostNotReady, FailureReason.HOST),
    (InvalidDefinition, FailureReason.DEFINITION),
    (WrongState, FailureReason.CANCELLED),
)
_ENDS = {
    ExitKind.BOOT_TIMEOUT: FailureReason.BOOT_TIMEOUT,
    ExitKind.PANIC: FailureReason.PANIC,
    ExitKind.FAILURE: FailureReason.EXITED,
    ExitKind.MEMORY: FailureReason.VMM,
    ExitKind.VMM: FailureReason.VMM,
}
_WORDS = {
    StartKind.REQUEST: "started on request",
    StartKind.RESTART: "restarted on request",
    StartKind.RESTORE: "restored",
    StartKind.AUTOSTART: "started automatically",
    StartKind.REBOOT: "started again: the guest has rebooted",
    StartKind.SYSTEMD: "started by systemd",
    StartKind.UNKNOWN: "started",
}


def derive_refusal(error: HypemandError) -> FailureReason:
    """Why a VM was not started."""
    found = (reason for kind, reason in _REFUSALS if isinstance(error, kind))
    return next(found, FailureReason.INTERNAL)


def log_change(record: VmRecord, old: State, derived: Derived, text: str, end: ExitRecord | None) -> None:
    """Log the state of a VM, which was `old`, and how a run has ended if it is that which has changed it."""
    fields = {}
    if end is not None:
        fields = {"HYPEMAN_EXIT_MESSAGE": end.message, "HYPEMAN_EXIT_RUN": end.run}
        if end.code is not None:
            fields["HYPEMAN_EXIT_CODE"] = str(end.code)
    log_state_change(record.name, record.id, old, derived.state, text, derived.state_error, **fields)


class Happenings:
    """`tell` is called with each event and its words."""

    def __init__(self, tell: Callable[[Details, str], None]) -> None:
        self._tell = tell
        # runs: that were seen last, whose begin and end was told, and that have been Running
        self._seen: str | None = None
        self._begun: str | None = None
        self._ended: str | None = None
        self._ready: str | None = None

    def take(self, end: ExitRecord | None, old: State, derived: Derived, text: str, runs: Runs) -> None:
        """It was evaluated: a run may have ended, its state may be another one, which `text` describes, and a
        run may have begun."""
        end = end or self._find_replaced(runs)
        if end is not None and end.run != self._ended:
            self._take_end(end)
        if derived.state is not old:
            self._tell(StateChange(old, derived.state, derived.state_error), text)
        self._take_run(runs)

    def _find_replaced(self, runs: Runs) -> ExitRecord | None:
        """The run that was on, where another one is now, and nothing between both was seen."""
        last = next(iter(runs.ended), None)
        return last if last is not None and last.run == self._seen and runs.is_other(last.run) else None

    def _take_run(self, runs: Runs) -> None:
        if runs.session is not None:
            self._seen = runs.session.run
        run = runs.began
        if run is None or run == self._begun:
            return
        self._begun = run
        if runs.start is not StartKind.RESTARTED:
            self._tell(Start(runs.start, run), _WORDS[runs.start])
            return
        last = runs.last_end
        reason = None if last is None else last.message
        words = f"restarted by systemd, {runs.restarts}. time{'' if reason is None else f': {reason}'}"
        self._tell(Restart(runs.restarts, reason, run), words)

    def take_ready(self, start: StartKind, notes: BootNotes) -> None:
        """It has become Running."""
        self._ready = notes.run
        ready = None if notes.ready_ms is None else notes.ready_ms / 1000
        began, running = (notes.moments.get(key) for key in (Moment.VMM_STARTED, Moment.RUNNING))
        initializing = None if began is None or running is None else max(running - began, 0.0)
        took = "" if ready is None else f" after {ready:.2f} s"
        self._tell(Ready(start, notes.run, ready, initializing), f"Running{took}")

    def _take_end(self, end: ExitRecord) -> None:
        self._ended = end.run
        self._tell(Exit(end.kind, end.code, end.success, end.run), end.message)
        if end.success or end.ready_ms is not None or end.run == self._ready:
            return
        reason = _ENDS.get(end.kind, FailureReason.OTHER)
        self._tell(Failure(reason, end.marker, end.run), f"has not become Running: {end.message}")
