# SPDX-License-Identifier: Apache-2.0
"""The driver, on QEMU itself and on the one that tests have instead: so both behave alike."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import shutil
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeAlias

import pytest

from hypemand.budget import Budget
from hypemand.model.evidence import RunState
from hypemand.model.limits import DiskLimits
from hypemand.vmm.commandline import MEMORY_BLOCK
from hypemand.vmm.driver import Drive, Ending, RunStateChanged, Vmm, VmmError, VmmEvent, VmmTimeout
from hypemand.vmm.qemu import RUN_STATES, Qemu, connect_qemu
from hypemand.vmm.shutdown import Shutdown
from tests.fakes.launchers import find_intake
from tests.fakes.qmp import QmpServer

# what a guest has in its memory, and where
MEMORY, ADDRESS = b"what this guest knows" * 100_000, 16 * 1024 * 1024
SIZE = 64 * 1024**2
DEADLINE = 60.0
# of which the last is not limited
DRIVES = ("image", "disk", "volume0", "config")
UNLIMITED = dict.fromkeys(("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"), 0)
# a VMM that runs: its socket, and what kills it
Running: TypeAlias = tuple[Path, Callable[[], None]]
MACHINE = (
    "qemu-system-x86_64", "-M", "microvm,accel=tcg", "-nodefaults", "-no-reboot", "-display", "none",
    "-m", "64M",
)  # fmt: skip


class Saved:
    """The files of a VM that is saved. `state` of some is another one."""

    def __init__(self, folder: Path, name: str, state: str | None = None) -> None:
        self.memory = folder / f"{name}.memory"
        self.state = folder / f"{name}.state" if state is None else Path(state)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Saved:
        self.files = [self._stack.enter_context(path.open("wb")) for path in (self.memory, self.state)]
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def has_guest(self) -> bool:
        """Is all of it there, and sparse?"""
        assert b"QEVM" in self.state.read_bytes()[:100]
        assert MEMORY[:1000] not in self.state.read_bytes()
        found = self.memory.stat()
        return (
            MEMORY in self.memory.read_bytes() and found.st_size == SIZE and found.st_blocks * 512 < SIZE / 4
        )


class Place:
    """A VMM, the driver's connection to it, and what it has reported; `kill` ends its process."""

    def __init__(self, folder: Path, vmm: Vmm, events: list[VmmEvent], kill: Callable[[], None]) -> None:
        self.folder = folder
        self.vmm = vmm
        self.events = events
        self.kill = kill

    def open(self, name: str = "saved", state: str | None = None) -> Saved:
        """Files to save to."""
        return Saved(self.folder, name, state)

    @contextlib.contextmanager
    def intake(self, script: str | None) -> Iterator[None]:
        """In the place of what takes it in: a script, for which $intake is that, or nothing."""
        program = self.folder / "intake"
        kept = program.rename(self.folder / "intake.kept")
        if script is not None:
            program.write_text(f"#!/bin/sh\nintake={kept}\n{script}\n")
            program.chmod(0o755)
        try:
            yield
        finally:
            kept.rename(program)

    def has(self, file: str) -> bool:
        """Is there such a file?"""
        return (self.folder / file).exists()

    def runs(self, file: str) -> bool:
        """Is there the process whose id this file has?"""
        try:
            return (
                Path(f"/proc/{(self.folder / file).read_text().strip()}/stat").read_text().split()[2] != "Z"
            )
        except FileNotFoundError:
            return False

    async def save(
        self,
        saved: Saved,
        *,
        size: int = SIZE,
        deadline: float = DEADLINE,
        ready: Awaitable[object] | None = None,
    ) -> None:
        memory, state = (file.fileno() for file in saved.files)
        user = os.getuid()
        await self.vmm.save(memory, state, size=size, user=user, deadline=deadline, ready=ready)

    async def reset_guest(self) -> None:
        """Its guest ends, as one that resets does."""
        assert isinstance(self.vmm, Qemu)
        with contextlib.suppress(VmmError):  # it may have ended before its answer was out
            await self.vmm._qmp.execute("system_reset")

    async def is_intact(self) -> None:
        """Nothing is left of a save that came to nothing."""
        assert await self.vmm.query_run_state() is RunState.RUNNING
        with self.open("intact") as saved:
            await self.save(saved)
            assert saved.has_guest()


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
    program = Path(shutil.copy(find_intake(), path.parent))
    vmm = await connect_qemu(str(path), events.append, "web", Budget(), program=program)
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
async def test_a_guest_announces_itself(place: Place) -> None:
    """Also one without a network card: nobody hears it then."""
    await place.vmm.announce()


