# SPDX-License-Identifier: Apache-2.0
"""What lasts of a VM, and its uid."""

import asyncio
import errno
import json
import os
import shutil
import threading
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from hypemand.config.definition import Definition
from hypemand.config.vmdef import parse_definition
from hypemand.errors import AlreadyExists, InsufficientResources, NotFound
from hypemand.manager import inventory as inventory_module
from hypemand.manager.inventory import Inventory
from hypemand.manager.uids import Uids
from hypemand.model.state import Origin
from hypemand.vm.record import ImagePin, Lease, VmRecord


def definition(name: str, **more: object) -> Definition:
    return parse_definition(name, {"image": "builtin:busybox", **more})


class Records:
    """An inventory whose changes are waited for."""

    def __init__(self, inventory: Inventory) -> None:
        self.inventory = inventory
        self.find, self.folder, self.is_unreadable = inventory.find, inventory.folder, inventory.is_unreadable
        self.clean_up = inventory.clean_up

    def __iter__(self) -> Iterator[VmRecord]:
        return iter(self.inventory)

    def add(self, definition: Definition, origin: Origin, *, short_name: bool = True) -> VmRecord:
        return asyncio.run(self.inventory.add(definition, origin, short_name=short_name))

    def update(self, name: str, definition: Definition, origin: Origin) -> VmRecord:
        return asyncio.run(self.inventory.update(name, definition, origin))

    def lease(self, name: str, lease: Lease | None) -> VmRecord:
        return asyncio.run(self.inventory.lease(name, lease))

    def remove(self, name: str) -> None:
        asyncio.run(self.inventory.remove(name))


def make(folder: Path, uids: tuple[int, int] = (61184, 61187)) -> Records:
    inventory = Inventory(folder / "vms", Uids(uids, folder / "userdb"))
    inventory.load()
    return Records(inventory)


def test_a_record_lasts(tmp_path: Path) -> None:
    record = make(tmp_path).add(definition("web", memory="256M", env={"A": "b c"}), Origin.API)
    assert make(tmp_path).find("web") == record


def test_a_vm_of_a_client_gets_its_short_name_from_a_file_alone(tmp_path: Path) -> None:
    make(tmp_path).add(definition("wpad"), Origin.API, short_name=False)
    inventory = make(tmp_path)
    record = inventory.find("wpad")
    assert record is not None
    assert not record.short_name
    assert not inventory.update("wpad", definition("wpad", memory="2G"), Origin.API).short_name
    assert inventory.update("wpad", definition("wpad"), Origin.FILE).short_name


def test_records_of_before_have_their_short_names(tmp_path: Path) -> None:
    make(tmp_path).add(definition("web"), Origin.API)
    path = tmp_path / "vms/web/vm.json"
    document = json.loads(path.read_text())
    del document["short_name"]
    path.write_text(json.dumps(document))
    record = make(tmp_path).find("web")
    assert record is not None
    assert record.short_name


def test_a_lease_lasts(tmp_path: Path) -> None:
    inventory = make(tmp_path)
    inventory.add(definition("web"), Origin.API)
    lease = Lease("lab", "02:00:00:00:00:01", IPv4Address("10.7.0.2"), IPv6Address("fd00:7::2"))
    record = inventory.lease("web", lease)
    assert record.lease == lease
    assert inventory.update("web", definition("web", memory="256M"), Origin.API).lease == lease
    again = make(tmp_path).find("web")
    assert again is not None
    assert again.lease == lease
    assert inventory.lease("web", None).lease is None
    again = make(tmp_path).find("web")
    assert again is not None
    assert again.lease is None


def test_every_vm_has_a_uid_of_its_own_and_keeps_it(tmp_path: Path) -> None:
    inventory = make(tmp_path)
    uids = {inventory.add(definition(name), Origin.FILE).uid for name in ("a", "b", "c", "d")}
    assert uids == {61184, 61185, 61186, 61187}
    before = inventory.find("b")
    assert before is not None
    assert inventory.update("b", definition("b", memory="2G"), Origin.FILE).uid == before.uid


def test_no_uid_is_left(tmp_path: Path) -> None:
    inventory = make(tmp_path, (61184, 61184))
    inventory.add(definition("a"), Origin.FILE)
    with pytest.raises(InsufficientResources, match="61184"):
        inventory.add(definition("b"), Origin.FILE)
    assert not inventory.folder("b").exists()


def test_a_uid_that_is_free_again_is_used_again(tmp_path: Path) -> None:
    inventory = make(tmp_path, (61184, 61184))
    inventory.add(definition("a"), Origin.FILE)
    inventory.remove("a")
    assert inventory.add(definition("b"), Origin.FILE).uid == 61184


def test_the_uid_is_known_by_name_while_the_vm_is_there(tmp_path: Path) -> None:
    inventory = make(tmp_path)
    record = inventory.add(definition("web"), Origin.FILE)
    known = json.loads((tmp_path / "userdb" / f"{record.uid}.user").read_text())
    assert (known["userName"], known["uid"]) == (f"hypeman-{record.uid}", record.uid)
    assert json.loads((tmp_path / "userdb" / f"{record.uid}.group").read_text())["gid"] == record.uid
    inventory.remove("web")
    assert list((tmp_path / "userdb").iterdir()) == []
    assert not inventory.folder("web").exists()


