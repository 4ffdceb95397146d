# SPDX-License-Identifier: Apache-2.0
"""Volumes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from hypemand.config.definition import VolumeMount
from hypemand.model.files import CopyIn, FileInfo


class VolumeAttachment(Protocol):
    """A volume's place in a VM that is defined, or runs, with it."""

    @property
    def vm(self) -> str: ...
    @property
    def vm_id(self) -> str: ...
    @property
    def mount(self) -> VolumeMount: ...
    @property
    def running(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class VolumeRoot:
    """What the root of a new volume is to be, where the image of its first VM is not to decide that."""

    uid: int = 0
    gid: int = 0
    mode: int = 0o755


@dataclass(frozen=True, slots=True)
class VolumeView:
    """A volume at one moment. `size` and `used` (on the host) in bytes, `created_at` seconds since the epoch;
    `ready` False: an archive is being unpacked into it."""

    id: str
    name: str
    size: int
    used: int
    created_at: float
    tags: Mapping[str, str]
    ready: bool
    attachments: tuple[VolumeAttachment, ...] = ()


class VolumeFill(Protocol):
    """A new volume that takes the members of an archive. `volume` is one to use after the end."""

    @property
    def copy(self) -> CopyIn: ...
    @property
    def volume(self) -> VolumeView: ...

    async def set_root(self, root: FileInfo) -> None:
        """Owner and mode of the volume's own root; after the copy has finished."""
