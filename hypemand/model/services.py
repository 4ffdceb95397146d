# SPDX-License-Identifier: Apache-2.0
"""What the API may ask of the daemon: the contracts between both."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

from hypemand.config.definition import Definition, ImagePull, VolumeMount
from hypemand.model.change import VmChange
from hypemand.model.compression import Compression
from hypemand.model.events import Noted, Since
from hypemand.model.exec import AttachRequest, AttachSession, ExecRequest, ExecSession
from hypemand.model.files import CopyIn, CopyOut, FileInfo
from hypemand.model.fork import ForkWanted
from hypemand.model.host import ResourceReport
from hypemand.model.images import Credentials, ImageInfo, Pruned
from hypemand.model.lifetime import Lifetime
from hypemand.model.limits import RuntimeLimits
from hypemand.model.logs import LogLine, LogSource
from hypemand.model.networks import NetworkInfo
from hypemand.model.schedules import ScheduleWanted, SnapshotSchedule
from hypemand.model.snapshots import SnapshotKind, SnapshotView
from hypemand.model.space import SpaceReport
from hypemand.model.state import FromStandby, State
from hypemand.model.templates import TemplateView
from hypemand.model.timeline import Timeline
from hypemand.model.transfer import ExportWanted, ImportWanted, MakeDefinition
from hypemand.model.vm import Program, RunReport, VmView
from hypemand.model.volumes import VolumeFill, VolumeRoot, VolumeView


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
        """One VM; systemd, its VMM and the network service are asked."""

    def view_vm(self, ref: str) -> VmView:
        """One VM as it was last seen. Nobody is asked: for who wants to know its state, and not what it
        uses."""

    async def create_vm(
        self,
        definition: Definition,
        *,
        start: bool,
        short_name: bool = True,
        lifetime: Lifetime | None = None,
        patience: float | None = None,
    ) -> VmView:
        """Define a VM that lasts (API origin). AlreadyExists, ImageNotReady, NotFound (its image),
        InsufficientResources. When the start fails the VM is not left behind. `short_name` False: the host
        knows it as NAME.hypeman alone. `lifetime`: from now on. `patience`: seconds that a pull of its image
        is waited for, which goes on then (ImageNotReady); None: until it is over."""

    async def change_vm(self, ref: str, change: VmChange) -> VmView:
        """Change how long a VM lives from now, and its definition, in any state: what of that a VM that runs
        has only after a restart, its view says. WrongState when it has expired already, and for a VM of a
        file; InvalidDefinition."""

    async def rename_vm(self, ref: str, name: str, *, by_root: bool = True) -> VmView:
        """Give a Stopped VM another name: it keeps all that it has. InvalidRequest, AlreadyExists, InUse,
        WrongState also for a VM of a file. `by_root` False: Forbidden for one that has a short name."""

    async def delete_vm(self, ref: str, *, kill: bool = False) -> None:
        """Stop it if it lives, killing it after its stop_timeout, then remove all of its data. A VM with a
        file is refused (WrongState) unless the file is gone. `kill`: at once."""

    async def start_vm(
        self,
        ref: str,
        *,
        pull: ImagePull | None = None,
        program: Program | None = None,
        standby: FromStandby = FromStandby.REFUSE,
    ) -> VmView:
        """Start; back at once, in Initializing, or when an image that has to be pulled for it has come. No-op
        in Running and Initializing, unless there is a `program`, which a VM is defined with from this start
        on. `pull` instead of the definition's; `standby`: what is done with a VM in Standby. One that waits
        in a shared pool is restored, unless that is COLD."""

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

    async def standby_vm(
        self, ref: str, compression: Compression | None = None, pool: str | None = None
    ) -> VmView:
        """Save a Running or Paused VM to the host's disk, and end its VMM; no-op in Standby without
        `compression`, which is begun then and goes on afterwards. GuestError, TimedOut,
        InsufficientResources: it runs on then. WrongState also when it was stopped meanwhile. `pool`: move
        what is saved to that shared pool, from which the host restores it that starts it next; it is Stopped
        then. NotFound, HostNotReady, and WrongState for what another host could not restore: it runs on.
        If the move fails, it is in Standby."""

    async def restore_vm(self, ref: str) -> VmView:
        """Have a VM in Standby go on; back at once, as `start_vm`. No-op in Running and Initializing.
        WrongState also for what cannot be restored any more; whatever goes wrong, it stays in Standby."""

    async def get_limits(self, ref: str) -> RuntimeLimits:
        """The limits of a VM that runs or is Paused, as they are now. TimedOut, GuestError."""

    async def set_limits(self, ref: str, keys: Mapping[str, object]) -> RuntimeLimits:
        """Change limits of a VM that runs, until it is started again: `memory`, `cpu_limit` and `disk_io` as
        in a definition, null as it was started. InvalidDefinition, TimedOut, GuestError."""

    async def wait_vm(self, ref: str, state: State, timeout: float) -> tuple[VmView, bool]:
        """Wait for `state`. The bool is `timed_out`. Back early when the VM is in Unknown, Stopped or
        Standby and that is not what is waited for. NotFound when it is deleted meanwhile."""

    def watch_vm(self, ref: str) -> AsyncIterator[VmView]:
        """The VM now, then again at each change of its state or status text. Ends when it is deleted."""

    def logs(
        self,
        ref: str,
        *,
        source: LogSource,
        tail: int | None,
        follow: bool,
        sentinels: bool,
        since: float | None = None,
    ) -> AsyncIterator[LogLine]:
        """Lines, oldest first; `tail` None: all. `since`: not of before, in seconds since the epoch. With
        `follow` it ends after the last line of the current run; at once when there is none. `sentinels`: keep
        HYPEMAN- lines."""

    async def list_runs(self, ref: str) -> Sequence[RunReport]:
        """Its last runs, the oldest first; the last one may be on. Empty: it was never started."""

    async def timeline(self, ref: str) -> Timeline:
        """The last boot. WrongState when there was none."""


class GuestService(Protocol):
    """What the API may ask of guests that run. `ref`, and what is raised, are as with `Manager`."""

    async def exec_vm(self, ref: str, request: ExecRequest) -> ExecSession:
        """Start a command in a Running VM."""

    async def attach_vm(self, ref: str, request: AttachRequest) -> AttachSession:
        """Attach to the program of a Running VM, which was started with stdin or tty; else WrongState. It
        goes on when the session is closed."""

    async def stat_path(self, ref: str, path: str, *, follow: bool = False) -> FileInfo | None:
        """A file of a Running VM; None: there is no such file. `follow`: what a symbolic link points to."""

    async def copy_out(self, ref: str, path: str, *, follow: bool = False) -> CopyOut:
        """Begin to copy from an absolute path of a Running VM. `follow`: symbolic links are copied as what
        they point to. NotFound also when there is no such file."""

    async def copy_in(self, ref: str, path: str) -> CopyIn:
        """Begin to copy into `path`, an absolute path of a Running VM: the entry "" becomes `path` itself.
        Its folder is made if missing; a file that is there is replaced when the new one is whole, a
        directory is merged into."""


class ImageService(Protocol):
    """The images of this host. Methods never block the event loop. InvalidRequest for what can be no name."""

    async def list_images(self) -> Sequence[ImageInfo]:
        """All images, by name, with those that are being had."""

    async def get_image(self, name: str) -> ImageInfo:
        """One image. Raises NotFound."""

    async def pull_image(
        self, name: str, credentials: Credentials | None = None, tags: Mapping[str, str] | None = None
    ) -> ImageInfo:
        """Start the pull of `name`, or join one in progress, and return its state at once. `tags`: those that
        the name gets with the image; None: it keeps its own."""

    def watch_image(self, name: str) -> AsyncIterator[ImageInfo]:
        """The image now, then at each change, until it is READY or FAILED."""

    async def tag_image(self, name: str, target: str) -> ImageInfo:
        """Give it one more name. Raises NotFound."""

    async def remove_image(self, name: str) -> None:
        """Remove it, or end its pull. Raises NotFound, InUse while a VM needs it."""

    async def prune_images(self, *, every: bool, dry_run: bool) -> Sequence[Pruned]:
        """Remove what has no name and no VM needs; `every`: with names too. `dry_run`: only tell."""

    async def import_image(self, name: str, path: str) -> ImageInfo:
        """Make an image of a directory, a tar archive or an OCI layout. Raises AlreadyExists,
        InvalidRequest for what is none of them."""

    def export_image(self, name: str) -> AbstractAsyncContextManager[Path]:
        """An OCI archive of it, which is there until the end of the block. Raises NotFound."""


class VolumeService(Protocol):
    """The volumes of this host. Methods never block the event loop. `ref`: a name, an id, or an unambiguous
    start of an id; raises NotFound and Ambiguous for it. Sizes in bytes."""

    async def list_volumes(self) -> Sequence[VolumeView]:
        """All volumes, by name."""

    async def get_volume(self, ref: str) -> VolumeView:
        """One volume."""

    async def create_volume(
        self,
        name: str,
        size: int,
        tags: Mapping[str, str],
        volume_id: str | None,
        root: VolumeRoot | None = None,
    ) -> VolumeView:
        """An empty one. InvalidRequest, AlreadyExists, InsufficientResources."""

    async def remove_volume(self, ref: str) -> None:
        """Remove it with all that is in it. InUse while a VM is defined or runs with it."""

    async def resize_volume(self, ref: str, size: int) -> VolumeView:
        """Let it grow. InUse while a VM runs with it, InvalidRequest for less, InsufficientResources."""

    def fill_volume(
        self, name: str, size: int, tags: Mapping[str, str], volume_id: str | None
    ) -> AbstractAsyncContextManager[VolumeFill]:
        """A new volume that the block puts files into; there to be used at its end, and gone if it raises."""

    def read_volume(self, ref: str) -> AbstractAsyncContextManager[CopyOut]:
        """What is in it. InUse while a VM writes to it."""

    async def measure_space(self) -> SpaceReport:
        """What hypemand keeps on the host's disk."""


