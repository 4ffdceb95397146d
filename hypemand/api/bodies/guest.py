# SPDX-License-Identifier: Apache-2.0
"""Forms of the routes into a guest: commands, terminals and files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from hypemand.api.bodies.table import query_of
from hypemand.api.fields import optional, required, with_default
from hypemand.api.kinds import (
    Constant,
    Flag,
    GuestPath,
    Seconds,
    Text,
    TextMap,
    Texts,
    Whole,
)

MAX_MODE = 0o7777
MAX_ID = 2**32 - 2
MAX_UMASK = 0o777
MAX_SIDE = 65535


class Direction(StrEnum):
    """Which way a copy goes, as seen from the client."""

    TO = "to"
    FROM = "from"


@query_of("readArchive", "statPath")
@dataclass(frozen=True, slots=True, kw_only=True)
class PathQuery:
    """A path in a guest."""

    path: str = required(GuestPath())
    follow_links: bool = with_default(Flag(), False)


@query_of("writeArchive")
@dataclass(frozen=True, slots=True, kw_only=True)
class WriteArchive:
    """A directory in a guest."""

    path: str = required(GuestPath())


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecOpening:
    """The first frame of exec. `wait_for_agent` has no effect: in Running the agent answers."""

    command: tuple[str, ...] = required(Texts(command=True))
    env: Mapping[str, str] = with_default(TextMap(variables=True), {}, null=True)
    cwd: str | None = optional(Text(may_be_empty=True), null=True)
    user: str | None = optional(Text(may_be_empty=True), null=True)
    umask: int | None = optional(Whole(0, MAX_UMASK, ", which is 0777"), null=True)
    timeout: float | None = optional(Seconds(), null=True)
    wait_for_agent: float | None = optional(Seconds(), null=True)
    tty: bool = with_default(Flag(), False, null=True)
    rows: int = with_default(Whole(1, MAX_SIDE), 24, null=True)
    cols: int = with_default(Whole(1, MAX_SIDE), 80, null=True)
    streams: bool = with_default(Flag(), False, null=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecSize:
    """The new size of a terminal, in a control frame of exec."""

    rows: int = required(Whole(1, MAX_SIDE))
    cols: int = required(Whole(1, MAX_SIDE))


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachOpening:
    """The first frame of attach."""

    stdin: bool = with_default(Flag(), False, null=True)
    replay: bool = with_default(Flag(), False, null=True)
    rows: int | None = optional(Whole(1, MAX_SIDE), null=True)
    cols: int | None = optional(Whole(1, MAX_SIDE), null=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyTo:
    """The first frame of a copy to the guest."""

    direction: Direction = required(Constant(Direction.TO))
    guest_path: str = required(GuestPath())
    is_dir: bool = with_default(Flag(), False, null=True)
    mode: int | None = optional(Whole(0, MAX_MODE), null=True)
    uid: int | None = optional(Whole(0, MAX_ID), null=True)
    gid: int | None = optional(Whole(0, MAX_ID), null=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyFrom:
    """The first frame of a copy from the guest."""

    direction: Direction = required(Constant(Direction.FROM))
    guest_path: str = required(GuestPath())
    follow_links: bool = with_default(Flag(), False, null=True)


FRAMES: Mapping[str, tuple[type[Any], ...]] = {
    "ExecRequest": (ExecOpening,),
    "AttachRequest": (AttachOpening,),
    "CopyOrder": (CopyTo, CopyFrom),
}