@on_both
async def test_without_a_balloon_the_memory_of_a_guest_is_fixed(place: Place) -> None:
    for ask in (place.vmm.query_memory(), place.vmm.set_memory(2**26, 1.0)):
        with pytest.raises(VmmError, match="balloon"):
            await ask


@on_both
async def test_a_paused_guest_is_saved_and_can_go_on(place: Place) -> None:
    await place.vmm.pause()
    with place.open() as saved:
        saved.files[1].write(b"header")
        saved.files[1].flush()
        saved.files[0].write(b"what was there" * 1000)
        saved.files[0].flush()
        await place.save(saved)
        assert saved.has_guest()
        assert saved.state.read_bytes().startswith(b"headerQEVM")
        for file in saved.files:
            os.fstat(file.fileno())  # it is open as it was
    assert await place.vmm.query_run_state() is RunState.HALTED
    await place.vmm.resume()
    await place.is_intact()


@on_both
async def test_a_guest_that_runs_stands_still_when_it_is_saved(place: Place) -> None:
    with place.open() as saved:
        await place.save(saved)
    assert await place.vmm.query_run_state() is RunState.HALTED


@on_both
async def test_nothing_of_a_guest_is_saved_before_it_is_ready(place: Place) -> None:
    async def pause(*, fails: bool) -> None:
        while not place.has("intake.began"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert await place.vmm.query_run_state() is RunState.RUNNING
        if fails:
            raise ValueError("not ready")
        await place.vmm.pause()

    with place.intake('touch $0.began; exec $intake "$@"'):
        with place.open() as saved, pytest.raises(ValueError, match="not ready"):
            await place.save(saved, ready=pause(fails=True))
        assert saved.state.stat().st_size == 0
        await place.is_intact()
        await place.vmm.resume()
        (place.folder / "intake.began").unlink()
        with place.open("other") as saved:
            await place.save(saved, ready=pause(fails=False))
            assert saved.has_guest()


@on_both
async def test_a_file_system_that_is_full_ends_the_save_and_not_the_guest(place: Place) -> None:
    with place.open(state="/dev/full") as saved, pytest.raises(OSError, match="No space left"):
        await place.save(saved)
    await place.vmm.resume()
    await place.is_intact()


@on_both
async def test_a_save_ends_when_what_takes_it_in_does(place: Place) -> None:
    for script, error, words in (
        ("exit 2", OSError, "No space left"),
        ("echo intake: cannot write >&2; exit 1", OSError, "cannot write"),
        (
            "echo intake: strange >&2; head -c 9000 >/dev/null; exit 3",
            VmmError,
            "could not be saved: strange",
        ),
        ("head -c 9000 >/dev/null; exit 4", VmmError, "could not be saved"),
        ("kill -SEGV $$", VmmError, "ended with status -11"),
    ):
        with place.open() as saved, place.intake(script), pytest.raises(error, match=words):
            await asyncio.wait_for(place.save(saved), DEADLINE)
        assert await place.vmm.query_run_state() is RunState.RUNNING
    with place.intake(None), place.open() as saved, pytest.raises(FileNotFoundError):
        await place.save(saved)
    await place.is_intact()


@on_both
async def test_a_vmm_with_other_memory_than_it_was_given_is_not_saved(place: Place) -> None:
    with place.open() as saved, pytest.raises(VmmError, match=f"has {SIZE} bytes instead of {SIZE // 2}"):
        await place.save(saved, size=SIZE // 2)
    await place.is_intact()


@on_both
async def test_a_disk_that_hangs_is_waited_for_no_longer_than_the_deadline(place: Place) -> None:
    """At the end of a save QEMU obeys no order until all is written."""
    with place.intake("sleep 100 & echo $! >$0.pid; wait"):
        with place.open() as saved, pytest.raises(VmmTimeout, match=r"not saved in 0\.3 s"):
            await place.save(saved, deadline=0.3)
        assert await asyncio.wait_for(place.vmm.query_run_state(), DEADLINE) is RunState.RUNNING
    # it is ended with all that it has started, of which the kernel sees to each by itself
    async with asyncio.timeout(DEADLINE):
        while place.runs("intake.pid"):  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)
    await place.is_intact()


@on_both
async def test_a_save_that_is_cancelled_leaves_the_guest_as_it_was(place: Place) -> None:
    with place.open() as saved, place.intake("exec sleep 100"):
        save = asyncio.create_task(place.save(saved))
        await asyncio.sleep(0.1)
        save.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(save, DEADLINE)
    await place.is_intact()


@on_both
async def test_there_is_one_save_at_a_time(place: Place) -> None:
    with place.open() as saved, place.open("other") as other:
        save = asyncio.create_task(place.save(saved))
        await asyncio.sleep(0)
        with pytest.raises(VmmError, match="being saved already"):
            await place.save(other)
        await save
        assert [os.fstat(file.fileno()).st_size for file in other.files] == [0, 0]


@on_both
async def test_a_vmm_that_ends_while_it_is_saved_is_reported(place: Place) -> None:
    with place.open() as saved, place.intake("head -c 1 >/dev/null; touch $0.began; exec sleep 100"):
        save = asyncio.create_task(place.save(saved))
        while not place.has("intake.began"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)  # it has answered the order by then
        place.kill()
        with pytest.raises(VmmError, match="ended while it was being saved"):
            await asyncio.wait_for(save, DEADLINE)


@on_both
async def test_a_vmm_that_is_held_stays_when_its_guest_has_ended(place: Place) -> None:
    await place.vmm.hold_end(True)
    await place.reset_guest()
    while await place.vmm.query_run_state() is not RunState.SHUTDOWN:  # noqa: ASYNC110 - no event is later
        await asyncio.sleep(0.01)
    await place.vmm.hold_end(False)
    assert await place.vmm.query_run_state() is RunState.SHUTDOWN
    assert place.events[0] == Ending(None)
    await place.vmm.quit()
    assert place.vmm.is_closed


@on_both
async def test_a_vmm_that_is_not_held_any_more_ends_with_its_guest(place: Place) -> None:
    await place.vmm.hold_end(True)
    await place.vmm.hold_end(False)
    await place.reset_guest()
    await place.vmm.wait_closed()


@on_both
async def test_a_vmm_is_ended_whatever_its_guest_does(place: Place) -> None:
    await place.vmm.pause()
    await place.vmm.quit()
    assert place.vmm.is_closed
    assert place.events[-1] == Ending(None)
    assert await place.vmm.query_run_state() is RunState.ABSENT


def test_what_was_saved_is_what_another_vmm_goes_on_with(tmp_path: Path) -> None:
    async def main() -> None:
        async with run_guest(tmp_path) as (path, kill), connected(path) as (vmm, events):
            with Saved(tmp_path, "saved") as saved:
                await Place(tmp_path, vmm, events, kill).save(saved)
            await vmm.quit()
        backend = f"memory-backend-file,id={MEMORY_BLOCK},x-use-canonical-path-for-ramblock-id=off"
        mapped = f"{backend},mem-path={saved.memory},share=off,size=64M"
        with saved.state.open("rb") as file:
            restored = ["-object", mapped, "-machine", f"memory-backend={MEMORY_BLOCK}", "-S"]
            restored += ["-incoming", f"fd:{file.fileno()}"]
            async with (
                run_qemu(tmp_path, *_disks(), *restored, fd=file.fileno()) as (path, _),
                connected(path) as (vmm, _),
            ):
                while await vmm.query_run_state() is RunState.NOT_STARTED:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                assert await vmm.query_run_state() is RunState.PAUSED
                await vmm.resume()
                assert await vmm.query_run_state() is RunState.RUNNING
                found = {"val": ADDRESS, "size": len(MEMORY), "filename": str(tmp_path / "found")}
                await vmm._qmp.execute("pmemsave", found, deadline=DEADLINE)  # type: ignore[attr-defined]
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
        with place.open() as saved, pytest.raises(VmmError, match=f"{order} is refused"):
            await place.save(saved)
        assert server.monitor.fds == {}
        server.monitor.refuses, server.monitor.memory = set(), MEMORY
        await place.is_intact()

    on_fake(scenario, tmp_path)


def test_a_save_lasts_until_all_is_written(tmp_path: Path) -> None:
    """What the VMM has sent may be in the socket still."""

    async def scenario(place: Place, server: QmpServer) -> None:
        server.monitor.memory = bytes(range(1, 201)) * 500
        with place.open() as saved, place.intake('sleep 0.3; exec "$intake" "$@"'):
            save = asyncio.create_task(place.save(saved))
            while server.monitor.status != "postmigrate":  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            await place.vmm.query_run_state()
            await asyncio.sleep(0.05)
            assert not save.done()
            await save
            assert saved.memory.read_bytes().startswith(server.monitor.memory)

    on_fake(scenario, tmp_path)


def test_why_a_vmm_has_failed_is_told_by_itself(tmp_path: Path) -> None:
    """What takes in its stream sees no more than the end of that."""

    async def scenario(place: Place, server: QmpServer) -> None:
        server.monitor.failure = "the state of a device cannot be saved"
        with place.open() as saved, pytest.raises(VmmError, match="state of a device cannot be saved"):
            await place.save(saved)

    on_fake(scenario, tmp_path)


def test_what_takes_in_a_guest_gets_its_user_and_no_descriptor_of_others(tmp_path: Path) -> None:
    async def scenario(place: Place, _server: QmpServer) -> None:
        with place.open() as saved:
            memory, state = (file.fileno() for file in saved.files)
            script = 'echo "as $1 with" $(ls /proc/self/fd) >&2; exit 1'
            with place.intake(script), pytest.raises(OSError, match="as 65534 with") as caught:
                await place.vmm.save(memory, state, size=SIZE, user=65534, deadline=DEADLINE)
        # of those between, one is of the folder that is listed
        assert set((caught.value.strerror or "").split()[3:]) <= {
            "0",
            "1",
            "2",
            "3",
            "10",
            str(memory),
            str(state),
        }

    on_fake(scenario, tmp_path)


def test_why_a_vmm_ends_is_told_and_what_does_not_matter_is_not(tmp_path: Path) -> None:
    async def scenario(place: Place, server: QmpServer) -> None:
        tell = server.monitor.tell
        for reason in ("guest-shutdown", "guest-reset", "host-signal", ["guest-reset"], 7):
            tell("SHUTDOWN", reason=reason)
        tell("SHUTDOWN")
        tell("VSERPORT_CHANGE", open=True)
        tell("MIGRATION", status="active")
        tell("MIGRATION", status="completed")  # of one that is restored: it has loaded
        tell("BLOCK_IO_ERROR")
        await place.vmm.query_run_state()
        reasons = [Shutdown.POWER_OFF, Shutdown.RESET, None, None, None, None]
        assert place.events == [*map(Ending, reasons), RunStateChanged(), RunStateChanged()]

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
