# SPDX-License-Identifier: Apache-2.0
"""VMs that one host of a cluster puts into Standby in a pool, and another one goes on with."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from systemd import journal

from hypemand.config.pools import PoolConfig
from hypemand.errors import (
    GuestError,
    HostNotReady,
    HypemandError,
    InsufficientResources,
    InUse,
    NotFound,
    WrongState,
)
from hypemand.manager import handover as operations
from hypemand.manager.fleet import Fleet
from hypemand.manager.volumes import ApiVolumes
from hypemand.model.state import FromStandby, State
from hypemand.model.vm import VmView
from hypemand.storage.disks import copy_disk
from hypemand.vm import handover as files
from hypemand.vm.standby import Standby
from tests.fakes.host import DEADLINE, FakeHost, folder_in_memory, running

MIB = 1024 * 1024
DATA = {"volume": "san/data", "mount_path": "/srv"}
PORTABLE: dict[str, Any] = {"persistent": False, "volumes": [DATA]}
Scenario = Callable[[FakeHost, FakeHost], Awaitable[None]]


def drive(scenario: Scenario) -> None:
    """On two hosts of a cluster with the shared pool san, which has a volume, and the pool fast."""

    async def main(folder: Path) -> None:
        async with asyncio.timeout(2 * DEADLINE), running(folder / "a") as a, running(folder / "b") as b:
            (folder / "shared").mkdir()
            (folder / "fast").mkdir()
            for host in (a, b):
                pools = {
                    "san": PoolConfig(folder / "shared", shared=True),
                    "fast": PoolConfig(folder / "fast"),
                }
                host.config = replace(host.config, pools=pools, cluster="lab")
                await host.daemon.reloader.reload()
            await ApiVolumes(a.parts, a.manager).create_volume("san/data", 16 * MIB, {}, None)
            await scenario(a, b)

    with folder_in_memory() as folder:
        asyncio.run(main(folder))


def fail(*_: object, **__: object) -> None:
    """In place of work on a disk."""
    raise OSError(5, "Input/output error")


def pool(host: FakeHost) -> Path:
    """Where VMs wait in the shared pool."""
    return host.config.pools["san"].directory / "standby"


def waiting(host: FakeHost) -> set[str]:
    """All that is there, but for the lock."""
    return {path.name for path in pool(host).iterdir()} - {".lock"} if pool(host).is_dir() else set()


def saves(host: FakeHost) -> set[str]:
    """What the host has itself."""
    return {path.name for path in (host.config.state_dir / "vms/web").glob("standby*")}


async def leave(a: FakeHost, b: FakeHost, **keys: Any) -> None:
    """A VM that both have, which the first has put into the pool."""
    await b.create(**{**PORTABLE, **keys})
    await a.run(**{**PORTABLE, **keys})
    a.vmm().monitor.memory = b"what it has in memory"
    view = await a.manager.standby_vm("web", pool="san")
    assert view.state is State.STOPPED


async def is_refused(host: FakeHost, why: str) -> None:
    """Its start is, and what waits stays."""
    before = waiting(host)
    with pytest.raises(WrongState, match=why):
        await host.manager.start_vm("web", standby=FromStandby.RESTORE)
    assert (host.vm().state, host.traces(), waiting(host)) == (State.STOPPED, [], before)
    assert saves(host) == set()


def test_a_vm_goes_on_with_its_memory_on_another_host() -> None:
    async def scenario(a: FakeHost, b: FakeHost) -> None:
        await b.create(**PORTABLE)
        await a.run(**PORTABLE)
        a.vmm().monitor.memory = b"what it has in memory"
        before = a.vm().view()
        with (a.vm().places.disk).open("r+b") as disk:
            disk.write(b"what is on its own disk")
        view = await a.manager.standby_vm("web", pool="san")
        assert (view.state, view.id, saves(a), a.traces()) == (State.STOPPED, b.vm().view().id, set(), [])
        assert waiting(a) == {view.id}
        assert pool(a).stat().st_mode & 0o777 == 0o700
        await b.start()
        after = b.vm().view()
        assert (after.boot_id, after.started_at) == (before.boot_id, before.started_at)
        assert b.vmm().is_restored
        assert b.vm().places.disk.read_bytes().startswith(b"what is on its own disk")
        assert waiting(b) == set()
        await b.until_true(lambda: saves(b) == set())
        # and back, to the host that has had it before
        await b.manager.standby_vm("web", pool="san")
        await a.start()
        assert a.vm().view().boot_id == before.boot_id
        assert waiting(a) == set()

    drive(scenario)


def test_a_start_by_systemd_takes_it_too_and_a_restart_afterwards_is_a_boot() -> None:
    async def scenario(a: FakeHost, b: FakeHost) -> None:
        await leave(a, b)
        boot = a.vm().runs.ended[0].run
        await b.start_handle("web")
        await b.until(State.RUNNING)
        assert b.vmm().is_restored
        first = b.vm().view().boot_id
        await b.manager.restart_vm("web")
        await b.until(State.RUNNING)
        assert b.vm().view().boot_id not in (first, boot)
        assert not b.vmm().is_restored

    drive(scenario)


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"persistent": True}, "its disk is on this host only"),
        ({"volumes": [DATA, {"volume": "fast/data", "mount_path": "/f"}]}, "fast/.* is on this host only"),
        ({"volumes": []}, "has no read-write volume in the pool san"),
        ({"volumes": [{**DATA, "readonly": True}]}, "has no read-write volume in the pool san"),
        ({"volumes": [{**DATA, "required": False}]}, "has no read-write volume in the pool san"),
    ],
)
def test_what_is_on_one_host_only_is_refused_before_the_guest_is_touched(
    keys: dict[str, Any], why: str
) -> None:
    async def scenario(a: FakeHost, b: FakeHost) -> None:
        await ApiVolumes(a.parts, a.manager).create_volume("fast/data", 16 * MIB, {}, None)
        await a.run(**{**PORTABLE, **keys})
        with pytest.raises(WrongState, match=f"VM web .*{why}"):
            await a.manager.standby_vm("web", pool="san")
        assert not a.vmm().freezer.frozen
        assert (a.vm().state, saves(a), waiting(a)) == (State.RUNNING, set(), set())

    drive(scenario)


def test_a_pool_that_is_not_there_or_not_shared_and_a_host_without_a_cluster_are_refused() -> None:
    async def scenario(a: FakeHost, b: FakeHost) -> None:
        await a.run(**PORTABLE)
        refusals: list[tuple[str, type[HypemandError], str]] = [
            ("nas", NotFound, "there is no pool nas"),
            ("fast", WrongState, "the pool fast is on this host only"),
        ]
        for name, kind, why in refusals:
            with pytest.raises(kind, match=why):
                await a.manager.standby_vm("web", pool=name)
        a.parts.config.replace(replace(a.parts.config(), cluster=None))
        with pytest.raises(WrongState, match="this host is in no cluster"):
            await a.manager.standby_vm("web", pool="san")
        assert a.vm().state is State.RUNNING

    drive(scenario)


def test_what_does_not_fit_the_other_host_stays_until_it_is_booted() -> None:
    async def scenario(a: FakeHost, b: FakeHost) -> None:
        await leave(a, b)
        folder = pool(a) / a.vm().record.id
        record = folder / "handover.json"
        written = record.read_text()

        def change(**keys: object) -> None:
            document = json.loads(written)
            for key, value in keys.items():
                target = document if key in document else document["saved"]
                target[key] = value
            record.write_text(json.dumps(document))

        build = json.loads(written)["saved"]["build"]
        change(build={**build, "version": "1.0"})
        await is_refused(b, "VM web cannot be restored: saved with QEMU 1.0, this host has")
        change(hashes=["00"])
        await is_refused(b, "VM web cannot be restored: its image or .* are not the same as on ")
        record.write_text(written)
        (folder / "state").write_bytes(b"damaged")
        await is_refused(b, "VM web cannot be restored: a file in .* is damaged")
        await b.manager.start_vm("web", standby=FromStandby.COLD)
        await b.until(State.RUNNING)
        assert not b.vmm().is_restored
        assert waiting(b) == set()

    drive(scenario)


def test_a_volume_that_was_written_meanwhile_is_seen() -> None:
    async def scenario(a: FakeHost, b: FakeHost) -> None:
        await leave(a, b)
        os.utime(a.parts.volumes.get("san/data").disk)
        await is_refused(b, "VM web cannot be restored: .*/volume.ext4 was changed or removed")
        assert saves(b) == set()

    drive(scenario)


def test_a_vm_that_waits_is_not_restarted() -> None:
    async def scenario(a: FakeHost, b: FakeHost) -> None:
        await leave(a, b)
        with pytest.raises(
            WrongState, match="VM web is in Standby in the pool san; hypemanctl start web restores it"
        ):
            await b.manager.restart_vm("web")
        assert waiting(b) == {b.vm().record.id}

    drive(scenario)


def test_a_disk_that_is_full_while_a_vm_is_taken_leaves_it_in_the_pool(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fill(source: Path, target: Path, **_: object) -> None:
        target.write_bytes(b"a part")
        raise OSError(28, "No space left on device", str(target))

    async def scenario(a: FakeHost, b: FakeHost) -> None:
        await leave(a, b)
        with monkeypatch.context() as patched:
            patched.setattr(files, "copy_disk", fill)
            with pytest.raises(InsufficientResources, match="no space left to restore VM web"):
                await b.manager.start_vm("web", standby=FromStandby.RESTORE)
        assert (b.vm().state, saves(b), waiting(b)) == (State.STOPPED, set(), {b.vm().record.id})
        await b.start()
        assert b.vmm().is_restored

    drive(scenario)


def test_a_record_that_cannot_be_read_keeps_no_vm_from_booting_and_a_pool_that_is_gone_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    monkeypatch.setattr(journal, "send", lambda text, **_: said.append(text))

    async def scenario(a: FakeHost, b: FakeHost) -> None:
        await leave(a, b)
        shared = pool(a).parent
        shared.rename(shared.with_name("away"))
        with pytest.raises(HostNotReady, match="the pool san is not available"):
            await b.manager.start_vm("web")
        shared.with_name("away").rename(shared)
        record = pool(a) / a.vm().record.id / "handover.json"
        record.write_text("{")
        await b.start()
        assert not b.vmm().is_restored
        assert any("VM web is not restored from the pool san: " in text for text in said)
        assert record.read_text() == "{", "nothing is deleted that cannot be read"

    drive(scenario)


def test_what_a_failed_move_has_left_is_not_gone_back_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other host has booted the VM meanwhile, and has moved it back."""

    async def scenario(a: FakeHost, b: FakeHost) -> None:
        await b.create(**PORTABLE)
        await a.run(**PORTABLE)
        old = a.vm().view().boot_id
        with monkeypatch.context() as patched:
            patched.setattr(files, "copy_disk", fail)
            with pytest.raises(HostNotReady, match="is in Standby on this host, and was not moved"):
                await a.manager.standby_vm("web", pool="san")
        await b.start()
        boot = b.vm().view().boot_id
        os.utime(a.parts.volumes.get("san/data").disk)  # as a boot does
        with pytest.raises(WrongState, match=r"volume\.ext4 was changed"):
            await a.manager.restore_vm("web")
        await b.manager.standby_vm("web", pool="san")
        await a.manager.restore_vm("web")
        await a.until(State.RUNNING)
        assert a.vm().view().boot_id == boot != old
        assert waiting(a) == set()

    drive(scenario)


