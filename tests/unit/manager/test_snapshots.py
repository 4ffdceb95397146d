# SPDX-License-Identifier: Apache-2.0
"""Snapshots of VMs over the real manager: made in each state, restored in place, and kept."""

import asyncio
import errno
import json
import os
from pathlib import Path

import pytest

from hypemand.config.definition import MIB
from hypemand.errors import (
    AlreadyExists,
    Ambiguous,
    HostNotReady,
    HypemandError,
    InsufficientResources,
    InUse,
    InvalidRequest,
    NotFound,
    WrongState,
)
from hypemand.manager.snapshots import ApiSnapshots
from hypemand.model.snapshots import SnapshotKind
from hypemand.model.space import SpaceKind
from hypemand.model.state import FromStandby, State
from hypemand.systemd.bus import BusError
from tests.fakes.host import FakeHost, drive

STANDBY, STOPPED = SnapshotKind.STANDBY, SnapshotKind.STOPPED
_HOLE = 3 * MIB


def service(host: FakeHost) -> ApiSnapshots:
    """Of the daemon that is there now."""
    return ApiSnapshots(host.parts, host.manager)


def place(host: FakeHost) -> Path:
    """The folder of snapshots."""
    return host.config.state_dir / "snapshots"


def disk(host: FakeHost, name: str = "web") -> Path:
    """That of a VM."""
    return host.vm(name).places.disk


def write(host: FakeHost, text: bytes, at: int = _HOLE) -> None:
    """As its guest does."""
    with disk(host).open("r+b") as file:
        file.seek(at)
        file.write(text)


def read(host: FakeHost, length: int, at: int = _HOLE) -> bytes:
    """What is on its disk."""
    with disk(host).open("rb") as file:
        file.seek(at)
        return file.read(length)


def leftovers(host: FakeHost) -> set[str]:
    """What is there beside snapshots and what a VM has."""
    own = {path.name for path in host.vm().places.state.glob("*.new")} | {
        path.name for path in host.vm().places.state.glob("revert*")
    }
    return own | {path.name for path in place(host).glob(".*")}


def test_a_vm_runs_on_after_a_snapshot_and_is_taken_back_to_it() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run()
        snapshots, before = service(host), host.vm().view()
        host.vmm().monitor.memory = b"what it has in memory"
        write(host, b"then")
        made = await snapshots.create_snapshot("web", None, "base", {"team": "a"})
        assert (made.kind, made.name, made.vm, made.memory) == (STANDBY, "base", "web", 96 * MIB)
        assert host.vm().view().invocation_id == before.invocation_id
        await host.until(State.RUNNING)
        assert not host.vmm().freezer.frozen, "it runs on"
        assert leftovers(host) == set()
        write(host, b"now!")
        host.vmm().monitor.memory = b"something else"
        with pytest.raises(WrongState, match="revert needs state Stopped or Standby, and web is Running"):
            await snapshots.restore_snapshot("web", "base", None)
        await host.manager.stop_vm("web")
        for target in (State.STANDBY, None):
            view = await snapshots.restore_snapshot("web", "base", target)
            if target is State.STANDBY:
                assert (view.state, read(host, 4)) == (State.STANDBY, b"then")
                memory = host.vm().places.standby / "memory"
                assert memory.read_bytes().startswith(b"what it has in memory")
        await host.until(State.RUNNING)
        after = host.vm().view()
        assert (after.boot_id, after.started_at) == (before.boot_id, before.started_at)
        assert host.vmm().is_restored
        assert read(host, 4) == b"then"
        assert leftovers(host) == set()

    drive(scenario)


