# SPDX-License-Identifier: Apache-2.0
"""What each route takes as its JSON body or as its query: one row for each field.

`BODIES` and `QUERIES` have them by the operationId of openapi.yaml, with which a test compares them. The body
of the published client for a new VM has keys of a definition instead: `hypemand.api.create`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from hypemand.api.fields import optional, required, with_default
from hypemand.api.kinds import (
    Constant,
    FileMode,
    Flag,
    Gigabytes,
    GuestPath,
    HostPath,
    Lifespan,
    Moment,
    Owner,
    Part,
    Referred,
    Refused,
    Seconds,
    SignalNumber,
    Size,
    Tail,
    Text,
    TextMap,
    Texts,
    TimeSpan,
    Whole,
    Word,
    WordList,
    Words,
)
from hypemand.api.tokens import MAX_TAGS, MAX_VMS
from hypemand.api.tokens import NAME_PATTERN as TOKEN_PATTERN
from hypemand.config.imagepull import ImagePull
from hypemand.config.names import NAME_PATTERN, VOLUME_PATTERN
from hypemand.errors import InvalidRequest
from hypemand.model.compression import MAX_LEVEL, MIN_LEVEL, Compression, CompressionAlgorithm
from hypemand.model.events import EventKind
from hypemand.model.logs import LogSource
from hypemand.model.schedules import MAX_KEPT, PREFIX_PATTERN
from hypemand.model.snapshots import SnapshotKind
from hypemand.model.state import FromStandby, State
from hypemand.model.tokens import Scope

MAX_TAIL = 1_000_000
MAX_MODE = 0o7777
MAX_ID = 2**32 - 2
MAX_UMASK = 0o777
MAX_SIDE = 65535
# Of a header of HTTP: a word without blanks.
BEARER_PATTERN = r"[\x21-\x7e]{1,16384}"

F = TypeVar("F", bound=type)
BODIES: dict[str, type[Any]] = {}
QUERIES: dict[str, type[Any]] = {}


def _body_of(*operations: str) -> Callable[[F], F]:
    return lambda form: _register(BODIES, operations, form)


def _query_of(*operations: str) -> Callable[[F], F]:
    return lambda form: _register(QUERIES, operations, form)


def _register(table: dict[str, type[Any]], operations: tuple[str, ...], form: F) -> F:
    table |= dict.fromkeys(operations, form)
    return form


class Direction(StrEnum):
    """Which way a copy goes, as seen from the client."""

    TO = "to"
    FROM = "from"


class TargetState(StrEnum):
    """The states that a VM can be brought into by a snapshot."""

    STOPPED = State.STOPPED
    STANDBY = State.STANDBY
    RUNNING = State.RUNNING


@dataclass(frozen=True, slots=True)
class Nothing:
    """No field."""


_body_of("reload", "pauseInstance", "resumeInstance", "restoreInstance")(Nothing)


@_query_of("listInstances")
@dataclass(frozen=True, slots=True, kw_only=True)
class ListInstances:
    """Which VMs."""

    state: State | None = optional(Word(State))
    tags: Mapping[str, str] = with_default(TextMap(), {})


@_body_of("createInstance")
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


@_body_of("updateInstance")
@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateInstance:
    """What of a VM is changed; what is omitted stays. `ttl`: from now on. A policy is replaced whole."""

    ttl: float | None = optional(Lifespan(), null=True)
    expires_at: float | None = optional(Moment(), null=True)
    env: None = optional(_NO_CREDENTIALS)
    auto_standby: None = optional(_NO_STANDBY)
    health_check: dict[str, object] | None = optional(Referred("HealthCheck", _WHOLE), null=True)
    restart_policy: dict[str, object] | None = optional(Referred("RestartPolicy", _WHOLE), null=True)


@_query_of("deleteInstance")
@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteInstance:
    """How a VM is removed."""

    graceful_shutdown: bool = with_default(Flag(), True)


@_body_of("startInstance")
@dataclass(frozen=True, slots=True, kw_only=True)
class StartInstance:
    """`image_pull`: instead of the definition's, for this start; `cmd` and `entrypoint`: from this start
    on; `standby`: what becomes of a VM in Standby."""

    image_pull: ImagePull | None = optional(Word(ImagePull), null=True)
    standby: FromStandby = with_default(Word(FromStandby), FromStandby.REFUSE, null=True)
    cmd: tuple[str, ...] | None = optional(Texts(), null=True)
    entrypoint: tuple[str, ...] | None = optional(Texts(), null=True)


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


@_body_of("standbyInstance")
@dataclass(frozen=True, slots=True, kw_only=True)
class StandbyInstance:
    """`compression`: of the memory that is saved; `compression_delay`: seconds before that begins."""

    compression: SnapshotCompression | None = optional(Part(SnapshotCompression), null=True)
    compression_delay: float | None = optional(Lifespan(), null=True)


@_body_of("restartInstance")
@dataclass(frozen=True, slots=True, kw_only=True)
class RestartInstance:
    """`image_pull`: instead of the definition's, for this start."""

    image_pull: ImagePull | None = optional(Word(ImagePull), null=True)


