# SPDX-License-Identifier: Apache-2.0
"""VMs that stand still: on request, or since a file system is full; and what lets them go on."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from hypemand.config.vmdef import parse_definition
from hypemand.errors import GuestError, WrongState
from hypemand.fulldisk import find_mount_point
from hypemand.manager.resources.diskwatch import Level, derive_level, read_rooms
from hypemand.model.evidence import RunState
from hypemand.model.exec import ExecRequest
from hypemand.model.space import Room
from hypemand.model.state import Operation, State
from hypemand.model.vm import VmView
from hypemand.systemd.units import UnitStatus
from hypemand.vm.fulldrives import FullDrive, describe_full
from hypemand.vm.vm import Vm
from tests.unit.agent.support import BOOT
from tests.unit.manager.test_starts import Host, use
from tests.unit.vm.test_session import Vmm, until

UNIT = "hypeman-vm-web.service"
GIB = 1024**3
MIB = 1024**2
RESERVE = 256 * MIB
COMMAND = ExecRequest(("true",), {}, None, None, None)


class Place:
    """A VM, web, that systemd says is up, and its VMM. `free`: what the file systems have, by mount point."""

    def __init__(self, host: Host, vmm: Vmm) -> None:
        self.host = host
        self.manager = host.manager
        self.watch = host.parts.disk_watch
        self.vmm = vmm
        self.mount = find_mount_point(host.vms)
        self.free: dict[Path, int] = {}
        self.watch._read_rooms = self._read_rooms

    def _read_rooms(self, _folders: Iterable[Path], mounts: Iterable[Path]) -> dict[Path, Room]:
        wanted = {self.mount, *mounts}
        return {mount: Room(mount, 4 * GIB, self.free.get(mount, 0)) for mount in wanted}

    @property
    def vm(self) -> Vm:
        return self.host.parts.fleet.get("web")

    async def wait(self, state: State) -> VmView:
        await until(lambda: self.vm.state is state)
        return self.vm.view()

    async def see_unit(self, active_state: str) -> None:
        """systemd has another state for it, and says so."""
        self.host.units.live[UNIT] = UnitStatus(active_state, "running", BOOT)
        self.host.units.signals[UNIT]()
        await until(lambda: self.vm.has_unit)


@asynccontextmanager
async def serving(host: Host) -> AsyncIterator[Vmm]:
    """The VMM's QMP socket."""
    folder = host.runtime / "web"
    folder.mkdir()
    vmm = Vmm(folder)
    async with vmm.serve("qmp"):
        os.chown(folder / "qmp.sock", host.parts.fleet.get("web").record.uid, -1)
        yield vmm


def use_vm(
    folder: Path,
    scenario: Callable[[Place], Awaitable[None]],
    *,
    unit: str = "active",
    status: str = "running",
    full: tuple[str, ...] = (),
    volumes: tuple[str, ...] = (),
) -> None:
    """Run `scenario` with a VM whose unit is `unit` and whose VMM says `status` to a daemon that finds it."""

    async def main(host: Host) -> None:
        keys: dict[str, object] = {"image": "app", "cmd": ["x"], "disk": "64M", "memory": "96M"}
        mounts = [{"volume": name, "mount_path": f"/{name}"} for name in volumes]
        for name in volumes:
            await asyncio.to_thread(host.parts.volumes.create, name, 64 * MIB, {}, None)
        keys |= {"network": "none", "guest_agent": False, "volumes": mounts, "boot_timeout": "77s"}
        await host.manager.create_vm(parse_definition("web", keys), start=False)
        async with serving(host) as vmm:
            vmm.status = status
            vmm.drives = [{"device": name, "io-status": "nospace"} for name in full]
            host.units.live[UNIT] = UnitStatus(unit, "running", BOOT)
            place = Place(host, vmm)
            await host.manager.get_vm("web")
            await until(lambda: place.vm.session is not None and place.vm.state is not State.UNKNOWN)
            session = place.vm.session
            assert session is not None
            # what its VMM says has been heard
            await until(lambda: session.run_state is not RunState.AWAITED)
            await scenario(place)

    use(folder, main)


