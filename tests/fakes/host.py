# SPDX-License-Identifier: Apache-2.0
"""A host in a folder: the real manager, over a systemd, VMMs, a journal and a network that behave."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Interface
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from hypemand.config.definition import Definition, WarmStart
from hypemand.config.host import HostConfig, WarmStartPolicy
from hypemand.config.network import NetworkConfig
from hypemand.config.vmdef import parse_definition
from hypemand.errors import HypemandError
from hypemand.manager.events import Events
from hypemand.manager.images.pulls import Pulls
from hypemand.manager.parts import Parts, make_parts
from hypemand.manager.recovery import Recovery
from hypemand.manager.reload import Reloader
from hypemand.manager.schedules import SnapshotSchedules
from hypemand.manager.service import VmManager
from hypemand.manager.snapshots import ApiSnapshots
from hypemand.model.answers.host import ReloadReport
from hypemand.model.images import OciConfig, derive_host_architecture
from hypemand.model.state import State
from hypemand.storage.images import ROOTFS, Image, derive_id, store_metadata
from hypemand.storage.store import ImageStore
from hypemand.storage.tools import Tools
from hypemand.systemd.units import Units
from hypemand.unitnames import handle_name, template_unit_name, unit_name
from hypemand.vm.runs import VmServices
from hypemand.vm.vm import Vm
from hypemand.vm.watcher import BootWatcher
from hypemand.vmm.qemu import connect_qemu
from hypemand.workers import Pool, _threads
from tests.fakes.files import GuestFile
from tests.fakes.handle import HandleProcess
from tests.fakes.journal import FakeJournal
from tests.fakes.launchers import find_intake
from tests.fakes.process import Process
from tests.fakes.systemd import FakeSystemd
from tests.fakes.template import TemplateVmms
from tests.fakes.vmm import Behaviour, Vmm, Vmms
from tests.unit.manager.fakenetwork import FakeNetworkHost
from tests.unit.storage.fakeregistry import FakeRegistry

# of what is waited for by an event, on a machine that may be busy with other things
DEADLINE = 60.0
_CONFIG = OciConfig(cmd=("/bin/sh",), env=("PATH=/bin", "A=b=c"))
_MEMORY = Path("/dev/shm")
LAB = NetworkConfig("default", "lab0", IPv4Interface("10.7.0.1/24"), None, dns=())
# Of what a test does not wait for, the time is not up in it, at the speed of this systemd.
_SMALL = {
    "image": "builtin:app", "cmd": ["x"], "disk": "64M", "memory": "96M", "network": "none",
    "boot_timeout": "30min", "stop_timeout": "30min",
}  # fmt: skip
# units/hypeman@.service
_HANDLE = {
    "Type": "notify",
    "NotifyAccess": "all",
    "ExecStart": [("/usr/lib/hypemand/handle", ["handle", "follow"], False)],
    "ExecStopPost": [("/usr/lib/hypemand/handle", ["handle", "stop"], False)],
    "StartLimitIntervalUSec": 0,
    "TimeoutStartUSec": 2**64 - 1,
    "TimeoutStopUSec": 2**64 - 1,
}


class Daemon:
    """A daemon on the host, as far as VMs are concerned: what hypemand.daemon puts together."""

    def __init__(self, host: FakeHost) -> None:
        self.host = host
        self.watcher = BootWatcher()
        units = Units(host.systemd)
        store = ImageStore(host.config.state_dir / "images", host.config.image_dirs, lambda: 0)
        events = Events()
        self.pulls = Pulls(store, host.begin_work, host.config.runtime_dir, tell_event=events.tell)
        services = VmServices(
            host.systemd,
            units,
            self.watcher,
            lambda: None,
            open_journal=host.journal.open_boot,
            log_journal=host.journal,
            notify=host.systemd.notify,
            connect=partial(connect_qemu, program=find_intake()),
            tell_event=events.tell,
        )
        userdb = host.folder / "userdb"
        self.parts = make_parts(
            host.config, services, store, self.pulls, host.network, userdb, events, os.getuid
        )
        self.manager = VmManager(self.parts)
        self.snapshots = ApiSnapshots(self.parts, self.manager)
        self.schedules = SnapshotSchedules(self.parts, self.snapshots)
        self.recovery = Recovery(self.parts, self.manager.delete_vm)
        self.reloader = Reloader(
            self.parts, self.manager, lambda: host.config, host.is_online.wait, host.BOOTS
        )
        self._resyncs: set[asyncio.Task[None]] = set()

    async def begin(self) -> None:
        """Learn what there is."""
        await asyncio.to_thread(self.parts.images.store.prepare)
        await self.host.systemd.start_signals(self._resync, 1.0)
        await self.recovery.recover()
        self.manager.expiry.begin()
        self.schedules.begin()

    def _resync(self) -> None:
        task = asyncio.create_task(self.recovery.resync())
        self._resyncs.add(task)
        task.add_done_callback(self._resyncs.discard)

    async def end(self) -> None:
        """Let go of everything; VMs go on."""
        await self.reloader.close(DEADLINE)
        await self.pulls.close()
        await self.schedules.close()
        await self.manager.close()
        self.watcher.close()


class FakeHost:
    """A host whose state is in `folder`, and the daemon that runs on it now. VMs outlive daemons. It has an
    image, `builtin:app`, and a network, `default`. `BOOTS`: of VMs that the daemon starts at a time."""

    BOOTS = 4

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for place in ("kernel", "guest", "run", "state", "vms.d", "images/app", "images/busybox"):
            (folder / place).mkdir(parents=True)
        (folder / "kernel/vmlinux").touch()
        (folder / "kernel/kernel.json").write_text(json.dumps({"release": "6.1"}))
        (folder / "guest/initrd.cpio").touch()
        for name in ("app", "busybox"):
            _make_image(f"builtin:{name}", folder / "images" / name)
        self.networks = {LAB.name: LAB}
        self.config = HostConfig(
            qemu=Path("/bin/true"),
            kernel_dir=folder / "kernel",
            guest_dir=folder / "guest",
            state_dir=folder / "state",
            runtime_dir=folder / "run",
            vm_dir=folder / "vms.d",
            image_dirs=(folder / "images",),
            networks=self.networks,
        )
        self.journal = FakeJournal()
        self.registry = FakeRegistry()
        self.make_tools: Callable[[], Tools] = lambda: self.registry
        self.network = FakeNetworkHost()
        self.vmms = Vmms(folder / "run/vms", self.journal)
        self.systemd = FakeSystemd(self.vmms.run, speed=20)
        self.vmms.systemd = self.systemd
        self.systemd.files["hypeman@"] = _HANDLE
        self.vmms.others["hypeman"] = self._handle
        self.template_vmms = TemplateVmms(folder / "run/template")
        self.vmms.others[template_unit_name()] = self.template_vmms.run
        # open: a handle's `hypemanctl start --wait` that has seen Running ends
        self.handles_end = asyncio.Event()
        self.handles_end.set()
        # its network-online.target
        self.is_online = asyncio.Event()
        self.is_online.set()
        self.daemon = Daemon(self)

    # its daemon

    def begin_work(self) -> Tools:
        """The tools for one piece of work of the daemon."""
        return self.make_tools()

    @property
    def manager(self) -> VmManager:
        """The manager that runs now."""
        return self.daemon.manager

    @property
    def parts(self) -> Parts:
        """What it works with."""
        return self.daemon.parts

    def enable_warm_starts(self, room: int = 2**30) -> None:
        """They are off by default."""
        policy = WarmStartPolicy(WarmStart.AUTO, room)
        self.parts.config.replace(replace(self.parts.config(), warm_start=policy))

    async def restart_daemon(self, meanwhile: Callable[[], Awaitable[object]] | None = None) -> None:
        """End it, and begin another one on what it has left; what happens meanwhile nobody sees."""
        await self.daemon.end()
        if meanwhile is not None:
            await meanwhile()
        self.daemon = Daemon(self)
        await self.daemon.begin()

    async def _handle(self, process: Process) -> int:
        """The processes of hypeman@NAME.service."""
        vm = process.unit.partition("@")[2].removesuffix(".service")
        return await HandleProcess(vm, process, self.systemd, self.config.runtime_dir, self).run()

    async def start_for_handle(self, vm: str) -> int:
        """`hypemanctl start --wait`."""
        try:
            await self.manager.start_vm(vm)
            view, late = await self.manager.wait_vm(vm, State.RUNNING, DEADLINE)
        except HypemandError:
            return 1
        await self.handles_end.wait()
        return 0 if view.state is State.RUNNING and not late else 1

    async def stop_for_handle(self, vm: str) -> None:
        """`hypemanctl stop`."""
        with suppress(HypemandError):
            await self.manager.stop_vm(vm)

    async def start_handle(self, vm: str) -> None:
        """`systemctl start hypeman@NAME`."""
        await self.order("StartUnit", f"hypeman@{vm}.service")

    async def order(self, method: str, unit: str, mode: str = "replace") -> None:
        """What an administrator asks of systemd."""
        arguments = [("ss", (unit, mode))]
        await self.systemd.call(
            "org.freedesktop.systemd1",
            "/org/freedesktop/systemd1",
            f"org.freedesktop.systemd1.Manager.{method}",
            arguments,
        )

    # its VMs

    def vm(self, name: str = "web") -> Vm:
        """The VM as the daemon has it."""
        return self.parts.fleet.get(name)

    def vmm(self, name: str = "web") -> Vmm:
        """Its VMM, which runs."""
        return self.vmms.live[name]

    def guest(self, name: str = "web") -> Behaviour:
        """What its guests do, to be changed."""
        return self.vmms.of(name)

    def is_active(self, unit: str) -> bool:
        """Is a unit, which may not be loaded, active?"""
        return unit in self.systemd.units and self.systemd.units[unit].active == "active"

    async def await_handle(self, name: str = "web") -> None:
        """Wait until the handle of a VM that runs is active: systemd is asked for that beside all else."""
        await self.until_true(lambda: self.is_active(handle_name(name)))

    def unit(self, name: str = "web") -> str | None:
        """ActiveState and SubState of its unit; None: there is none."""
        unit = self.systemd.units.get(unit_name(name))
        return None if unit is None else f"{unit.active}/{unit.sub}"

    async def create(self, name: str = "web", *, start: bool = False, **keys: object) -> None:
        """A VM of the API's; it is Running then, if it is to be started."""
        await self.manager.create_vm(define(name, **keys), start=start)
        if start:
            await self.until(State.RUNNING, name)

    async def run(self, name: str = "web", **keys: object) -> None:
        """A VM that runs."""
        await self.create(name, start=True, **keys)

    async def put(self, name: str, state: State = State.STOPPED, **keys: object) -> None:
        """A VM of the API's in that state."""
        await self.manager.create_vm(define(name, **keys), start=False)
        if state is State.STOPPED:
            return
        self.guest(name).boots = state is not State.INITIALIZING
        await self.manager.start_vm(name)
        if state is State.INITIALIZING:
            await self.until_true(lambda: name in self.vmms.live and bool(self.vmm(name).monitor.orders))
            await self.until(state, name)
            return
        await self.until(State.RUNNING, name)
        if state is State.PAUSED:
            await self.manager.pause_vm(name)
        if state is State.UNKNOWN:
            self.vmm(name).monitor.status = "strange"
            await self.manager.get_vm(name)
        assert self.vm(name).state is state, self.vm(name).view()

    async def start(self, name: str = "web") -> None:
        """Start it; it runs then."""
        await self.manager.start_vm(name)
        await self.until(State.RUNNING, name)

    async def stop_for_good(self, name: str = "web") -> None:
        """Stop it: nothing of the run is left."""
        await self.manager.stop_vm(name)
        assert self.traces(name) == []

    async def until_ended(self, name: str = "web") -> None:
        """Wait until it has ended by itself, and all is done that its end brings about."""
        await self.until(State.STOPPED, name)
        await self.vm(name).runs.settle()

    def check_gone(self, name: str = "web") -> None:
        """There is no such VM, nor anything of one."""
        assert self.parts.fleet.find(name) is None
        assert self.traces(name) == []
        folders = {path.name for path in (self.config.state_dir / "vms").iterdir()}
        assert folders == {vm.name for vm in self.parts.fleet}

    def watchers(self, name: str) -> int:
        """How many wait for changes of it."""
        return len(self.vm(name).changes._watchers)

    def add_image(self, name: str) -> None:
        """An image that was pulled."""
        digest = f"sha256:{hashlib.sha256(name.encode()).hexdigest()}"
        folder = self.config.state_dir / "images" / derive_id(digest)
        folder.mkdir(parents=True)
        _make_image(name, folder)

    def log(
        self, name: str, text: str | bytes | None, *, realtime: float | None = None, **fields: str
    ) -> None:
        """A line that the journal has of a VM, of a run before; by the VMM if it begins as QEMU's do.
        `fields` of the entry, in place of those of a console; None: it has no text."""
        known = {
            "HYPEMAN_VM_ID": self.vm(name).record.id,
            "_SYSTEMD_UNIT": unit_name(name),
            "_SYSTEMD_INVOCATION_ID": "ab" * 16,
            "_TRANSPORT": "journal",
            "SYSLOG_IDENTIFIER": name,
        }
        message = text.encode() if isinstance(text, str) else text
        self.journal.add_entry(message, known | fields, realtime)

    def volume_files(self, name: str) -> dict[str, GuestFile]:
        """What is in a volume, by path in it."""
        return self.vmms.volumes.setdefault(self.parts.volumes.get(name).serial, {})

    async def until(self, state: State, name: str = "web") -> None:
        """Wait until it is in that state, as its watchers do."""
        vm = self.vm(name)
        assert await vm.changes.wait_for(lambda: vm.state is state, DEADLINE), (vm.state, self.unit(name))

    async def until_true(self, condition: Callable[[], bool]) -> None:
        """Wait for what nobody tells of."""
        async with asyncio.timeout(DEADLINE):
            while not condition():  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.002)

    def write(self, name: str = "web", **keys: object) -> None:
        """Write its file in vms.d."""
        (self.config.vm_dir / f"{name}.yaml").write_text(json.dumps({**_SMALL, **keys}))

    def write_template(self, *instances: str, name: str = "web", **keys: object) -> None:
        """Write a template in vms.d, and link instances to it."""
        self.write(f"{name}@", **keys)
        for instance in instances:
            (self.config.vm_dir / f"{name}@{instance}.yaml").symlink_to(f"{name}@.yaml")

    async def reload(self) -> ReloadReport:
        """`systemctl reload hypemand`."""
        return await self.daemon.reloader.reload()

    def traces(self, name: str = "web") -> list[str]:
        """All that the host has of a run of that VM: of one that does not run, nothing."""
        runtime, state = self.config.runtime_dir / "vms" / name, self.config.state_dir / "vms" / name
        found = [str(path.relative_to(self.folder)) for path in (runtime,) if path.exists()]
        found += [
            f"state/{entry.name}" for entry in state.glob("*") if entry.name in ("run.json", "port.json")
        ]
        found += [unit for unit in self.systemd.units if unit == unit_name(name)]
        found += [f"tap {tap}" for tap, port in self.network.taps.items() if port.vm == name]
        found += [f"vmm {vm}" for vm in self.vmms.live if vm == name]
        found += [f"starting {vm}" for vm in self.parts.fleet.starting]
        return found