def test_the_disk_of_a_stopped_vm_is_kept_and_is_never_dense() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run(disk="1G")
        await host.manager.stop_vm("web")
        snapshots = service(host)
        write(host, b"then")
        made = await snapshots.create_snapshot("web", None, None, {})
        assert (made.kind, made.name, made.memory, made.disk) == (STOPPED, None, None, 1024 * MIB)
        (kept,) = place(host).iterdir()
        assert {path.name for path in kept.iterdir()} == {"snapshot.json", "disk.ext4"}
        for path in (kept / "disk.ext4", disk(host)):
            assert path.stat().st_blocks * 512 < 16 * MIB
        write(host, b"now!")
        assert (await snapshots.restore_snapshot("web", made.id[:8], None)).state is State.STOPPED
        assert read(host, 4) == b"then"
        about = disk(host).stat()
        assert (about.st_mode & 0o777, about.st_size) == (0o600, 1024 * MIB)
        assert about.st_blocks * 512 < 16 * MIB
        with pytest.raises(InvalidRequest, match="kind Stopped cannot be restored to Standby"):
            await snapshots.restore_snapshot("web", made.id, State.STANDBY)
        assert (await snapshots.restore_snapshot("web", made.id, State.RUNNING)).state is State.INITIALIZING
        await host.until(State.RUNNING)
        assert not host.vmm().is_restored

    drive(scenario)


def test_what_a_vm_in_standby_goes_on_from_is_copied() -> None:
    """It goes on from its own then, and is taken back to the copy; or to its disk alone."""

    async def scenario(host: FakeHost) -> None:
        await host.run()
        await host.manager.standby_vm("web")
        saved = (host.vm().places.standby / "memory").read_bytes()
        snapshots = service(host)
        made = await snapshots.create_snapshot("web", STANDBY, "cold", {})
        assert host.vm().state is State.STANDBY
        await host.manager.restore_vm("web")
        await host.until(State.RUNNING)
        write(host, b"now!")
        await host.manager.standby_vm("web")
        assert (await snapshots.restore_snapshot("web", "cold", State.STANDBY)).state is State.STANDBY
        assert (host.vm().places.standby / "memory").read_bytes() == saved
        assert read(host, 4) == bytes(4)
        await host.manager.restore_vm("web")
        await host.until(State.RUNNING)
        await host.manager.stop_vm("web")
        view = await snapshots.restore_snapshot("web", made.id, State.STOPPED)
        assert (view.state, view.saved) == (State.STOPPED, None)
        assert not host.vm().places.standby.exists()

    drive(scenario)


def test_a_snapshot_outlives_its_vm_and_the_daemon_and_keeps_its_image() -> None:
    async def scenario(host: FakeHost) -> None:
        host.add_image("app:v1")
        await host.run(image="app:v1")
        made = await service(host).create_snapshot("web", STANDBY, "base", {"x": "1"})
        await host.manager.delete_vm("web", kill=True)
        await host.restart_daemon()
        snapshots = service(host)
        assert await snapshots.list_snapshots() == [made]
        with pytest.raises(InUse, match="is used by snapshot:base"):
            await host.parts.images.remove_image("app:v1")
        assert await host.parts.images.prune_images(every=True, dry_run=False) == []
        report = await host.parts.space.take()
        used = {use.kind: use.used for use in report.uses}
        assert used[SpaceKind.SNAPSHOTS] >= made.size > 0
        await host.run()
        with pytest.raises(InvalidRequest, match="the snapshot base of VM web is not of VM web"):
            await snapshots.restore_snapshot("web", "base", None)
        await snapshots.remove_snapshot("base")
        assert await snapshots.list_snapshots() == []
        assert list(place(host).iterdir()) == []
        await host.parts.images.remove_image("app:v1")

    drive(scenario)


