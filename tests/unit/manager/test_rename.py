# SPDX-License-Identifier: Apache-2.0
"""A VM that is renamed keeps all that it has, and whenever the daemon is killed meanwhile it has one name."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hypemand.config.definition import MIB
from hypemand.errors import (
    AlreadyExists,
    Forbidden,
    HypemandError,
    InUse,
    InvalidRequest,
    NotFound,
    WrongState,
)
from hypemand.manager.metrics.counts import Counts
from hypemand.manager.volumes import ApiVolumes
from hypemand.model.change import VmChange
from hypemand.model.events import Event, Rename, Restart, Since
from hypemand.model.lifetime import Lifetime
from hypemand.model.logs import LogSource
from hypemand.model.state import Operation, State
from hypemand.vm.exitrecord import find_spare, load_history
from hypemand.vm.record import VmRecord
from tests.fakes.host import FakeHost, define, drive

EARLIER = "cd" * 16
PARTS = ("state", "run", "userdb")
WRITES = {
    "shutil.rmtree",
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.symlink",
    "os.link",
    "os.truncate",
    "os.chown",
}
Watch = Callable[[str], None]
_watch: dict[str, Watch] = {}
_inside = threading.local()
# a folder is opened to be synced
_CHANGING = os.O_WRONLY | os.O_RDWR | os.O_DIRECTORY


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    """What changes a file, before it does: an audit hook is for ever, so it is one for all tests."""
    if not _watch or getattr(_inside, "hook", False):
        return
    is_write = event in WRITES or (event == "open" and bool((arguments[2] or 0) & _CHANGING))
    if not is_write or threading.current_thread() is threading.main_thread():
        return
    _inside.hook = True
    try:
        for folder, watch in tuple(_watch.items()):
            if str(arguments[0]).startswith(tuple(f"{folder}/{part}/" for part in PARTS)):
                watch(event)
    finally:
        _inside.hook = False


sys.addaudithook(_hear)


@contextmanager
def watching(host: FakeHost, watch: Watch) -> Iterator[None]:
    """Call this before each write below the host's folder, which does not come about if it raises."""
    _watch[str(host.folder)] = watch
    try:
        yield
    finally:
        del _watch[str(host.folder)]


async def make(host: FakeHost) -> VmRecord:
    """A VM that has run, with all that a VM can have."""
    await ApiVolumes(host.parts, host.manager).create_volume("data", 16 * MIB, {}, None)
    await host.run(
        network={"group": "shop", "publish": ["8080:80"]}, volumes=[{"volume": "data", "mount_path": "/data"}]
    )
    await host.stop_for_good()
    await host.manager.change_vm("web", VmChange(Lifetime(3600.0)))
    vm = host.vm()
    (vm.places.state / "mine").write_text("web's")
    # of its last run, which the disk had no room for
    spare = find_spare(vm.places.runtime)
    spare.parent.mkdir(exist_ok=True)
    (vm.places.state / "exit.json").rename(spare)
    # of an earlier VM of the other name
    text = spare.read_text().replace(vm.runs.ended[0].run, EARLIER)
    spare.with_name("db.json").write_text(text)
    return vm.record


