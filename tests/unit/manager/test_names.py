# SPDX-License-Identifier: Apache-2.0
"""Names of VMs: what the host and each guest know, and how that is kept so."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from hypemand.errors import GuestError, HypemandError
from hypemand.manager.net import names as module
from hypemand.manager.net.names import (
    Names,
    derive_guest_names,
    derive_host_names,
    format_hosts,
    replace_block,
    set_guest_names,
)
from hypemand.model.files import CopyIn, CopyOut, FileInfo, FileKind, Hole
from hypemand.model.networks import OPEN_GROUP, Member
from hypemand.protocol.configdisk import MAX_HOSTS, GuestHost
from tests.unit.agent.support import in_loop

IMAGE = b"127.0.0.1\tlocalhost\n"


def member(vm: str, number: int, group: str | None = "g", *, network: str = "default") -> Member:
    v4, v6 = IPv4Address(f"10.0.{number // 256}.{number % 256}"), IPv6Address(f"fd00::{number}")
    return Member(vm, f"id-{vm}", network, f"52:54:00:00:00:{number % 256:02x}", v4, v6, group, True)


def lines(vm: str, number: int) -> tuple[GuestHost, GuestHost]:
    known = (vm, f"{vm}.hypeman")
    return GuestHost(f"10.0.0.{number}", known), GuestHost(f"fd00::{number}", known)


def block(*hosts: GuestHost) -> bytes:
    return b"# BEGIN hypemand\n" + format_hosts(hosts) + b"# END hypemand\n"


# what is to be known


def test_the_host_knows_the_vms_that_are_on_their_networks() -> None:
    members = [member("web", 3, None), member("db", 2), replace(member("off", 4), attached=False)]
    assert derive_host_names(members) == (*lines("db", 2), *lines("web", 3))
    assert format_hosts(derive_host_names(members[:1])) == (
        b"10.0.0.3\tweb web.hypeman\nfd00::3\tweb web.hypeman\n"
    )
    of_a_client = replace(member("wpad", 7), short_name=False)
    assert [host.names for host in derive_host_names([of_a_client])] == [("wpad.hypeman",)] * 2
    v6_only = replace(member("six", 6), ipv4=None)
    assert derive_host_names([v6_only]) == lines("six", 6)[1:]


def test_the_hosts_own_name_is_no_vms() -> None:
    found = derive_host_names([member("box", 2, None), member("localhost", 3, None)], own="box")
    assert [line.names for line in found] == [("box.hypeman",)] * 2 + [("localhost.hypeman",)] * 2


def test_a_guest_knows_itself_and_its_group_on_its_network() -> None:
    members = [
        member("web", 3),
        member("db", 2),
        replace(member("off", 4), attached=False),
        member("lone", 5, None),
        member("lone2", 6, None),
        member("open", 9, OPEN_GROUP),
        member("open2", 10, OPEN_GROUP),
        member("other", 7, "h"),
        member("far", 8, network="lan"),
    ]
    names = derive_guest_names(members)
    assert names["web"] == (*lines("web", 3), *lines("db", 2), *lines("off", 4))
    assert names["off"] == (*lines("off", 4), *lines("db", 2), *lines("web", 3))
    assert names["lone"] == lines("lone", 5)
    assert names["open"] == lines("open", 9)
    assert names["other"] == lines("other", 7)
    assert names["far"] == lines("far", 8)
    assert derive_guest_names(reversed(members)) == names


def test_a_guest_of_a_large_group_knows_itself_and_as_many_as_it_can_be_told() -> None:
    members = [replace(member(f"vm{number:05}", number), ipv6=None) for number in range(MAX_HOSTS + 10)]
    names = derive_guest_names(members)
    assert {len(hosts) for hosts in names.values()} == {MAX_HOSTS}
    assert names[members[-1].vm][0].names[0] == members[-1].vm


# the block

DB = lines("db", 2)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"", block(*DB)),
        (b"a\n", b"a\n" + block(*DB)),
        (b"a", b"a\n" + block(*DB)),
        (b"a\n" + block(*lines("old", 9)) + b"b\r\nc", b"a\n" + block(*DB) + b"b\r\nc"),
        (block() + b"b\n" + block(*DB) + b"c", block(*DB) + b"b\nc"),
        (block(*DB)[:-1], block(*DB)),
        (b"# BEGIN hypemand\nx\n", block(*DB) + b"x\n"),
        (b"# END hypemand\n", b"# END hypemand\n" + block(*DB)),
        (b" # BEGIN hypemand\n# END hypemand \n", b" # BEGIN hypemand\n# END hypemand \n" + block(*DB)),
        (b"# BEGIN hypemand\r\n# END hypemand\n", b"# BEGIN hypemand\r\n# END hypemand\n" + block(*DB)),
        (b"\xff\0\n", b"\xff\0\n" + block(*DB)),
        (b"\n\n", b"\n\n" + block(*DB)),
    ],
)
def test_the_block_is_replaced_and_nothing_else(old: bytes, new: bytes) -> None:
    """The cases of `test_hosts` in tests/guest/unit.c: both sides read the same file."""
    assert replace_block(old, DB) == new
    assert replace_block(new, DB) == new


def test_without_names_there_is_no_block() -> None:
    assert replace_block(b"a\n" + block(*DB) + b"b", ()) == b"a\nb"
    assert replace_block(b"a", ()) == b"a"
    assert replace_block(b"", ()) == b""


@pytest.mark.parametrize(
    "line", [b"# BEGIN hypemand\n", b"# END hypemand\n", b"\n", b"# BEGIN hypemand\n# END hypemand\n"]
)
def test_what_a_guest_writes_does_not_hold_the_daemon_up(line: bytes) -> None:
    hostile = line * (1024 * 1024 // len(line))
    begun = time.monotonic()
    replace_block(hostile, DB)
    assert time.monotonic() - begun < 1


# guests


@dataclass
class File:
    content: bytes
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    kind: FileKind = FileKind.FILE
    target: str | None = None
    claimed_size: int | None = None


@dataclass
class FakeGuest:
    """A guest's files. `refuse`: raised by all copies; `gate`: they wait for it; `writes` counts."""

    files: dict[str, File]
    boot: str | None = "boot-1"
    refuse: Exception | None = None
    gate: asyncio.Event | None = None
    writes: int = 0
    reads: int = 0

    @property
    def hosts(self) -> bytes:
        return self.files["/etc/hosts"].content