def test_a_record_that_cannot_be_read_spoils_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    inventory = make(tmp_path)
    inventory.add(definition("good"), Origin.FILE)
    bad = inventory.folder("bad")
    bad.mkdir()
    (bad / "vm.json").write_text("{")
    again = make(tmp_path)
    assert [record.name for record in again] == ["good"]
    assert "bad" in caplog.text
    assert (bad / "vm.json").exists()
    assert [name for name in ("good", "bad", "new") if again.is_unreadable(name)] == ["bad"]
    with pytest.raises(
        AlreadyExists, match=r"a VM bad exists, and its record cannot be read: .*/bad/vm\.json"
    ):
        again.add(definition("bad"), Origin.FILE)
    assert (bad / "vm.json").read_text() == "{"


def test_files_of_a_vm_whose_record_cannot_be_read_stay_nobody_elses(tmp_path: Path) -> None:
    inventory = make(tmp_path, (61184, 61185))
    folder = inventory.folder("bad")
    folder.mkdir()
    (folder / "vm.json").write_text("{")
    (folder / "disk.img").touch()
    os.chown(folder / "disk.img", 61185, 61185)
    again = make(tmp_path, (61184, 61185))
    assert again.add(definition("new"), Origin.FILE).uid == 61184
    with pytest.raises(InsufficientResources):
        again.add(definition("another"), Origin.FILE)


def test_a_removal_that_was_cut_off_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inventory = make(tmp_path)
    inventory.add(definition("web"), Origin.FILE)
    (inventory.folder("web") / "root.img").write_text("old")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", raise_cut_off)
        with pytest.raises(OSError, match="cut off"):
            inventory.remove("web")
    again = make(tmp_path)
    again.clean_up()
    assert list((tmp_path / "vms").iterdir()) == []
    again.add(definition("web"), Origin.FILE)


def raise_cut_off(path: Path) -> None:
    raise OSError(f"cut off at {path}")


def test_what_has_no_record_is_left_alone(tmp_path: Path) -> None:
    """It is not known to be of a VM that was to be removed."""
    make(tmp_path)
    disk = tmp_path / "vms" / "web" / "root.img"
    disk.parent.mkdir()
    disk.write_text("kept")
    again = make(tmp_path)
    with pytest.raises(AlreadyExists):
        again.add(definition("web"), Origin.FILE)
    assert disk.read_text() == "kept"


def test_what_is_marked_is_deleted_and_nothing_else(tmp_path: Path) -> None:
    inventory = make(tmp_path)
    inventory.add(definition("web"), Origin.API)
    for mark in ("making", "removed"):
        (tmp_path / "vms" / f".{'a' * 32}.{mark}").mkdir()
    (tmp_path / "vms/lost+found").mkdir()
    (tmp_path / "vms/lost+found/#1").write_text("saved")
    (tmp_path / "vms/other").mkdir()
    (tmp_path / "vms/other/disk.ext4").write_text("data")
    again = make(tmp_path)
    again.clean_up()
    left = sorted(path.name for path in (tmp_path / "vms").iterdir())
    assert left == ["lost+found", "other", "web"]
    assert (tmp_path / "vms/other/disk.ext4").read_text() == "data"
    assert (again.is_unreadable("other"), again.is_unreadable("lost+found")) == (True, False)


def test_a_vm_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inventory = make(tmp_path)
    synced: list[str] = []
    real = os.fsync

    def note(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        real(fd)

    monkeypatch.setattr(os, "fsync", note)
    inventory.add(definition("web"), Origin.API)
    # its record, and then its name
    assert any("vm.json" in path for path in synced)
    assert synced[-1] == str(tmp_path / "vms")
    synced.clear()
    inventory.remove("web")
    assert str(tmp_path / "vms") in synced


# what cannot be done, and who is cancelled meanwhile


def fail_to_sync(folder: Path) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO), str(folder))