async def check_whole(host: FakeHost, before: VmRecord, name: str) -> None:
    """It has that name, and all that it had; it runs, and the other name is free for one that has nothing."""
    assert [vm.name for vm in host.parts.fleet] == [name]
    other = {"web": "db", "db": "web"}[name]
    vm = host.vm(name)
    assert vm.record == (before if name == "web" else before.rename(name))
    assert vm.record.definition.name == name
    assert (vm.places.state / "mine").read_text() == "web's"
    assert vm.places.disk.exists()
    assert [run.exit.message for run in await host.manager.list_runs(name) if run.exit] == [
        "stopped on request"
    ]
    assert host.parts.volume_use.attachments(host.parts.volumes.get("data"))[0].vm == name
    assert [member.vm for member in host.parts.networks.allocation.members()] == [name]
    assert {path.name for path in (host.config.state_dir / "vms").iterdir()} == {name}
    assert {path.name for path in (host.config.runtime_dir / "vms").iterdir()} == set()
    await host.start(name)
    network = (await host.manager.get_vm(name)).network
    assert network is not None
    assert (network.ipv4, network.mac) == (
        before.lease and before.lease.ipv4,
        before.lease and before.lease.mac,
    )
    assert [publish.where for publish in network.publish] == ["8080/tcp"]
    await host.create(other)
    # beside what was there before the rename
    assert {run.run for run in await host.manager.list_runs(other)} <= ({EARLIER} if name == "web" else set())
    assert not host.vm(other).places.disk.exists()
    await host.manager.delete_vm(other)


def test_a_vm_keeps_all_that_it_has() -> None:
    async def scenario(host: FakeHost) -> None:
        before = await make(host)
        view = await host.manager.rename_vm("web", "db")
        assert (view.name, view.id, view.state) == ("db", before.id, State.STOPPED)
        with pytest.raises(NotFound):
            host.vm("web")
        await check_whole(host, before, "db")
        # a daemon that comes later finds the same
        await host.stop_for_good("db")
        await host.restart_daemon()
        assert host.vm("db").record == before.rename("db")

    drive(scenario)


def test_a_rename_is_an_event_and_an_operation() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.create()
        await host.manager.rename_vm("web", "db")
        events = [noted.event async for noted in host.parts.events.read(Since(kept=True), follow=False)]
        (told,) = [event for event in events if isinstance(event.details, Rename)]
        assert (told.vm, told.vm_id, told.details) == ("db", host.vm("db").record.id, Rename("web", "db"))
        # its own name changes nothing, whatever its state
        await host.start("db")
        assert (await host.manager.rename_vm("db", "db")).name == "db"
        await host.stop_for_good("db")
        async with host.vm("db").operations.hold(Operation.CHANGE):
            renaming = asyncio.create_task(host.manager.rename_vm("db", "web"))
            watching = asyncio.create_task(host.manager.start_vm("db"))
            await asyncio.sleep(0.01)
        assert (await renaming).name == "web"
        with pytest.raises(NotFound, match="VM db has been renamed to web meanwhile"):
            await watching

    drive(scenario)


def test_who_is_killed_in_a_rename_leaves_one_of_both_names() -> None:
    """What there is before each write is kept; a daemon begins on each of that."""

    async def scenario(host: FakeHost) -> None:
        before = await make(host)
        kept: list[Path] = []

        def keep(_event: str) -> None:
            copy = host.folder / "kept" / str(len(kept))
            kept.append(copy)
            copy.mkdir(parents=True)
            parts = [str(host.folder / part) for part in PARTS]
            subprocess.run(["cp", "-a", "--sparse=always", *parts, str(copy)], check=True)

        with watching(host, keep):
            await host.manager.rename_vm("web", "db")
        keep("the end")
        names = []
        for copy in kept:

            async def swap(copy: Path = copy) -> None:
                for part in PARTS:
                    shutil.rmtree(host.folder / part)
                    (copy / part).rename(host.folder / part)

            await host.restart_daemon(swap)
            await host.daemon.recovery.clean_up()
            (vm,) = host.parts.fleet
            names.append(vm.name)
            await check_whole(host, before, vm.name)
            await host.stop_for_good(vm.name)
        assert len(names) > 8, names
        assert names == sorted(names, reverse=True), "first the old one, then the new one"
        assert set(names) == {"web", "db"}

    drive(scenario)