class FakeOut:
    def __init__(self, file: File, path: str) -> None:
        self._file, self._path = file, path

    async def events(self) -> AsyncIterator[FileInfo | bytes | Hole]:
        yield info_of(self._file, "")
        half = len(self._file.content) // 2
        yield self._file.content[:half]
        yield self._file.content[half:]

    async def close(self) -> None:
        pass


class FakeIn:
    def __init__(self, guest: FakeGuest, path: str) -> None:
        self._guest, self._path = guest, path
        self._entry: FileInfo | None = None
        self._content = b""

    async def add(self, entry: FileInfo) -> None:
        assert (entry.path, entry.kind) == ("", FileKind.FILE)
        self._entry = entry

    async def write(self, data: bytes) -> None:
        self._content += data

    async def skip(self, hole: Hole) -> None:
        raise NotImplementedError

    async def finish(self) -> int:
        entry = self._entry
        assert entry is not None
        assert len(self._content) == entry.size
        self._guest.files[self._path] = File(self._content, entry.mode, entry.uid, entry.gid)
        self._guest.writes += 1
        return entry.size

    async def close(self) -> None:
        pass


def info_of(file: File, path: str) -> FileInfo:
    size = len(file.content) if file.claimed_size is None else file.claimed_size
    return FileInfo(path, file.kind, file.mode, file.uid, file.gid, size, 0, file.target)


@dataclass
class FakeGuests:
    """Guests by their VMs' names; implements `hypemand.manager.net.names.Guests`."""

    all: dict[str, FakeGuest] = field(default_factory=dict)
    at_once: int = 0
    most_at_once: int = 0

    def add(self, vm: str, hosts: bytes = IMAGE) -> FakeGuest:
        self.all[vm] = FakeGuest({"/etc/hosts": File(hosts)})
        return self.all[vm]

    def running_boot(self, vm: str) -> str | None:
        return self.all[vm].boot if vm in self.all else None

    async def _reach(self, vm: str) -> FakeGuest:
        guest = self.all[vm]
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(0)
            if guest.gate is not None:
                await guest.gate.wait()
        finally:
            self.at_once -= 1
        if guest.refuse is not None:
            raise guest.refuse
        return guest

    async def stat_path(self, ref: str, path: str, *, follow: bool = False) -> FileInfo | None:
        file = (await self._reach(ref)).files.get(path)
        return None if file is None else info_of(file, path)

    async def copy_out(self, ref: str, path: str, *, follow: bool = False) -> CopyOut:
        guest = await self._reach(ref)
        guest.reads += 1
        return FakeOut(guest.files[path], path)

    async def copy_in(self, ref: str, path: str) -> CopyIn:
        return FakeIn(await self._reach(ref), path)


