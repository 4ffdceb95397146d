# SPDX-License-Identifier: Apache-2.0
"""The states of a VM, and what each allows. How a state is derived: `hypemand.model.evidence`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from hypemand.errors import WrongState


class State(StrEnum):
    """The states of a VM, spelled as users see them."""

    STOPPED = "Stopped"
    CREATED = "Created"
    INITIALIZING = "Initializing"
    RUNNING = "Running"
    PAUSED = "Paused"
    SHUTDOWN = "Shutdown"
    STANDBY = "Standby"
    UNKNOWN = "Unknown"

    @property
    def is_vmm_active(self) -> bool:
        """Does a VMM hold its TAP, address, volumes and memory, or must that be assumed?

        Unknown counts: it is derived only where the unit lives or where systemd cannot be asked, and to
        release something that is still in use does more harm than to hold it a while longer.
        """
        return self not in (State.STOPPED, State.STANDBY)


class Origin(StrEnum):
    """Who made the VM: a file in vms.d, a request to the API, or the daemon for work on a volume; such a VM
    does not outlive the daemon."""

    FILE = "file"
    API = "api"
    HELPER = "helper"


class FromStandby(StrEnum):
    """What a start does with a VM in Standby: refuse it, have it go on, or boot it and forget what was
    saved."""

    REFUSE = "refuse"
    RESTORE = "restore"
    COLD = "cold"


class HeadersState(StrEnum):
    """How far the guest is with its kernel's headers, in the words of its status file."""

    PENDING = "pending"
    RUNNING = "running"
    READY = "ready"
    FAILED = "failed"

    @property
    def is_settled(self) -> bool:
        """Will it stay as it is?"""
        return self in (HeadersState.READY, HeadersState.FAILED)


@dataclass(frozen=True, slots=True)
class HeadersStatus:
    """The same with the guest's reason where it is FAILED."""

    state: HeadersState = HeadersState.PENDING
    error: str | None = None


class RestartBlock(StrEnum):
    """Why systemd does not restart a VM, whatever its policy says: it was stopped on request, or was started
    too often in the time of its start limit."""

    MANUAL = "manual_stop"
    LIMIT = "max_attempts_exceeded"


_ALL = frozenset(State)
_VMM_ACTIVE = frozenset(s for s in State if s.is_vmm_active)
_RUNNING = frozenset({State.RUNNING})


class Operation(StrEnum):
    """What can be asked of a VM, and in which states.

    Asking for what is already so (start in Running, stop in Stopped) is allowed and does nothing.
    """

    START = "start"
    STOP = "stop"
    RESTART = "restart"
    KILL = "kill"
    DELETE = "delete"
    EXEC = "exec"
    ATTACH = "attach"
    COPY = "copy"
    STAT = "stat"
    PAUSE = "pause"
    RESUME = "resume"
    LIMIT = "set"
    STANDBY = "standby"
    RESTORE = "restore"
    SNAPSHOT = "snapshot"
    FORK = "fork"
    REVERT = "revert"
    CHANGE = "change"
    EXPORT = "export"
    RENAME = "rename"

    @property
    def progressive(self) -> str:
        """The same while it is under way: "starting"."""
        return _PROGRESSIVES[self]

    @property
    def allowed_in(self) -> frozenset[State]:
        """The states in which it is allowed."""
        return _ALLOWED[self]