def test_of_two_that_a_daemon_has_left_by_its_end_the_hosts_own_counts_and_the_other_goes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def keep(self: object) -> None:
        pass

    async def scenario(a: FakeHost, b: FakeHost) -> None:
        await b.create(**PORTABLE)
        await a.run(**PORTABLE)
        with monkeypatch.context() as patched:
            patched.setattr(Standby, "discard", keep)
            await a.manager.standby_vm("web", pool="san")
        assert (a.vm().state, waiting(a)) == (State.STANDBY, {a.vm().record.id})
        await a.manager.start_vm("web", standby=FromStandby.RESTORE)
        await a.until(State.RUNNING)
        assert a.vmm().is_restored
        assert waiting(a) == set()

    drive(scenario)


def test_a_host_without_memory_or_with_another_definition_takes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise InsufficientResources("not enough memory")

    async def scenario(a: FakeHost, b: FakeHost) -> None:
        await leave(a, b)
        before = waiting(a)
        with monkeypatch.context() as patched:
            patched.setattr(Fleet, "check_memory", refuse)
            with pytest.raises(InsufficientResources):
                await b.manager.start_vm("web")
        assert (b.vm().state, saves(b), waiting(b)) == (State.STOPPED, set(), before)
        await b.manager.delete_vm("web")
        await b.create(**{**PORTABLE, "persistent": True})
        b.vm().places.disk.write_bytes(b"its own")
        await is_refused(b, "its definition is not the one that it ran with on ")
        assert b.vm().places.disk.read_bytes() == b"its own"

    drive(scenario)