@pytest.mark.parametrize("lasts", [False, True], ids=["one", "all"])
def test_a_write_that_fails_leaves_one_of_both_names(lasts: bool) -> None:
    """The one, or all from that on."""

    async def scenario(host: FakeHost) -> None:
        record, failed, at = await make(host), 0, 0
        while True:
            count, name = 0, "web" if host.parts.fleet.find("web") else "db"
            new = {"web": "db", "db": "web"}[name]

            def fail(_event: str, at: int = at) -> None:
                nonlocal count
                count += 1
                if count == at + 1 or (lasts and count > at):
                    raise OSError(errno.EIO, os.strerror(errno.EIO))

            with watching(host, fail):
                try:
                    await host.manager.rename_vm(name, new)
                    name = new
                except (OSError, HypemandError):
                    failed += 1
            (vm,) = host.parts.fleet
            assert vm.name == name
            # what is on the disk is what is known
            await host.restart_daemon()
            found = host.vm(name).record
            assert found == replace(
                record, name=name, definition=found.definition, former_names=found.former_names
            )
            assert len(await host.manager.list_runs(name)) == 1
            if count <= at:
                break
            at += 1
        assert (at > 5, failed > 2) == (True, True), (at, failed)

    drive(scenario)


def test_what_cannot_be_renamed_is_refused_with_the_cure() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run()
        await host.create("db")
        host.write("file")
        (host.config.vm_dir / "taken.yml").write_text("memory: lots\n")
        (host.config.vm_dir / "taken@1.yaml").symlink_to("nowhere")
        await host.reload()
        for name, new, error, words in (
            ("web", "shop", WrongState, "stop it first: its unit has the name of the VM"),
            ("web", "db", AlreadyExists, "a VM db already exists"),
            ("db", "no_name", InvalidRequest, "cannot be the name of a VM; use 1 to 63 characters"),
            ("db", "taken", AlreadyExists, "taken.yml defines a VM taken"),
            ("db", "taken-1", AlreadyExists, "taken@1.yaml defines a VM taken-1"),
            ("file", "shop", WrongState, "file.yaml; move the file to another directory"),
            ("nobody", "shop", NotFound, "there is no VM nobody"),
        ):
            with pytest.raises(error, match=words):
                await host.manager.rename_vm(name, new)
        with pytest.raises(Forbidden, match="only root may rename it"):
            await host.manager.rename_vm("db", "shop", by_root=False)
        await host.manager.create_vm(define("theirs"), start=False, short_name=False)
        assert not (await rename(host, "theirs", "shop", by_root=False)).short_name
        # root's choice of a name makes it no VM of root's
        assert not (await rename(host, "shop", "theirs")).short_name

    drive(scenario)


async def rename(host: FakeHost, name: str, new: str, *, by_root: bool = True) -> VmRecord:
    await host.manager.rename_vm(name, new, by_root=by_root)
    return host.vm(new).record


def test_what_is_left_under_the_new_name_is_in_the_way() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.create()
        left = host.config.state_dir / "vms/db"
        left.mkdir()
        with pytest.raises(AlreadyExists, match=f"{left} exists"):
            await host.manager.rename_vm("web", "db")
        left.rmdir()
        # a VM whose record cannot be read keeps all that is its own
        await host.run("db")
        await host.stop_for_good("db")
        (left / "vm.json").write_text("")
        spare = find_spare(host.vm("db").places.runtime)
        spare.parent.mkdir()
        (left / "exit.json").rename(spare)
        await host.restart_daemon()
        with pytest.raises(AlreadyExists, match="a VM db exists, and its record cannot be read"):
            await host.manager.rename_vm("web", "db")
        assert spare.exists()
        shutil.rmtree(left)
        await host.restart_daemon()
        # a run that neither its records nor the daemon know
        await host.run("db")
        host.parts.fleet.remove(host.vm("db"))
        del host.parts.records._records["db"]
        left.rename(left.with_name("away"))
        with pytest.raises(
            InUse, match=r"hypeman-vm-db.service has not ended; systemctl stop hypeman-vm-db.service"
        ):
            await host.manager.rename_vm("web", "db")
        assert host.vm().state is State.STOPPED

    drive(scenario)


