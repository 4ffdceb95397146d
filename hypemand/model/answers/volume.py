# SPDX-License-Identifier: Apache-2.0
"""Volumes and the host's disk as the API answers them. Times are RFC 3339 in UTC."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Attachment:
    """A VM that is defined, or runs, with a volume."""

    instance_id: str = ""
    mount_path: str = ""
    readonly: bool = False
    # those above are the published client's
    instance_name: str | None = None
    running: bool = False


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume. `status`: ready, or filling."""

    id: str
    name: str
    size_gb: int | None = None
    created_at: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    attachments: tuple[Attachment, ...] = ()
    # those above are the published client's
    size_bytes: int | None = None
    used_bytes: int | None = None
    status: str | None = None


@dataclass(frozen=True, slots=True)
class SpaceUse:
    """What things of one kind take of the disk."""

    kind: str
    count: int = 0
    size_bytes: int = 0
    used_bytes: int = 0
    reclaimable_bytes: int = 0


@dataclass(frozen=True, slots=True)
class FileSystem:
    """The file system that the daemon keeps things on."""

    path: str
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class PoolSpace:
    """A pool of the host config. `problem`: why it is not available."""

    name: str
    path: str
    shared: bool = False
    volumes: int = 0
    total_bytes: int = 0
    free_bytes: int = 0
    promised_bytes: int = 0
    allowed_bytes: int = 0
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Space:
    """What takes the host's disk."""

    kinds: tuple[SpaceUse, ...]
    filesystem: FileSystem
    promised_bytes: int
    allowed_bytes: int
    pools: tuple[PoolSpace, ...] = ()
