# SPDX-License-Identifier: Apache-2.0
"""A reload makes the VMs be what the files in vms.d say."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from hypemand.config.definition import MIB
from hypemand.errors import InUse, WrongState
from hypemand.manager.volumes import ApiVolumes
from hypemand.model.state import State
from hypemand.model.vm import Program
from tests.fakes.host import FakeHost, drive


def remove(host: FakeHost, name: str = "web") -> None:
    """Remove a VM's file."""
    (host.config.vm_dir / f"{name}.yaml").unlink()


def test_a_new_file_defines_a_vm_and_starts_it_if_it_says_so() -> None:
    async def scenario(host: FakeHost) -> None:
        host.write("web", autostart=True)
        host.write("db")
        report = await host.reload()
        assert sorted(report.defined) == ["db", "web"]
        assert report.problems == ()
        await host.until(State.RUNNING)
        assert host.vm("db").state is State.STOPPED
        again = await host.reload()
        assert (again.defined, again.changed, again.removed) == ((), (), ())
        assert host.vmms.runs == {"web": 1}

    drive(scenario)


def test_a_file_that_has_changed_is_taken_at_the_next_start() -> None:
    async def scenario(host: FakeHost) -> None:
        host.write(autostart=True)
        await host.reload()
        await host.until(State.RUNNING)
        host.write(autostart=True, memory="128M")
        report = await host.reload()
        assert report.changed == ("web",)
        assert (await host.manager.get_vm("web")).needs_restart
        assert host.vmms.runs == {"web": 1}
        await host.manager.restart_vm("web")
        await host.until(State.RUNNING)
        assert not host.vm().needs_restart
        host.write(autostart=False, memory="128M", tags={"a": "b"})
        await host.reload()
        assert not host.vm().needs_restart, "that makes no difference to one that runs"

    drive(scenario)


def test_a_file_that_is_gone_stops_its_vm_and_keeps_its_data() -> None:
    async def scenario(host: FakeHost) -> None:
        host.write(autostart=True, network="default")
        await host.reload()
        await host.until(State.RUNNING)
        remove(host)
        report = await host.reload()
        assert report.removed == ("web",)
        await host.until(State.STOPPED)
        await host.vm().runs.settle()
        assert host.traces() == []
        assert host.vm().places.disk.exists()
        assert (await host.manager.get_vm("web")).removed_from_config
        host.write(autostart=True, network="default")
        assert (await host.reload()).defined == ("web",)
        await host.until(State.RUNNING)
        assert not (await host.manager.get_vm("web")).removed_from_config

    drive(scenario)


def test_a_file_that_comes_back_while_its_vm_stops_starts_it_again() -> None:
    async def scenario(host: FakeHost) -> None:
        host.guest().heeds = False
        host.write(autostart=True)
        await host.reload()
        await host.until(State.RUNNING)
        first = host.vmm()
        remove(host)
        await host.reload()
        await host.until_true(lambda: host.unit() == "deactivating/stop")
        host.write(autostart=True)
        await host.reload()
        first.exit(0)
        await host.until_true(lambda: host.vmms.runs["web"] == 2)
        await host.until(State.RUNNING)

    drive(scenario)


def test_a_file_with_errors_changes_nothing_for_its_vm() -> None:
    async def scenario(host: FakeHost) -> None:
        host.write(autostart=True)
        host.write("db", autostart=True)
        await host.reload()
        await host.until(State.RUNNING)
        await host.until(State.RUNNING, "db")
        (host.config.vm_dir / "web.yaml").write_text("memory: lots\n")
        remove(host, "db")
        report = await host.reload()
        assert [Path(problem.file).name for problem in report.problems][:1] == ["web.yaml"]
        assert report.removed == ("db",)
        await host.until(State.STOPPED, "db")
        assert host.vm().state is State.RUNNING
        assert host.vmms.runs["web"] == 1

    drive(scenario)


def test_a_folder_that_cannot_be_read_removes_nothing() -> None:
    async def scenario(host: FakeHost) -> None:
        host.write(autostart=True)
        await host.reload()
        await host.until(State.RUNNING)
        host.config.vm_dir.rename(f"{host.config.vm_dir}.away")
        host.config.vm_dir.touch()
        assert (await host.reload()).removed == ()
        assert host.vm().state is State.RUNNING

    drive(scenario)


def test_a_vm_of_the_api_keeps_its_definition_beside_a_file_of_its_name() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run()
        host.write(memory="128M")
        report = await host.reload()
        assert len(report.problems) == 1
        assert host.vm().record.definition.memory == 96 * 1024 * 1024
        assert not host.vm().needs_restart

    drive(scenario)


def test_a_reload_waits_for_no_start() -> None:
    async def scenario(host: FakeHost) -> None:
        gate = host.network.gate = asyncio.Event()
        host.write(network="default", autostart=True)
        await host.reload()
        await host.network.made.wait()
        host.write("db", autostart=True)
        report = await asyncio.wait_for(host.daemon.reloader.reload(sync_networks=False), 60)
        assert report.defined == ("db",)
        await host.until(State.RUNNING, "db")
        gate.set()
        await host.until(State.RUNNING)

    drive(scenario)