class Scenario(Protocol):
    """What a test does on a host."""

    def __call__(self, host: FakeHost, /) -> Awaitable[None]: ...


def define(name: str = "web", **keys: object) -> Definition:
    """A small VM; `keys` as in its file."""
    return parse_definition(name, {**_SMALL, **keys})


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[FakeHost]:
    """A host with a daemon; what tasks are left at the end is an error."""
    host = FakeHost(folder)
    await host.daemon.begin()
    try:
        yield host
    finally:
        host.systemd.takes.set()
        host.systemd.answers.set()
        await host.daemon.end()
        await host.systemd.close()
        await asyncio.sleep(0.005)  # connections that were cut off are closed by then


@contextmanager
def folder_in_memory() -> Iterator[Path]:
    """A folder for a host: what is synced there takes no time, whatever else the disk does."""
    with TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None) as folder:
        try:
            yield Path(folder)
        finally:
            _await_threads()


def _await_threads() -> None:
    """Until those have ended whose callers were cancelled: they may make files in a folder to be removed."""
    for pool in Pool:
        _threads(pool).shutdown()
    _threads.cache_clear()


def drive(scenario: Scenario, place: Path | None = None) -> None:
    """Run a scenario on a host of its own; in the folder `place`, if its file system is what matters."""

    async def main(folder: Path) -> None:
        async with asyncio.timeout(2 * DEADLINE), running(folder) as host:
            await scenario(host)

    with folder_in_memory() if place is None else nullcontext(place) as folder:
        asyncio.run(main(folder))


def _make_image(name: str, folder: Path) -> None:
    (folder / ROOTFS).write_bytes(bytes(4096))
    digest = f"sha256:{hashlib.sha256(name.encode()).hexdigest()}"
    image = Image(
        name, derive_id(digest), digest, derive_host_architecture(), 4096, 0.0, "test", folder, _CONFIG
    )
    store_metadata(folder, replace(image, folder=folder))
