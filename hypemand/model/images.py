# SPDX-License-Identifier: Apache-2.0
"""Images and the progress of pulls."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

_PLATFORMS = {"x86_64": "amd64", "aarch64": "arm64"}


def derive_host_architecture(machine: str = "") -> str:
    """The host's architecture as OCI spells it; `machine` as uname(2), the host's own if not given."""
    machine = machine or platform.machine()
    return _PLATFORMS.get(machine, machine)


@dataclass(frozen=True, slots=True)
class OciConfig:
    """The part of an OCI image's config that says how to run it. Empty: the image says nothing."""

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    working_dir: str = ""
    user: str = ""
    stop_signal: str = ""


@dataclass(frozen=True, slots=True)
class Pruned:
    """An image that pruning removes: its names, and the bytes of the disk that it takes."""

    names: tuple[str, ...]
    digest: str
    size: int


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
    """Credentials for a registry, for one pull: a name and a password, or a bearer `token`, which then is all
    that the registry is shown."""

    username: str = ""
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """An image. `created_at` in seconds since the epoch, `size` in bytes on the disk; `architecture` in OCI's
    words; `in_use_by` are names of VMs, and snapshot:NAME; `progress` while it is being had; `tags`: labels
    of its name. What is not known yet is empty."""

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
    tags: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