def test_a_start_takes_the_definition_that_it_began_with() -> None:
    async def scenario(host: FakeHost) -> None:
        gate = host.network.gate = asyncio.Event()
        host.write(network="default", autostart=True)
        await host.reload()
        await host.network.made.wait()
        host.write(network="default", autostart=True, memory="128M")
        await host.daemon.reloader.reload(sync_networks=False)
        gate.set()
        await host.until(State.RUNNING)
        assert [held.memory for _, held in host.parts.fleet.list_held()] == [96 * 1024 * 1024]
        assert host.vm().needs_restart

    drive(scenario)


def test_an_autostart_that_fails_keeps_no_other_from_starting() -> None:
    async def scenario(host: FakeHost) -> None:
        host.write("web", autostart=True, image="builtin:missing")
        host.write("db", autostart=True)
        await host.reload()
        await host.until(State.RUNNING, "db")
        assert host.vm().state is State.STOPPED
        assert host.traces() == []

    drive(scenario)


def test_a_volume_of_a_vm_of_a_file_is_changed_in_the_file() -> None:
    async def scenario(host: FakeHost) -> None:
        host.write()
        await host.reload()
        await asyncio.to_thread(host.parts.volumes.create, "data", 64 * 1024 * 1024, {}, None)
        with pytest.raises(WrongState, match=r"web\.yaml"):
            await host.manager.detach_volume("web", "data")

    drive(scenario)


def test_a_file_is_named_by_its_own_name() -> None:
    async def scenario(host: FakeHost) -> None:
        file = host.config.vm_dir / "web.yml"

        def move() -> None:
            (host.config.vm_dir / "web.yaml").rename(file)

        await ApiVolumes(host.parts, host.manager).create_volume("data", 16 * MIB, {}, None)
        host.write(volumes=[{"volume": "data", "mount_path": "/data"}])
        move()
        assert (await host.reload()).defined == ("web",)
        for change in (
            host.manager.delete_vm("web"),
            host.manager.detach_volume("web", "data"),
            host.manager.start_vm("web", program=Program(None, ("true",))),
        ):
            with pytest.raises(WrongState, match=f"VM web is defined in {file};"):
                await change
        with pytest.raises(InUse) as used:
            await ApiVolumes(host.parts, host.manager).remove_volume("data")
        assert used.value.hint == f"remove it from volumes: in {file}, then: hypemanctl reload"
        file.unlink()
        await host.reload()
        await host.manager.delete_vm("web")
        await host.create()
        host.write(memory="128M")
        move()
        (problem,) = (await host.reload()).problems
        assert problem.file == str(file)

    drive(scenario)


def test_a_link_to_a_template_defines_a_vm_and_its_removal_stops_that() -> None:
    async def scenario(host: FakeHost) -> None:
        host.write_template("1", "2", autostart=True, env={"ID": "%i"})
        report = await host.reload()
        assert (report.defined, report.problems) == (("web-1", "web-2"), ())
        for vm in ("web-1", "web-2"):
            await host.until(State.RUNNING, vm)
            assert host.vm(vm).record.definition.env == {"ID": vm[-1]}
        remove(host, "web@2")
        assert (await host.reload()).removed == ("web-2",)
        await host.until(State.STOPPED, "web-2")
        assert (await host.manager.get_vm("web-1")).state is State.RUNNING
        assert (await host.manager.get_vm("web-2")).removed_from_config

    drive(scenario)


def test_a_change_of_a_template_is_one_of_all_its_instances() -> None:
    async def scenario(host: FakeHost) -> None:
        host.write_template("1", "2")
        (host.config.vm_dir / "web@3.yaml").write_text((host.config.vm_dir / "web@.yaml").read_text())
        await host.reload()
        assert not any(vm.needs_reload for vm in await host.manager.list_vms())
        host.write_template(memory="128M")
        stale = {vm.name: vm.needs_reload for vm in await host.manager.list_vms()}
        assert stale == {"web-1": True, "web-2": True, "web-3": False}, "a copy is a file of its own"
        assert (await host.manager.get_vm("web-1")).definition_file == str(host.config.vm_dir / "web@1.yaml")
        assert (await host.reload()).changed == ("web-1", "web-2")

    drive(scenario)


def test_a_template_that_is_gone_stops_no_vm() -> None:
    async def scenario(host: FakeHost) -> None:
        host.write_template("1", "2", autostart=True)
        await host.reload()
        await host.until(State.RUNNING, "web-1")
        await host.until(State.RUNNING, "web-2")
        remove(host, "web@")
        report = await host.reload()
        assert [problem.message for problem in report.problems] == [
            "is a link to web@.yaml, which does not exist"
        ] * 2
        assert report.removed == ()
        assert {vm.state for vm in await host.manager.list_vms()} == {State.RUNNING}

    drive(scenario)


def test_what_is_refused_names_the_link_that_defines_the_vm() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.create("web-1")
        host.write_template("1", "2", memory="128M")
        (problem,) = (await host.reload()).problems
        assert problem.file == str(host.config.vm_dir / "web@1.yaml")
        with pytest.raises(WrongState, match=r"is defined in .*/vms\.d/web@2\.yaml"):
            await host.manager.delete_vm("web-2")

    drive(scenario)
