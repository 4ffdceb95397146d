# SPDX-License-Identifier: Apache-2.0
"""Forms of the routes of images, volumes, templates, tokens and events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hypemand.api.bodies.table import body_of, query_of
from hypemand.api.fields import optional, required, with_default
from hypemand.api.kinds import (
    FileMode,
    Flag,
    Gigabytes,
    HostPath,
    Moment,
    Owner,
    Part,
    Size,
    Text,
    TextMap,
    Texts,
    TimeSpan,
    Word,
    WordList,
    Words,
)
from hypemand.api.tokens import MAX_TAGS, MAX_VMS
from hypemand.api.tokens import NAME_PATTERN as TOKEN_PATTERN
from hypemand.config.names import VOLUME_PATTERN
from hypemand.model.events import EventKind
from hypemand.model.tokens import Scope

# Of a header of HTTP: a word without blanks.
BEARER_PATTERN = r"[\x21-\x7e]{1,16384}"


@query_of("readEvents")
@dataclass(frozen=True, slots=True, kw_only=True)
class ReadEvents:
    """Which events. `since`: seconds since the epoch; None: of all VMs, or kinds."""

    cursor: str | None = optional(Text())
    since: float | None = optional(Moment())
    follow: bool = with_default(Flag(), False)
    vms: tuple[str, ...] | None = optional(Words())
    kinds: tuple[EventKind, ...] | None = optional(WordList(EventKind))


@body_of("createToken")
@dataclass(frozen=True, slots=True, kw_only=True)
class CreateToken:
    """A token. `expires`: seconds from now."""

    name: str = required(Text(pattern=TOKEN_PATTERN))
    expires: float | None = optional(TimeSpan(), null=True)
    scope: Scope = with_default(Word(Scope), Scope.ADMIN)
    vms: tuple[str, ...] = with_default(Texts(maximum=MAX_VMS), [])
    tags: Mapping[str, str] = with_default(TextMap(maximum=MAX_TAGS), {})


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryLogin:
    """Credentials for a registry: username and password, or a bearer token."""

    username: str | None = optional(Text(), null=True)
    password: str | None = optional(Text(), null=True)
    registry_token: str | None = optional(Text(pattern=BEARER_PATTERN), null=True)


@body_of("createImage")
@dataclass(frozen=True, slots=True, kw_only=True)
class CreateImage:
    """Which image to pull or import."""

    name: str = required(Text())
    platform: str | None = optional(Text(may_be_empty=True), null=True)
    credentials: RegistryLogin | None = optional(Part(RegistryLogin), null=True)
    tags: Mapping[str, str] | None = optional(TextMap(), null=True)


@query_of("listImages")
@dataclass(frozen=True, slots=True, kw_only=True)
class ListImages:
    """Which images."""

    tags: Mapping[str, str] = with_default(TextMap(), {})


@body_of("tagImage")
@dataclass(frozen=True, slots=True, kw_only=True)
class TagImage:
    """The name that an image gets."""

    target: str = required(Text())


@body_of("pruneImages")
@dataclass(frozen=True, slots=True, kw_only=True)
class PruneImages:
    """Which images are removed."""

    all: bool = with_default(Flag(), False)
    dry_run: bool = with_default(Flag(), False)


@body_of("importImage")
@dataclass(frozen=True, slots=True, kw_only=True)
class ImportImage:
    """Files of the host for an image."""

    name: str = required(Text())
    path: str = required(HostPath())


@query_of("listVolumes")
@dataclass(frozen=True, slots=True, kw_only=True)
class ListVolumes:
    """Which volumes."""

    tags: Mapping[str, str] = with_default(TextMap(), {})


@body_of("createVolume")
@dataclass(frozen=True, slots=True, kw_only=True)
class CreateVolume:
    """An empty volume. The sizes are in bytes, and one of them is given."""

    name: str = required(Text(pattern=VOLUME_PATTERN))
    size_gb: int | None = optional(Gigabytes(), null=True)
    size: int | None = optional(Size(), null=True)
    id: str | None = optional(Text(may_be_empty=True), null=True)
    tags: Mapping[str, str] = with_default(TextMap(), {}, null=True)
    owner: tuple[int, int] | None = optional(Owner(), null=True)
    mode: int | None = optional(FileMode(), null=True)


@query_of("createVolumeFromArchive")
@dataclass(frozen=True, slots=True, kw_only=True)
class CreateVolumeFromArchive:
    """A volume for the files of an archive. The sizes are in bytes, and one of them is given."""

    name: str = required(Text(pattern=VOLUME_PATTERN))
    size_gb: int | None = optional(Gigabytes())
    size: int | None = optional(Size())
    id: str | None = optional(Text(may_be_empty=True))
    tags: Mapping[str, str] = with_default(TextMap(), {})


@body_of("createTemplate")
@dataclass(frozen=True, slots=True, kw_only=True)
class CreateTemplate:
    """The template of a VM: from which VMs of its kind can start. `instance`: its id, name, or a prefix of
    its id."""

    instance: str = required(Text())


@body_of("resizeVolume")
@dataclass(frozen=True, slots=True, kw_only=True)
class ResizeVolume:
    """How large a volume becomes. The sizes are in bytes, and one of them is given."""

    size_gb: int | None = optional(Gigabytes(), null=True)
    size: int | None = optional(Size(), null=True)


@body_of("attachVolume")
@dataclass(frozen=True, slots=True, kw_only=True)
class AttachVolume:
    """How a VM gets a volume. `overlay_size`: bytes."""

    mount_path: str = required(Text())
    readonly: bool = with_default(Flag(), False, null=True)
    overlay: bool = with_default(Flag(), False, null=True)
    overlay_size: int | None = optional(Size(), null=True)
