# SPDX-License-Identifier: Apache-2.0
"""What the faces are given to show: frozen pictures of a VM, of a log line, of an exec."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from hypemand.config.definition import Definition, ImagePull, Origin, VolumeMount
from hypemand.manager.networkview import VmNetwork
from hypemand.state import HeadersStatus, State


@dataclass(frozen=True, slots=True)
class ExitReport:
    """How a run ended. `code` as in docs/protocol.md; None where nobody could tell. `success` of a VM's run:
    whether that counts as a success, as it does when it was asked to end; None for a command's."""

    code: int | None
    message: str
    success: bool | None = None


@dataclass(frozen=True, slots=True)
class VmView:
    """A VM at one moment. Times are seconds since the epoch, durations milliseconds. `cpu_seconds`: what the
    VMM has used of the host's CPUs in this run; `kernel_headers` None: it does not run, or gets none;
    `network` None: it has none."""

    id: str
    name: str
    origin: Origin
    definition: Definition
    state: State
    state_error: str | None
    status_text: str
    created_at: float
    started_at: float | None
    stopped_at: float | None
    ready_ms: float | None
    exit: ExitReport | None
    needs_restart: bool
    removed_from_config: bool
    unit: str
    invocation_id: str | None
    main_pid: int | None
    uid: int
    memory_current: int | None
    current_phase_since: float
    phase_durations_ms: Mapping[str, int]
    cpu_seconds: float | None = None
    kernel_headers: HeadersStatus | None = None
    network: VmNetwork | None = None


class LogSource(StrEnum):
    """app: the guest's console; vmm: QEMU's own words; hypeman: the daemon's entries on the VM."""

    APP = "app"
    VMM = "vmm"
    HYPEMAN = "hypeman"


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line. `time` is seconds since the epoch as journald stamped it."""

    time: float
    text: str
    invocation_id: str | None


@dataclass(frozen=True, slots=True)
class ExecRequest:
    """A command for the guest. `argv` is not empty; times in seconds, None: no limit. `settings`: as of
    GuestConfig."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str | None
    user: str | None
    timeout: float | None
    umask: int | None = None
    tty: bool = False  # stdout and stderr are one then: everything comes as ExecStream.STDOUT
    rows: int = 24
    cols: int = 80
    settings: tuple[tuple[str, str], ...] = ()


class ExecStream(StrEnum):
    """Which output bytes came on."""

    STDOUT = "stdout"
    STDERR = "stderr"


class ExecSession(Protocol):
    """A command that runs in a guest. Leaving it unread stops only its own output (flow control)."""

    async def write(self, data: bytes) -> None:
        """Send to its standard input; returns when there is credit for more."""

    async def write_eof(self) -> None:
        """Close its standard input."""

    async def signal(self, number: int) -> None:
        """Send a signal to its process group."""

    async def resize(self, rows: int, cols: int) -> None:
        """Tell its terminal the new size; nothing without one."""

    def output(self) -> AsyncIterator[tuple[ExecStream, bytes]]:
        """Its output until both streams have ended. Raises GuestError when the channel breaks."""

    async def wait(self) -> ExitReport:
        """Its exit, after all output has been read."""

    async def close(self) -> None:
        """Lose interest: what still runs is killed, group and all. May be called at any time."""


class FileKind(StrEnum):
    """What a file of a guest is."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    FIFO = "fifo"
    SOCKET = "socket"
    BLOCK = "block"
    CHARACTER = "character"


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A file of a guest. `path`: as asked for in a stat; in a copy relative to its root, "" for the root.

    `mode` the twelve permission bits, `size` bytes (of a FILE), `mtime_ns` since the epoch, `target` of a
    SYMLINK. Bytes of names that are no UTF-8 are kept as os.fsdecode does.
    """

    path: str
    kind: FileKind
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    target: str | None = None


@dataclass(frozen=True, slots=True)
class Hole:
    """Zero bytes that a file need not store."""

    size: int


class CopyOut(Protocol):
    """A file or a tree that comes out of a guest. Leaving it unread stops only this copy (flow control)."""

    def events(self) -> AsyncIterator[FileInfo | bytes | Hole]:
        """Entries, parents first, each FILE's followed by its contents: exactly `size` bytes of data and
        holes. The guest is hostile: of a path here only its form is certain (no `..`, its folder given
        before as a DIRECTORY), not that nothing else lies there where it is written. GuestError."""

    async def close(self) -> None:
        """Lose interest. May be called at any time."""


class CopyIn(Protocol):
    """A file or a tree that goes into a guest. Each method raises GuestError as soon as the guest has said
    what it could not do."""

    async def add(self, entry: FileInfo) -> None:
        """The next entry; ends the file before. uid or gid -1: the agent's own (root)."""

    async def write(self, data: bytes) -> None:
        """The next bytes of the FILE that was added last."""

    async def skip(self, hole: Hole) -> None:
        """A hole in it."""

    async def finish(self) -> int:
        """All was taken and is in place: bytes written. GuestError says what was not."""

    async def close(self) -> None:
        """Give up: what is half there is removed. At any time."""


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


