# SPDX-License-Identifier: Apache-2.0
"""Forks of VMs and snapshots, over the real manager."""

import asyncio
import os
from pathlib import Path

import pytest

from hypemand.budget import Reserve
from hypemand.config.definition import MIB
from hypemand.errors import AlreadyExists, HypemandError, InvalidRequest, WrongState
from hypemand.manager.fork import ApiForks
from hypemand.manager.snapshots import ApiSnapshots
from hypemand.model.fork import ForkWanted
from hypemand.model.snapshots import SnapshotKind
from hypemand.model.state import State
from tests.fakes.host import FakeHost, drive
from tests.sharedblocks import file_system_that_shares, measure_used


def service(host: FakeHost) -> ApiForks:
    """Of the daemon that is there now."""
    return ApiForks(host.parts, host.manager, ApiSnapshots(host.parts, host.manager))


def folders(host: FakeHost) -> set[str]:
    """Of all VMs, and what is being made of them."""
    return {path.name for path in (host.config.state_dir / "vms").iterdir()}


def disk(host: FakeHost, name: str) -> Path:
    return host.vm(name).places.disk


def read_config_disk(host: FakeHost, name: str) -> dict[str, list[str]]:
    content = (host.vm(name).places.runtime / "config.img").read_bytes()
    found: dict[str, list[str]] = {}
    for record in content[16:].split(b"\0"):
        key, _, value = record.decode().partition("=")
        found.setdefault(key, []).append(value)
    return found


async def until_running(host: FakeHost, name: str) -> None:
    await host.until(State.RUNNING, name)


@pytest.mark.parametrize("state", [State.RUNNING, State.STANDBY])
def test_a_fork_goes_on_with_the_memory_of_its_source_and_an_identity_of_its_own(state: State) -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run(network="default", restart="always")
        source = host.vmm()
        source.monitor.memory = b"what both have in memory"
        if state is State.STANDBY:
            await host.manager.standby_vm("web")
        before, boot = host.vm().view(), source.boot
        await service(host).fork_vm("web", ForkWanted("copy", from_running=True, target=State.RUNNING))
        await until_running(host, "copy")
        after, fork = host.vm().view(), host.vm("copy").view()
        assert (after.state, after.id, after.invocation_id) == (state, before.id, before.invocation_id)
        assert fork.id != before.id
        assert fork.boot_id not in (None, boot)
        assert fork.network is not None
        assert before.network is not None
        assert fork.network.ipv4 not in (None, before.network.ipv4)
        assert fork.network.mac != before.network.mac
        (thaw,) = host.vmm("copy").freezer.thaws
        assert (thaw["boot"], thaw["hostname"]) == ([fork.boot_id], ["copy"])
        assert thaw["machine_id"] == [fork.id]
        assert str(before.network.mac) in thaw["net"][0].replace("%3A", ":")
        assert str(fork.network.ipv4) in thaw["net"][0]
        assert "reset" not in thaw
        if state is State.RUNNING:
            assert not source.freezer.frozen
            assert source.monitor.status == "running"
        assert folders(host) == {"web", "copy"}
        # it is a VM as any other
        await host.manager.standby_vm("copy")
        await host.manager.restore_vm("copy")
        await until_running(host, "copy")
        assert host.vm("copy").boot == fork.boot_id
        (again,) = host.vmm("copy").freezer.thaws
        assert set(again) == {"clock", "entropy"}

    drive(scenario)


def test_a_source_is_answered_at_once_however_often_it_is_forked() -> None:
    """What a fork has the daemon do is not the guest's to pay: it would not be read soon, while it stands
    still."""

    async def scenario(host: FakeHost) -> None:
        await host.run()
        session = host.vm().session
        assert session is not None
        session.budget._clock = lambda: 0.0  # it gets no more by time
        session.budget._at = 0.0
        for number in range(15):
            wanted = ForkWanted(f"copy{number}", from_running=True, target=State.STANDBY)
            await service(host).fork_vm("web", wanted)
            assert session.budget.wait_time(Reserve.FRAMES) == 0
        assert host.vm().session is session

    drive(scenario)


