# SPDX-License-Identifier: Apache-2.0
"""Warm starts: finds the template for a VM, and makes one after a start that had none.

A template is made in a unit of its own, in the sandbox of a VMM, with a user of its own, without a network
and with the least priority; one at a time. It boots without any disk of a VM, up to the point at which its
guest would read what it is, and is saved there.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pwd
import shutil
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hypemand.agent.report import open_report
from hypemand.atomic import make_folder
from hypemand.budget import Budget
from hypemand.config.definition import Definition, WarmStart
from hypemand.config.host import HostConfig
from hypemand.errors import HostNotReady, HypemandError, InsufficientResources, StartFailed, WrongState
from hypemand.manager.plan import Warm, plan_template
from hypemand.network.wire import TAP_SOCKET, TEMPLATE_USER
from hypemand.systemd.rootdir import Own, is_in_usr, outside_usr
from hypemand.systemd.units import UnitPlan, Units
from hypemand.tasks import Tasks
from hypemand.unitnames import template_unit_name
from hypemand.vm.saved import MEMORY, STATE, FileMark, open_new
from hypemand.vm.template import TEMPLATES, Shape, Template, TemplateStore
from hypemand.vmm.accel import AccelKind
from hypemand.vmm.build import BuildFinder, VmmBuild
from hypemand.vmm.commandline import WORKER_TASKS, VmmPlan, can_share, memory_overhead
from hypemand.vmm.control import CONTROL
from hypemand.vmm.driver import Connect, Vmm, VmmError, VmmTimeout
from hypemand.vmm.host import VmmHost, find_vmm_host
from hypemand.vmm.template import (
    PLACEHOLDER,
    can_have_template,
    derive_kind,
    list_placeholders,
    template_line,
)
from hypemand.workers import Pool, run_in

_log = logging.getLogger(__name__)
_LAUNCHER = "/usr/lib/hypemand/launcher"
_READY = b"HYPEMAN-TEMPLATE"
# with the least priority, a boot on a busy host takes as long as it takes
_BOOT_DEADLINE = 120.0
_SAVE_DEADLINE = 60.0
_END_DEADLINE = 30.0
_POLL = 0.05


class Choice:
    """Of one start: `find` is asked with the plan of it. Then `used` is the key of the template that it goes
    on from, or a template is `wanted`, or neither."""

    def __init__(self, store: TemplateStore, build: VmmBuild, own: Own) -> None:
        self._store = store
        self._build = build
        self._own = own
        self.wanted: Wanted | None = None
        self.used: str | None = None

    def find(self, vmm: VmmPlan, host: VmmHost) -> Warm | None:
        """The template for it. None, and it is `wanted`, if there is none. Blocks."""
        if not can_have_template(vmm):
            return None
        wanted = Wanted.of(self._build, vmm, host, self._own)
        template = self._store.find(wanted.shape)
        if template is None:
            self.wanted = wanted
            return None
        self.used = template.key
        is_shared = can_share(self._build.version)
        return Warm(template.folder, template.crc, template.memory, wanted.shape.files[0], is_shared)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A template that a start would have gone on from: of its plan."""

    shape: Shape
    vmm: VmmPlan
    host: VmmHost

    @classmethod
    def of(cls, build: VmmBuild, vmm: VmmPlan, host: VmmHost, own: Own) -> Wanted:
        """That of a plan. Blocks."""
        marks = tuple(FileMark.of(path) for path in (host.binary, host.kernel.path, host.initrd))
        shape = Shape(build, template_line(vmm, own.runtime), marks, os.uname().release)
        return cls(shape, vmm, host)


def find_template_user() -> int:
    """The uid of who runs the VMM of a template (units/hypemand.sysusers). HostNotReady."""
    try:
        return pwd.getpwnam(TEMPLATE_USER).pw_uid
    except KeyError:
        raise HostNotReady(f"there is no user {TEMPLATE_USER}", hint="run systemd-sysusers") from None