@dataclass(frozen=True, slots=True)
class Span:
    """One step of a boot. Milliseconds since the request to start; `lane` groups spans for drawing
    (host, unit, kernel, init, agent, program)."""

    name: str
    lane: str
    start_ms: float
    end_ms: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """Where the time from the request to Running went."""

    vm: str
    boot: str
    spans: tuple[Span, ...]
    running_ms: float | None


class Manager(Protocol):
    """What the API may ask. Every method takes `ref`: an id, a name, or an unambiguous prefix of an id.

    Raises NotFound and Ambiguous for `ref`, WrongState where the state does not allow it, and what each
    method names. Methods never block the event loop.
    """

    async def attach_volume(self, ref: str, mount: VolumeMount) -> VmView:
        """Give a stopped VM a volume. NotFound (the volume), AlreadyExists, InvalidDefinition; WrongState
        also for a VM of a file."""

    async def detach_volume(self, ref: str, volume: str) -> VmView:
        """Take a volume, by name or id, from a stopped VM. NotFound when it has no such."""

    async def list_vms(self) -> list[VmView]:
        """All VMs, by name."""

    async def get_vm(self, ref: str) -> VmView:
        """One VM."""

    async def create_vm(self, definition: Definition, *, start: bool, short_name: bool = True) -> VmView:
        """Define a VM that lasts (API origin). AlreadyExists, ImageNotReady, NotFound (its image),
        InsufficientResources. When the start fails the VM is not left behind. `short_name` False: the host
        knows it as NAME.hypeman alone."""

    async def delete_vm(self, ref: str) -> None:
        """Stop it if it lives, then remove all of its data. A VM with a file is refused (WrongState)
        unless the file is gone."""

    async def start_vm(self, ref: str, *, pull: ImagePull | None = None) -> VmView:
        """Start; back at once, in Initializing, or when an image that has to be pulled for it has come. No-op
        in Running and Initializing. `pull` instead of the definition's."""

    async def stop_vm(self, ref: str, *, timeout: float | None = None) -> VmView:
        """Stop gracefully and wait for it; `timeout` seconds instead of the definition's."""

    async def restart_vm(self, ref: str, *, pull: ImagePull | None = None) -> VmView:
        """Stop, then start. An image that has to be pulled for it comes before."""

    async def kill_vm(self, ref: str, signal: int = 9) -> VmView:
        """Send the VMM a signal; waits for the end when it is SIGKILL."""

    async def pause_vm(self, ref: str) -> VmView:
        """Stop the CPUs of a Running VM. TimedOut, GuestError when the VMM does not do it."""

    async def resume_vm(self, ref: str) -> VmView:
        """Let a Paused VM go on, whatever it was paused for. One that cannot write, since a file system is
        still full, is Paused again at once. TimedOut, GuestError."""

    async def wait_vm(self, ref: str, state: State, timeout: float) -> tuple[VmView, bool]:
        """Wait for `state`. The bool is `timed_out`. Back early when the VM is in Unknown, Stopped or
        Standby and that is not what is waited for."""

    def watch_vm(self, ref: str) -> AsyncIterator[VmView]:
        """The VM now, then again at each change of its state or status text. Ends when it is deleted."""

    def logs(
        self, ref: str, *, source: LogSource, tail: int | None, follow: bool, sentinels: bool
    ) -> AsyncIterator[LogLine]:
        """Lines, oldest first; `tail` None: all. With `follow` it goes on until the run that is on has
        ended and its last line was given; at once when none is on. `sentinels`: keep HYPEMAN- lines."""

    async def timeline(self, ref: str) -> Timeline:
        """The last boot. WrongState when there was none."""


class GuestService(Protocol):
    """What the API may ask of guests that run. `ref`, and what is raised, are as with `Manager`."""

    async def exec_vm(self, ref: str, request: ExecRequest) -> ExecSession:
        """Start a command in a Running VM."""

    async def stat_path(self, ref: str, path: str, *, follow: bool = False) -> FileInfo | None:
        """A file of a Running VM; None: there is no such file. `follow`: what a symbolic link points to."""

    async def copy_out(self, ref: str, path: str, *, follow: bool = False) -> CopyOut:
        """Begin to copy from an absolute path of a Running VM. `follow`: symbolic links are copied as what
        they point to. NotFound also when there is no such file."""

    async def copy_in(self, ref: str, path: str) -> CopyIn:
        """Begin to copy into `path`, an absolute path of a Running VM: the entry "" becomes `path` itself.
        Its folder is made if missing; a file that is there is replaced when the new one is whole, a
        directory is merged into."""