def test_a_vm_whose_name_would_not_last_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = make(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(inventory_module, "sync_folder", fail_to_sync)
        with pytest.raises(OSError, match="Input/output"):
            records.add(definition("web"), Origin.API)
    assert (list(records), list((tmp_path / "vms").iterdir())) == ([], [])
    made = records.add(definition("web"), Origin.API)
    assert list(make(tmp_path)) == [made]


def test_a_vm_that_cannot_even_be_taken_back_keeps_its_name_and_uid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = make(tmp_path)
    rename = Path.rename

    def break_after_once(path: Path, target: Path) -> Path:
        if path.suffix != ".making":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(inventory_module, "sync_folder", fail_to_sync)
        patch.setattr(Path, "rename", break_after_once)
        with pytest.raises(OSError, match="Read-only"):
            records.add(definition("web"), Origin.API)
    (left,) = list(records)
    assert list(make(tmp_path)) == [left]
    with pytest.raises(AlreadyExists):
        records.add(definition("web"), Origin.API)
    assert records.add(definition("other"), Origin.API).uid != left.uid


def test_after_an_error_it_is_known_as_the_disk_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = make(tmp_path)
    records.add(definition("web"), Origin.API)
    for broken, memory in (("hypemand.atomic.os.replace", "3G"), ("hypemand.atomic.sync_folder", "2G")):
        with monkeypatch.context() as patch:
            patch.setattr(broken, fail_to_sync if "sync" in broken else fail_to_replace)
            with pytest.raises(OSError, match="Input/output"):
                records.update("web", definition("web", memory=memory), Origin.API)
        assert records.find("web") == make(tmp_path).find("web")


def fail_to_replace(_source: Path, target: Path) -> None:
    fail_to_sync(target)


def test_a_removed_vms_uid_is_nobodys_until_its_files_are_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = make(tmp_path, (61184, 61185))
    uid = records.add(definition("web"), Origin.API).uid
    os.chown(records.folder("web"), uid, uid)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", raise_cut_off)
        with pytest.raises(OSError, match="cut off"):
            records.remove("web")
        assert list(records) == []
        assert records.add(definition("new"), Origin.API).uid != uid
        with pytest.raises(InsufficientResources):
            records.add(definition("newer"), Origin.API)
    again = make(tmp_path, (61184, 61185))
    with pytest.raises(InsufficientResources):
        again.add(definition("newer"), Origin.API)
    again.clean_up()
    again.inventory.free_uid(uid)  # its unit is gone too
    assert again.add(definition("newer"), Origin.API).uid == uid


class Gate:
    """Holds threads up in a function of the inventory's."""

    def __init__(self, patch: pytest.MonkeyPatch, name: str) -> None:
        self.reached, self.open = threading.Event(), threading.Event()
        self._work = getattr(inventory_module, name)
        patch.setattr(inventory_module, name, self._wait)

    def _wait(self, *args: object) -> object:
        self.reached.set()
        assert self.open.wait(60)
        return self._work(*args)

    async def cancel_in_it(self, task: asyncio.Task[VmRecord]) -> None:
        await asyncio.to_thread(self.reached.wait, 10)
        task.cancel()
        await asyncio.sleep(0)
        self.open.set()
        with pytest.raises(asyncio.CancelledError):
            await task


def test_who_is_cancelled_while_a_vm_is_made_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inventory = make(tmp_path).inventory
    gate = Gate(monkeypatch, "write_vm_record")

    async def main() -> None:
        await gate.cancel_in_it(asyncio.create_task(inventory.add(definition("web"), Origin.API)))

    asyncio.run(main())
    assert (list(inventory), list((tmp_path / "vms").iterdir())) == ([], [])


def test_who_is_cancelled_while_a_record_is_written_has_it_known_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[VmRecord] = []
    make(tmp_path).add(definition("web"), Origin.API)
    inventory = Inventory(tmp_path / "vms", Uids((61184, 61187), tmp_path / "userdb"), told.append)
    inventory.load()
    gate = Gate(monkeypatch, "write_vm_record")

    async def main() -> None:
        changing = inventory.update("web", definition("web", memory="2G"), Origin.API)
        await gate.cancel_in_it(asyncio.create_task(changing))

    asyncio.run(main())
    assert [inventory.find("web")] == told == [make(tmp_path).find("web")]
    assert told[0].definition.memory == 2 * 1024**3


def test_no_change_is_lost_to_another_one_at_the_same_time(tmp_path: Path) -> None:
    records = make(tmp_path)
    records.add(definition("web"), Origin.API)
    inventory, pin, lease = records.inventory, ImagePin("app", "sha256:1"), Lease("lab", "02:00:00:00:00:01")

    async def main() -> None:
        changed = definition("web", memory="2G")
        async with asyncio.TaskGroup() as group:
            group.create_task(inventory.update("web", changed, Origin.FILE))
            group.create_task(inventory.pin("web", pin))
            group.create_task(inventory.lease("web", lease))

    asyncio.run(main())
    for record in (records.find("web"), make(tmp_path).find("web")):
        assert record is not None
        assert (record.definition.memory, record.pin, record.lease) == (2 * 1024**3, pin, lease)


def test_two_vms_that_are_made_at_once_have_two_uids_and_one_name_is_given_once(tmp_path: Path) -> None:
    inventory = make(tmp_path).inventory

    async def main() -> None:
        names = ("a", "b", "b", "c")
        made = [inventory.add(definition(name), Origin.API) for name in names]
        results = await asyncio.gather(*made, return_exceptions=True)
        assert [type(result) for result in results].count(AlreadyExists) == 1

    asyncio.run(main())
    assert len({record.uid for record in inventory}) == 3


def test_a_vm_that_is_gone_is_not_written(tmp_path: Path) -> None:
    records = make(tmp_path)
    records.add(definition("web"), Origin.API)
    records.remove("web")
    with pytest.raises(NotFound):
        records.update("web", definition("web"), Origin.FILE)
    assert list((tmp_path / "vms").iterdir()) == []
