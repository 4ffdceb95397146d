# SPDX-License-Identifier: Apache-2.0
"""A VM at one moment, and how a run of it ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hypemand.config.definition import Definition
from hypemand.model.compression import CompressionView
from hypemand.model.health import HealthStatus
from hypemand.model.networks import VmNetwork
from hypemand.model.state import HeadersStatus, Operation, Origin, RestartBlock, State


@dataclass(frozen=True, slots=True)
class ExitReport:
    """How a run ended. `code` as in docs/protocol.md; None where nobody could tell. `success` of a VM's run:
    whether that counts as a success, as it does when it was asked to end; None for a command's."""

    code: int | None
    message: str
    success: bool | None = None


@dataclass(frozen=True, slots=True)
class RestartStatus:
    """Restarts that systemd has made by itself since a VM was started. `last_attempt_at`: the last of them,
    in seconds since the epoch; `last_reason`: how the run before ended; `text`: one line, for display;
    `next_attempt_at`: of one that waits for its next start, where that is known."""

    attempts: int
    last_attempt_at: float | None
    blocked_reason: RestartBlock | None
    last_reason: str | None
    text: str
    next_attempt_at: float | None = None


@dataclass(frozen=True, slots=True)
class Program:
    """What a VM is started with instead; None: as it is defined."""

    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class RunReport:
    """A run of a VM: from the start of its VMM to the end, in seconds since the epoch. None: not yet, or not
    known. `ready_ms`: until it was Running; `exit` None: it is on."""

    run: str
    started_at: float | None
    ready_ms: float | None
    ended_at: float | None
    exit: ExitReport | None


@dataclass(frozen=True, slots=True)
class OngoingOperation:
    """An operation on a VM that is under way. `owner`: who has asked for it, in words; `since`: seconds since
    the epoch."""

    name: Operation
    owner: str
    since: float

    def describe(self, now: float) -> str:
        """In words. `now`: seconds since the epoch."""
        return f"{self.name.progressive} since {max(now - self.since, 0):.0f} s, by {self.owner}"


@dataclass(frozen=True, slots=True)
class SavedView:
    """What a VM in Standby goes on from. `saved_at`: seconds since the epoch; `size`: bytes that it takes on
    the disk; both None if it cannot be read. `problem`: why it cannot be restored, where that is known;
    `compression`: of its memory."""

    saved_at: float | None
    size: int | None
    problem: str | None = None
    compression: CompressionView = field(default_factory=CompressionView)


@dataclass(frozen=True, slots=True)
class VmView:
    """A VM at one moment. Times are seconds since the epoch, durations milliseconds. `cpu_seconds`: what the
    VMM has used of the host's CPUs in this run; `kernel_headers` None: it does not run, or gets none;
    `network` None: it has none; `operation`: what is being done with it at this moment; `restart` None:
    systemd does not restart it. `running`: the definition that it was started with, if it runs and that is
    known; `changes`: what of its definition that does not have, in words; `needs_reload`: its file is not the
    one that was loaded; `definition_file` None: it has none; `expires_at` None: it does not expire; `saved`:
    of a VM in Standby."""

    id: str
    name: str
    origin: Origin
    definition: Definition
    state: State
    state_error: str | None
    status_text: str
    created_at: float
    started_at: float | None
    stopped_at: float | None
    ready_ms: float | None
    exit: ExitReport | None
    needs_restart: bool
    removed_from_config: bool
    unit: str
    invocation_id: str | None
    boot_id: str | None
    main_pid: int | None
    uid: int
    memory_current: int | None
    current_phase_since: float
    phase_durations_ms: Mapping[str, int]
    cpu_seconds: float | None = None
    kernel_headers: HeadersStatus | None = None
    network: VmNetwork | None = None
    operation: OngoingOperation | None = None
    restart: RestartStatus | None = None
    running: Definition | None = None
    changes: tuple[str, ...] = ()
    needs_reload: bool = False
    definition_file: str | None = None
    expires_at: float | None = None
    health: HealthStatus = field(default_factory=HealthStatus)
    saved: SavedView | None = None

    @property
    def effective(self) -> Definition:
        """What its guest has, or the next one would."""
        return self.running or self.definition
