# SPDX-License-Identifier: Apache-2.0
"""Templates for warm starts as users make, see and remove them."""

import asyncio
import os
from pathlib import Path

import pytest

from hypemand.errors import Ambiguous, InsufficientResources, NotFound, StartFailed, WrongState
from hypemand.manager.templateservice import ApiTemplates
from hypemand.manager.volumes import ApiVolumes
from hypemand.model.state import State
from hypemand.model.templates import TemplateKind
from hypemand.unitnames import template_unit_name
from tests.fakes.host import FakeHost, drive
from tests.unit.manager.test_templates import drive_warm, templates

MIB = 1024 * 1024
FILE = {"path": "/etc/a", "content": "x"}


def service(host: FakeHost) -> ApiTemplates:
    """That of the daemon that runs now."""
    return ApiTemplates(host.parts)


async def add_vms(host: FakeHost, folder: Path) -> dict[str, TemplateKind]:
    """VMs of different kinds, and what kinds these are."""
    await ApiVolumes(host.parts, host.manager).create_volume("data", 16 * MIB, {}, None)
    (folder / "site").mkdir()
    volume, site = (
        {"volume": "data", "mount_path": "/d"},
        {"source": str(folder / "site"), "mount_path": "/w"},
    )
    await host.put("plain")
    await host.put("connected", network="default", vcpus=1)
    await host.put("filled", files=[FILE], volumes=[volume])
    await host.put("serving", volumes=[site], files=[FILE])
    return {
        "plain": TemplateKind(96 * MIB, 2, 3, False),
        "connected": TemplateKind(96 * MIB, 1, 3, True),
        "filled": TemplateKind(96 * MIB, 2, 5, False),
        "serving": TemplateKind(96 * MIB, 2, 5, False),
    }


def test_the_first_start_of_a_vm_is_warm_if_its_template_was_made(tmp_path: Path) -> None:
    async def scenario(host: FakeHost) -> None:
        for name, kind in (await add_vms(host, tmp_path)).items():
            view, _ = await service(host).create_template(name)
            assert view.kind == kind
            assert view.size > 0
            assert not view.outdated
            assert host.vm(name).state is State.STOPPED
            await host.start(name)
            assert host.vmm(name).is_warm, name
            again, is_new = await service(host).create_template(name)
            assert (again.key, again.created_at, is_new) == (view.key, view.created_at, False)
        # two of them are of the same kind
        assert host.template_vmms.runs == len(await service(host).list_templates()) == 3

    drive_warm(scenario)


def test_one_template_is_made_for_all_who_ask_for_it_at_once() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.put("a")
        await host.put("b", memory="112M")
        asked = [service(host).create_template(name) for name in ("a", "b", "a")]
        first, other, same = await asyncio.gather(*asked)
        assert first[0].key == same[0].key != other[0].key
        assert host.template_vmms.runs == 2

    drive_warm(scenario)


def test_who_leaves_does_not_end_what_others_wait_for() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.put("a")
        leaves = asyncio.create_task(service(host).create_template("a"))
        await host.until_true(lambda: host.template_vmms.runs == 1)
        stays = asyncio.create_task(service(host).create_template("a"))
        await asyncio.sleep(0)
        leaves.cancel()
        await stays
        assert leaves.cancelled()
        assert host.template_vmms.runs == len(templates(host)) == 1

    drive_warm(scenario)


def test_where_no_start_would_use_it_none_is_made() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.put("web")
        with pytest.raises(WrongState, match="warm starts are disabled") as refused:
            await service(host).create_template("web")
        assert "warm_start: {mode: auto}" in refused.value.hint
        host.enable_warm_starts()
        for name, keys in (("alone", {"warm_start": "off"}), ("shrinks", {"balloon": True})):
            await host.put(name, **keys)
            with pytest.raises(WrongState, match="always boots"):
                await service(host).create_template(name)
        with pytest.raises(NotFound, match="nobody"):
            await service(host).create_template("nobody")
        assert host.template_vmms.runs == 0

    drive(scenario)


def test_why_none_could_be_made_is_told_and_nothing_is_left() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.put("web")
        host.enable_warm_starts(room=1)
        with pytest.raises(InsufficientResources, match="takes more than all may"):
            await service(host).create_template("web")
        host.enable_warm_starts()
        host.template_vmms.fails = True
        with pytest.raises(StartFailed, match="its VMM has not started; see journalctl -u"):
            await service(host).create_template("web")
        assert templates(host) == []
        assert template_unit_name() not in host.systemd.units

    drive_warm(scenario)


def test_a_template_is_removed_by_the_beginning_of_its_id() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.put("a")
        await host.put("b", memory="112M")
        (one, _), (other, _) = [await service(host).create_template(name) for name in ("a", "b")]
        assert [view.key for view in await service(host).list_templates()] == [other.key, one.key]
        with pytest.raises(NotFound, match="there is no template f00d"):
            await service(host).remove_template("f00d")
        with pytest.raises(Ambiguous):
            await service(host).remove_template("")
        await host.start("a")
        await service(host).remove_template(one.key[:8])
        assert [view.key for view in await service(host).list_templates()] == [other.key]
        assert host.vm("a").state is State.RUNNING

    drive_warm(scenario)


def test_one_of_another_kernel_is_shown_as_outdated() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.put("a")
        await service(host).create_template("a")
        os.utime(host.config.kernel_dir / "vmlinux", (1, 1))
        assert [view.outdated for view in await service(host).list_templates()] == [True]

    drive_warm(scenario)