@pytest.fixture
def guests() -> FakeGuests:
    return FakeGuests()


@in_loop
async def test_a_guests_file_keeps_its_mode_and_owner_and_its_place(guests: FakeGuests) -> None:
    guest = guests.add("web")
    guest.files["/etc/hosts"] = File(b"", kind=FileKind.SYMLINK, target="../data/hosts")
    guest.files["/etc/../data/hosts"] = File(b"x", kind=FileKind.SYMLINK, target="/srv/h")
    guest.files["/srv/h"] = File(IMAGE, 0o600, 7, 8)
    await set_guest_names(guests, "web", DB)
    assert guest.files["/srv/h"] == File(IMAGE + block(*DB), 0o600, 7, 8)
    assert guest.files["/etc/hosts"].kind is FileKind.SYMLINK
    await set_guest_names(guests, "web", DB)
    assert (guest.writes, guest.reads) == (1, 2)


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (None, "no '/etc/hosts'"),
        (File(b"", kind=FileKind.DIRECTORY), "not a file but a directory"),
        (File(b"", kind=FileKind.FIFO), "not a file but a fifo"),
        (File(b"", claimed_size=1024 * 1024 + 1), "is not changed if"),
        (File(b"", kind=FileKind.SYMLINK, target="/etc/hosts"), "too many links"),
    ],
)
@in_loop
async def test_what_is_no_file_of_names_is_left_alone(
    guests: FakeGuests, file: File | None, words: str
) -> None:
    guest = guests.add("web")
    guest.files = {} if file is None else {"/etc/hosts": file}
    with pytest.raises(GuestError, match=words):
        await set_guest_names(guests, "web", DB)
    assert guest.writes == 0


# keeping it so


@dataclass
class Scene:
    names: Names
    guests: FakeGuests
    path: Path
    members: list[Member]

    async def settle(self) -> None:
        """Until nothing is under way."""
        for _ in range(200):
            await asyncio.sleep(0)
        await asyncio.gather(*(t for t in asyncio.all_tasks() if t.get_name() == "names of the host"))

    async def change(self, *members: Member) -> None:
        self.members[:] = members
        self.names.members_changed()
        await self.settle()


@pytest.fixture
def scene(tmp_path: Path, guests: FakeGuests) -> Scene:
    members: list[Member] = []
    return Scene(
        Names(tmp_path / "hosts", lambda: tuple(members), guests), guests, tmp_path / "hosts", members
    )


def host_file(*hosts: GuestHost) -> bytes:
    return b"# VMs that run, for libnss-hypemand; written by hypemand\n" + format_hosts(hosts)


@in_loop
async def test_the_hosts_file_follows_and_is_written_only_if_it_changes(scene: Scene) -> None:
    scene.names.states_changed()
    await scene.settle()
    assert not scene.path.exists()
    await scene.change(member("web", 3, None))
    assert scene.path.read_bytes() == host_file(*lines("web", 3))
    assert scene.path.stat().st_mode & 0o777 == 0o644
    before = scene.path.stat().st_ino
    await scene.change(member("web", 3, None), replace(member("off", 4), attached=False))
    assert scene.path.stat().st_ino == before
    await scene.change()
    assert scene.path.read_bytes() == host_file()


@in_loop
async def test_another_daemon_leaves_a_file_that_is_right(scene: Scene) -> None:
    scene.path.write_bytes(host_file(*lines("web", 3)))
    before = scene.path.stat().st_ino
    await scene.change(member("web", 3, None))
    assert scene.path.stat().st_ino == before


@in_loop
async def test_a_guest_that_was_told_at_its_boot_is_not_asked(scene: Scene) -> None:
    guest = scene.guests.add("web")
    wanted = derive_guest_names([member("web", 3), member("db", 2)])["web"]
    scene.names.set_disk("web", wanted)
    await scene.change(member("web", 3), member("db", 2))
    assert guest.reads == 0


@in_loop
async def test_who_was_there_first_learns_who_comes_later_and_who_goes(scene: Scene) -> None:
    web, db = member("web", 3), member("db", 2)
    guest = scene.guests.add("web", IMAGE + block(*lines("web", 3)))
    scene.names.set_disk("web", lines("web", 3))
    await scene.change(web)
    assert guest.reads == 0
    await scene.change(web, db)
    assert guest.hosts == IMAGE + block(*lines("web", 3), *lines("db", 2))
    await scene.change(web)
    assert guest.hosts == IMAGE + block(*lines("web", 3))
    # one that has stopped keeps its address, and its name
    await scene.change(web, db)
    await scene.change(web, replace(db, attached=False))
    assert (guest.writes, guest.hosts.count(b"db.hypeman")) == (3, 2)


