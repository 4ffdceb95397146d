# SPDX-License-Identifier: Apache-2.0
"""What is counted and given out again, many times: uids, leases, TAP devices, names.

A thousand starts, with a stub in place of systemd and the VMM, on a host that is so
small that all of it is given out again ten times; and now and then the daemon is killed in the middle.
"""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import Set
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path

import pytest

from hypemand.config.definition import Definition
from hypemand.config.network import NetworkConfig
from hypemand.config.vmdef import parse_definition
from hypemand.errors import InsufficientResources
from hypemand.manager.inventory import Inventory
from hypemand.manager.net.allocation import AddressAllocation
from hypemand.manager.net.names import derive_guest_names, derive_host_names
from hypemand.manager.net.networks import Networks
from hypemand.manager.net.ports import make_bridge
from hypemand.manager.uids import Uids
from hypemand.model.state import Origin
from hypemand.network.port import tap_name
from hypemand.systemd.bus import BusError
from hypemand.vm.networkmember import NetworkMember
from hypemand.vm.record import VmRecord
from tests.fakes.host import folder_in_memory
from tests.unit.manager.fakenetwork import FakeNetworkHost
from tests.unit.manager.test_starts import Host, use

STARTS = 1000
UIDS = (61184, 61215)
# 29 addresses for 32 uids: both run out
LAB = NetworkConfig("lab", "lab0", IPv4Interface("10.7.0.1/27"), IPv6Interface("fd00:7::1/64"))
NAMES = tuple(f"vm-{number}" for number in range(40))
KILLED_ONCE_IN = 200


def definition(name: str) -> Definition:
    return parse_definition(name, {"image": "builtin:busybox", "network": {"name": "lab", "group": "g"}})


