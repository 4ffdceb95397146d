# SPDX-License-Identifier: Apache-2.0
"""A start that fails: what is taken back, and what systemd has taken already."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import subprocess
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hypemand.config.definition import Definition
from hypemand.config.host import HostConfig
from hypemand.config.vmdef import parse_definition
from hypemand.errors import InsufficientResources, WrongState
from hypemand.manager.events import Events
from hypemand.manager.guestops import GuestOps
from hypemand.manager.parts import make_parts
from hypemand.manager.recovery import Recovery
from hypemand.manager.service import VmManager
from hypemand.model.state import State
from hypemand.storage.images import Image
from hypemand.storage.store import ImageStore
from hypemand.storage.tools import DirectTools
from hypemand.systemd.bus import BusError
from hypemand.systemd.units import UnitPlan, UnitStatus, UnitWatch
from hypemand.vm.runs import VmServices
from hypemand.vm.watcher import BootWatcher
from tests.unit.manager.fakenetwork import FakeNetworkHost


@dataclass
class FakeUnits:
    """systemd's units, as far as a start and an end need them. `taken` runs before the answer to a start,
    when the unit is there already; `refuse` is the answer, with no unit made. A unit is loaded, and has no
    other beside it, while it is `live` (also a failed one) or has processes that are `left`, and for so many
    starts after that as `late` says."""

    taken: Callable[[UnitPlan], Awaitable[None]] | None = None
    refuse: BusError | None = None
    immortal: bool = False
    late: int = 0
    masked: bool = False
    live: dict[str, UnitStatus] = field(default_factory=dict)
    left: dict[str, list[subprocess.Popen[bytes]]] = field(default_factory=dict)
    killed: list[str] = field(default_factory=list)
    signals: dict[str, Callable[[], None]] = field(default_factory=dict)

    def watch(self, unit: str, watch: UnitWatch) -> None:
        self.signals[unit] = partial(watch.take_signal, {"ActiveState": "other"})

    def watch_state(self, unit: str, callback: Callable[[str, str], None]) -> None:
        """There are no handles here."""

    def unwatch(self, unit: str) -> None:
        self.signals.pop(unit, None)

    async def status(self, unit: str, *, with_memory: bool = False) -> UnitStatus:
        return self.live.get(unit, UnitStatus(None))

    async def is_masked(self, unit: str) -> bool:
        return self.masked

    async def count_restarts(self, unit: str) -> int:
        return 0

    async def bound_files(self, unit: str) -> Mapping[Path, bool]:
        return {}

    async def list_vms(self) -> Mapping[str, str]:
        return {}

    async def start_transient(self, plan: UnitPlan) -> None:
        if self.refuse is not None:
            raise self.refuse
        unit = f"hypeman-vm-{plan.vm}.service"
        gone = not self.masked and unit not in self.live and not await self.processes(unit)
        if gone and self.killed and self.late:
            self.late -= 1
            gone = False
        if not gone:
            raise BusError(f"Unit {unit} was already loaded or has a fragment file.", errno.EEXIST)
        # no invocation yet: the job is queued
        self.live[unit] = UnitStatus("activating", "queued")
        if self.taken is not None:
            await self.taken(plan)

    async def start(self, unit: str) -> None:
        """Of a handle: there is none here."""
        raise BusError(f"Unit {unit} not found.", errno.ENOENT)

    async def stop(self, unit: str) -> None:
        if self.immortal:
            raise BusError("systemd does not answer", errno.ETIMEDOUT)
        if self.live.pop(unit, None) is not None and unit in self.signals:
            self.signals[unit]()

    async def kill(self, unit: str, signal: int, *, everything: bool = False) -> None:
        """The main process has ended already."""
        if everything:
            self.killed.append(unit)
            for process in self.left.get(unit, []):
                process.send_signal(signal)

    async def processes(self, unit: str) -> list[int]:
        return [process.pid for process in self.left.get(unit, []) if process.poll() is None]

    async def reset_failed(self, unit: str) -> None:
        """As systemd does: it forgets a unit that has failed, unless processes of it are left."""
        status = self.live.get(unit)
        if status is not None and status.active_state == "failed" and not await self.processes(unit):
            del self.live[unit]


@dataclass
class FakeImages:
    """One image, which is there."""

    image: Image
    choosing: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def find_for(self, _name: str, _digest: str) -> Image:
        return self.image

    async def have_within(self, *_args: object) -> Image:
        return self.image

    async def keep(self, image: Image) -> Image:
        return image


class Host:
    """A manager with a host made of files in `folder`."""

    def __init__(self, folder: Path, units: FakeUnits | None = None) -> None:
        image = folder / "image"
        for place in (image, folder / "kernel", folder / "guest", folder / "run", folder / "state"):
            place.mkdir()
        (image / "rootfs.erofs").write_bytes(bytes(4096))
        (folder / "kernel/vmlinux").touch()
        (folder / "kernel/kernel.json").write_text(json.dumps({"release": "6.1"}))
        (folder / "guest/initrd.cpio").touch()
        config = HostConfig(
            qemu=Path("/bin/true"),
            kernel_dir=folder / "kernel",
            guest_dir=folder / "guest",
            state_dir=folder / "state",
            runtime_dir=folder / "run",
            networks={},
        )
        self.units = units or FakeUnits()
        self.images = FakeImages(Image("app", "i", "sha256:0", "x86_64", 4096, 0.0, "test", image))
        self.watcher = BootWatcher()
        # what systemd is told in the name of VMMs
        self.sent: list[str] = []
        services = VmServices(
            cast(Any, None),
            cast(Any, self.units),
            self.watcher,
            lambda: None,
            notify=lambda _pid, *words: self.sent.extend(words),
        )
        store = ImageStore(folder / "images", ())
        pulls = cast(Any, SimpleNamespace(cancel=no_pull, make_tools=DirectTools))
        parts = make_parts(config, services, store, pulls, FakeNetworkHost(), folder / "userdb", Events())
        self.stored = parts.images
        guests = GuestOps(parts.fleet, cast(Any, self.images))
        self.parts = replace(parts, images=cast(Any, self.images), guests=guests)
        self.manager = VmManager(self.parts)
        self.recovery = Recovery(self.parts, self.manager.delete_vm)
        self.vms = folder / "state/vms"
        self.runtime = folder / "run/vms"


async def no_pull(_name: str) -> bool:
    return False


def definition() -> Definition:
    return parse_definition(
        "web", {"image": "app", "cmd": ["x"], "disk": "64M", "memory": "96M", "network": "none"}
    )


def other_definition() -> Definition:
    return replace(definition(), memory=2 * definition().memory)


def use(folder: Path, scenario: Callable[[Host], Awaitable[None]]) -> None:
    async def main() -> None:
        host = Host(folder)
        await host.recovery.recover()
        try:
            async with asyncio.timeout(30):
                await scenario(host)
        finally:
            host.watcher.close()
            await host.manager.close()

    asyncio.run(main())


def test_what_it_runs_with_is_written_before_systemd_is_asked(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        seen: list[bool] = []

        async def look(_plan: UnitPlan) -> None:
            seen.append((host.vms / "web/run.json").exists())

        host.units.taken = look
        await host.manager.create_vm(definition(), start=True)
        assert seen == [True]

    use(tmp_path, scenario)


def test_a_full_disk_before_systemd_is_asked_starts_nothing_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def scenario(host: Host) -> None:
        monkeypatch.setattr("hypemand.vm.runfiles.store_record", full)
        with pytest.raises(InsufficientResources, match=r"to start VM web: the file system /\S* is full"):
            await host.manager.create_vm(definition(), start=True)
        assert (host.units.live, list(host.vms.iterdir()), list(host.runtime.iterdir())) == ({}, [], [])

    use(tmp_path, scenario)


def test_what_is_tried_before_a_stop_waits_for_nobody_who_chooses_an_image(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        await host.manager.create_vm(definition(), start=False)
        vm = host.parts.fleet.get("web")
        async with host.images.choosing, asyncio.timeout(20):
            await host.manager._starter.check(vm, host.images.image)
        assert host.units.live == {}

    use(tmp_path, scenario)


def test_an_answer_that_is_lost_forgets_no_vm_that_runs(tmp_path: Path) -> None:
    async def lose(_plan: UnitPlan) -> None:
        raise BusError("the connection broke", errno.ECONNRESET)

    async def scenario(host: Host) -> None:
        await host.manager.create_vm(definition(), start=False)
        host.units.taken = lose
        with pytest.raises(BusError):
            await host.manager.start_vm("web")
        assert (await host.manager.get_vm("web")).state.is_vmm_active
        assert (host.vms / "web/run.json").exists()
        assert (host.vms / "web/disk.ext4").exists()
        assert (host.runtime / "web").exists()

    use(tmp_path, scenario)


WEB = "hypeman-vm-web.service"


@contextmanager
def left_behind(units: FakeUnits, unit: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process of a unit of an earlier run, which no signal but SIGKILL ends."""
    argv = ["sh", "-c", "trap '' TERM; kill -STOP $$"]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL) as process:
        units.left[unit] = [process]
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("status", [UnitStatus("failed"), None], ids=["failed", "inactive"])
def test_a_start_ends_what_is_left_of_an_earlier_run(tmp_path: Path, status: UnitStatus | None) -> None:
    async def scenario(host: Host) -> None:
        await host.manager.create_vm(definition(), start=False)
        if status is not None:
            host.units.live[WEB] = status
        with left_behind(host.units, WEB) as process:
            await host.manager.start_vm("web")
            assert process.wait(60) == -signal.SIGKILL
        assert host.units.live[WEB].active_state == "activating"
        assert (await host.manager.get_vm("web")).state.is_vmm_active

    use(tmp_path, scenario)


