# SPDX-License-Identifier: Apache-2.0
"""The driver, on QEMU itself and on the one that tests have instead: so both behave alike."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeAlias

import pytest

from hypemand.budget import Budget
from hypemand.model.evidence import RunState
from hypemand.model.limits import DiskLimits
from hypemand.vmm.driver import Drive, Ending, RunStateChanged, Vmm, VmmError, VmmEvent, VmmTimeout
from hypemand.vmm.qemu import RUN_STATES, connect_qemu
from hypemand.vmm.shutdown import Shutdown
from tests.fakes.qmp import QmpServer

# what a guest has in its memory, and where
MEMORY, ADDRESS = b"what this guest knows" * 100_000, 16 * 1024 * 1024
MOST = 1024**3
DEADLINE = 30.0
# of which the last is not limited
DRIVES = ("image", "disk", "volume0", "config")
UNLIMITED = dict.fromkeys(("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"), 0)
# a VMM that runs: its socket, and what kills it
Running: TypeAlias = tuple[Path, Callable[[], None]]
MACHINE = ("qemu-system-x86_64", "-M", "microvm,accel=tcg", "-nodefaults", "-display", "none", "-m", "64M")


class Place:
    """A VMM, the driver's connection to it, and what it has reported; `kill` ends its process."""

    def __init__(self, folder: Path, vmm: Vmm, events: list[VmmEvent], kill: Callable[[], None]) -> None:
        self.folder = folder
        self.vmm = vmm
        self.events = events
        self.kill = kill

    @contextlib.contextmanager
    def open(self, name: str = "state") -> Iterator[int]:
        """A file to save to."""
        fd = os.open(self.folder / name if "/" not in name else name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            yield fd
        finally:
            os.close(fd)

    async def save(self, target: int, *, most: int = MOST, deadline: float = DEADLINE) -> None:
        await self.vmm.save(target, most=most, deadline=deadline)

    async def is_intact(self) -> None:
        """Nothing is left of a save that came to nothing."""
        assert await self.vmm.query_run_state() is RunState.RUNNING
        with self.open("intact") as target:
            await self.save(target)
        assert MEMORY[:1000] in (self.folder / "intact").read_bytes()


@asynccontextmanager
async def run_fake(folder: Path) -> AsyncIterator[Running]:
    server = QmpServer()
    server.monitor.memory = MEMORY
    server.monitor.drives = [{"device": name, "inserted": dict(UNLIMITED)} for name in DRIVES]
    async with server.serve(folder / "fake.sock"):
        yield folder / "fake.sock", server.kill


@asynccontextmanager
async def run_qemu(folder: Path, *options: str, fd: int | None = None) -> AsyncIterator[Running]:
    """Its socket is bound and given to it, as the launcher does. `fd`: another descriptor for it."""
    path = folder / "qemu.sock"
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as control:
        control.bind(str(path))
        control.listen()
        chardev = f"socket,id=qmp,fd={control.fileno()},server=on,wait=off"
        process = await asyncio.create_subprocess_exec(
            *MACHINE, "-chardev", chardev, "-mon", "chardev=qmp,mode=control", *options,
            stderr=asyncio.subprocess.DEVNULL,
            pass_fds=(control.fileno(), *([] if fd is None else [fd])),
        )  # fmt: skip
    try:
        yield path, process.kill
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _disks() -> Iterator[str]:
    for name in DRIVES:
        yield from ("-drive", f"if=none,id={name},driver=null-co,size=1M")
        yield from ("-device", f"virtio-blk-device,drive={name}")


@asynccontextmanager
async def run_guest(folder: Path) -> AsyncIterator[Running]:
    blob = folder / "memory"
    blob.write_bytes(MEMORY)
    loader = f"loader,file={blob},addr={ADDRESS:#x},force-raw=on"
    async with run_qemu(folder, "-device", loader, *_disks()) as running:
        yield running


@asynccontextmanager
async def connected(path: Path) -> AsyncIterator[tuple[Vmm, list[VmmEvent]]]:
    events: list[VmmEvent] = []
    vmm = await connect_qemu(str(path), events.append, "web", Budget())
    try:
        yield vmm, events
    finally:
        await vmm.close()


def on_both(scenario: Callable[[Place], Awaitable[None]]) -> Callable[[Path, str], None]:
    """Play a scenario on each."""

    @pytest.mark.parametrize("kind", ["fake", "qemu"])
    @functools.wraps(scenario)
    def run(tmp_path: Path, kind: str) -> None:
        async def main() -> None:
            start = run_fake if kind == "fake" else run_guest
            async with (
                asyncio.timeout(2 * DEADLINE),
                start(tmp_path) as (path, kill),
                connected(path) as (vmm, events),
            ):
                await scenario(Place(tmp_path, vmm, events, kill))

        asyncio.run(main())

    del run.__wrapped__  # pytest would take its parameters
    return run


@on_both
async def test_a_guest_is_paused_and_goes_on(place: Place) -> None:
    assert await place.vmm.query_run_state() is RunState.RUNNING
    await place.vmm.pause()
    assert await place.vmm.query_run_state() is RunState.PAUSED
    await place.vmm.resume()
    assert await place.vmm.query_run_state() is RunState.RUNNING
    assert place.events[:2] == [RunStateChanged()] * 2


@on_both
async def test_limits_of_disks_are_one_for_all_of_them(place: Place) -> None:
    assert await place.vmm.query_disk_limits() == DiskLimits()
    for limits in (DiskLimits(read=10**6, write=2 * 10**6, iops=50), DiskLimits(total=10**8), DiskLimits()):
        await place.vmm.set_disk_limits(limits)
        assert await place.vmm.query_disk_limits() == limits
    with pytest.raises(VmmError, match="cannot be used at the same time"):
        await place.vmm.set_disk_limits(DiskLimits(read=10**6, total=10**6))


@on_both
async def test_without_a_balloon_the_memory_of_a_guest_is_fixed(place: Place) -> None:
    for ask in (place.vmm.query_memory(), place.vmm.set_memory(2**26, 1.0)):
        with pytest.raises(VmmError, match="balloon"):
            await ask


@on_both
async def test_a_paused_guest_is_saved_and_can_go_on(place: Place) -> None:
    await place.vmm.pause()
    with place.open() as target:
        os.write(target, b"header")
        await place.save(target)
        saved = (place.folder / "state").read_bytes()
        assert saved.startswith(b"headerQEVM")
        assert MEMORY[:1000] in saved
        os.fstat(target)  # it is open as it was
    assert await place.vmm.query_run_state() is RunState.HALTED
    await place.vmm.resume()
    await place.is_intact()


@on_both
async def test_a_guest_that_runs_stands_still_when_it_is_saved(place: Place) -> None:
    with place.open() as target:
        await place.save(target)
    assert await place.vmm.query_run_state() is RunState.HALTED


@on_both
async def test_a_file_system_that_is_full_ends_the_save_and_not_the_guest(place: Place) -> None:
    with place.open("/dev/full") as target, pytest.raises(OSError, match="No space left"):
        await place.save(target)
    await place.is_intact()


@on_both
async def test_a_vmm_writes_no_more_than_it_may(place: Place) -> None:
    with place.open() as target:
        with pytest.raises(VmmError, match="wrote more than 100000 bytes"):
            await place.save(target, most=100_000)
        assert os.fstat(target).st_size <= 100_000
    await place.is_intact()


@on_both
async def test_a_disk_that_hangs_is_waited_for_no_longer_than_the_deadline(place: Place) -> None:
    """At the end of a save QEMU obeys no order until all is written."""
    reader, target = os.pipe()  # that nobody reads
    try:
        with pytest.raises(VmmTimeout, match=r"not saved in 0\.3 s"):
            await place.save(target, deadline=0.3)
        assert await asyncio.wait_for(place.vmm.query_run_state(), 5) is RunState.RUNNING
    finally:
        os.close(reader)
        os.close(target)
    await place.is_intact()


@on_both
async def test_a_save_that_is_cancelled_leaves_the_guest_as_it_was(place: Place) -> None:
    reader, target = os.pipe()
    try:
        save = asyncio.create_task(place.save(target))
        await asyncio.sleep(0.1)
        save.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(save, 5)
    finally:
        os.close(reader)
        os.close(target)
    await place.is_intact()


@on_both
async def test_there_is_one_save_at_a_time(place: Place) -> None:
    with place.open() as target, place.open("other") as other:
        save = asyncio.create_task(place.save(target))
        await asyncio.sleep(0)
        with pytest.raises(VmmError, match="being saved already"):
            await place.save(other)
        await save
        assert os.fstat(other).st_size == 0


@on_both
async def test_a_vmm_that_ends_while_it_is_saved_is_reported(place: Place) -> None:
    reader, target = os.pipe()
    try:
        save = asyncio.create_task(place.save(target))
        await asyncio.sleep(0.1)
        place.kill()
        with pytest.raises(VmmError, match="ended while it was being saved"):
            await asyncio.wait_for(save, 5)
    finally:
        os.close(reader)
        os.close(target)


@on_both
async def test_a_vmm_is_ended_whatever_its_guest_does(place: Place) -> None:
    await place.vmm.pause()
    await place.vmm.quit()
    assert place.vmm.is_closed
    assert place.events[-1] == Ending(None)
    assert await place.vmm.query_run_state() is RunState.ABSENT


def test_what_was_saved_is_what_another_vmm_goes_on_with(tmp_path: Path) -> None:
    async def main() -> None:
        state = tmp_path / "state"
        async with run_guest(tmp_path) as (path, _), connected(path) as (vmm, _):
            with state.open("wb") as file:
                await vmm.save(file.fileno(), most=MOST, deadline=DEADLINE)
            await vmm.quit()
        with state.open("rb") as file:
            async with (
                run_qemu(tmp_path, *_disks(), "-incoming", f"fd:{file.fileno()}", fd=file.fileno()) as (
                    path,
                    _,
                ),
                connected(path) as (vmm, _),
            ):
                while await vmm.query_run_state() is RunState.NOT_STARTED:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                assert await vmm.query_run_state() is RunState.RUNNING
                found = {"val": ADDRESS, "size": len(MEMORY), "filename": str(tmp_path / "found")}
                await vmm._qmp.execute("pmemsave", found, deadline=5.0)  # type: ignore[attr-defined]
        assert (tmp_path / "found").read_bytes() == MEMORY

    asyncio.run(asyncio.wait_for(main(), 2 * DEADLINE))


# --- what a VMM may say ---


def on_fake(scenario: Callable[[Place, QmpServer], Awaitable[None]], folder: Path) -> None:
    async def main() -> None:
        server, path = QmpServer(), folder / "qmp.sock"
        async with asyncio.timeout(DEADLINE), server.serve(path), connected(path) as (vmm, events):
            await scenario(Place(folder, vmm, events, server.kill), server)

    asyncio.run(main())


def test_each_run_state_is_known_and_others_are_not_guessed_at(tmp_path: Path) -> None:
    async def scenario(place: Place, server: QmpServer) -> None:
        for word, state in RUN_STATES.items():
            server.monitor.status = word
            assert await place.vmm.query_run_state() is state
        for strange in ("", "colo", "absent", 5, ["running"], None):
            server.monitor.status = strange  # type: ignore[assignment]
            assert await place.vmm.query_run_state() is RunState.UNRECOGNISED

    on_fake(scenario, tmp_path)


def test_a_refused_order_has_the_vmms_words(tmp_path: Path) -> None:
    async def scenario(place: Place, server: QmpServer) -> None:
        server.monitor.refuses = {"stop", "cont", "quit", "query-block"}
        for order in (place.vmm.pause, place.vmm.resume, place.vmm.quit, place.vmm.list_full_drives):
            with pytest.raises(VmmError, match="is refused"):
                await order()

    on_fake(scenario, tmp_path)


@pytest.mark.parametrize("order", ["migrate-set-capabilities", "migrate-set-parameters", "getfd", "migrate"])
def test_a_save_that_is_refused_leaves_the_vmm_no_descriptor(tmp_path: Path, order: str) -> None:
    async def scenario(place: Place, server: QmpServer) -> None:
        server.monitor.refuses = {order}
        with place.open() as target, pytest.raises(VmmError, match=f"{order} is refused"):
            await place.save(target)
        assert server.monitor.fds == {}
        server.monitor.refuses, server.monitor.memory = set(), MEMORY
        await place.is_intact()

    on_fake(scenario, tmp_path)


def test_a_save_lasts_until_all_is_written(tmp_path: Path) -> None:
    """What the VMM has sent may be in the socket still."""

    async def scenario(place: Place, server: QmpServer) -> None:
        server.monitor.memory = bytes(150_000)
        source, target = os.pipe()
        os.set_blocking(source, False)
        try:
            save = asyncio.create_task(place.save(target))
            while server.monitor.status != "postmigrate":  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            await place.vmm.query_run_state()
            await asyncio.sleep(0.05)
            assert not save.done()
            size = 0
            while size < 150_004:
                with contextlib.suppress(BlockingIOError):
                    size += len(os.read(source, 65536))
                await asyncio.sleep(0)
            await save
        finally:
            os.close(source)
            os.close(target)

    on_fake(scenario, tmp_path)


def test_why_a_vmm_ends_is_told_and_what_does_not_matter_is_not(tmp_path: Path) -> None:
    async def scenario(place: Place, server: QmpServer) -> None:
        tell = server.monitor.tell
        for reason in ("guest-shutdown", "guest-reset", "host-signal", ["guest-reset"], 7):
            tell("SHUTDOWN", reason=reason)
        tell("SHUTDOWN")
        tell("VSERPORT_CHANGE", open=True)
        tell("MIGRATION", status="completed")
        tell("BLOCK_IO_ERROR")
        await place.vmm.query_run_state()
        reasons = [Shutdown.POWER_OFF, Shutdown.RESET, None, None, None, None]
        assert place.events == [*map(Ending, reasons), RunStateChanged()]

    on_fake(scenario, tmp_path)


def test_drives_without_space_are_told_from_others_and_from_nonsense(tmp_path: Path) -> None:
    async def scenario(place: Place, server: QmpServer) -> None:
        async def full(answer: object) -> tuple[Drive, ...]:
            server.monitor.drives = answer  # type: ignore[assignment]
            return await place.vmm.list_full_drives()

        names = ("volume0", "disk", "image", "volume1", "volume" + "9" * 5000)
        drives = [{"device": name, "io-status": "nospace"} for name in names]
        others = [{"device": "image"}, {"device": "disk", "io-status": "ok"}, 7, {"io-status": []}]
        assert await full([*others, *drives]) == (Drive(0), Drive(), Drive(1))
        assert 0 < len(await full(drives[:2] * 500)) <= 64
        assert await full([{"device": 5, "io-status": "nospace"}]) == ()
        with pytest.raises(VmmError, match="does not report the state of its disks"):
            await full({"device": "disk"})

    on_fake(scenario, tmp_path)