@_body_of("stopInstance")
@dataclass(frozen=True, slots=True, kw_only=True)
class StopInstance:
    """`timeout`: seconds for the guest to shut down; 0: none."""

    timeout: float | None = optional(TimeSpan(or_number=True), null=True)


@_body_of("killInstance")
@dataclass(frozen=True, slots=True, kw_only=True)
class KillInstance:
    """Which signal the VMM gets."""

    signal: int = with_default(SignalNumber(), 9)


@_body_of("renameInstance")
@dataclass(frozen=True, slots=True, kw_only=True)
class RenameInstance:
    """The name that a VM gets."""

    name: str = required(Text(pattern=NAME_PATTERN))


@_body_of("setLimits")
@dataclass(frozen=True, slots=True, kw_only=True)
class SetLimits:
    """What of a VM that runs becomes another, in the form of a definition file."""

    definition: dict[str, object] = required(
        Referred("ChangedLimits", "write the keys memory, cpu_limit or disk_io")
    )


@_query_of("waitInstance")
@dataclass(frozen=True, slots=True, kw_only=True)
class WaitInstance:
    """For which state, and how many seconds."""

    state: State = required(Word(State))
    timeout: float = with_default(TimeSpan(), "60s")


@_query_of("readEvents")
@dataclass(frozen=True, slots=True, kw_only=True)
class ReadEvents:
    """Which events. `since`: seconds since the epoch; None: of all VMs, or kinds."""

    cursor: str | None = optional(Text())
    since: float | None = optional(Moment())
    follow: bool = with_default(Flag(), False)
    vms: tuple[str, ...] | None = optional(Words())
    kinds: tuple[EventKind, ...] | None = optional(WordList(EventKind))


@_query_of("readLogs")
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


@_query_of("readArchive", "statPath")
@dataclass(frozen=True, slots=True, kw_only=True)
class PathQuery:
    """A path in a guest."""

    path: str = required(GuestPath())
    follow_links: bool = with_default(Flag(), False)


@_query_of("writeArchive")
@dataclass(frozen=True, slots=True, kw_only=True)
class WriteArchive:
    """A directory in a guest."""

    path: str = required(GuestPath())


@_query_of("exportInstance")
@dataclass(frozen=True, slots=True, kw_only=True)
class ExportInstance:
    """What an archive of a VM holds beside its definition and disk."""

    volumes: tuple[str, ...] | None = optional(Words())
    all_volumes: bool = with_default(Flag(), False)
    image: bool = with_default(Flag(), False)


@_query_of("importInstance")
@dataclass(frozen=True, slots=True, kw_only=True)
class ImportInstance:
    """What becomes of an archive of a VM. `volumes`: new names by the old ones."""

    name: str | None = optional(Text(pattern=NAME_PATTERN))
    keep_identity: bool = with_default(Flag(), False)
    volumes: Mapping[str, str] = with_default(TextMap(), {})


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


@_body_of("createToken")
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


@_body_of("createImage")
@dataclass(frozen=True, slots=True, kw_only=True)
class CreateImage:
    """Which image to pull or import."""

    name: str = required(Text())
    platform: str | None = optional(Text(may_be_empty=True), null=True)
    credentials: RegistryLogin | None = optional(Part(RegistryLogin), null=True)
    tags: Mapping[str, str] | None = optional(TextMap(), null=True)


@_query_of("listImages")
@dataclass(frozen=True, slots=True, kw_only=True)
class ListImages:
    """Which images."""

    tags: Mapping[str, str] = with_default(TextMap(), {})