def test_a_start_waits_until_systemd_has_forgotten_the_unit(tmp_path: Path) -> None:
    """It learns a little late that the last process has ended."""

    async def scenario(host: Host) -> None:
        await host.manager.create_vm(definition(), start=False)
        host.units.late = 3
        with left_behind(host.units, WEB):
            await host.manager.start_vm("web")
        assert (host.units.late, host.units.live[WEB].active_state) == (0, "activating")

    use(tmp_path, scenario)


def test_a_masked_unit_is_an_error_with_the_cure(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        await host.manager.create_vm(definition(), start=False)
        host.units.masked = True
        with pytest.raises(WrongState, match=f"the unit {WEB} is masked") as raised:
            await host.manager.start_vm("web")
        assert raised.value.hint == f"systemctl unmask {WEB}"
        assert sorted(path.name for path in (host.vms / "web").iterdir()) == ["vm.json"]

    use(tmp_path, scenario)


def test_a_start_does_nothing_to_a_unit_that_somebody_else_has_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(host: Host) -> None:
        await host.manager.create_vm(definition(), start=False)

        async def reset_failed(_unit: str) -> None:
            """Between our look and our start."""
            host.units.live[WEB] = UnitStatus("active", main_pid=os.getpid())

        host.units.live[WEB] = UnitStatus("failed")
        monkeypatch.setattr(host.units, "reset_failed", reset_failed)
        with left_behind(host.units, WEB) as process:
            with pytest.raises(WrongState, match=f"the unit {WEB} is active already"):
                await host.manager.start_vm("web")
            assert (host.units.killed, process.poll()) == ([], None)
        assert (host.vms / "web/disk.ext4").exists()

    use(tmp_path, scenario)


def test_a_unit_that_stays_is_an_error_with_the_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hypemand.vm.leftunit._DEADLINE", 0.05)
    monkeypatch.setattr("hypemand.vm.leftunit._RELEASE_DEADLINE", 0.05)

    async def scenario(host: Host) -> None:
        await host.manager.create_vm(definition(), start=False)
        host.units.live[WEB] = UnitStatus("failed")

        async def kill(_unit: str, _signal: int, *, everything: bool = False) -> None:
            """It sleeps in the kernel."""

        monkeypatch.setattr(host.units, "kill", kill)
        with left_behind(host.units, WEB), pytest.raises(WrongState) as raised:
            await host.manager.start_vm("web")
        assert f"systemd still has the unit {WEB} of an earlier run" in raised.value.message
        assert raised.value.hint.startswith(f"systemctl kill -s KILL {WEB}")
        assert sorted(path.name for path in (host.vms / "web").iterdir()) == ["vm.json"]

    use(tmp_path, scenario)


def test_a_start_that_failed_leaves_no_definition_in_use(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        await host.manager.create_vm(definition(), start=False)
        host.units.refuse = BusError("no such property", errno.EINVAL)
        with pytest.raises(BusError):
            await host.manager.start_vm("web")
        vm = host.parts.fleet.get("web")
        defined = await host.parts.records.update("web", other_definition(), vm.record.origin)
        vm.take_record(defined)
        assert vm.runs.definition.memory == other_definition().memory

    use(tmp_path, scenario)


def test_what_systemd_refuses_leaves_nothing(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        await host.manager.create_vm(definition(), start=False)
        host.units.refuse = BusError("no such property", errno.EINVAL)
        with pytest.raises(BusError):
            await host.manager.start_vm("web")
        assert sorted(path.name for path in (host.vms / "web").iterdir()) == ["vm.json"]
        assert list(host.runtime.iterdir()) == []
        assert (await host.manager.get_vm("web")).state is State.STOPPED

    use(tmp_path, scenario)


async def cancel_while_it_is_taken(host: Host, work: Awaitable[object]) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def wait(_plan: UnitPlan) -> None:
        begun.set()
        await go_on.wait()

    host.units.taken = wait
    task = asyncio.ensure_future(work)
    await begun.wait()
    task.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()


def test_a_start_that_is_cancelled_forgets_no_vm_that_runs(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        await host.manager.create_vm(definition(), start=False)
        await cancel_while_it_is_taken(host, host.manager.start_vm("web"))
        assert (await host.manager.get_vm("web")).state.is_vmm_active
        assert (host.vms / "web/disk.ext4").exists()
        assert (host.vms / "web/run.json").exists()

    use(tmp_path, scenario)


def test_a_creation_that_is_cancelled_ends_its_unit_before_its_disk_and_uid_are_free(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        await cancel_while_it_is_taken(host, host.manager.create_vm(definition(), start=True))
        assert host.parts.fleet.find("web") is None
        assert (host.units.live, list(host.vms.iterdir())) == ({}, [])

    use(tmp_path, scenario)


def test_a_creation_whose_unit_does_not_end_keeps_disk_and_uid(tmp_path: Path) -> None:
    async def lose(_plan: UnitPlan) -> None:
        raise BusError("the connection broke", errno.ECONNRESET)

    async def scenario(host: Host) -> None:
        host.units.taken, host.units.immortal = lose, True
        with pytest.raises(BusError, match="broke"):
            await host.manager.create_vm(definition(), start=True)
        view = await host.manager.get_vm("web")
        assert view.state.is_vmm_active
        assert (host.vms / "web/disk.ext4").exists()
        assert [record.uid for record in host.parts.records] == [view.uid]

    use(tmp_path, scenario)
