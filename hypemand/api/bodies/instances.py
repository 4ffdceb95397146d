# SPDX-License-Identifier: Apache-2.0
"""Forms of the routes of VMs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hypemand.api.bodies.table import body_of, query_of
from hypemand.api.fields import optional, required, with_default
from hypemand.api.kinds import (
    Flag,
    Lifespan,
    Moment,
    Referred,
    Refused,
    SignalNumber,
    Tail,
    Text,
    TextMap,
    Texts,
    TimeSpan,
    Word,
    Words,
)
from hypemand.config.imagepull import ImagePull
from hypemand.config.names import NAME_PATTERN
from hypemand.model.logs import LogSource
from hypemand.model.state import FromStandby, State

MAX_TAIL = 1_000_000


@dataclass(frozen=True, slots=True)
class Nothing:
    """No field."""


body_of("reload", "pauseInstance", "resumeInstance", "restoreInstance")(Nothing)


@query_of("listInstances")
@dataclass(frozen=True, slots=True, kw_only=True)
class ListInstances:
    """Which VMs."""

    state: State | None = optional(Word(State))
    tags: Mapping[str, str] = with_default(TextMap(), {})


@body_of("createInstance")
@dataclass(frozen=True, slots=True, kw_only=True)
class CreateFromDefinition:
    """A VM, in the form of a definition file."""

    definition: dict[str, object] = required(Referred("Definition", "write the keys of a definition file"))
    name: str | None = optional(Text(may_be_empty=True), null=True)
    start: bool = with_default(Flag(), True)
    ttl: float | None = optional(Lifespan(), null=True)
    expires_at: float | None = optional(Moment(), null=True)


_NO_CREDENTIALS = Refused(
    "only variables of credentials can be changed, which this version of hypemand does not support",
    "change the definition, and restart the VM",
)
_WHOLE = "write the whole policy, as for a new VM"
_NO_STANDBY = Refused("is not supported by this version of hypemand", "leave it out")


@body_of("updateInstance")
@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateInstance:
    """What of a VM is changed; what is omitted stays. `ttl`: from now on. A policy is replaced whole."""

    ttl: float | None = optional(Lifespan(), null=True)
    expires_at: float | None = optional(Moment(), null=True)
    env: None = optional(_NO_CREDENTIALS)
    auto_standby: None = optional(_NO_STANDBY)
    health_check: dict[str, object] | None = optional(Referred("HealthCheck", _WHOLE), null=True)
    restart_policy: dict[str, object] | None = optional(Referred("RestartPolicy", _WHOLE), null=True)


@query_of("deleteInstance")
@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteInstance:
    """How a VM is removed."""

    graceful_shutdown: bool = with_default(Flag(), True)


@body_of("startInstance")
@dataclass(frozen=True, slots=True, kw_only=True)
class StartInstance:
    """`image_pull`: instead of the definition's, for this start; `cmd` and `entrypoint`: from this start
    on; `standby`: what becomes of a VM in Standby."""

    image_pull: ImagePull | None = optional(Word(ImagePull), null=True)
    standby: FromStandby = with_default(Word(FromStandby), FromStandby.REFUSE, null=True)
    cmd: tuple[str, ...] | None = optional(Texts(), null=True)
    entrypoint: tuple[str, ...] | None = optional(Texts(), null=True)


@body_of("restartInstance")
@dataclass(frozen=True, slots=True, kw_only=True)
class RestartInstance:
    """`image_pull`: instead of the definition's, for this start."""

    image_pull: ImagePull | None = optional(Word(ImagePull), null=True)


@body_of("stopInstance")
@dataclass(frozen=True, slots=True, kw_only=True)
class StopInstance:
    """`timeout`: seconds for the guest to shut down; 0: none."""

    timeout: float | None = optional(TimeSpan(or_number=True), null=True)


@body_of("killInstance")
@dataclass(frozen=True, slots=True, kw_only=True)
class KillInstance:
    """Which signal the VMM gets."""

    signal: int = with_default(SignalNumber(), 9)


@body_of("renameInstance")
@dataclass(frozen=True, slots=True, kw_only=True)
class RenameInstance:
    """The name that a VM gets."""

    name: str = required(Text(pattern=NAME_PATTERN))


@body_of("setLimits")
@dataclass(frozen=True, slots=True, kw_only=True)
class SetLimits:
    """What of a VM that runs becomes another, in the form of a definition file."""

    definition: dict[str, object] = required(
        Referred("ChangedLimits", "write the keys memory, cpu_limit or disk_io")
    )


@query_of("waitInstance")
@dataclass(frozen=True, slots=True, kw_only=True)
class WaitInstance:
    """For which state, and how many seconds."""

    state: State = required(Word(State))
    timeout: float = with_default(TimeSpan(), "60s")


@query_of("readLogs")
@dataclass(frozen=True, slots=True, kw_only=True)
class ReadLogs:
    """Which lines of a log."""

    tail: int | None = with_default(Tail(MAX_TAIL), "100")
    follow: bool = with_default(Flag(), False)
    source: LogSource = with_default(Word(LogSource), LogSource.APP)
    sentinels: bool = with_default(Flag(), False)
    json: bool = with_default(Flag(), False)
    exact: bool = with_default(Flag(), False)
    since: float | None = optional(Moment())


@query_of("exportInstance")
@dataclass(frozen=True, slots=True, kw_only=True)
class ExportInstance:
    """What an archive of a VM holds beside its definition and disk."""

    volumes: tuple[str, ...] | None = optional(Words())
    all_volumes: bool = with_default(Flag(), False)
    image: bool = with_default(Flag(), False)


@query_of("importInstance")
@dataclass(frozen=True, slots=True, kw_only=True)
class ImportInstance:
    """What becomes of an archive of a VM. `volumes`: new names by the old ones."""

    name: str | None = optional(Text(pattern=NAME_PATTERN))
    keep_identity: bool = with_default(Flag(), False)
    volumes: Mapping[str, str] = with_default(TextMap(), {})
