# SPDX-License-Identifier: Apache-2.0
"""A manager and an image store that live in memory and behave as their Protocols say."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from hypemand.config.definition import Definition, ImagePull, VolumeMount
from hypemand.errors import (
    AlreadyExists,
    Ambiguous,
    HypemandError,
    InUse,
    NotFound,
    Problem,
    StartFailed,
    WrongState,
)
from hypemand.model.answers.host import ReloadReport
from hypemand.model.exec import ExecRequest, ExecSession, ExecStream
from hypemand.model.files import CopyIn, CopyOut, FileInfo
from hypemand.model.images import Credentials, ImageInfo, OciConfig, Progress, Pruned, PullStatus
from hypemand.model.logs import LogLine, LogSource
from hypemand.model.state import Operation, Origin, State, check_allowed
from hypemand.model.timeline import Span, Timeline
from hypemand.model.vm import ExitReport, VmView
from hypemand.storage.references import parse_reference
from tests.unit.api.fakefiles import FakeCopyIn, FakeCopyOut, FakeFiles

IMAGE = "builtin:busybox"
WAIT_ENDS = (State.UNKNOWN, State.STOPPED, State.STANDBY)


@dataclass
class FakeVm:
    """A VM; `lines` are its console's."""

    view: VmView
    lines: list[str] = field(default_factory=lambda: ["one", "HYPEMAN-AGENT-READY ts=x boot=y", "two"])