_ALLOWED = {
    Operation.START: frozenset({State.STOPPED, State.CREATED, State.INITIALIZING, State.RUNNING}),
    Operation.STOP: _VMM_ACTIVE | {State.STOPPED},
    Operation.RESTART: _VMM_ACTIVE | {State.STOPPED},
    Operation.KILL: _VMM_ACTIVE,
    Operation.DELETE: _ALL,
    Operation.EXEC: _RUNNING,
    Operation.ATTACH: _RUNNING,
    Operation.COPY: _RUNNING,
    Operation.STAT: _RUNNING,
    Operation.PAUSE: _RUNNING,
    Operation.RESUME: frozenset({State.PAUSED}),
    Operation.LIMIT: frozenset({State.INITIALIZING, State.RUNNING, State.PAUSED}),
    Operation.STANDBY: frozenset({State.RUNNING, State.PAUSED, State.STANDBY}),
    Operation.RESTORE: frozenset({State.STANDBY, State.CREATED, State.INITIALIZING, State.RUNNING}),
    Operation.SNAPSHOT: frozenset({State.RUNNING, State.STANDBY, State.STOPPED}),
    Operation.FORK: frozenset({State.RUNNING, State.STANDBY, State.STOPPED}),
    Operation.REVERT: frozenset({State.STANDBY, State.STOPPED}),
    Operation.CHANGE: frozenset({State.STOPPED}),
    Operation.EXPORT: frozenset({State.STOPPED}),
    Operation.RENAME: frozenset({State.STOPPED}),
}
_PROGRESSIVES = {
    Operation.START: "starting",
    Operation.STOP: "stopping",
    Operation.RESTART: "restarting",
    Operation.KILL: "being killed",
    Operation.DELETE: "being deleted",
    Operation.EXEC: "executing a command",
    Operation.ATTACH: "attaching",
    Operation.COPY: "copying files",
    Operation.STAT: "reading file information",
    Operation.PAUSE: "pausing",
    Operation.RESUME: "resuming",
    Operation.LIMIT: "changing limits",
    Operation.STANDBY: "entering standby",
    Operation.RESTORE: "being restored",
    Operation.SNAPSHOT: "being copied to a snapshot",
    Operation.FORK: "being forked",
    Operation.REVERT: "being restored from a snapshot",
    Operation.CHANGE: "being changed",
    Operation.EXPORT: "being exported",
    Operation.RENAME: "being renamed",
}

# What gets a VM out of a state in which something is refused.
_CURES = {
    State.STOPPED: "start it first",
    State.CREATED: "wait until it is Running",
    State.INITIALIZING: "wait until it is Running",
    State.RUNNING: "there is nothing to do",
    State.PAUSED: "resume it first: hypemanctl resume",
    State.SHUTDOWN: "wait until it has stopped, then start it",
    State.STANDBY: "restore it first: hypemanctl restore",
    State.UNKNOWN: "see its state error; stop it and start it again if that does not pass",
}
_SPECIAL_CURES = {
    **{(Operation.RENAME, state): "stop it first: its unit has the name of the VM" for state in _VMM_ACTIVE},
    (Operation.EXPORT, State.RUNNING): "stop it first: its disk is consistent then",
    (Operation.KILL, State.STOPPED): "there is nothing to kill",
    (Operation.KILL, State.STANDBY): "there is nothing to kill",
    (Operation.RESTORE, State.STOPPED): "it has no snapshot; start it instead",
    (Operation.LIMIT, State.STOPPED): "change its definition instead",
    (Operation.RESUME, State.CREATED): "it is starting already",
    (Operation.RESUME, State.INITIALIZING): "it is starting already",
    (
        Operation.START,
        State.STANDBY,
    ): "restore it: hypemanctl restore; or boot it anew: hypemanctl start --cold",
    (Operation.RESTORE, State.PAUSED): "resume it instead",
    (Operation.REVERT, State.RUNNING): "stop it first; its disk, and what it has in memory, are replaced",
    (Operation.PAUSE, State.PAUSED): "it is paused already",
}


def check_allowed(
    operation: Operation, state: State, name: str, error: str | None = None, *, ongoing: str = ""
) -> None:
    """Raise WrongState, with the operation, the state and the cure in words, where it is not allowed.
    `error`: the VM's state_error, which says why it is Paused where nobody has asked for that; `ongoing`: the
    operation that is under way, in words."""
    if state in operation.allowed_in:
        return
    hint = _SPECIAL_CURES.get((operation, state), _CURES[state])
    if ongoing and state is State.PAUSED:
        hint = "wait until that is over"
    wanted = " or ".join(str(s) for s in State if s in operation.allowed_in)
    why = f": {error}" if error is not None and state is State.PAUSED else ""
    busy = f" ({ongoing})" if ongoing else ""
    raise WrongState(f"{operation} needs state {wanted}, and {name} is {state}{why}{busy}", hint=hint)