@in_loop
async def test_a_guest_that_is_not_running_is_told_when_it_is(scene: Scene) -> None:
    guest = scene.guests.add("web")
    guest.boot = None
    scene.names.set_disk("web", lines("web", 3))
    await scene.change(member("web", 3), member("db", 2))
    assert guest.reads == 0
    guest.boot = "boot-2"
    scene.names.states_changed()
    await scene.settle()
    assert guest.hosts == IMAGE + block(*lines("web", 3), *lines("db", 2))


@in_loop
async def test_a_vm_that_systemd_restarts_alone_is_told_again(scene: Scene) -> None:
    """Its config disk says what there was when it was started."""
    guest = scene.guests.add("web")
    scene.names.set_disk("web", lines("web", 3))
    await scene.change(member("web", 3), member("db", 2))
    guest.files["/etc/hosts"] = File(IMAGE + block(*lines("web", 3)))
    guest.boot = "boot-2"
    scene.names.states_changed()
    await scene.settle()
    assert guest.hosts == IMAGE + block(*lines("web", 3), *lines("db", 2))


@in_loop
async def test_a_new_daemon_looks_at_the_vms_of_groups_alone(scene: Scene) -> None:
    web, lone = scene.guests.add("web"), scene.guests.add("lone")
    await scene.change(member("web", 3), member("db", 2), member("lone", 5, None))
    assert (web.writes, lone.reads) == (1, 0)


@in_loop
async def test_a_failure_is_told_with_the_vms_name_and_tried_again_at_the_next_change(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    guest = scene.guests.add("web")
    guest.refuse = HypemandError("its disk is full")
    members = (member("web", 3), member("db", 2))
    await scene.change(*members)
    for _ in range(3):
        scene.names.states_changed()
        await scene.settle()
    said = "VM web: cannot update the names of its group: its disk is full"
    assert [record.getMessage() for record in caplog.records] == [said]
    guest.refuse = None
    await scene.change(*members)
    assert guest.writes == 1
    guest.refuse = RuntimeError("a fault of ours")
    await scene.change(*members, member("new", 6))
    assert "a fault of ours" in caplog.text


@in_loop
async def test_a_vm_that_ends_meanwhile_is_no_fault(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    guest = scene.guests.add("web")
    guest.gate, guest.refuse = asyncio.Event(), GuestError("it is gone")
    await scene.change(member("web", 3), member("db", 2))
    guest.boot = None
    guest.gate.set()
    await scene.settle()
    assert caplog.text == ""


@in_loop
async def test_a_guest_that_does_not_answer_is_given_up(
    scene: Scene, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_DEADLINE", 0.01)
    guest = scene.guests.add("web")
    guest.gate = asyncio.Event()
    await scene.change(member("web", 3), member("db", 2))
    words = "VM web: cannot update the names of its group: its agent took more than 0.01 s"
    async with asyncio.timeout(60):
        while words not in caplog.text:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.005)


@in_loop
async def test_the_latest_wins_and_a_vm_is_told_one_thing_at_a_time(scene: Scene) -> None:
    guest = scene.guests.add("web")
    guest.gate = asyncio.Event()
    await scene.change(member("web", 3), member("a", 4))
    await scene.change(member("web", 3), member("b", 5))
    await scene.change(member("web", 3), member("c", 6))
    assert scene.guests.most_at_once == 1
    guest.gate.set()
    await scene.settle()
    assert guest.hosts == IMAGE + block(*lines("web", 3), *lines("c", 6))
    assert (guest.writes, scene.guests.most_at_once) == (2, 1)


@in_loop
async def test_few_guests_are_asked_at_once(scene: Scene) -> None:
    members = [member(f"vm{number}", number) for number in range(1, 21)]
    told = [scene.guests.add(one.vm) for one in members]
    await scene.change(*members)
    await scene.settle()
    assert [guest.writes for guest in told] == [1] * 20
    assert scene.guests.most_at_once == 4


@in_loop
async def test_the_end_of_the_daemon_ends_what_is_under_way(scene: Scene) -> None:
    guest = scene.guests.add("web")
    guest.gate = asyncio.Event()
    await scene.change(member("web", 3), member("db", 2))
    await scene.names.close()
    assert scene.guests.at_once == 0
    scene.names.members_changed()
    await scene.settle()
    assert (guest.writes, scene.path.exists()) == (0, True)