def test_names_are_unique_for_each_vm_and_ambiguous_among_all() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run()
        await host.put("db", State.RUNNING)
        snapshots = service(host)
        first = await snapshots.create_snapshot("web", None, "base", {})
        with pytest.raises(AlreadyExists, match="has a snapshot base already"):
            await snapshots.create_snapshot("web", None, "base", {})
        await snapshots.create_snapshot("db", None, "base", {})
        with pytest.raises(Ambiguous, match=r"of VM web, .* of VM db"):
            await snapshots.get_snapshot("base")
        assert await snapshots.get_snapshot(first.id) == first
        for ref in ("nothing", "abc"):
            with pytest.raises(NotFound, match="there is no snapshot"):
                await snapshots.get_snapshot(ref)
        for name in ("Base", "-x", "a" * 64):
            with pytest.raises(InvalidRequest, match="cannot be the name of a snapshot"):
                await snapshots.create_snapshot("web", None, name, {})
        with pytest.raises(InvalidRequest):
            await snapshots.create_snapshot("web", None, None, {"?": "x"})
        assert leftovers(host) == set()

    drive(scenario)


def test_what_cannot_be_kept_or_in_this_state_is_refused() -> None:
    async def scenario(host: FakeHost) -> None:
        snapshots = service(host)
        await host.create()
        with pytest.raises(WrongState, match="has no disk yet"):
            await snapshots.create_snapshot("web", None, None, {})
        with pytest.raises(
            WrongState, match="kind Standby needs state Running or Standby, and web is Stopped"
        ):
            await snapshots.create_snapshot("web", STANDBY, None, {})
        await host.start()
        with pytest.raises(WrongState, match="kind Stopped needs state Stopped, and web is Running"):
            await snapshots.create_snapshot("web", STOPPED, None, {})
        await host.manager.pause_vm("web")
        with pytest.raises(WrongState, match="resume it first"):
            await snapshots.create_snapshot("web", None, None, {})
        await asyncio.to_thread(host.parts.volumes.create, "data", 16 * MIB, {})
        await host.put("db", State.RUNNING, volumes=[{"volume": "data", "mount_path": "/data"}])
        with pytest.raises(WrongState, match="db writes to the volume data"):
            await snapshots.create_snapshot("db", None, None, {})
        await host.put("once", State.RUNNING, persistent=False)
        await host.manager.stop_vm("once")
        with pytest.raises(WrongState, match="does not outlast its runs"):
            await snapshots.create_snapshot("once", None, None, {})
        assert list(place(host).iterdir()) == []

    drive(scenario)


def test_a_disk_that_is_full_leaves_a_vm_that_runs_and_no_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run()
        snapshots = service(host)

        def fill(*_: object) -> object:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as full:
            full.setattr("hypemand.storage.disks._clone", fill)
            with pytest.raises(InsufficientResources, match="make a snapshot of VM web"):
                await snapshots.create_snapshot("web", None, None, {})
        await host.until(State.RUNNING)
        await host.until_true(lambda: not host.vmm().freezer.frozen)
        assert (list(place(host).iterdir()), leftovers(host)) == ([], set())
        await snapshots.create_snapshot("web", None, "base", {})
        await host.manager.stop_vm("web")
        write(host, b"now!")
        with monkeypatch.context() as full:
            full.setattr("hypemand.storage.disks._clone", fill)
            with pytest.raises(InsufficientResources, match="restore a snapshot of VM web"):
                await snapshots.restore_snapshot("web", "base", None)
        assert (host.vm().state, read(host, 4), leftovers(host)) == (State.STOPPED, b"now!", set())

    drive(scenario)


def test_a_snapshot_that_is_of_no_use_any_more_leaves_what_the_vm_has() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run()
        snapshots = service(host)
        made = await snapshots.create_snapshot("web", None, "base", {})
        await host.manager.stop_vm("web")
        write(host, b"now!")
        kept = place(host) / made.id

        async def check(words: str, target: State | None = None) -> None:
            with pytest.raises(WrongState, match=words):
                await snapshots.restore_snapshot("web", "base", target)
            assert (host.vm().state, read(host, 4), leftovers(host)) == (State.STOPPED, b"now!", set())

        for name in ("state", "memory"):
            content, about = (kept / name).read_bytes(), (kept / name).stat()
            (kept / name).chmod(0o600)
            (kept / name).write_bytes(content[:-1])
            await check(f"a file in {kept} is damaged")
            (kept / name).write_bytes(content)
            os.utime(kept / name, ns=(about.st_atime_ns, about.st_mtime_ns))
        (kept / "disk.ext4").chmod(0o600)
        os.truncate(kept / "disk.ext4", 4096)
        await check("disk.ext4 is damaged", State.STOPPED)

    drive(scenario)