@_body_of("tagImage")
@dataclass(frozen=True, slots=True, kw_only=True)
class TagImage:
    """The name that an image gets."""

    target: str = required(Text())


@_body_of("pruneImages")
@dataclass(frozen=True, slots=True, kw_only=True)
class PruneImages:
    """Which images are removed."""

    all: bool = with_default(Flag(), False)
    dry_run: bool = with_default(Flag(), False)


@_body_of("importImage")
@dataclass(frozen=True, slots=True, kw_only=True)
class ImportImage:
    """Files of the host for an image."""

    name: str = required(Text())
    path: str = required(HostPath())


@_query_of("listSnapshots")
@dataclass(frozen=True, slots=True, kw_only=True)
class ListSnapshots:
    """Which snapshots."""

    kind: SnapshotKind | None = optional(Word(SnapshotKind))
    name: str | None = optional(Text())
    source_instance_id: str | None = optional(Text())
    tags: Mapping[str, str] = with_default(TextMap(), {})


@_body_of("createSnapshot")
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


@_body_of("setSnapshotSchedule")
@dataclass(frozen=True, slots=True, kw_only=True)
class SetSchedule:
    """A schedule. `interval`: seconds between snapshots; `metadata`: tags that they get."""

    interval: float = required(Lifespan())
    retention: RetentionForm | None = required(Part(RetentionForm))
    name_prefix: str | None = optional(Text(pattern=PREFIX_PATTERN), null=True)
    metadata: Mapping[str, str] = with_default(TextMap(), {}, null=True)


@_body_of("restoreSnapshot")
@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreSnapshot:
    """The state in which the VM is then; None: that of its kind."""

    target_state: TargetState | None = optional(Word(TargetState), null=True)
    target_hypervisor: str | None = optional(Text(), null=True)


@_body_of("forkInstance")
@dataclass(frozen=True, slots=True, kw_only=True)
class ForkInstance:
    """A fork of a VM, in the state `target_state`; None: that of the VM."""

    name: str = required(Text(pattern=NAME_PATTERN))
    from_running: bool = with_default(Flag(), default=False, null=True)
    target_state: TargetState | None = optional(Word(TargetState), null=True)


@_body_of("forkSnapshot")
@dataclass(frozen=True, slots=True, kw_only=True)
class ForkSnapshot:
    """A fork of a snapshot, in the state `target_state`; None: that of its kind."""

    name: str = required(Text(pattern=NAME_PATTERN))
    target_state: TargetState | None = optional(Word(TargetState), null=True)
    target_hypervisor: str | None = optional(Text(), null=True)


@_query_of("listVolumes")
@dataclass(frozen=True, slots=True, kw_only=True)
class ListVolumes:
    """Which volumes."""

    tags: Mapping[str, str] = with_default(TextMap(), {})


@_body_of("createVolume")
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


@_query_of("createVolumeFromArchive")
@dataclass(frozen=True, slots=True, kw_only=True)
class CreateVolumeFromArchive:
    """A volume for the files of an archive. The sizes are in bytes, and one of them is given."""

    name: str = required(Text(pattern=VOLUME_PATTERN))
    size_gb: int | None = optional(Gigabytes())
    size: int | None = optional(Size())
    id: str | None = optional(Text(may_be_empty=True))
    tags: Mapping[str, str] = with_default(TextMap(), {})


@_body_of("createTemplate")
@dataclass(frozen=True, slots=True, kw_only=True)
class CreateTemplate:
    """The template of a VM: from which VMs of its kind can start. `instance`: its id, name, or a prefix of
    its id."""

    instance: str = required(Text())


@_body_of("resizeVolume")
@dataclass(frozen=True, slots=True, kw_only=True)
class ResizeVolume:
    """How large a volume becomes. The sizes are in bytes, and one of them is given."""

    size_gb: int | None = optional(Gigabytes(), null=True)
    size: int | None = optional(Size(), null=True)


@_body_of("attachVolume")
@dataclass(frozen=True, slots=True, kw_only=True)
class AttachVolume:
    """How a VM gets a volume. `overlay_size`: bytes."""

    mount_path: str = required(Text())
    readonly: bool = with_default(Flag(), False, null=True)
    overlay: bool = with_default(Flag(), False, null=True)
    overlay_size: int | None = optional(Size(), null=True)