class SnapshotService(Protocol):
    """Snapshots of VMs. Methods never block the event loop. `ref` is of a VM, as with `Manager`; `snapshot`:
    an id, an unambiguous start of one, or a name that one snapshot alone has; NotFound and Ambiguous for
    it."""

    async def list_snapshots(self) -> Sequence[SnapshotView]:
        """All snapshots, the oldest first."""

    async def get_snapshot(self, snapshot: str) -> SnapshotView:
        """One of them."""

    async def create_snapshot(
        self,
        ref: str,
        kind: SnapshotKind | None,
        name: str | None,
        tags: Mapping[str, str],
        lifetime: Lifetime | None = None,
        compression: Compression | None = None,
    ) -> SnapshotView:
        """One of a VM, which stays as it is: one that runs stands still meanwhile. `kind` None: that of its
        state; `lifetime`: from when it is made; `compression`: of its memory, which is begun then and goes on
        afterwards. WrongState, AlreadyExists, InvalidRequest, InsufficientResources, GuestError, TimedOut."""

    async def restore_snapshot(self, ref: str, snapshot: str, target: State | None) -> VmView:
        """Have a VM that does not run be as it was: its disk, and for kind Standby its memory; and in state
        `target` then. WrongState also for what cannot be restored any more, InvalidRequest for a snapshot of
        another VM, InsufficientResources; it stays as it is then. What a start raises: it is restored."""

    async def remove_snapshot(self, snapshot: str) -> None:
        """Remove it. InUse while it is being restored."""