def test_another_qemu_is_refused_before_anything_is_replaced() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run()
        made = await service(host).create_snapshot("web", None, "base", {})
        await host.manager.stop_vm("web")
        record = place(host) / made.id / "snapshot.json"
        document = json.loads(record.read_text())
        document["run"]["build"]["version"] = "6.0"
        record.write_text(json.dumps(document))
        await host.restart_daemon()
        write(host, b"now!")
        with pytest.raises(WrongState, match=r"saved with QEMU 6.0, this host has .*target_state Stopped"):
            await service(host).restore_snapshot("web", "base", None)
        assert read(host, 4) == b"now!"
        await service(host).restore_snapshot("web", "base", State.STOPPED)
        assert read(host, 4) == bytes(4)

    drive(scenario)


def test_what_a_daemon_leaves_is_removed_and_what_cannot_be_read_is_kept() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run()
        await service(host).create_snapshot("web", None, "base", {})
        for name in (f".{'a' * 32}.making", f".{'b' * 32}.removed"):
            (place(host) / name).mkdir()
            (place(host) / name / "disk.ext4").touch()
        strange = place(host) / ("c" * 32)
        strange.mkdir()
        (strange / "snapshot.json").write_text('{"version": 99}')
        await host.restart_daemon()
        await host.daemon.recovery.clean_up()
        assert leftovers(host) == set()
        assert strange.exists()
        assert [one.name for one in await service(host).list_snapshots()] == ["base"]
        with pytest.raises(HostNotReady, match="records of some snapshots"):
            await host.parts.images.prune_images(every=True, dry_run=False)

    drive(scenario)


def test_a_vm_whose_snapshot_is_given_up_runs_on() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run()
        snapshots = service(host)
        making = asyncio.create_task(snapshots.create_snapshot("web", None, None, {}))
        await host.until_true(lambda: host.vmm().freezer.frozen)
        making.cancel()
        with pytest.raises(asyncio.CancelledError):
            await making
        await host.until(State.RUNNING)
        await host.until_true(lambda: not host.vmm().freezer.frozen)
        assert (list(place(host).iterdir()), leftovers(host)) == ([], set())

    drive(scenario)


def test_a_vm_whose_snapshot_was_cut_off_with_its_daemon_runs_on() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run()
        vmm, state = host.vmm(), host.vm().places.state
        vmm.monitor.holds_save = True
        making = asyncio.create_task(service(host).create_snapshot("web", None, None, {}))
        await host.until_true(lambda: "migrate" in vmm.monitor.orders)
        # as by kill -9: nothing is undone
        left = {path.name for path in place(host).iterdir()}
        assert [name.rpartition(".")[2] for name in left] == ["making"]
        assert (state / "standby.new/was-running").exists()

        async def lose() -> None:
            await asyncio.wait([making])
            for name in left:
                (place(host) / name).mkdir()
            (state / "standby.new").mkdir()
            (state / "standby.new/was-running").touch()
            vmm.monitor.status, vmm.freezer.frozen = "paused", True

        await host.restart_daemon(lose)
        await host.daemon.recovery.clean_up()
        await host.until(State.RUNNING)
        await host.until_true(lambda: not vmm.freezer.frozen)
        assert (vmm.monitor.status, leftovers(host)) == ("running", set())

    drive(scenario)