class FakeManager:
    """VMs that get from Initializing to Running when `boot` is called."""

    def __init__(self) -> None:
        self.vms: dict[str, FakeVm] = {}
        self.short_names: set[str] = set()
        self.sessions: list[FakeSession] = []
        self.files = FakeFiles()
        self.killed: list[tuple[str, int]] = []
        self.pulls: list[ImagePull] = []
        self.stop_gate: asyncio.Event | None = None
        self.stops_waiting = 0
        self.listed = asyncio.Event()
        self.refuse_exec: HypemandError | None = None
        self.log_failure: Exception | None = None
        self.watchers = 0
        self._changed = asyncio.Condition()

    def add(self, name: str, *, state: State = State.STOPPED, **parts: object) -> FakeVm:
        """A VM that is there before anybody asks. `parts` are keys of its view."""
        view = make_view(name, len(self.vms), Definition(name, IMAGE), state)
        vm = self.vms[name] = FakeVm(replace(view, **parts))  # type: ignore[arg-type]
        return vm

    async def set_state(self, name: str, state: State, **parts: object) -> VmView:
        """What happens by itself: the VM changes."""
        vm = self.vms[name]
        text = f"{state}: as a fake"
        vm.view = replace(vm.view, state=state, status_text=text, **parts)  # type: ignore[arg-type]
        await self.tell()
        return vm.view

    async def tell(self) -> None:
        """Wake everybody who waits for a change."""
        async with self._changed:
            self._changed.notify_all()

    async def boot(self, name: str) -> VmView:
        """The guest of a VM in Initializing gets ready."""
        return await self.set_state(name, State.RUNNING, ready_ms=612.5, main_pid=77, started_at=time.time())

    def find(self, ref: str) -> FakeVm:
        """By name, id or prefix."""
        if ref in self.vms:
            return self.vms[ref]
        fitting = [vm for vm in self.vms.values() if vm.view.id.startswith(ref)]
        if len(fitting) > 1:
            raise Ambiguous(f"{ref} is the beginning of several ids")
        if not fitting:
            raise NotFound(f"there is no VM {ref}", hint="hypemanctl list shows those that are")
        return fitting[0]

    async def attach_volume(self, ref: str, mount: VolumeMount) -> VmView:
        view = self.find(ref).view
        if view.state is not State.STOPPED:
            raise WrongState(f"{view.name} is {view.state}")
        return await self._set_volumes(view, (*view.definition.volumes, mount))

    async def detach_volume(self, ref: str, volume: str) -> VmView:
        view = self.find(ref).view
        kept = tuple(mount for mount in view.definition.volumes if mount.volume != volume)
        if kept == view.definition.volumes:
            raise NotFound(f"{view.name} has no volume {volume}")
        return await self._set_volumes(view, kept)

    async def _set_volumes(self, view: VmView, volumes: tuple[VolumeMount, ...]) -> VmView:
        changed = replace(view.definition, volumes=volumes)
        return await self.set_state(view.name, view.state, definition=changed)

    async def list_vms(self) -> list[VmView]:
        self.listed.set()
        return [self.vms[name].view for name in sorted(self.vms)]

    async def get_vm(self, ref: str) -> VmView:
        return self.find(ref).view

    def view_vm(self, ref: str) -> VmView:
        return self.find(ref).view

    async def create_vm(self, definition: Definition, *, start: bool, short_name: bool = True) -> VmView:
        if definition.name in self.vms:
            raise AlreadyExists(f"there is a VM {definition.name} already")
        if definition.image == "missing":
            raise NotFound("there is no image missing", code="image_not_found")
        if definition.image == "breaks":
            raise StartFailed("QEMU ended at once")
        state = State.INITIALIZING if start else State.STOPPED
        view = make_view(definition.name, len(self.vms), definition, state)
        self.vms[definition.name] = FakeVm(view)
        if short_name:
            self.short_names.add(definition.name)
        return view

    async def delete_vm(self, ref: str) -> None:
        vm = self.find(ref)
        if vm.view.origin is Origin.FILE and not vm.view.removed_from_config:
            raise WrongState(f"{vm.view.name} is defined in a file", hint="remove the file first")
        del self.vms[vm.view.name]
        await self.tell()

    async def start_vm(self, ref: str, *, pull: ImagePull | None = None) -> VmView:
        self.pulls += [] if pull is None else [pull]
        view = self.find(ref).view
        check_allowed(Operation.START, view.state, view.name)
        if view.state is not State.STOPPED:
            return view
        return await self.set_state(view.name, State.INITIALIZING)

    async def stop_vm(self, ref: str, *, timeout: float | None = None) -> VmView:
        view = self.find(ref).view
        check_allowed(Operation.STOP, view.state, view.name)
        if self.stop_gate is not None:
            self.stops_waiting += 1
            await self.stop_gate.wait()
        message = f"stopped on request, timeout {timeout}"
        return await self.set_state(view.name, State.STOPPED, exit=ExitReport(143, message, success=True))

    async def restart_vm(self, ref: str, *, pull: ImagePull | None = None) -> VmView:
        self.pulls += [] if pull is None else [pull]
        await self.stop_vm(ref)
        return await self.start_vm(ref)

    async def kill_vm(self, ref: str, signal: int = 9) -> VmView:
        view = self.find(ref).view
        check_allowed(Operation.KILL, view.state, view.name)
        self.killed.append((view.name, signal))
        return await self.set_state(view.name, State.STOPPED) if signal == 9 else view

    async def pause_vm(self, ref: str) -> VmView:
        view = self.find(ref).view
        check_allowed(Operation.PAUSE, view.state, view.name, view.state_error)
        return await self.set_state(view.name, State.PAUSED)

    async def resume_vm(self, ref: str) -> VmView:
        view = self.find(ref).view
        check_allowed(Operation.RESUME, view.state, view.name)
        return await self.set_state(view.name, State.RUNNING)

    async def wait_vm(self, ref: str, state: State, timeout: float) -> tuple[VmView, bool]:
        name = self.find(ref).view.name
        try:
            async with asyncio.timeout(timeout), self._changed:
                await self._changed.wait_for(lambda: self.find(name).view.state in (state, *WAIT_ENDS))
        except TimeoutError:
            return self.find(name).view, True
        return self.find(name).view, False

    async def watch_vm(self, ref: str) -> AsyncIterator[VmView]:
        name = self.find(ref).view.name
        self.watchers += 1
        try:
            last = None
            while name in self.vms:
                if self.vms[name].view != last:
                    last = self.vms[name].view
                    yield last
                async with self._changed:
                    await self._changed.wait_for(partial(self._differs, name, last))
        finally:
            self.watchers -= 1

    def _differs(self, name: str, seen: VmView) -> bool:
        return name not in self.vms or self.vms[name].view != seen

    async def logs(
        self, ref: str, *, source: LogSource, tail: int | None, follow: bool, sentinels: bool
    ) -> AsyncIterator[LogLine]:
        vm = self.find(ref)
        texts = vm.lines if source is LogSource.APP else [f"{source} line"]
        texts = [t for t in texts if sentinels or not t.startswith("HYPEMAN-")]
        for text in texts if tail is None else texts[len(texts) - min(tail, len(texts)) :]:
            yield LogLine(1_700_000_000.25, text, "ab" * 16)
        if self.log_failure is not None:
            raise self.log_failure
        if follow:
            async with self._changed:
                await self._changed.wait_for(lambda: vm.view.state in WAIT_ENDS)
            yield LogLine(1_700_000_001.5, "last", None)

    async def exec_vm(self, ref: str, request: ExecRequest) -> ExecSession:
        view = self.find(ref).view
        check_allowed(Operation.EXEC, view.state, view.name)
        if self.refuse_exec is not None:
            raise self.refuse_exec
        session = FakeSession(request)
        self.sessions.append(session)
        return session

    async def stat_path(self, ref: str, path: str, *, follow: bool = False) -> FileInfo | None:
        view = self.find(ref).view
        check_allowed(Operation.STAT, view.state, view.name)
        return self.files.stat(path, follow=follow)

    async def copy_out(self, ref: str, path: str, *, follow: bool = False) -> CopyOut:
        view = self.find(ref).view
        check_allowed(Operation.COPY, view.state, view.name)
        return FakeCopyOut(self.files, path)

    async def copy_in(self, ref: str, path: str) -> CopyIn:
        view = self.find(ref).view
        check_allowed(Operation.COPY, view.state, view.name)
        return FakeCopyIn(self.files, path)

    async def timeline(self, ref: str) -> Timeline:
        view = self.find(ref).view
        if view.ready_ms is None:
            raise WrongState(f"{view.name} was not started yet")
        spans = (Span("unit", "host", 0.0, 12.5), Span("kernel", "kernel", 12.5, 600.0))
        return Timeline(view.name, "cd" * 16, spans, view.ready_ms)


