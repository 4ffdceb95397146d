# SPDX-License-Identifier: Apache-2.0
"""What happens on the host, as events: each is of one kind, with values that belong to that kind.

To add a kind: a member of EventKind, and a dataclass whose `kind` is that. Its fields are the `details` of
the event in the API.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar, Protocol

from hypemand.errors import InvalidRequest
from hypemand.model.compression import CompressionState
from hypemand.model.exits import ExitKind
from hypemand.model.health import HealthState
from hypemand.model.images import PullStatus
from hypemand.model.state import State

_CURSOR = re.compile(r"([0-9a-f]{8})-([0-9]{1,15})")


class EventKind(StrEnum):
    """What has happened."""

    STATE = "state"
    START = "start"
    READY = "ready"
    FAILURE = "failure"
    EXIT = "exit"
    RESTART = "restart"
    HEALTH = "health"
    RENAME = "rename"
    PULL = "pull"
    SNAPSHOT = "snapshot"
    COMPRESSION = "compression"
    MISSED = "missed"


class StartKind(StrEnum):
    """What has started a VM. REQUEST: hypemanctl, the API, or hypeman@NAME.service, which uses them; RESTART:
    the same with a request to restart; RESTORE: with one to go on from Standby; AUTOSTART: its definition,
    when the host has booted or the file was read. RESTARTED: Restart= of its unit; REBOOT: the guest;
    SYSTEMD: systemd, by other requests, as `systemctl restart` of its unit. UNKNOWN: it began while no daemon
    was there."""

    REQUEST = "request"
    RESTART = "restart"
    RESTORE = "restore"
    AUTOSTART = "autostart"
    RESTARTED = "restarted"
    REBOOT = "reboot"
    SYSTEMD = "systemd"
    UNKNOWN = "unknown"


class FailureReason(StrEnum):
    """Why a VM did not become Running. Up to CANCELLED it was not started at all."""

    IMAGE = "image"
    RESOURCES = "resources"
    IN_USE = "in-use"
    HOST = "host"
    DEFINITION = "definition"
    CANCELLED = "cancelled"
    INTERNAL = "internal"
    BOOT_TIMEOUT = "boot-timeout"
    PANIC = "panic"
    EXITED = "exited"
    VMM = "vmm"
    OTHER = "other"


class SnapshotAction(StrEnum):
    """What became of a snapshot. FAILED: it was to be made, and could not be."""

    CREATED = "created"
    DELETED = "deleted"
    FAILED = "failed"


class SnapshotCause(StrEnum):
    """REQUEST: of a client; SCHEDULE: of its VM; EXPIRED: its lifetime is over; RETENTION: of the schedule
    that has made it."""

    REQUEST = "request"
    SCHEDULE = "schedule"
    EXPIRED = "expired"
    RETENTION = "retention"


class Details(Protocol):
    """The values of an event. Its kind is that of its class."""

    @property
    def kind(self) -> EventKind:
        """What has happened."""


@dataclass(frozen=True, slots=True)
class StateChange:
    """A VM was in the state `old`, and is in `new`; `error`: its state error."""

    kind: ClassVar[EventKind] = EventKind.STATE
    old: State
    new: State
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Start:
    """A run has begun: systemd has spawned the VMM. `run`: its invocation id."""

    kind: ClassVar[EventKind] = EventKind.START
    start: StartKind
    run: str


@dataclass(frozen=True, slots=True)
class Restart:
    """systemd has started a VM again by itself, for the `attempt`th time since it was started otherwise.
    `reason`: how the run before ended."""

    kind: ClassVar[EventKind] = EventKind.RESTART
    attempt: int
    reason: str | None
    run: str


@dataclass(frozen=True, slots=True)
class Ready:
    """A VM is Running. In seconds: `ready` from the request, without the wait for other units; `initializing`
    from the start of its VMM. None: not known."""

    kind: ClassVar[EventKind] = EventKind.READY
    start: StartKind
    run: str
    ready: float | None
    initializing: float | None


@dataclass(frozen=True, slots=True)
class Failure:
    """A VM was not started, or has not become Running. `marker`: the first that was missing when its boot
    timed out; `run` None: there was none."""

    kind: ClassVar[EventKind] = EventKind.FAILURE
    reason: FailureReason
    marker: str = ""
    run: str | None = None


@dataclass(frozen=True, slots=True)
class Exit:
    """A run has ended. `code`: see ExitReport."""

    kind: ClassVar[EventKind] = EventKind.EXIT
    exit: ExitKind
    code: int | None
    success: bool
    run: str


@dataclass(frozen=True, slots=True)
class HealthChange:
    """The health of a VM that is Running was `old`, and is `new`; `error`: of the last check that failed."""

    kind: ClassVar[EventKind] = EventKind.HEALTH
    old: HealthState
    new: HealthState
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Rename:
    """A VM that was called `old` is called `new`, as the event's VM is."""

    kind: ClassVar[EventKind] = EventKind.RENAME
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Pull:
    """A pull has begun (PENDING), or has ended (READY, FAILED) after so many `seconds`."""

    kind: ClassVar[EventKind] = EventKind.PULL
    image: str
    status: PullStatus
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class SnapshotChange:
    """A snapshot of the event's VM was made or deleted, or could not be made. `snapshot`: its id, None where
    there is none; `name` None: it has none."""

    kind: ClassVar[EventKind] = EventKind.SNAPSHOT
    action: SnapshotAction
    cause: SnapshotCause
    snapshot: str | None
    name: str | None


@dataclass(frozen=True, slots=True)
class CompressionEnd:
    """The memory of a snapshot, or with `snapshot` None of a VM in Standby, took `size` bytes on the disk. It
    was COMPRESSED to `compressed_size` after so many `seconds`; or that has failed (ERROR)."""

    kind: ClassVar[EventKind] = EventKind.COMPRESSION
    snapshot: str | None
    state: CompressionState
    size: int
    compressed_size: int | None = None
    seconds: float | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Missed:
    """Events that are not kept any more, or never were: so many, or None where that is not known."""

    kind: ClassVar[EventKind] = EventKind.MISSED
    count: int | None


@dataclass(frozen=True, slots=True)
class Event:
    """What has happened `at` that time, in seconds since the epoch; `vm` and `vm_id` are empty where it is of
    no VM. `message`: one line for people, part of which may be the guest's words."""

    details: Details
    message: str
    vm: str = ""
    vm_id: str = ""
    at: float = field(default_factory=time.time)


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place among the events of one daemon, whose key that is: behind the event of that number."""

    key: str
    number: int

    def __str__(self) -> str:
        return f"{self.key}-{self.number}"

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """The opposite of `str`. InvalidRequest."""
        found = _CURSOR.fullmatch(text)
        if found is None:
            raise InvalidRequest(
                f"cursor: {text[:80]!r} is not a cursor", hint="use the cursor of an event that was read"
            )
        return cls(found[1], int(found[2]))


@dataclass(frozen=True, slots=True)
class Noted:
    """An event, and the cursor behind which the next ones can be read."""

    cursor: Cursor
    event: Event


@dataclass(frozen=True, slots=True)
class Since:
    """From where on events are wanted: behind a cursor, or from a time on, in seconds since the epoch.
    Neither: those that come, with those that are `kept` or without."""

    cursor: Cursor | None = None
    at: float | None = None
    kept: bool = False


Tell = Callable[[Event], None]


def ignore_event(_event: Event) -> None:
    """Nobody wants to know of it."""
