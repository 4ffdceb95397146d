# SPDX-License-Identifier: Apache-2.0
"""What becomes of VMs is written in threads: the loop goes on, and what is known agrees with the disk."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import threading
from dataclasses import replace
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any

import pytest

from hypemand.config.definition import Definition, VolumeMount
from hypemand.config.host import HostConfig
from hypemand.config.network import NetworkConfig
from hypemand.config.vmdef import parse_definition
from hypemand.manager import uids as uids_module
from hypemand.manager.volumes import ApiVolumes
from hypemand.model.state import State
from hypemand.systemd.units import UnitPlan
from hypemand.vmm.host import VmmHost, find_vmm_host
from tests.unit.manager.test_starts import Host, definition, use

MIB = 1024 * 1024


def networked(**more: object) -> Definition:
    keys = {"image": "app", "cmd": ["x"], "disk": "64M", "memory": "96M", "network": "lab", **more}
    return parse_definition("web", keys)


def test_a_vms_whole_life_leaves_the_disk_to_threads(tmp_path: Path, blocked_loops: list[str]) -> None:
    """Defined, changed, started, stopped and deleted, by a file and by a client."""

    async def scenario(host: Host) -> None:
        manager = host.manager
        network = NetworkConfig("lab", "hm-lab", IPv4Interface("10.7.0.1/24"), None)
        host.parts.config.replace(replace(host.parts.config(), networks={"lab": network}))
        volume = await asyncio.to_thread(host.parts.volumes.create, "data", 16 * MIB, {})
        await manager.create_vm(networked(), start=False)
        await manager.attach_volume("web", VolumeMount("data", "/data"))
        await manager.detach_volume("web", volume.id)
        await manager.start_vm("web")
        assert (host.vms / "web/port.json").exists()
        await manager.stop_vm("web")
        assert not (host.vms / "web/port.json").exists()
        await manager.delete_vm("web")
        vm = await manager.define(networked())
        await manager.define(networked(memory="128M"))
        assert vm.record.definition.memory == 128 * MIB
        await manager.start_vm("web")
        vm.set_removed(True)
        await manager.delete_vm("web")
        assert list(host.vms.iterdir()) == []

    use(tmp_path, scenario)
    assert blocked_loops == []


def test_a_question_for_a_user_that_is_not_answered_holds_up_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = threading.Event()

    def ask(_uid: int) -> bool:
        assert answer.wait(20)
        return False

    async def scenario(host: Host) -> None:
        manager = host.manager
        await manager.create_vm(definition(), start=False)
        monkeypatch.setattr(uids_module, "_is_known", ask)
        other = parse_definition("other", {"image": "app", "network": "none"})
        making = asyncio.create_task(manager.define(other))
        await asyncio.sleep(0.05)
        try:
            assert (await manager.start_vm("web")).state.is_vmm_active
            assert [view.name for view in await manager.list_vms()] == ["web"]
            assert not making.done()
        finally:
            answer.set()
        await making

    use(tmp_path, scenario)


def test_what_is_started_is_what_was_looked_at_also_if_it_is_defined_anew_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[UnitPlan] = []

    async def scenario(host: Host) -> None:
        manager, loop = host.manager, asyncio.get_running_loop()
        vm = await manager.define(definition())

        def define_anew(config: HostConfig) -> VmmHost:
            changing = manager.define(parse_definition("web", {"image": "app", "memory": "200M"}))
            asyncio.run_coroutine_threadsafe(changing, loop).result(10)
            return find_vmm_host(config)

        async def note(plan: UnitPlan) -> None:
            started.append(plan)

        monkeypatch.setattr("hypemand.manager.starts.find_vmm_host", define_anew)
        host.units.taken = note
        await manager.start_vm("web")
        assert "96M" in " ".join(started[0].start)
        assert vm.runs.definition.memory == 96 * MIB
        assert vm.record.definition.memory == 200 * MIB

    use(tmp_path, scenario)


def test_a_vm_that_cannot_be_removed_is_still_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_path: Path, _target: Path) -> Path:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    async def scenario(host: Host) -> None:
        await host.manager.create_vm(definition(), start=False)
        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", refuse)
            with pytest.raises(OSError, match="Read-only"):
                await host.manager.delete_vm("web")
        assert (await host.manager.get_vm("web")).state is State.STOPPED
        await host.manager.start_vm("web")
        await host.manager.delete_vm("web")
        assert (await host.manager.list_vms(), list(host.vms.iterdir())) == ([], [])

    use(tmp_path, scenario)


def test_a_vm_whose_data_cannot_all_be_deleted_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rmtree = shutil.rmtree

    def refuse(path: Path, ignore_errors: bool = False) -> None:
        if path.suffix == ".removed":
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))
        rmtree(path, ignore_errors=ignore_errors)

    async def scenario(host: Host) -> None:
        uid = (await host.manager.create_vm(definition(), start=False)).uid
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", refuse)
            with pytest.raises(OSError, match="busy"):
                await host.manager.delete_vm("web")
        assert await host.manager.list_vms() == []
        assert (await host.manager.create_vm(definition(), start=False)).uid != uid

    use(tmp_path, scenario)


def test_who_is_cancelled_while_a_vm_is_deleted_leaves_no_half_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, go_on = threading.Event(), threading.Event()
    rmtree = shutil.rmtree

    def wait(path: Path, ignore_errors: bool = False) -> None:
        if path.suffix == ".removed":
            reached.set()
            assert go_on.wait(60)
        rmtree(path, ignore_errors=ignore_errors)

    async def scenario(host: Host) -> None:
        await host.manager.create_vm(definition(), start=False)
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", wait)
            deleting = asyncio.create_task(host.manager.delete_vm("web"))
            await asyncio.to_thread(reached.wait, 10)
            deleting.cancel()
            await asyncio.sleep(0)
            go_on.set()
            with pytest.raises(asyncio.CancelledError):
                await deleting
        assert (await host.manager.list_vms(), list(host.vms.iterdir())) == ([], [])
        await host.manager.create_vm(definition(), start=True)

    use(tmp_path, scenario)


def test_who_is_cancelled_while_a_volume_is_made_leaves_none_and_no_second_one_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, go_on = threading.Event(), threading.Event()

    async def scenario(host: Host) -> None:
        api, store = ApiVolumes(host.parts, host.manager), host.parts.volumes
        create = store.create

        def wait(*args: Any, **options: Any) -> Any:
            reached.set()
            assert go_on.wait(60)
            return create(*args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(store, "create", wait)
            making = asyncio.create_task(api.create_volume("data", 16 * MIB, {}, None))
            await asyncio.to_thread(reached.wait, 10)
        making.cancel()
        again = asyncio.create_task(api.create_volume("data", 16 * MIB, {}, None))
        await asyncio.sleep(0)
        assert not again.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await making
        made = await again
        assert [volume.id for volume in store] == [made.id]
        assert [path.name for path in (tmp_path / "state/volumes").iterdir()] == [made.id]

    use(tmp_path, scenario)