def make_view(name: str, number: int, definition: Definition, state: State) -> VmView:
    """A view of a VM that was defined by the API."""
    return VmView(
        id=f"{'abc' if number % 2 else 'xyz'}{number:021d}",
        name=name,
        origin=Origin.API,
        definition=definition,
        state=state,
        state_error=None,
        status_text=f"{state}: as a fake",
        created_at=1_700_000_000.0,
        started_at=None,
        stopped_at=None,
        ready_ms=None,
        exit=None,
        needs_restart=False,
        removed_from_config=False,
        unit=f"hypeman-vm-{name}.service",
        invocation_id=None,
        boot_id=None,
        main_pid=None,
        uid=61184,
        memory_current=None,
        current_phase_since=1_700_000_000.0,
        phase_durations_ms={"Stopped": 12},
    )


class FakeSession:
    """`cat`: gives back its input; also `sh -c err`, `lost` and `sleep`, told apart by the first word."""

    def __init__(self, request: ExecRequest) -> None:
        self.request = request
        self.closed = asyncio.Event()
        self.signals: list[int] = []
        self.sizes: list[tuple[int, int]] = []
        self.blocked = asyncio.Event()
        self._ended = asyncio.Event()
        self._input: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._code: int | None = 0

    async def write(self, data: bytes) -> None:
        if self.request.argv[0] == "sleep":
            self.blocked.set()
            await self._ended.wait()
        await self._input.put(data)

    async def write_eof(self) -> None:
        await self._input.put(None)

    async def signal(self, number: int) -> None:
        self.signals.append(number)
        self._code = 128 + number
        self._ended.set()
        await self._input.put(None)

    async def resize(self, rows: int, cols: int) -> None:
        self.sizes.append((rows, cols))
        await self._input.put(f"{rows}x{cols}\n".encode())

    async def output(self) -> AsyncIterator[tuple[ExecStream, bytes]]:
        match self.request.argv[0]:
            case "both":
                yield ExecStream.STDOUT, b"out"
                yield ExecStream.STDERR, b"err"
                self._code = 3
            case "lost":
                self._code = None
            case "sleep":
                await self._ended.wait()
            case _:
                while (data := await self._input.get()) is not None:
                    yield ExecStream.STDOUT, data

    async def wait(self) -> ExitReport:
        return ExitReport(self._code, "as a fake")

    async def close(self) -> None:
        self.closed.set()


