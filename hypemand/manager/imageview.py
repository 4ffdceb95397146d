# SPDX-License-Identifier: Apache-2.0
"""Views of images, for API and command line."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from hypemand.storage.images import OciConfig
from hypemand.storage.rootfs import derive_host_architecture


class PullStatus(StrEnum):
    """How far an image is, in the words of the published API."""

    PENDING = "pending"
    PULLING = "pulling"
    CONVERTING = "converting"
    READY = "ready"
    FAILED = "failed"

    @property
    def is_settled(self) -> bool:
        """Will it not change by itself?"""
        return self in (PullStatus.READY, PullStatus.FAILED)


@dataclass(frozen=True, slots=True)
class Progress:
    """What has come of an image. Bytes are those of its layers as the registry has them."""

    bytes: int = 0
    total_bytes: int = 0
    layers: int = 0
    total_layers: int = 0


@dataclass(frozen=True, slots=True)
class Credentials:
    """Whom a registry is to take us for, in one pull."""

    username: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """An image. `created_at` in seconds since the epoch, `size` in bytes on the disk; `architecture` in OCI's
    words; `in_use_by` are names of VMs; `progress` while it is being had. What is not known yet is empty."""

    name: str
    status: PullStatus = PullStatus.READY
    digest: str = ""
    architecture: str = field(default_factory=derive_host_architecture)
    size: int | None = None
    created_at: float = 0.0
    source: str = ""
    config: OciConfig = field(default_factory=OciConfig)
    builtin: bool = False
    in_use_by: tuple[str, ...] = ()
    error: str = ""
    error_code: str = ""
    progress: Progress | None = None
