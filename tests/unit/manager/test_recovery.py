# SPDX-License-Identifier: Apache-2.0
"""A daemon that starts: what it does not know counts as in use; what it cannot clean up holds up nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hypemand.config.definition import MIB
from hypemand.config.vmdef import parse_definition
from hypemand.manager.inventory import Inventory
from hypemand.manager.recovery import ask_again
from hypemand.manager.uids import Uids
from hypemand.model.state import Origin
from hypemand.storage.volumes import VolumeStore
from hypemand.systemd.units import UnitStatus
from tests.unit.manager.test_starts import Host

WEB = "hypeman-vm-web.service"


def recover(host: Host, scenario: Callable[[], Awaitable[None]]) -> None:
    """A daemon starts on the host, and then the scenario."""

    async def list_vms() -> dict[str, str]:
        units = host.units.live.items()
        return {name[len("hypeman-vm-") : -len(".service")]: str(unit.active_state) for name, unit in units}

    async def main() -> None:
        host.units.list_vms = list_vms  # type: ignore[method-assign]
        async with asyncio.timeout(60):
            await host.recovery.recover()
            try:
                await scenario()
            finally:
                await host.manager.close()

    asyncio.run(main())


def test_where_the_records_cannot_be_read_no_unit_device_or_folder_is_nobodys(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.vms.write_text("where the VMs were")
    (host.runtime / "web").mkdir(parents=True)
    host.units.live[WEB] = UnitStatus("active")

    async def scenario() -> None:
        await host.parts.networks.sync()
        await host.recovery.clean_up()
        assert WEB in host.units.live
        assert (host.runtime / "web").is_dir()
        asked = cast(Any, host.parts.networks)._host.asked
        assert asked
        assert "apply" not in asked, "all devices but those of known VMs would go"

    recover(host, scenario)


def test_a_unit_of_no_vm_is_stopped_and_its_uid_free_once_it_is_gone(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.vms.mkdir()
    userdb = tmp_path / "userdb"
    userdb.mkdir()
    (userdb / "hypeman-61190.user").write_text("{}")
    host.units.live[WEB] = UnitStatus("active")

    async def scenario() -> None:
        await host.recovery.clean_up()
        assert host.units.live == {}
        assert host.parts.records.find_lost_uids() == [61190], "its processes may be there yet"
        await host.recovery.clean_up()
        assert host.parts.records.find_lost_uids() == []
        assert list(userdb.iterdir()) == []

    recover(host, scenario)


def test_a_helper_that_does_not_end_holds_up_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    host = Host(tmp_path)
    inventory = Inventory(host.vms, Uids((61184, 61199), tmp_path / "userdb"))
    inventory.load()
    definition = parse_definition("volume-0", {"image": "app", "network": "none"})
    helper = asyncio.run(inventory.add(definition, Origin.HELPER))
    volumes = VolumeStore(tmp_path / "state/volumes", tmp_path / "state/templates")
    volumes.load()
    unfilled = volumes.create("unfilled", 16 * MIB, {}, ready=False)
    kept = volumes.create("kept", 16 * MIB, {})
    marked = (host.vms / f".{'a' * 32}.removed", tmp_path / "state/volumes" / f".{'b' * 32}.making")
    for folder in marked:
        folder.mkdir()
    host.units.live["hypeman-vm-orphan.service"] = UnitStatus("active")
    host.units.immortal = True

    async def scenario() -> None:
        assert all(folder.is_dir() for folder in marked), "cleaning is for later"
        assert host.parts.volumes.find("unfilled") is not None
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(host.recovery, "_delete", _fail)
            await host.recovery.clean_up()
        assert "VM volume-0 is left" in caplog.text
        assert host.parts.records.find(helper.name) is not None
        assert not any(folder.exists() for folder in marked)
        assert host.parts.volumes.find("unfilled") is None
        assert not unfilled.folder.exists()
        assert kept.folder.exists()
        assert "units that belong to no VM" in caplog.text

    recover(host, scenario)


def test_systemd_is_asked_once_for_the_units_that_there_are(tmp_path: Path) -> None:
    host = Host(tmp_path)
    (host.runtime / "gone").mkdir(parents=True)
    host.units.live[WEB] = UnitStatus("active")
    asked: list[str] = []

    async def scenario() -> None:
        list_vms = host.units.list_vms

        async def count() -> Mapping[str, str]:
            asked.append("units")
            return await list_vms()

        host.units.list_vms = count  # type: ignore[method-assign]
        await host.recovery.clean_up()
        assert asked == ["units"]
        assert host.units.live == {}
        assert not (host.runtime / "gone").exists()

    recover(host, scenario)


async def _fail(_name: str) -> None:
    raise RuntimeError("it does not end")


def test_a_vm_that_cannot_be_asked_for_holds_up_no_cleaning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Strange:
        name, is_known, operations = "strange", False, SimpleNamespace(closed=False)

        async def refresh(self) -> None:
            raise RuntimeError("what is this")

    class Slow(Strange):
        name, asked = "slow", 0

        async def refresh(self) -> None:
            self.asked += 1
            self.is_known = self.asked == 3

    monkeypatch.setattr("hypemand.manager.recovery._FIRST_PAUSE", 0.01)
    slow = Slow()
    asyncio.run(asyncio.wait_for(ask_again(cast(Any, [Strange(), slow])), 30))
    assert slow.asked == 3
    assert caplog.text.count("cannot query VM strange") == 1