def make_image(name: str, *, builtin: bool = False, in_use_by: tuple[str, ...] = ()) -> ImageInfo:
    """An image that is ready."""
    return ImageInfo(
        name,
        digest="sha256:" + "0" * 64,
        architecture="amd64",
        size=4096,
        created_at=1_700_000_000.0,
        config=OciConfig(cmd=("/bin/sh",), env=("PATH=/bin", "A=b=c")),
        builtin=builtin,
        in_use_by=in_use_by,
    )


class FakeImages:
    """Images in a dict. A pull goes on when it is told to: with `step`."""

    def __init__(self) -> None:
        self.images = {
            IMAGE: make_image(IMAGE, builtin=True),
            "example.org/team/app:v1": make_image("example.org/team/app:v1", in_use_by=("web",)),
            "spare": make_image("spare"),
        }
        self.credentials: list[Credentials | None] = []
        self.archive = b"an archive"
        self._changed = asyncio.Condition()

    async def step(self, name: str, status: PullStatus, **parts: object) -> None:
        """What happens by itself: a pull gets further."""
        self.images[name] = replace(self.images[name], status=status, **parts)  # type: ignore[arg-type]
        async with self._changed:
            self._changed.notify_all()

    async def list_images(self) -> list[ImageInfo]:
        return [self.images[name] for name in sorted(self.images)]

    async def get_image(self, name: str) -> ImageInfo:
        if name not in self.images:
            raise NotFound(f"there is no image {name}", code="image_not_found")
        return self.images[name]

    async def pull_image(self, name: str, credentials: Credentials | None = None) -> ImageInfo:
        parse_reference(name)
        self.credentials.append(credentials)
        self.images[name] = ImageInfo(name, PullStatus.PENDING, progress=Progress())
        return self.images[name]

    async def watch_image(self, name: str) -> AsyncIterator[ImageInfo]:
        last = None
        while last is None or not last.status.is_settled:
            async with self._changed:
                while self.images[name] is last:
                    await self._changed.wait()
            last = self.images[name]
            yield last

    async def tag_image(self, name: str, target: str) -> ImageInfo:
        self.images[target] = replace(await self.get_image(name), name=target)
        return self.images[target]

    async def remove_image(self, name: str) -> None:
        if (await self.get_image(name)).in_use_by:
            raise InUse(f"the image {name} is used by VMs")
        del self.images[name]

    async def prune_images(self, *, every: bool, dry_run: bool) -> list[Pruned]:
        free = [image for image in self.images.values() if not image.in_use_by and not image.builtin]
        doomed = free if every else []
        for image in [] if dry_run else doomed:
            del self.images[image.name]
        return [Pruned((image.name,), image.digest, image.size or 0) for image in doomed]

    async def import_image(self, name: str, path: str) -> ImageInfo:
        self.images[name] = make_image(name)
        return self.images[name]

    @asynccontextmanager
    async def export_image(self, name: str) -> AsyncIterator[Path]:
        await self.get_image(name)
        with tempfile.NamedTemporaryFile() as file:
            file.write(self.archive)
            file.flush()
            yield Path(file.name)


async def fake_reload() -> ReloadReport:
    """The same at each call."""
    problem = Problem("a.yaml", 3, 1, "memory", "is no size", "write 1G")
    return ReloadReport(("new",), ("other",), (), (problem,))
