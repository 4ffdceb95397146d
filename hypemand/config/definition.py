# SPDX-License-Identifier: Apache-2.0
"""The definition of a VM as a value, whatever text it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

from hypemand.config.health import Health
from hypemand.config.imagepull import ImagePull as ImagePull  # noqa: PLC0414 - a part of a definition
from hypemand.config.mode import Mode
from hypemand.config.network import DEFAULT_NETWORK, NetworkUse
from hypemand.config.ready import Ready
from hypemand.config.restart import Restart as Restart  # noqa: PLC0414 - a part of a definition

MIB = 1024 * 1024
GIB = 1024 * MIB
# What a microvm has transports for: 24, less console, config, image, disk, headers, network, and two to
# spare. The schema has the same number.
MAX_VOLUMES = 16


class HostShutdown(StrEnum):
    """What becomes of a VM that runs when its host shuts down."""

    STOP = "stop"
    STANDBY = "standby"


class WarmStart(StrEnum):
    """Whether starts go on from a template, where there is one."""

    AUTO = "auto"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class VolumeMount:
    """A volume's place in a VM. `volume` is its name or id, `mount_path` absolute and plain. `is_device`: it
    is a block device of the host, and `volume` POOL/NAME.

    `overlay`: the volume is only read, and what the guest writes there goes to a layer on its own disk.
    Without one that is not `required` the VM starts all the same.
    """

    volume: str
    mount_path: str
    readonly: bool = False
    overlay: bool = False
    required: bool = True
    is_device: bool = False

    @property
    def is_root(self) -> bool:
        """Is it the VM's own disk?"""
        return self.mount_path == "/"

    @property
    def writes(self) -> bool:
        """Does the VM write to the volume itself?"""
        return not self.readonly and not self.overlay


@dataclass(frozen=True, slots=True)
class DirectoryMount:
    """A directory of the host that the guest reads: `source` is its path there, `mount_path` that in the
    guest, both absolute and plain. Without one that is not `required` the VM starts all the same."""

    source: str
    mount_path: str
    required: bool = True


@dataclass(frozen=True, slots=True)
class GuestFile:
    """A file that a start writes in the guest, with `content`, or with that of the file `source` of the host.
    `mode`: octal digits; `owner`: USER[:GROUP] of the image."""

    path: str
    content: str | None = None
    source: str | None = None
    mode: str = "0644"
    owner: str = "0:0"


@dataclass(frozen=True, slots=True)
class Secret:
    """A credential of the VM's unit, and the file that the guest has it in. `source`: an absolute path, or a
    name in systemd's store, of a file that is `encrypted` or not; `encrypted_content`: Base64 of what has no
    source. `mode` and `owner` as of a file."""

    name: str
    source: str = ""
    encrypted: bool = False
    encrypted_content: str | None = None
    mode: str = "0400"
    owner: str = "0:0"


@dataclass(frozen=True, slots=True)
class Ulimit:
    """A resource limit of setrlimit(2); None: unlimited. As a text SOFT:HARD."""

    soft: int | None
    hard: int | None

    def __str__(self) -> str:
        return ":".join("unlimited" if limit is None else str(limit) for limit in (self.soft, self.hard))


def _empty() -> Mapping[str, str]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Definition:
    """A validated VM definition, every default filled in.

    Sizes in bytes, times in seconds (None: infinity). `entrypoint` and `cmd` None: the image's own.
    `restart_backoff_max` 0: the delay does not grow. `restart_max_attempts` 0: no limit.
    `persistent` False: every start has a fresh disk. `network` None: the VM is on none.
    `ready` None: it is Running with program and agent. `init` None: by the program's name. `tmpfs` are
    PATH[:OPTIONS], capabilities as they were written. `cpu_limit` in CPUs, None: by `vcpus`. `disk_io`:
    read, write or total in bytes per second, and iops. `directories` are those of the key `volumes` that
    have a source; `env_file` are absolute paths, after a "-" if there need be none.
    `unit` holds extra unit properties as systemd spells them, each value a tuple of its words or lines.
    """

    name: str
    image: str
    memory: int = 1 * GIB
    vcpus: int = 2
    disk: int = 10 * GIB
    persistent: bool = True
    volumes: tuple[VolumeMount, ...] = ()
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    env: Mapping[str, str] = field(default_factory=_empty)
    workdir: str | None = None
    user: str | None = None
    mode: Mode = Mode.AUTO
    guest_agent: bool = True
    kernel_headers: bool = True
    autostart: bool = False
    boot_timeout: float | None = 90.0
    stop_timeout: float | None = 30.0
    restart: Restart = Restart.NO
    tags: Mapping[str, str] = field(default_factory=_empty)
    unit: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    image_pull: ImagePull = ImagePull.MISSING
    network: NetworkUse | None = field(default_factory=NetworkUse)
    ulimits: Mapping[str, Ulimit] = field(default_factory=lambda: MappingProxyType({}))
    ready: Ready | None = None
    init: bool | None = None
    read_only: bool = False
    stdin: bool = False
    tty: bool = False
    tmpfs: tuple[str, ...] = ()
    sysctls: Mapping[str, str] = field(default_factory=_empty)
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    restart_backoff: float = 0.1
    restart_backoff_max: float = 0.0
    restart_max_attempts: int = 4
    restart_stable_after: float = 120.0
    cpu_limit: float | None = None
    balloon: bool = False
    disk_io: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    directories: tuple[DirectoryMount, ...] = ()
    files: tuple[GuestFile, ...] = ()
    secrets: tuple[Secret, ...] = ()
    env_file: tuple[str, ...] = ()
    health: Health | None = None
    on_host_shutdown: HostShutdown = HostShutdown.STOP
    warm_start: WarmStart = WarmStart.AUTO
    fork_reset: tuple[str, ...] = ()

    @property
    def root_volume(self) -> VolumeMount | None:
        """The volume or device that is the VM's own disk; None: it has one in the state directory."""
        return next((mount for mount in self.volumes if mount.is_root), None)

    @property
    def other_volumes(self) -> tuple[VolumeMount, ...]:
        """Those that the guest gets beside its own disk, in the order of their drives."""
        return tuple(mount for mount in self.volumes if not mount.is_root)

    @property
    def local_disk(self) -> int:
        """Bytes of its disk in the state directory."""
        return self.disk if self.root_volume is None else 0

    @property
    def wants_headers(self) -> bool:
        """Kernel headers need a root file system that can be written to."""
        return self.kernel_headers and not self.read_only


# what a VM that runs takes with a reload, without a restart
LIVE_KEYS = frozenset({"autostart", "tags", "image_pull", "health", "fork_reset"})


@dataclass(frozen=True, slots=True)
class DefinitionDefaults:
    """What holds for definitions that do not say; the host config may set it. Units as in Definition;
    `network` is a name, None: no network."""

    memory: int = 1 * GIB
    vcpus: int = 2
    disk: int = 10 * GIB
    boot_timeout: float | None = 90.0
    stop_timeout: float | None = 30.0
    network: str | None = DEFAULT_NETWORK
