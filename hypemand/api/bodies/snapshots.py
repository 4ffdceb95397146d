# SPDX-License-Identifier: Apache-2.0
"""Forms of the routes of standby, snapshots, schedules and forks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from hypemand.api.bodies.table import body_of, query_of
from hypemand.api.fields import optional, required, with_default
from hypemand.api.kinds import (
    Flag,
    Lifespan,
    Moment,
    Part,
    Text,
    TextMap,
    Whole,
    Word,
)
from hypemand.config.names import NAME_PATTERN
from hypemand.errors import InvalidRequest
from hypemand.model.compression import MAX_LEVEL, MIN_LEVEL, Compression, CompressionAlgorithm
from hypemand.model.schedules import MAX_KEPT, PREFIX_PATTERN
from hypemand.model.snapshots import SnapshotKind
from hypemand.model.state import State


class TargetState(StrEnum):
    """The states that a VM can be brought into by a snapshot."""

    STOPPED = State.STOPPED
    STANDBY = State.STANDBY
    RUNNING = State.RUNNING


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotCompression:
    """How saved memory is compressed; `enabled` false: it is not."""

    enabled: bool = required(Flag())
    algorithm: CompressionAlgorithm = with_default(
        Word(CompressionAlgorithm), CompressionAlgorithm.ZSTD, null=True
    )
    level: int = with_default(Whole(MIN_LEVEL, MAX_LEVEL), MIN_LEVEL, null=True)


def derive_compression(form: SnapshotCompression | None, delay: float | None = None) -> Compression | None:
    """What a body asks for. InvalidRequest for a delay of nothing."""
    if form is not None and form.enabled:
        return Compression(form.level, form.algorithm, delay or 0.0)
    if delay is not None:
        raise InvalidRequest("compression_delay: no compression is enabled", hint="leave it out")
    return None


@body_of("standbyInstance")
@dataclass(frozen=True, slots=True, kw_only=True)
class StandbyInstance:
    """`compression`: of the memory that is saved; `compression_delay`: seconds before that begins; `pool`: to
    which it is moved, for another host."""

    compression: SnapshotCompression | None = optional(Part(SnapshotCompression), null=True)
    compression_delay: float | None = optional(Lifespan(), null=True)
    pool: str | None = optional(Text(), null=True)


@query_of("listSnapshots")
@dataclass(frozen=True, slots=True, kw_only=True)
class ListSnapshots:
    """Which snapshots."""

    kind: SnapshotKind | None = optional(Word(SnapshotKind))
    name: str | None = optional(Text())
    source_instance_id: str | None = optional(Text())
    tags: Mapping[str, str] = with_default(TextMap(), {})


@body_of("createSnapshot")
@dataclass(frozen=True, slots=True, kw_only=True)
class CreateSnapshot:
    """A snapshot of a VM. `kind` None: that of its state."""

    kind: SnapshotKind | None = optional(Word(SnapshotKind), null=True)
    name: str | None = optional(Text(pattern=NAME_PATTERN), null=True)
    tags: Mapping[str, str] = with_default(TextMap(), {}, null=True)
    ttl: float | None = optional(Lifespan(), null=True)
    expires_at: float | None = optional(Moment(), null=True)
    compression: SnapshotCompression | None = optional(Part(SnapshotCompression), null=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionForm:
    """What is kept of scheduled snapshots. `max_count` 0: any number."""

    max_count: int | None = optional(Whole(0, MAX_KEPT), null=True)
    max_age: float | None = optional(Lifespan(), null=True)


@body_of("setSnapshotSchedule")
@dataclass(frozen=True, slots=True, kw_only=True)
class SetSchedule:
    """A schedule. `interval`: seconds between snapshots; `metadata`: tags that they get."""

    interval: float = required(Lifespan())
    retention: RetentionForm | None = required(Part(RetentionForm))
    name_prefix: str | None = optional(Text(pattern=PREFIX_PATTERN), null=True)
    metadata: Mapping[str, str] = with_default(TextMap(), {}, null=True)


@body_of("restoreSnapshot")
@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreSnapshot:
    """The state in which the VM is then; None: that of its kind."""

    target_state: TargetState | None = optional(Word(TargetState), null=True)
    target_hypervisor: str | None = optional(Text(), null=True)


@body_of("forkInstance")
@dataclass(frozen=True, slots=True, kw_only=True)
class ForkInstance:
    """A fork of a VM, in the state `target_state`; None: that of the VM."""

    name: str = required(Text(pattern=NAME_PATTERN))
    from_running: bool = with_default(Flag(), default=False, null=True)
    target_state: TargetState | None = optional(Word(TargetState), null=True)


@body_of("forkSnapshot")
@dataclass(frozen=True, slots=True, kw_only=True)
class ForkSnapshot:
    """A fork of a snapshot, in the state `target_state`; None: that of its kind."""

    name: str = required(Text(pattern=NAME_PATTERN))
    target_state: TargetState | None = optional(Word(TargetState), null=True)
    target_hypervisor: str | None = optional(Text(), null=True)