@pytest.mark.parametrize("deletes", [False, True])
def test_a_stop_is_stronger(deletes: bool) -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run()
        vmm, vm = host.vmm(), host.vm()
        vmm.monitor.holds_save = True
        making = asyncio.create_task(service(host).create_snapshot("web", None, None, {}))
        await host.until_true(lambda: "migrate" in vmm.monitor.orders)
        if deletes:
            await host.manager.delete_vm("web")
        else:
            # its VMM is there for as long as it takes to hear of the stop
            host.guest().heeds = False
            await host.parts.units.stop(vm.unit)
        # who deletes it does not wait for it: the end of its VMM may be heard of first
        words = "was stopped while it was being copied to a snapshot"
        early = "|the VMM ended while it was being saved" if deletes else ""
        with pytest.raises(HypemandError, match=words + early):
            await making
        assert list(place(host).iterdir()) == []
        if not deletes:
            vmm.power_off()
            await host.until(State.STOPPED)
            assert leftovers(host) == set()

    drive(scenario)


def test_one_that_is_restored_is_not_removed_meanwhile() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run()
        snapshots = service(host)
        await snapshots.create_snapshot("web", None, "base", {})
        store = host.parts.snapshots
        with store.using(store.get("base")), pytest.raises(InUse, match="being restored"):
            await snapshots.remove_snapshot("base")
        await snapshots.remove_snapshot("base")
        with pytest.raises(NotFound):
            await snapshots.restore_snapshot("web", "base", None)

    drive(scenario)


def test_a_start_that_fails_leaves_what_was_restored() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run()
        snapshots = service(host)
        await snapshots.create_snapshot("web", None, "base", {})
        await host.manager.stop_vm("web")
        host.systemd.refuse["StartTransientUnit"] = BusError("no", errno.EINVAL)
        with pytest.raises(HypemandError, match="no"):
            await snapshots.restore_snapshot("web", "base", None)
        assert host.vm().state is State.STANDBY
        await host.manager.start_vm("web", standby=FromStandby.COLD)
        await host.until(State.RUNNING)

    drive(scenario)


def test_the_image_of_a_directory_comes_with_the_memory_that_was_read_from_it() -> None:
    async def scenario(host: FakeHost) -> None:
        source = host.folder / "site"
        source.mkdir()
        (source / "index.html").write_text("one")
        await host.run(volumes=[{"source": str(source), "mount_path": "/www"}])
        state = host.vm().places.state
        (before,) = state.glob("dir-*")
        content = before.read_bytes()
        await service(host).create_snapshot("web", None, "base", {})
        (source / "new").write_text("two")
        await host.manager.restart_vm("web")
        await host.until(State.RUNNING)
        assert not before.exists() or before.read_bytes() != content
        await host.manager.stop_vm("web")
        await service(host).restore_snapshot("web", "base", None)
        await host.until(State.RUNNING)
        assert before.read_bytes() == content

    drive(scenario)


@pytest.mark.parametrize("can_share", [True, False])
def test_memory_is_shared_with_a_vm_only_where_its_vmm_cannot_write_to_it(
    monkeypatch: pytest.MonkeyPatch, can_share: bool
) -> None:
    monkeypatch.setattr("hypemand.manager.snapshots.can_share", lambda _: can_share)

    async def scenario(host: FakeHost) -> None:
        await host.run()
        await host.manager.standby_vm("web")
        made = await service(host).create_snapshot("web", None, None, {})
        await host.manager.start_vm("web", standby=FromStandby.COLD)
        await host.until(State.RUNNING)
        await host.manager.stop_vm("web")
        await service(host).restore_snapshot("web", made.id, State.STANDBY)
        kept, given = place(host) / made.id / "memory", host.vm().places.standby / "memory"
        assert kept.samefile(given) is can_share
        await host.manager.restore_vm("web")
        await host.until(State.RUNNING)
        await host.until_true(lambda: not given.exists())
        assert kept.exists()

    drive(scenario)
