# SPDX-License-Identifier: Apache-2.0
"""Images as the API answers them. Times are RFC 3339 in UTC."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hypemand.model.document import SOURCE
from hypemand.model.images import Progress, PullStatus


@dataclass(frozen=True, slots=True)
class Image:
    """An image, or how far its pull is. `document`: all that the daemon has answered."""

    name: str
    digest: str = ""
    status: PullStatus | str = PullStatus.READY
    error: str | None = None
    error_code: str | None = None
    created_at: str | None = None
    size_bytes: int | None = None
    platform: str | None = None
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    working_dir: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    # those above are the published client's
    user: str | None = None
    builtin: bool = False
    in_use_by: tuple[str, ...] = ()
    source: str | None = None
    progress: Progress | None = None
    document: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False, metadata=SOURCE)


@dataclass(frozen=True, slots=True)
class PrunedImage:
    """An image that pruning has removed, or would."""

    names: tuple[str, ...]
    digest: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class PruneReport:
    """What pruning has removed, or would."""

    images: tuple[PrunedImage, ...]
    freed_bytes: int