class Templates:
    """`find_user`: the uid of who runs the VMM of a template, or HypemandError."""

    def __init__(
        self,
        config: Callable[[], HostConfig],
        builds: BuildFinder,
        units: Units,
        connect: Connect,
        find_user: Callable[[], int],
    ) -> None:
        self._config = config
        self._builds = builds
        self._units = units
        self._connect = connect
        self._find_user = find_user
        self._making = asyncio.Lock()
        self._tasks = Tasks("templates")
        self._being_made: dict[str, asyncio.Task[Template]] = {}
        # what could not be made by this daemon, and is not tried again by itself
        self._failed: set[str] = set()
        # what a VM has not continued from
        self._stalled: set[str] = set()

    async def close(self) -> None:
        """End what is being made."""
        await self._tasks.close()

    @property
    def store(self) -> TemplateStore:
        """All that are there."""
        return TemplateStore(self._config().state_dir / TEMPLATES)

    @property
    def _own(self) -> Own:
        return Own(self._config().runtime_dir / "self")

    async def choose(self, definition: Definition) -> Choice | None:
        """For a start of this definition; None where it is to boot."""
        config = self._config()
        if WarmStart.OFF in (definition.warm_start, config.warm_start.mode):
            return None
        try:
            host = await run_in(Pool.STARTS, find_vmm_host, config)
            build = await self._builds.find(host.binary, host.accel.kind)
        except (HypemandError, OSError) as error:
            _log.warning("VM %s boots: %s", definition.name, error)
            return None
        return Choice(self.store, build, self._own)

    def follow(
        self, choice: Choice | None, settle: Callable[[], Awaitable[object]], has_stalled: Callable[[], bool]
    ) -> None:
        """After `settle`, in the background: make what a start has missed, or set aside what it did not
        continue from."""
        if choice is None:
            return
        wanted = choice.wanted
        if wanted is not None and wanted.shape.key not in self._failed:
            self._tasks.start(f"template {wanted.shape.key}, if", self._make_after(wanted, settle))
        elif choice.used is not None:
            self._tasks.start(
                f"start from template {choice.used}", self._judge(choice.used, settle, has_stalled)
            )

    async def _judge(
        self, key: str, settle: Callable[[], Awaitable[object]], has_stalled: Callable[[], bool]
    ) -> None:
        """One from which a guest did not continue is removed; at the second time it is not made again."""
        await settle()
        if not await run_in(Pool.RECORDS, has_stalled):
            return
        if key in self._stalled:
            self._failed.add(key)
        self._stalled.add(key)
        _log.warning("a VM has not continued from the template %s for warm starts: it is removed", key)
        await run_in(Pool.TOOLS, self.store.remove, key)

    async def create(self, definition: Definition) -> tuple[Template, bool]:
        """The template of that VM, and whether it was made now. WrongState where it always boots; else as
        `make`."""
        config = self._config()
        if config.warm_start.mode is WarmStart.OFF:
            raise WrongState(
                "warm starts are disabled on this host",
                hint="write warm_start: {mode: auto} in /etc/hypemand/hypemand.yaml, and reload hypemand",
            )
        if definition.warm_start is WarmStart.OFF:
            raise WrongState(f"VM {definition.name} has warm_start: off, and always boots")
        host = await run_in(Pool.STARTS, find_vmm_host, config)
        vmm = plan_template(definition, host, self._own, in_root=is_in_usr)
        if not can_have_template(vmm):
            raise WrongState(f"VM {definition.name} has balloon: true, and always boots")
        build = await self._builds.find(host.binary, host.accel.kind)
        wanted = await run_in(Pool.TOOLS, Wanted.of, build, vmm, host, self._own)
        template = await run_in(Pool.TOOLS, self.store.find, wanted.shape)
        if template is not None:
            return template, False
        return await self._make_once(wanted), True

    async def clean_up(self) -> None:
        """Remove what a daemon before this one has left, and what is of no use any more. OSError,
        HypemandError."""
        async with self._making:
            await self._units.stop(template_unit_name())
            await self._await_end()
            await run_in(Pool.TOOLS, self.store.prune, self._config().warm_start.room)
            await run_in(Pool.TOOLS, shutil.rmtree, self._runtime, True)

    @property
    def _runtime(self) -> Path:
        return self._config().runtime_dir / "template"

    async def _make_after(self, wanted: Wanted, settle: Callable[[], Awaitable[object]]) -> None:
        await settle()
        key = wanted.shape.key
        if await run_in(Pool.TOOLS, self.store.find, wanted.shape) is not None or key in self._being_made:
            return
        try:
            await self._make_once(wanted)
        except HypemandError as error:
            self._failed.add(key)
            _log.warning("%s", error)

    async def _make_once(self, wanted: Wanted) -> Template:
        """`make` it, or wait for the one who does; it is made to its end whoever waits. As `make`."""
        key = wanted.shape.key
        task = self._being_made.get(key)
        if task is None:
            task = self._being_made[key] = self._tasks.start(
                f"template {key}", self.make(wanted), awaited=True
            )
            task.add_done_callback(lambda _: self._being_made.pop(key))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            self._tasks.log_failure(task)
            raise

    async def make(self, wanted: Wanted) -> Template:
        """Make one, after those that were asked for before it. InsufficientResources where there is no room
        for it; HostNotReady, StartFailed."""
        async with self._making:
            try:
                template = await self._make(wanted)
            except (VmmError, OSError, TimeoutError) as error:
                why = str(error) or "it takes too long"
                raise StartFailed(f"cannot make a template for warm starts: {why}") from error
        if template is None:
            raise InsufficientResources(
                "a template for warm starts takes more than all may: none is kept",
                hint="raise warm_start.room in /etc/hypemand/hypemand.yaml",
            )
        self._failed.discard(wanted.shape.key)
        _log.info("made the template %s for warm starts, %d bytes", template.folder, template.stored)
        return template

    async def _make(self, wanted: Wanted) -> Template | None:
        uid, store = self._find_user(), self.store
        folder = await run_in(Pool.TOOLS, store.begin, wanted.shape)
        try:
            await run_in(Pool.TOOLS, self._prepare, wanted, uid)
            await self._units.start_transient(self._plan_unit(wanted, uid))
            await self._save(wanted, folder, uid)
            await run_in(Pool.TOOLS, store.commit, wanted.shape, derive_kind(wanted.vmm), folder, time.time())
            await run_in(Pool.TOOLS, store.prune, self._config().warm_start.room)
            return await run_in(Pool.TOOLS, store.find, wanted.shape)
        finally:
            await self._units.stop(template_unit_name())
            await self._await_end()
            await run_in(Pool.TOOLS, shutil.rmtree, folder, True)
            await run_in(Pool.TOOLS, shutil.rmtree, self._runtime, True)

    def _prepare(self, wanted: Wanted, uid: int) -> None:
        runtime = self._runtime
        shutil.rmtree(runtime, ignore_errors=True)
        make_folder(runtime, mode=0o700)
        os.chown(runtime, uid, uid)
        for path in list_placeholders(wanted.vmm, runtime):
            with path.open("xb") as disk:
                disk.truncate(PLACEHOLDER)
            os.chown(path, uid, uid)

    async def _save(self, wanted: Wanted, folder: Path, uid: int) -> None:
        async with asyncio.timeout(_BOOT_DEADLINE):
            vmm = await self._reach()
        try:
            async with asyncio.timeout(_BOOT_DEADLINE):
                await self._await_ready()
            await vmm.pause()
            await vmm.renew_disks()
            fds = await run_in(Pool.TOOLS, open_new, (folder / MEMORY, folder / STATE))
            try:
                await vmm.save(*fds, size=wanted.vmm.memory, user=uid, deadline=_SAVE_DEADLINE)
            finally:
                for fd in fds:
                    os.close(fd)
            with suppress(VmmError):
                await vmm.quit()
        finally:
            await vmm.close()

    async def _reach(self) -> Vmm:
        path = str(self._runtime / f"{CONTROL}.sock")
        while True:
            try:
                return await self._connect(path, lambda _: None, "template", Budget())
            except (OSError, VmmTimeout):
                await self._check_alive()
                await asyncio.sleep(_POLL)

    async def _await_ready(self) -> None:
        """Until the guest says that it stands at its freeze point."""
        async with open_report(self._runtime / "report.sock", Budget()) as lines:
            async for line in lines:
                if line == _READY:
                    return
        raise VmmError("its VMM has ended")

    async def _check_alive(self) -> None:
        status = await self._units.status(template_unit_name())
        if not status.is_live:
            raise VmmError(f"its VMM has not started; see journalctl -u {template_unit_name()}")

    async def _await_end(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_END_DEADLINE):
                while (await self._units.status(template_unit_name())).is_live:  # noqa: ASYNC110 - polled
                    await asyncio.sleep(_POLL)
        await self._units.reset_failed(template_unit_name())

    def _plan_unit(self, wanted: Wanted, uid: int) -> UnitPlan:
        vmm, host, own = wanted.vmm, wanted.host, self._own
        shared = ((host.kernel.path, own.kernel), (host.initrd, own.initrd))
        line = template_line(vmm, own.runtime)
        return UnitPlan(
            vm="template",
            vm_id="",
            uid=uid,
            start=(_LAUNCHER, str(own.runtime), "-" if vmm.net is None else str(own.tap), *line),
            stop=("/bin/true",),
            stop_post=("/bin/true",),
            root=self._config().runtime_dir / "root",
            readable=(
                *((path, place) for path, place in shared if not is_in_usr(path)),
                *outside_usr([host.binary]),
            ),
            writable=((self._runtime, own.runtime),),
            memory_max=vmm.memory + memory_overhead(vmm.accel) + host.page_cache,
            cpu_quota=1.0,
            tasks_max=WORKER_TASKS + vmm.vcpus,
            # it never says that it is ready
            boot_timeout=2 * _BOOT_DEADLINE + _SAVE_DEADLINE,
            stop_timeout=_END_DEADLINE / 3,
            restart="no",
            restart_delay=(0.1, 0.0),
            start_limit=(0, None),
            kvm=vmm.accel is AccelKind.KVM,
            watchdog=False,
            extra={},
            unit=template_unit_name(),
            sockets=() if vmm.net is None else ((TAP_SOCKET, own.tap),),
            idle=True,
        )
