# SPDX-License-Identifier: Apache-2.0
"""Snapshots as the API answers them. Times are RFC 3339 in UTC."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hypemand.model.answers.compression import SnapshotCompression
from hypemand.model.compression import CompressionState
from hypemand.model.snapshots import SnapshotKind


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot of a VM. `size_bytes`: what it takes on the disk of the host; `uncompressed_size_bytes`: the
    memory of the guest, of kind Standby, as are those of its compression. `definition`: the keys of a
    definition file."""

    id: str
    kind: SnapshotKind | str = SnapshotKind.STOPPED
    name: str | None = None
    created_at: str | None = None
    source_instance_id: str | None = None
    source_instance_name: str | None = None
    source_hypervisor: str | None = None
    size_bytes: int | None = None
    uncompressed_size_bytes: int | None = None
    compression_state: CompressionState | str | None = None
    compression: SnapshotCompression | None = None
    compressed_size_bytes: int | None = None
    compression_error: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    # those above are the published client's
    disk_bytes: int | None = None
    definition: Mapping[str, Any] = field(default_factory=dict)
    restore_error: str | None = None
    expires_at: str | None = None
    scheduled: bool = False


@dataclass(frozen=True, slots=True)
class Retention:
    """What is kept of scheduled snapshots; null: no limit."""

    max_count: int | None = None
    max_age: str | None = None


@dataclass(frozen=True, slots=True)
class SnapshotSchedule:
    """When snapshots of a VM are made by itself. `metadata`: tags that they get; `last_run_at`,
    `last_snapshot_id`, `last_error`: null as long as there is none."""

    instance_id: str
    interval: str
    next_run_at: str | None = None
    retention: Retention = field(default_factory=Retention)
    name_prefix: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    created_at: str | None = None
    updated_at: str | None = None
    last_run_at: str | None = None
    last_snapshot_id: str | None = None
    last_error: str | None = None