def test_other_addresses_are_seen_before_anything_is_taken() -> None:
    async def scenario(a: FakeHost, b: FakeHost) -> None:
        await b.run("first", network="default")
        await leave(a, b, network="default")
        await is_refused(b, "its addresses on this host are not those that it was saved with")

    drive(scenario)


def test_what_cannot_be_committed_here_stays_in_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(a: FakeHost, b: FakeHost) -> None:
        await leave(a, b)
        with monkeypatch.context() as patched:
            patched.setattr(files, "commit_save", fail)
            await is_refused(b, "VM web cannot be restored: .*Input/output error")
        await b.start()
        assert b.vmm().is_restored

    drive(scenario)


def test_a_move_that_fails_leaves_the_vm_in_standby_and_nothing_in_the_pool(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario(a: FakeHost, b: FakeHost) -> None:
        await a.run(**PORTABLE)
        with monkeypatch.context() as patched:
            patched.setattr(files, "copy_disk", fail)
            with pytest.raises(HostNotReady, match=r"is in Standby on this host, and .*Input/output error"):
                await a.manager.standby_vm("web", pool="san")
        assert (a.vm().state, saves(a), waiting(a)) == (State.STANDBY, {"standby"}, set())
        # from there it can be moved as well
        assert (await a.manager.standby_vm("web", pool="san")).state is State.STOPPED
        assert waiting(a) == {a.vm().record.id}

    drive(scenario)


def test_a_stop_ends_a_move_that_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another host may start the VM afterwards: what it would go on from must not come then."""

    async def scenario(a: FakeHost, b: FakeHost) -> None:
        await a.run(**PORTABLE)
        loop, stops = asyncio.get_running_loop(), list[Future[VmView]]()

        def copy(source: Path, target: Path, *, check: Callable[[], None]) -> None:
            copy_disk(source, target, check=check)
            if not stops:
                stops.append(asyncio.run_coroutine_threadsafe(a.manager.stop_vm("web"), loop))
                while not (current := a.vm().operations.current) or not current.is_cancelled:
                    pass

        monkeypatch.setattr(files, "copy_disk", copy)
        with pytest.raises(WrongState, match="the move of VM web to the pool san was cancelled"):
            await a.manager.standby_vm("web", pool="san")
        assert (a.vm().state, waiting(a)) == (State.STANDBY, set())
        with pytest.raises(WrongState):
            await asyncio.wrap_future(stops[0])

    drive(scenario)


def test_a_copy_that_was_cut_off_and_what_was_to_be_removed_go_with_the_next_change() -> None:
    async def scenario(a: FakeHost, b: FakeHost) -> None:
        await a.run(**PORTABLE)
        left = [pool(a) / f".{a.vm().record.id}.{name}" for name in ("making", "0.removed")]
        for folder in left:
            folder.mkdir(parents=True)
            (folder / "memory").touch()
        await a.manager.standby_vm("web", pool="san")
        assert waiting(a) == {a.vm().record.id}

    drive(scenario)


def test_of_two_hosts_that_take_a_vm_the_second_finds_it_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(a: FakeHost, b: FakeHost) -> None:
        await leave(a, b)
        taken: list[Path] = []

        def copy(source: Path, target: Path, **keys: object) -> None:
            copy_disk(source, target)
            if not taken:
                taken.append(source)
                (pool(a) / a.vm().record.id).rename(pool(a).with_name("taken"))
                shutil.copytree(pool(a).with_name("taken"), source.parent)
                (source.parent / "handover.json").unlink()

        monkeypatch.setattr(files, "copy_disk", copy)
        with pytest.raises(WrongState, match="another host has taken VM web meanwhile"):
            await b.manager.start_vm("web", standby=FromStandby.RESTORE)
        assert (b.vm().state, b.traces(), saves(b)) == (State.STOPPED, [], set())

    drive(scenario)


def test_a_guest_that_cannot_be_saved_runs_on_and_nothing_waits() -> None:
    async def scenario(a: FakeHost, b: FakeHost) -> None:
        await a.run(**PORTABLE)
        a.vmm().freezer.refusal = "it waits for the kernel"
        with pytest.raises(GuestError):
            await a.manager.standby_vm("web", pool="san")
        assert (a.vm().state, saves(a), waiting(a)) == (State.RUNNING, set(), set())

    drive(scenario)


def test_the_lock_of_a_pool_that_another_host_has_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(a: FakeHost, b: FakeHost) -> None:
        await a.run(**PORTABLE)
        monkeypatch.setattr(files, "_PATIENCE", 0.0)
        pool(a).mkdir()
        with files._changing(pool(a)), pytest.raises(InUse, match="standby is being worked on"):
            await a.manager.standby_vm("web", pool="san")
        assert (a.vm().state, waiting(a)) == (State.STANDBY, set())

    drive(scenario)


def test_hosts_without_a_cluster_look_into_no_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("it was looked for")

    async def scenario(a: FakeHost, b: FakeHost) -> None:
        monkeypatch.setattr(operations, "find_handover", fail)
        a.parts.config.replace(replace(a.parts.config(), cluster=None))
        await a.run(**PORTABLE)

    drive(scenario)