class Day:
    """A host in a folder. `units`: by VM, the uid that its unit runs as, for as long as there is one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.dice = random.Random(12)
        self.units: dict[str, int] = {}
        self.starts = self.refused = self.given = 0
        self.taps = FakeNetworkHost()

    async def begin_daemon(self) -> None:
        self.inventory = Inventory(self.folder / "vms", Uids(UIDS, self.folder / "userdb"))
        await asyncio.to_thread(self.inventory.load)
        self.allocation = AddressAllocation(lambda: {"lab": LAB}, self.network_members)
        self.networks = Networks(
            self.taps,
            self.allocation,
            self.list_live,
            self.folder / "vms",
            find_servers=tuple,
            first_pause=0.01,
        )
        await self.networks.recover(lambda name: name in self.units)
        # what comes after READY=1
        await asyncio.to_thread(self.inventory.clean_up)
        for uid in self.inventory.find_lost_uids():
            if uid not in self.units.values():
                self.inventory.free_uid(uid)

    async def end_daemon(self) -> None:
        await self.networks.close()

    def network_members(self) -> list[NetworkMember]:
        return [
            NetworkMember(r.name, r.id, r.uid, r.definition.network, r.lease,
                   r.definition.network if r.name in self.units else None)
            for r in self.inventory
        ]  # fmt: skip

    async def list_live(self) -> Set[str]:
        return self.units.keys()

    # what happens

    async def step(self) -> None:
        name = self.dice.choice(NAMES)
        record = self.inventory.find(name)
        if record is None:
            await self.define(name)
        elif name in self.units:
            await self.stop(name)
        elif self.dice.random() < 0.6:
            await self.start(record)
        else:
            await self.delete(record)
        if self.dice.randrange(KILLED_ONCE_IN) == 0:
            await self.end_daemon()
            await self.begin_daemon()
            await self.networks.sync()

    async def define(self, name: str) -> None:
        try:
            record = await self.inventory.add(definition(name), Origin.API)
        except InsufficientResources:
            assert len(list(self.inventory)) == UIDS[1] - UIDS[0] + 1, "a uid has leaked"
            self.refused += 1
            return
        self.given += 1
        assert record.uid not in self.units.values(), "a unit runs as that"

    async def start(self, record: VmRecord) -> None:
        member = next(member for member in self.network_members() if member.vm == record.name)
        try:
            connection = self.allocation.reserve(member)
        except InsufficientResources:
            held = [other for other in self.inventory if other.lease is not None]
            assert len(held) == 29, "an address has leaked"
            self.refused += 1
            return
        assert connection is not None
        await self.inventory.lease(record.name, connection.lease)
        await self.networks.attach(record.name)
        self.units[record.name] = record.uid
        self.starts += 1

    async def stop(self, name: str) -> None:
        del self.units[name]
        await self.networks.detach(name)

    async def delete(self, record: VmRecord) -> None:
        if self.dice.randrange(KILLED_ONCE_IN // 10):
            await self.inventory.remove(record.name)
            return
        # killed in the middle of it: its folder is marked, its uid known by name
        removed = self.folder / "vms" / f".{record.id}.removed"
        (self.folder / "vms" / record.name).rename(removed)
        await self.begin_daemon()

    # what must hold

    def check(self) -> None:
        records = list(self.inventory)
        uids = [record.uid for record in records]
        assert len(set(uids)) == len(uids)
        assert all(UIDS[0] <= uid <= UIDS[1] for uid in uids)
        leases = [record.lease for record in records if record.lease is not None]
        for held in ([lease.ipv4 for lease in leases], [lease.ipv6 for lease in leases],
                     [lease.mac for lease in leases]):  # fmt: skip
            assert len(set(held)) == len(held)
        assert all(lease.ipv4 in LAB.ipv4.network for lease in leases if LAB.ipv4 and lease.ipv4)
        assert set(self.taps.taps) == {tap_name(uid) for uid in self.units.values()}
        members = self.allocation.members()
        known = {name for host in derive_host_names(members) for name in host.names}
        assert known == {name for vm in self.units for name in (vm, f"{vm}.hypeman")}
        group = derive_guest_names(members)
        assert set(group) == {record.name for record in records if record.lease is not None}

    def check_files(self) -> None:
        """What is on the disk is of VMs that there are."""
        records = list(self.inventory)
        assert {path.name for path in (self.folder / "vms").iterdir()} == {r.name for r in records}
        userdb = {path.name for path in (self.folder / "userdb").iterdir()}
        kinds = ("hypeman-{}.user", "{}.user", "hypeman-{}.group", "{}.group")
        assert userdb == {kind.format(record.uid) for record in records for kind in kinds}


def test_a_thousand_starts_leak_nothing_and_give_nothing_to_two() -> None:
    async def main(folder: Path) -> Day:
        day = Day(folder)
        await day.begin_daemon()
        await day.networks.sync()
        while day.starts < STARTS:
            await day.step()
            if day.starts % 20 == 0:
                day.check()
        await day.begin_daemon()
        day.check_files()
        for name in list(day.units):
            await day.stop(name)
        for record in day.inventory:
            await day.inventory.remove(record.name)
        day.check()
        day.check_files()
        await day.end_daemon()
        return day

    with folder_in_memory() as folder:
        day = asyncio.run(main(folder))
    assert make_bridge(LAB) == day.allocation.bridges()["lab"]
    assert (day.units, day.taps.taps, list(day.inventory)) == ({}, {}, [])
    # both ran out, and each uid was given out again and again
    assert day.refused > 20
    assert day.given > 10 * (UIDS[1] - UIDS[0] + 1)


def test_a_uid_is_given_to_nobody_while_its_unit_may_exist(tmp_path: Path) -> None:
    """Its VM's folder is gone, be it by hand: what systemd has of it may live on."""
    inventory = Inventory(tmp_path / "vms", Uids(UIDS, tmp_path / "userdb"))
    inventory.load()
    lost = asyncio.run(inventory.add(definition("lost"), Origin.API))
    shutil.rmtree(tmp_path / "vms/lost")
    again = Inventory(tmp_path / "vms", Uids(UIDS, tmp_path / "userdb"))
    again.load()
    assert again.find_lost_uids() == [lost.uid]
    for number in range(UIDS[1] - UIDS[0]):
        assert asyncio.run(again.add(definition(f"new-{number}"), Origin.API)).uid != lost.uid
    with pytest.raises(InsufficientResources):
        asyncio.run(again.add(definition("late"), Origin.API))
    again.free_uid(lost.uid)
    assert again.find_lost_uids() == []
    assert asyncio.run(again.add(definition("late"), Origin.API)).uid == lost.uid


def test_a_uid_of_a_record_that_cannot_be_read_is_given_to_nobody(tmp_path: Path) -> None:
    inventory = Inventory(tmp_path / "vms", Uids(UIDS, tmp_path / "userdb"))
    inventory.load()
    bad = asyncio.run(inventory.add(definition("bad"), Origin.API))
    (tmp_path / "vms/bad/vm.json").write_text("{")
    again = Inventory(tmp_path / "vms", Uids(UIDS, tmp_path / "userdb"))
    again.load()
    assert again.find_lost_uids() == []
    again.free_uid(bad.uid)
    assert asyncio.run(again.add(definition("new"), Origin.API)).uid != bad.uid


def test_a_vm_whose_unit_does_not_end_keeps_its_uid_from_all_others(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        document = {"image": "app", "cmd": ["x"], "disk": "64M", "memory": "96M", "network": "none"}
        first = await host.manager.create_vm(parse_definition("first", document), start=True)
        host.units.immortal = True
        with pytest.raises(BusError):
            await host.manager.delete_vm("first")
        second = await host.manager.create_vm(parse_definition("second", document), start=False)
        assert second.uid != first.uid
        host.units.immortal = False
        await host.manager.delete_vm("first")
        third = await host.manager.create_vm(parse_definition("third", document), start=False)
        assert third.uid == first.uid

    use(tmp_path, scenario)