def test_an_interface_that_is_not_removed_yet_is_waited_for() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run(network="default")
        host.network.away = HypemandError("it is away")
        await host.manager.stop_vm("web")
        with pytest.raises(HypemandError, match="the interface of VM web is not removed yet"):
            await host.manager.rename_vm("web", "db")
        host.network.away = None
        await host.parts.networks.sync()
        await host.manager.rename_vm("web", "db")
        assert host.traces("web") == host.traces("db") == []

    drive(scenario)


def test_a_vm_of_a_file_is_renamed_while_that_is_away() -> None:
    async def scenario(host: FakeHost) -> None:
        host.write(autostart=True)
        await host.reload()
        await host.until(State.RUNNING)
        vm_id, file = host.vm().record.id, host.config.vm_dir / "web.yaml"
        file.rename(host.folder / "shop.yaml")
        await host.reload()
        await host.until_ended()
        view = await host.manager.rename_vm("web", "shop")
        assert view.removed_from_config
        (host.folder / "shop.yaml").rename(file.with_name("shop.yaml"))
        report = await host.reload()
        assert (report.defined, report.removed, report.problems) == (("shop",), (), ())
        await host.until(State.RUNNING, "shop")
        assert host.vm("shop").record.id == vm_id
        assert len(await host.manager.list_runs("shop")) == 2

    drive(scenario)


def test_its_log_goes_on_and_has_nothing_of_others() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run()
        run = host.vm().run
        assert run is not None
        host.log("web", "first", _SYSTEMD_INVOCATION_ID=run)
        await host.stop_for_good()
        vm_id = (await host.manager.rename_vm("web", "db")).id
        host.log("db", "second")
        await host.create()
        # a VMM that was taken over says it is another one's
        host.log("web", "forged", HYPEMAN_VM_ID=vm_id)
        lines = host.manager.logs("db", source=LogSource.APP, tail=None, follow=False, sentinels=False)
        assert [line.text async for line in lines if line.text in ("first", "second", "forged")] == [
            "first",
            "second",
        ]

    drive(scenario)


def test_a_copy_of_a_folder_takes_nothing_from_its_original() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.create()
        record, folder = host.vm().record, host.vm().places.state

        async def copy() -> None:
            shutil.copytree(folder, folder.with_name("a-copy"))

        await host.restart_daemon(copy)
        assert host.vm().record == record
        assert "a-copy" in host.parts.records.unreadable

    drive(scenario)


def test_an_end_that_only_memory_has_is_taken_along() -> None:
    async def scenario(host: FakeHost) -> None:
        await make(host)
        spare = find_spare(host.vm().places.runtime)
        assert spare.exists()
        await host.manager.rename_vm("web", "db")
        assert list(spare.parent.iterdir()) == []
        assert len(load_history(host.vm("db").places.state / "exit.json")) == 1

    drive(scenario)


def test_counts_of_restarts_go_with_it() -> None:
    counts = Counts()
    counts.take(Event(Restart(1, None, "ab" * 16), "", "web"))
    counts.take(Event(Rename("web", "db"), "", "db"))
    counts.forget(lambda name: name == "db")
    assert counts.restarts == {"db": 1}


def test_two_vms_do_not_get_the_same_name() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.create("a")
        await host.create("b")
        asked = (host.manager.rename_vm("a", "c"), host.manager.rename_vm("b", "c"), host.run("c"))
        results = await asyncio.gather(*asked, return_exceptions=True)
        failed = [result for result in results if isinstance(result, Exception)]
        # by the name, or by the unit where the new one runs already
        assert len(failed) == 2
        assert all(isinstance(error, AlreadyExists | InUse) for error in failed), failed
        assert (
            len({vm.record.id for vm in host.parts.fleet})
            == len(list(host.parts.fleet))
            == 2 + (not isinstance(results[2], Exception))
        )

    drive(scenario)
