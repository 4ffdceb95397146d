# SPDX-License-Identifier: Apache-2.0
"""Compression of saved memory over the real manager, by the real zstd."""

import asyncio
import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from hypemand.config.definition import MIB
from hypemand.errors import InsufficientResources, InvalidRequest, WrongState
from hypemand.manager.fork import ApiForks
from hypemand.manager.snapshots import ApiSnapshots
from hypemand.model.compression import Compression, CompressionState
from hypemand.model.events import CompressionEnd, EventKind, Since
from hypemand.model.fork import ForkWanted
from hypemand.model.snapshots import SnapshotKind, SnapshotView
from hypemand.model.state import FromStandby, State
from hypemand.storage.tools import DirectTools
from tests.fakes.host import DEADLINE, FakeHost, drive

STANDBY = SnapshotKind.STANDBY
WORDS = b"what it has in memory" * 1000
DONE, ERROR, NONE = CompressionState.COMPRESSED, CompressionState.ERROR, CompressionState.NONE


class HeldTools(DirectTools):
    """A tool that has written some, and takes until it is cancelled or `gate` opens."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.began = threading.Event()
        self.ended = threading.Event()

    def filter(
        self,
        argv: Sequence[str],
        through: tuple[int, int],
        *,
        user: int,
        size: int,
        timeout: float,
        idle: bool = False,
    ) -> None:
        os.write(through[1], b"half of it")
        self.began.set()
        try:
            assert self.gate.wait(DEADLINE), "it is cancelled"
            self.check()
        finally:
            self.ended.set()

    def cancel(self) -> None:
        super().cancel()
        self.gate.set()


def service(host: FakeHost) -> ApiSnapshots:
    return ApiSnapshots(host.parts, host.manager)


def folder(host: FakeHost, view: SnapshotView) -> Path:
    return host.config.state_dir / "snapshots" / view.id


def standby(host: FakeHost, name: str = "web") -> Path:
    return host.config.state_dir / "vms" / name / "standby"


def forms(where: Path) -> set[str]:
    """In which forms memory is there."""
    return {path.name for path in where.glob("memory*")}


def is_sparse(path: Path) -> bool:
    about = path.stat()
    return about.st_size == 96 * MIB and about.st_blocks * 512 < MIB


async def run(host: FakeHost) -> None:
    host.make_tools = DirectTools
    await host.run()
    host.vmm().monitor.memory = WORDS


async def until_state(host: FakeHost, view: SnapshotView, state: CompressionState) -> SnapshotView:
    """As it is then."""
    async with asyncio.timeout(DEADLINE):
        while True:
            now = await service(host).get_snapshot(view.id)
            assert now.compression is not None
            if now.compression.state is state:
                return now
            await asyncio.sleep(0.005)


async def make(host: FakeHost, wanted: Compression | None = None) -> SnapshotView:
    """A compressed snapshot."""
    made = await service(host).create_snapshot(
        "web", STANDBY, "base", {}, compression=wanted or Compression()
    )
    return await until_state(host, made, DONE)


async def until_event(host: FakeHost) -> CompressionEnd:
    """The one that is told."""
    async with asyncio.timeout(DEADLINE):
        while True:
            if found := await events(host):
                (event,) = found
                return event
            await asyncio.sleep(0.005)


async def events(host: FakeHost) -> list[CompressionEnd]:
    found = [noted.event.details async for noted in host.parts.events.read(Since(kept=True), follow=False)]
    return [details for details in found if isinstance(details, CompressionEnd)]


def test_the_memory_of_a_snapshot_is_compressed_after_the_answer_and_restored() -> None:
    async def scenario(host: FakeHost) -> None:
        await run(host)
        made = await service(host).create_snapshot(
            "web", STANDBY, "base", {}, compression=Compression(level=3)
        )
        assert made.compression is not None
        assert made.compression.state is CompressionState.COMPRESSING
        kept = folder(host, made)
        assert (forms(kept) >= {"memory"}, json.loads((kept / "snapshot.json").read_text())["version"]) == (
            True,
            1,
        )
        done = await until_state(host, made, DONE)
        assert forms(kept) == {"memory.zst"}
        record = json.loads((kept / "snapshot.json").read_text())
        assert (record["version"], record["stored"]) == (2, done.size)
        compression = record["run"]["compression"]
        assert (compression["algorithm"], compression["level"], compression["size"]) == ("zstd", 3, 96 * MIB)
        assert done.size == sum(path.stat().st_blocks * 512 for path in kept.iterdir())
        assert done.size < made.size
        assert (done.memory, done.compression.size if done.compression else 0) == (
            96 * MIB,
            (kept / "memory.zst").stat().st_size,
        )
        await host.restart_daemon()
        assert await service(host).get_snapshot("base") == done
        await host.manager.stop_vm("web")
        await service(host).restore_snapshot("web", "base", State.STANDBY)
        memory = standby(host) / "memory"
        assert (forms(standby(host)), forms(kept)) == ({"memory"}, {"memory.zst"})
        assert json.loads((standby(host) / "snapshot.json").read_text())["version"] == 1
        assert memory.read_bytes().startswith(WORDS)
        assert is_sparse(memory)
        await host.manager.restore_vm("web")
        await host.until(State.RUNNING)
        assert host.vmm().is_restored

    drive(scenario)


def test_what_a_vm_in_standby_goes_on_from_is_compressed_and_unpacked() -> None:
    async def scenario(host: FakeHost) -> None:
        await run(host)
        await host.manager.standby_vm("web", Compression())
        event = await until_event(host)
        view = host.vm().view().saved
        assert view is not None
        assert (view.compression.state, forms(standby(host))) == (DONE, {"memory.zst"})
        assert json.loads((standby(host) / "snapshot.json").read_text())["version"] == 2
        assert (event.snapshot, event.state, event.compressed_size) == (None, DONE, view.size)
        assert view.size is not None
        assert event.size > view.size
        with pytest.raises(WrongState, match="is in Standby, and its memory is compressed when it is saved"):
            await host.manager.standby_vm("web", Compression())
        await host.restart_daemon()
        # a snapshot of it has the very same file, and needs no other compression
        made = await service(host).create_snapshot("web", STANDBY, "cold", {}, compression=Compression())
        assert forms(folder(host, made)) == {"memory.zst"}
        assert made.compression is not None
        assert made.compression.state is DONE
        await host.manager.restore_vm("web")
        await host.until(State.RUNNING)
        assert host.vmm().is_restored
        await host.until_true(lambda: not standby(host).exists())

    drive(scenario)


def test_a_fork_of_a_compressed_snapshot_has_its_memory() -> None:
    async def scenario(host: FakeHost) -> None:
        await run(host)
        made = await make(host)
        forks = ApiForks(host.parts, host.manager, service(host))
        await forks.fork_snapshot("base", ForkWanted("copy", target=State.STANDBY))
        assert forms(standby(host, "copy")) == {"memory.zst"}
        await host.manager.restore_vm("copy")
        await host.until(State.RUNNING, "copy")
        assert host.vmm("copy").is_restored
        assert forms(folder(host, made)) == {"memory.zst"}

    drive(scenario)


@pytest.mark.parametrize("end", ["restore", "fork", "remove", "close"])
def test_who_needs_the_memory_ends_a_compression_first(end: str) -> None:
    async def scenario(host: FakeHost) -> None:
        await run(host)
        tools = HeldTools()
        host.make_tools = lambda: tools
        snapshots = service(host)
        made = await snapshots.create_snapshot("web", STANDBY, "base", {}, compression=Compression())
        await asyncio.to_thread(tools.began.wait, 8)
        assert forms(folder(host, made)) == {"memory", "memory.zst"}
        await host.manager.stop_vm("web")
        if end == "restore":
            await snapshots.restore_snapshot("web", "base", None)
            await host.until(State.RUNNING)
        elif end == "fork":
            forks = ApiForks(host.parts, host.manager, snapshots)
            await forks.fork_snapshot("base", ForkWanted("copy", target=State.STANDBY))
            assert (standby(host, "copy") / "memory").read_bytes().startswith(WORDS)
        elif end == "remove":
            await snapshots.remove_snapshot("base")
            assert not folder(host, made).exists()
        else:
            await host.restart_daemon()
        assert tools.ended.is_set()
        if end != "remove":
            assert forms(folder(host, made)) == {"memory"}
            now = await service(host).get_snapshot("base")
            assert now.compression is not None
            assert (now.compression.state, now.size) == (NONE, made.size)
        assert await events(host) == []

    drive(scenario)


@pytest.mark.parametrize("end", ["restore", "cold", "remove", "snapshot"])
def test_a_vm_in_standby_that_is_needed_is_compressed_no_more(end: str) -> None:
    async def scenario(host: FakeHost) -> None:
        await run(host)
        tools = HeldTools()
        host.make_tools = lambda: tools
        await host.manager.standby_vm("web", Compression())
        await asyncio.to_thread(tools.began.wait, 8)
        if end == "restore":
            await host.manager.restore_vm("web")
        elif end == "cold":
            await host.manager.start_vm("web", standby=FromStandby.COLD)
        elif end == "remove":
            await host.manager.delete_vm("web")
            host.check_gone()
        else:
            await service(host).create_snapshot("web", None, "base", {})
            assert forms(standby(host)) == {"memory"}
        assert tools.ended.is_set()
        if end in ("restore", "cold"):
            await host.until(State.RUNNING)
            assert host.vmm().is_restored is (end == "restore")

    drive(scenario)


def test_a_stop_ends_a_restore_that_unpacks() -> None:
    async def scenario(host: FakeHost) -> None:
        await run(host)
        await host.manager.standby_vm("web", Compression())
        await until_event(host)
        tools = HeldTools()
        host.make_tools = lambda: tools
        restoring = asyncio.create_task(host.manager.restore_vm("web"))
        await asyncio.to_thread(tools.began.wait, 8)
        assert host.vm().view().status_text == "Standby: unpacking its memory"
        with pytest.raises(WrongState, match="web is Standby"):
            await host.manager.stop_vm("web")
        with pytest.raises(WrongState, match="was cancelled while its memory was being unpacked"):
            await restoring
        assert (host.vm().state, forms(standby(host))) == (State.STANDBY, {"memory.zst"})
        host.make_tools = DirectTools
        await host.manager.restore_vm("web")
        await host.until(State.RUNNING)

    drive(scenario)


@pytest.mark.parametrize("of", ["snapshot", "standby"])
def test_a_daemon_that_is_killed_leaves_the_form_that_counts(of: str) -> None:
    async def scenario(host: FakeHost) -> None:
        await run(host)
        if of == "snapshot":
            made = await make(host)
            where, left = folder(host, made), "memory"
        else:
            await host.manager.standby_vm("web")
            where, left = standby(host), "memory.zst"
        counts = forms(where)
        (where / left).write_bytes(b"half")
        await host.restart_daemon()
        assert host.daemon.recovery.has_doubled
        await host.daemon.recovery.clean_up()
        assert forms(where) == counts
        assert not host.daemon.recovery.has_doubled

    drive(scenario)


def test_a_damaged_file_is_an_error_that_leaves_all_as_it_is() -> None:
    async def scenario(host: FakeHost) -> None:
        await run(host)
        made = await make(host)
        packed = folder(host, made) / "memory.zst"
        about = packed.stat()
        packed.chmod(0o600)
        data = bytearray(packed.read_bytes())
        data[len(data) // 2] ^= 0xFF
        with packed.open("r+b") as file:
            file.write(data)
        os.utime(packed, ns=(about.st_atime_ns, about.st_mtime_ns))
        await host.manager.stop_vm("web")
        with host.vm().places.disk.open("r+b") as disk:
            disk.write(b"now!")
        with pytest.raises(WrongState, match=r"memory\.zst cannot be unpacked: "):
            await service(host).restore_snapshot("web", "base", None)
        assert host.vm().state is State.STOPPED
        assert host.vm().places.disk.read_bytes()[:4] == b"now!"
        assert not list(host.vm().places.state.glob("revert*"))
        forks = ApiForks(host.parts, host.manager, service(host))
        with pytest.raises(WrongState, match="cannot be unpacked"):
            await forks.fork_snapshot("base", ForkWanted("copy"))
        assert host.parts.fleet.find("copy") is None

    drive(scenario)


def test_memory_of_another_size_is_an_error_that_names_the_file() -> None:
    async def scenario(host: FakeHost) -> None:
        await run(host)
        await host.manager.standby_vm("web", Compression())
        await host.until_true(lambda: forms(standby(host)) == {"memory.zst"})
        record = standby(host) / "snapshot.json"
        document = json.loads(record.read_text())
        document["compression"]["size"] += 4096
        record.write_text(json.dumps(document))
        await host.restart_daemon()
        with pytest.raises(WrongState, match=r"memory\.zst has 100663296 bytes of memory, not 100667392"):
            await host.manager.restore_vm("web")
        assert (host.vm().state, forms(standby(host))) == (State.STANDBY, {"memory.zst"})

    drive(scenario)


def test_a_restore_is_refused_where_the_memory_has_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(host: FakeHost) -> None:
        await run(host)
        await host.manager.standby_vm("web", Compression())
        await host.until_true(lambda: forms(standby(host)) == {"memory.zst"})
        monkeypatch.setattr("hypemand.storage.room.RoomWatch._is_short", lambda _: True)
        with pytest.raises(InsufficientResources, match="the memory of VM web needs more disk space"):
            await host.manager.restore_vm("web")
        assert (host.vm().state, forms(standby(host))) == (State.STANDBY, {"memory.zst"})

    drive(scenario)


def test_a_failure_is_shown_and_leaves_the_memory_as_it_was() -> None:
    async def scenario(host: FakeHost) -> None:
        await run(host)
        # so random that nothing is gained
        host.vmm().monitor.memory = os.urandom(4096)
        made = await service(host).create_snapshot("web", STANDBY, "base", {}, compression=Compression())
        now = await until_state(host, made, ERROR)
        assert now.compression is not None
        assert now.compression.error is not None
        assert "has not made it smaller" in now.compression.error
        assert forms(folder(host, made)) == {"memory"}
        event = await until_event(host)
        assert (event.kind, event.snapshot, event.state) == (EventKind.COMPRESSION, made.id, ERROR)
        assert event.error == now.compression.error
        await host.manager.stop_vm("web")
        await service(host).restore_snapshot("web", "base", None)
        await host.until(State.RUNNING)

    drive(scenario)


def test_one_is_compressed_at_a_time_and_a_delay_comes_first() -> None:
    async def scenario(host: FakeHost) -> None:
        await run(host)
        held = HeldTools()
        host.make_tools = lambda: held
        await service(host).create_snapshot("web", STANDBY, "first", {}, compression=Compression())
        await asyncio.to_thread(held.began.wait, 8)
        host.make_tools = DirectTools
        second = await service(host).create_snapshot("web", STANDBY, "second", {}, compression=Compression())
        late = await service(host).create_snapshot(
            "web", STANDBY, "late", {}, compression=Compression(delay=3600)
        )
        await asyncio.sleep(0.05)
        assert forms(folder(host, second)) == {"memory"}
        await service(host).remove_snapshot("first")
        await until_state(host, second, DONE)
        await service(host).remove_snapshot("late")
        assert not folder(host, late).exists()

    drive(scenario)


def test_a_snapshot_without_memory_is_not_compressed() -> None:
    async def scenario(host: FakeHost) -> None:
        await run(host)
        await host.manager.stop_vm("web")
        with pytest.raises(InvalidRequest, match="a snapshot of kind Stopped has no memory"):
            await service(host).create_snapshot("web", None, "base", {}, compression=Compression())
        assert await service(host).list_snapshots() == []

    drive(scenario)
