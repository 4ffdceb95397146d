# SPDX-License-Identifier: Apache-2.0
"""Snapshots of VMs, which outlive the state of a VM, and the VM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from hypemand.config.definition import Definition
from hypemand.model.compression import Compression, CompressionView
from hypemand.model.events import SnapshotCause
from hypemand.model.lifetime import Lifetime
from hypemand.model.state import State


class SnapshotKind(StrEnum):
    """What a snapshot has: memory, devices and disk; or the disk alone."""

    STANDBY = "Standby"
    STOPPED = "Stopped"

    @property
    def sources(self) -> frozenset[State]:
        """The states of a VM in which one can be made."""
        return _SOURCES[self]

    @property
    def targets(self) -> frozenset[State]:
        """The states that a VM can be in when one was restored."""
        return _TARGETS[self]

    @property
    def default_target(self) -> State:
        """That of them where none is asked for."""
        return State.RUNNING if self is SnapshotKind.STANDBY else State.STOPPED


_SOURCES = {
    SnapshotKind.STANDBY: frozenset({State.RUNNING, State.STANDBY}),
    SnapshotKind.STOPPED: frozenset({State.STOPPED}),
}
_TARGETS = {
    SnapshotKind.STANDBY: frozenset({State.RUNNING, State.STANDBY, State.STOPPED}),
    SnapshotKind.STOPPED: frozenset({State.RUNNING, State.STOPPED}),
}


@dataclass(frozen=True, slots=True)
class SnapshotWanted:
    """A snapshot that is to be made. `kind` None: that of the VM's state; `lifetime`: from when it is made;
    `compression`: of its memory, afterwards; `cause`: who has asked for it."""

    kind: SnapshotKind | None = None
    name: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    lifetime: Lifetime = field(default_factory=Lifetime)
    compression: Compression | None = None
    cause: SnapshotCause = SnapshotCause.REQUEST


@dataclass(frozen=True, slots=True)
class SnapshotView:
    """A snapshot. `vm_id`, `vm`: the VM that it is of, by the name that it had; `size`: bytes that it takes
    on the disk; `disk`, `memory`: bytes that the guest has, memory of kind Standby alone, as is
    `compression`; `definition`: what the VM ran with, or was defined with; `problem`: why it can no longer be
    restored with its memory, where that is known; `expires_at`: when it is deleted by itself; `is_scheduled`:
    a schedule has made it. Times are seconds since the epoch."""

    id: str
    name: str | None
    kind: SnapshotKind
    created_at: float
    vm_id: str
    vm: str
    tags: Mapping[str, str]
    size: int
    disk: int
    memory: int | None
    definition: Definition
    problem: str | None = None
    expires_at: float | None = None
    compression: CompressionView | None = None
    is_scheduled: bool = False