def test_a_fork_of_a_stopped_vm_has_its_disk() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run(fork_reset=["ssh-host-keys"])
        await host.stop_for_good()
        with disk(host, "web").open("r+b") as file:
            file.seek(3 << 20)
            file.write(b"something")
        view = await service(host).fork_vm("web", ForkWanted("copy"))
        assert view.state is State.STOPPED
        with disk(host, "copy").open("rb") as file:
            file.seek(3 << 20)
            assert file.read(9) == b"something"
        assert disk(host, "copy").stat().st_blocks < disk(host, "copy").stat().st_size // 512
        assert disk(host, "copy").stat().st_uid == host.vm("copy").record.uid != host.vm().record.uid
        await host.start("copy")
        await host.start("web")
        # its guest does not keep the identity that is on the disk
        source, copy = host.vm().record, host.vm("copy").record
        told = read_config_disk(host, "copy")
        assert (told["machine_id"], told["former_machine_id"]) == ([copy.id], [source.id])
        assert told["reset"] == ["ssh-host-keys"]
        assert not {"former_machine_id", "reset"} & set(read_config_disk(host, "web"))
        await host.stop_for_good("copy")
        await service(host).fork_vm("copy", ForkWanted("third"))
        await host.restart_daemon()
        assert host.vm("third").record.former_ids == (copy.id, source.id)

    drive(scenario)


def test_a_disk_shares_its_blocks_with_its_snapshots_and_forks(tmp_path: Path) -> None:
    """Where the file system can do so; elsewhere they are sparse, see above."""
    at, content = 3 * MIB, os.urandom(24 * MIB)

    async def scenario(host: FakeHost) -> None:
        await host.run()
        await host.stop_for_good()
        with disk(host, "web").open("r+b") as file:
            file.seek(at)
            file.write(content)
        before = measure_used(host.folder)
        snapshots = ApiSnapshots(host.parts, host.manager)
        made = await snapshots.create_snapshot("web", None, None, {})
        await snapshots.restore_snapshot("web", made.id, None)
        await service(host).fork_vm("web", ForkWanted("copy"))
        await service(host).fork_snapshot(made.id, ForkWanted("third"))
        assert measure_used(host.folder) - before < len(content) // 4
        disks = [disk(host, name) for name in ("web", "copy", "third")]
        for path in (*disks, host.config.state_dir / "snapshots" / made.id / "disk.ext4"):
            assert path.read_bytes()[at : at + len(content)] == content, path

    with file_system_that_shares(tmp_path) as folder:
        drive(scenario, folder)


def test_many_forks_of_one_snapshot_at_once_are_all_different() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run(network="default", fork_reset=["ssh-host-keys"])
        snapshots = ApiSnapshots(host.parts, host.manager)
        await snapshots.create_snapshot("web", SnapshotKind.STANDBY, "base", {})
        await host.stop_for_good()
        names = [f"copy-{number}" for number in range(5)]
        await asyncio.gather(*(service(host).fork_snapshot("base", ForkWanted(name)) for name in names))
        await asyncio.gather(*(until_running(host, name) for name in names))
        views = [host.vm(name).view() for name in names]
        assert len({view.boot_id for view in views}) == 5
        assert len({view.network.ipv4 for view in views if view.network is not None}) == 5
        thaws = [host.vmm(name).freezer.thaws[0] for name in names]
        assert len({thaw["entropy"][0] for thaw in thaws}) == 5
        assert {tuple(thaw["reset"]) for thaw in thaws} == {("ssh-host-keys",)}

    drive(scenario)


def _fail_save(host: FakeHost) -> None:
    host.vmm().monitor.failure = "no room"


def test_a_fork_that_fails_leaves_nothing_and_its_source_as_it_was() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run()
        run = host.vm().run
        _fail_save(host)
        with pytest.raises(HypemandError):
            await service(host).fork_vm("web", ForkWanted("copy", from_running=True))
        assert folders(host) == {"web"}
        await host.until(State.RUNNING)
        assert host.vm().run == run
        assert host.parts.fleet.find("copy") is None

    drive(scenario)


@pytest.mark.parametrize(
    ("wanted", "words", "error"),
    [
        (ForkWanted("copy"), "web is Running, and stands still while it is forked", WrongState),
        (ForkWanted("web", from_running=True), "a VM web already exists", AlreadyExists),
        (
            ForkWanted("copy", from_running=True, target=State.STOPPED),
            "target_state: a fork of it cannot be Stopped",
            InvalidRequest,
        ),
    ],
)
def test_what_cannot_be_is_refused(wanted: ForkWanted, words: str, error: type[HypemandError]) -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run()
        with pytest.raises(error, match=words):
            await service(host).fork_vm("web", wanted)
        assert folders(host) == {"web"}

    drive(scenario)


def test_a_fork_whose_source_goes_meanwhile_goes_on() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run()
        await service(host).fork_vm("web", ForkWanted("copy", from_running=True, target=State.STANDBY))
        await host.manager.delete_vm("web", kill=True)
        assert host.vm("copy").state is State.STANDBY
        await host.restart_daemon()
        await host.manager.restore_vm("copy")
        await until_running(host, "copy")

    drive(scenario)