# --- on request ---


def test_a_vm_is_paused_and_goes_on_when_it_is_asked_for(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        view = await place.manager.pause_vm("web")
        assert (view.state, view.state_error) == (State.PAUSED, None)
        assert view.status_text == "Paused: on request, until hypemanctl resume"
        with pytest.raises(WrongState, match="paused already"):
            await place.manager.pause_vm("web")
        with pytest.raises(WrongState, match="web is Paused; resume it first: hypemanctl resume"):
            await place.host.parts.guests.exec_vm("web", COMMAND)
        assert (await place.manager.resume_vm("web")).state is State.RUNNING
        with pytest.raises(WrongState, match="resume needs state Paused"):
            await place.manager.resume_vm("web")
        assert place.vmm.orders == ["stop", "cont"]

    use_vm(tmp_path, scenario)


def test_what_was_paused_on_request_never_goes_on_by_itself(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        await place.manager.pause_vm("web")
        # a write that was under way found no space
        place.vmm.drives = [{"device": "disk", "io-status": "nospace"}]
        place.free = {place.mount: GIB}
        await place.manager.get_vm("web")
        await place.watch.look()
        assert (place.vm.state, place.vmm.orders) == (State.PAUSED, ["stop"])

    use_vm(tmp_path, scenario)


def test_a_vmm_that_is_just_being_connected_to_is_waited_for(tmp_path: Path) -> None:
    """As by a daemon that has just started."""

    async def scenario(place: Place) -> None:
        for order, state in (
            (place.manager.pause_vm, State.PAUSED),
            (place.manager.resume_vm, State.RUNNING),
        ):
            seen = place.vmm.qmps
            place.vmm.greets.clear()
            place.vmm.drop()
            await until(lambda seen=seen: place.vmm.qmps > seen)  # type: ignore[misc]
            asyncio.get_running_loop().call_later(0.05, place.vmm.greets.set)
            assert (await order("web")).state is state
        assert place.vmm.orders == ["stop", "cont"]

    use_vm(tmp_path, scenario)


def test_a_pause_that_a_full_disk_has_overtaken_is_refused(tmp_path: Path) -> None:
    """It would go on by itself, which nobody expects who has paused it."""

    async def scenario(place: Place) -> None:
        take = place.vmm._take_order

        def overtake(order: str) -> object:
            answer = take(order)
            if order == "stop":
                place.vmm.status = "io-error"
                place.vmm.drives = [{"device": "disk", "io-status": "nospace"}]
            return answer

        place.vmm._take_order = overtake  # type: ignore[method-assign]
        with pytest.raises(WrongState, match=r"is full, so its disk cannot be written"):
            await place.manager.pause_vm("web")

    use_vm(tmp_path, scenario)


def test_a_vmm_that_cannot_be_reached_is_told_in_words(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        assert place.vm.session is not None
        place.vm.session._vmm = None
        with pytest.raises(GuestError, match="cannot pause VM web"):
            await place.manager.pause_vm("web")

    use_vm(tmp_path, scenario)


# --- a file system is full ---


def test_the_file_system_and_the_disk_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(place: Place) -> None:
        place.vmm.stop("volume1", "disk", "volume7", "cdrom")
        view = await place.wait(State.PAUSED)
        words = f"the file system {place.mount} is full, so its volume logs and its disk cannot be written"
        assert view.state_error is not None
        assert view.state_error.startswith(words)
        assert "disk.reserve" in view.state_error
        assert "hypemanctl df" in view.state_error
        with pytest.raises(WrongState, match=f"web is Paused: {words}"):
            await place.host.parts.guests.exec_vm("web", COMMAND)

    use_vm(tmp_path, scenario, volumes=("data", "logs"))


def test_a_daemon_that_was_away_finds_the_reason_again(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        view = await place.wait(State.PAUSED)
        assert view.state_error is not None
        assert f"the file system {place.mount} is full" in view.state_error
        place.free = {place.mount: GIB}
        await place.watch.look()
        assert place.vmm.orders == ["cont"]
        assert place.vm.state is State.RUNNING

    use_vm(tmp_path, scenario, status="io-error", full=("disk",))


def test_it_goes_on_when_there_is_more_free_space_than_the_reserve(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        place.vmm.stop("disk")
        await place.wait(State.PAUSED)
        for free, orders in ((0, []), (RESERVE, []), (RESERVE + 1, ["cont"])):
            place.free = {place.mount: free}
            await place.watch.look()
            assert place.vmm.orders == orders
        assert place.vm.state is State.RUNNING
        await place.watch.look()
        assert place.vmm.orders == ["cont"]

    use_vm(tmp_path, scenario)


def test_it_goes_on_when_the_daemon_has_removed_something(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        other = parse_definition("other", {"image": "app", "cmd": ["x"], "network": "none"})
        await place.manager.create_vm(other, start=False)
        place.vmm.stop("disk")
        await place.wait(State.PAUSED)
        place.free = {place.mount: GIB}
        await place.manager.delete_vm("other")
        await place.wait(State.RUNNING)

    use_vm(tmp_path, scenario)


def test_one_that_is_refused_space_nevertheless_is_tried_ever_less_often(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        now = 1000.0
        place.watch._clock = lambda: now
        place.vmm.stop("disk")
        await place.wait(State.PAUSED)
        place.free, place.vmm.after_cont = {place.mount: GIB}, "io-error"
        for _ in range(4 * 60):
            await place.watch.look()
            now += 15.0
        assert 5 <= len(place.vmm.orders) <= 12, "an hour of turns"
        assert place.vm.state is State.PAUSED
        place.vmm.after_cont = "running"
        assert (await place.manager.resume_vm("web")).state is State.RUNNING

    use_vm(tmp_path, scenario)


def test_a_vm_that_is_held_is_passed_over(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        place.vmm.stop("disk")
        await place.wait(State.PAUSED)
        place.free = {place.mount: GIB}
        async with place.vm.operations.hold(Operation.STOP):
            await place.watch.look()
        assert place.vmm.orders == []

    use_vm(tmp_path, scenario)


# --- the end, and the boot ---


@pytest.mark.parametrize(("status", "timeout"), [("paused", None), ("io-error", None), ("paused", 3.0)])
def test_a_stop_resumes_first(tmp_path: Path, status: str, timeout: float | None) -> None:
    async def scenario(place: Place) -> None:
        stopped = place.host.units.stop

        async def stop(unit: str) -> None:
            assert place.vmm.orders == ["cont"]
            await stopped(unit)

        place.host.units.stop = stop  # type: ignore[method-assign]
        assert (await place.manager.stop_vm("web", timeout=timeout)).state is State.STOPPED

    use_vm(tmp_path, scenario, status=status, full=("disk",))


def test_a_stop_by_systemd_resumes_once_and_again_when_there_is_space(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        await place.wait(State.PAUSED)
        place.vmm.after_cont = "io-error"
        await place.see_unit("deactivating")
        await until(lambda: place.vmm.orders == ["cont"])
        for _ in range(3):
            await place.manager.get_vm("web")
        assert place.vmm.orders == ["cont"], "it would flap for as long as the stop lasts"
        await until(lambda: place.vm.session is not None and bool(place.vm.session.full))
        place.free, place.vmm.after_cont = {place.mount: GIB}, "running"
        async with place.vm.operations.hold(Operation.STOP):  # as a stop has it
            await place.watch.look()
        assert place.vmm.orders == ["cont", "cont"]

    use_vm(tmp_path, scenario, status="io-error", full=("disk",))


def test_the_deadline_of_a_boot_that_stands_still_is_extended(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        sent = place.host.sent
        assert place.vm.session is not None
        place.vm.session.main_pid = 77
        assert "EXTEND_TIMEOUT_USEC=77000000" not in sent
        place.vmm.stop("disk")
        await until(lambda: "EXTEND_TIMEOUT_USEC=77000000" in sent)
        assert place.vm.state is State.INITIALIZING
        assert any(words.startswith("STATUS=Initializing: the file system /") for words in sent)
        sent.clear()
        await place.watch.look()
        assert sent == ["EXTEND_TIMEOUT_USEC=77000000"], "again with each look"
        place.free = {place.mount: GIB}
        await place.watch.look()
        await until(lambda: place.vm.view().state_error is None)
        sent.clear()
        await place.watch.look()
        assert sent == []

    use_vm(tmp_path, scenario, unit="activating")


def test_systemd_is_told_of_a_pause_and_its_end(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        sent = place.host.sent
        assert place.vm.session is not None
        place.vm.session.main_pid = 77
        await place.manager.pause_vm("web")
        await place.manager.resume_vm("web")
        assert sent == ["STATUS=Paused: on request, until hypemanctl resume", "STATUS=Running"]

    use_vm(tmp_path, scenario)


# --- warnings ---


def test_a_file_system_is_warned_of_once_each_time_it_crosses_a_level(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(place: Place) -> None:
        def told() -> list[str]:
            words = [r.getMessage() for r in caplog.records if r.getMessage().startswith("the file system ")]
            caplog.clear()
            return words

        caplog.set_level(logging.INFO)
        for free, levels in (
            (3 * GIB, []),
            (511 * MIB, [f"{place.mount} has 511M free, and below 256M (disk.reserve)"]),
            (513 * MIB, []),
            (300 * MIB, []),
            (255 * MIB, [f"{place.mount} has 255M free, and with less than the 256M (disk.reserve)"]),
            (260 * MIB, []),
            (255 * MIB, []),
            (0, []),
            (400 * MIB, [f"{place.mount} has 400M free again"]),
            (200 * MIB, [f"{place.mount} has 200M free, and with less than"]),
            (3 * GIB, [f"{place.mount} has 3G free again"]),
        ):
            place.free = {place.mount: free}
            await place.watch.look()
            said = told()
            assert len(said) == len(levels), (free, said)
            for words, wanted in zip(said, levels, strict=True):
                assert words.startswith(f"the file system {wanted}")
                assert "again" in words or "hypemanctl df" in words

    use_vm(tmp_path, scenario)


def test_a_host_that_keeps_nothing_is_warned_before_its_disk_is_full() -> None:
    assert derive_level(GIB, 0, Level.FREE) is Level.FREE
    assert derive_level(63 * MIB, 0, Level.FREE) is Level.LOW
    assert derive_level(0, 0, Level.LOW) is Level.LOW


def test_file_systems_are_found_by_folders_and_mount_points(tmp_path: Path) -> None:
    mount = find_mount_point(tmp_path)
    rooms = read_rooms([tmp_path, tmp_path / "not/there"], [Path("/proc"), tmp_path / "gone"])
    assert set(rooms) == {mount, Path("/proc")}
    about = os.statvfs(tmp_path)
    assert rooms[mount].total == about.f_blocks * about.f_frsize


def test_many_file_systems_are_named_each_once() -> None:
    srv, var = Path("/srv"), Path("/var")
    words = describe_full(
        [FullDrive("its volume a", srv), FullDrive("its disk", var), FullDrive("its volume b", srv)]
    )
    assert words is not None
    assert words.startswith("/srv and /var are full, so its volume a, its disk and its volume b cannot be")
    assert describe_full([]) is None


def test_looks_that_are_asked_for_meanwhile_are_one_more(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        looks: list[int] = []
        asked = threading.Event()

        def count(folders: Iterable[Path], mounts: Iterable[Path]) -> dict[Path, Room]:
            looks.append(1)
            if len(looks) == 1:
                asked.wait(60)
                raise OSError(5, "Input/output error")
            return read(folders, mounts)

        read, place.watch._read_rooms = place.watch._read_rooms, count
        place.watch.look_soon()
        await until(lambda: len(looks) == 1)
        for _ in range(10):
            place.watch.look_soon()
            await asyncio.sleep(0)
        asked.set()
        await until(lambda: place.watch._task is not None and place.watch._task.done())
        assert len(looks) == 2

    use_vm(tmp_path, scenario)