class ScheduleService(Protocol):
    """Snapshots that are made of VMs by itself. `ref`, and what is raised, are as with `Manager`; what is
    given is the id of the VM, with its schedule."""

    async def get_schedule(self, ref: str) -> tuple[str, SnapshotSchedule]:
        """NotFound also where it has none."""

    async def set_schedule(self, ref: str, wanted: ScheduleWanted) -> tuple[str, SnapshotSchedule]:
        """Give it one, or another one, whose slots are the same unless the interval changes.
        InvalidRequest."""

    async def remove_schedule(self, ref: str) -> None:
        """Make no more; the snapshots stay. NotFound also where it has none."""


class TemplateService(Protocol):
    """Templates for warm starts. Methods never block the event loop."""

    async def list_templates(self) -> Sequence[TemplateView]:
        """All, the one last that was used first."""

    async def create_template(self, ref: str) -> tuple[TemplateView, bool]:
        """The template from which that VM (as with `Manager`) can start, and whether it was made now: as long
        as there is one, it is that. WrongState where that VM always boots, InsufficientResources,
        StartFailed, HostNotReady."""

    async def remove_template(self, key: str) -> None:
        """Remove the one with that key, or unambiguous prefix of a key; VMs that run from it continue.
        NotFound, Ambiguous."""


class ForkService(Protocol):
    """New VMs of what others are, or were; nothing is left of one that fails. Methods never block the event
    loop. What they raise beside: AlreadyExists, InsufficientResources, and what a start raises."""

    async def fork_vm(self, ref: str, wanted: ForkWanted) -> VmView:
        """One of a VM, which stays as it is: one that runs stands still meanwhile. WrongState, also where it
        runs and `from_running` is not said, and where it writes to a volume; GuestError, TimedOut."""

    async def fork_snapshot(self, snapshot: str, wanted: ForkWanted) -> VmView:
        """One of a snapshot. NotFound, Ambiguous; WrongState also for what cannot be restored any more."""


class TransferService(Protocol):
    """VMs as archives. Methods never block the event loop."""

    def export_vm(self, ref: str, wanted: ExportWanted) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """The archive of a stopped VM in pieces, as docs/vm-archive.md describes; the VM cannot be started in
        the block. InUse for a volume that is written to."""

    async def import_vm(
        self,
        wanted: ImportWanted,
        pieces: AsyncIterator[bytes],
        make_definition: MakeDefinition,
        *,
        short_name: bool = True,
    ) -> VmView:
        """A stopped VM of an archive: whole, or nothing of it. InvalidRequest for what is no archive, or is
        damaged, AlreadyExists, InsufficientResources, and what `make_definition` raises."""


class EventService(Protocol):
    """The events of this host."""

    def read(self, since: Since, *, follow: bool) -> AsyncIterator[Noted]:
        """Events, oldest first; with `follow` also those that come. Where some are missing, because they are
        not kept any more, an event says so."""


class MetricsService(Protocol):
    """The metrics of this host."""

    async def render(self) -> bytes:
        """As they are now, in Prometheus' text format."""


class NetworkService(Protocol):
    """The networks of this host."""

    async def list_networks(self) -> Sequence[NetworkInfo]:
        """All networks, by name."""

    async def get_network(self, name: str) -> NetworkInfo:
        """One network. NotFound."""


class HostService(Protocol):
    """The host itself. Methods never block the event loop."""

    async def find_vmm_problem(self) -> str:
        """What is missing on the host to run VMs, in words; "" if nothing is."""

    async def measure_resources(self) -> ResourceReport:
        """What the host has, and what VMs have of it at this moment."""
