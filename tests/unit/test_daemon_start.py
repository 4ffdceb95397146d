# SPDX-License-Identifier: Apache-2.0
"""The daemon serves, whatever it finds when it starts: it deletes nothing of it, and says what is wrong."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from hypemand.config.host import HostConfig
from hypemand.config.vmdef import parse_definition
from hypemand.daemon import Daemon
from hypemand.manager.inventory import Inventory
from hypemand.manager.recovery import recover_vms
from hypemand.manager.uids import Uids
from hypemand.model.state import Origin
from hypemand.storage.store import ImageStore
from hypemand.storage.volumes import VolumeStore
from hypemand.systemd.bus import SystemBus
from hypemand.systemd.dbuslib import DBusBaseError
from tests.unit.systemd.busthread import in_thread

# of what comes at once: a busy machine may need a while
DEADLINE = 60.0
MIB = 1024 * 1024
DEEP = b"[" * 200_000
NUMBERS = b'{"id": 5, "uid": "x", "origin": "api", "created_at": null, "definition": 7, "name": []}'


class Notified:
    """What the daemon has told systemd of itself."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.socket.bind(str(path))
        self._said: list[str] = []

    def read(self) -> list[str]:
        with suppress(BlockingIOError):
            while True:
                self._said.append(self.socket.recv(4096).decode())
        return self._said


@pytest.fixture(autouse=True)
def notified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Notified]:
    """Each test sees that the daemon gets ready."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    told = Notified(tmp_path / "notify")
    with told.socket:
        yield told
        assert "READY=1" in told.read()


class Systemd:
    """A bus on which systemd has no unit of ours. `wait`: each call waits for it first."""

    def __init__(self) -> None:
        self.wait = threading.Event()
        self.wait.set()
        self.ours, self.theirs = socket.socketpair()

    def open(self) -> Any:
        self.wait.wait(DEADLINE)
        return self

    def call_method(self, _service: bytes, _path: bytes, _interface: bytes, method: bytes, _args: Any) -> Any:
        self.wait.wait(DEADLINE)
        if method == b"GetUnit":
            raise DBusBaseError(-errno.ENOENT)
        return self

    @property
    def body(self) -> list[Any]:
        return []

    def is_empty(self) -> bool:
        return True

    def process(self) -> Systemd:
        return self

    def get_fd(self) -> int:
        return self.ours.fileno()

    def close(self) -> None:
        """The test does."""


class Host:
    """A host in a folder, with a VM `good` and a volume `data` that nothing is wrong with."""

    def __init__(self, folder: Path) -> None:
        self.config = HostConfig(
            state_dir=folder / "state",
            runtime_dir=folder / "run",
            vm_dir=folder / "vms.d",
            image_dirs=(folder / "images",),
            networks={},
        )
        self.state, self.run, self.vm_dir = self.config.state_dir, self.config.runtime_dir, self.config.vm_dir
        for place in (self.state, self.run, self.vm_dir, folder / "images"):
            place.mkdir()
        self.userdb = folder / "userdb"
        inventory = Inventory(self.state / "vms", Uids(self.config.uid_range, self.userdb))
        inventory.load()
        definition = parse_definition("good", {"image": "builtin:busybox", "network": "none"})
        asyncio.run(inventory.add(definition, Origin.API))
        volumes = VolumeStore(self.state / "volumes", self.state / "templates")
        volumes.load()
        volumes.create("data", 16 * MIB, {})
        ImageStore(self.state / "images").prepare()
        self.systemd = Systemd()

    async def start(self, scenario: Callable[[aiohttp.ClientSession], Awaitable[None]]) -> None:
        """Run the daemon, and `scenario` with a client of it once it serves."""
        daemon = Daemon(
            self.config,
            bus=SystemBus(in_thread(self.systemd.open)),
            load=lambda: self.config,
            userdb=self.userdb,
        )
        running = asyncio.create_task(daemon.run())
        connector = aiohttp.UnixConnector(str(self.run / "api.sock"))
        try:
            async with asyncio.timeout(DEADLINE), aiohttp.ClientSession(connector=connector) as client:
                await _until_served(running, client)
                await scenario(client)
        finally:
            self.systemd.wait.set()
            daemon.stop()
            await running
            self.systemd.ours.close()
            self.systemd.theirs.close()


async def _until_served(running: asyncio.Task[None], client: aiohttp.ClientSession) -> None:
    while True:
        with suppress(aiohttp.ClientConnectionError):
            async with client.get("http://d/health") as answer:
                assert answer.status == 200
                return
        done, _ = await asyncio.wait([running], timeout=0.02)
        for task in done:
            task.result()
            raise AssertionError("the daemon has ended")


async def get(client: aiohttp.ClientSession, path: str) -> Any:
    async with client.get(f"http://d{path}") as answer:
        assert answer.status == 200, await answer.text()
        return await answer.json()


async def names(client: aiohttp.ClientSession, path: str = "/instances") -> list[str]:
    return [item["name"] for item in await get(client, path)]


def snapshot(folder: Path) -> set[str]:
    """All that is below a folder, and what it is."""
    return {f"{path.relative_to(folder)} {path.lstat().st_mode:o}" for path in folder.rglob("*")}


# garbage


def put_garbage(path: Path, kind: str) -> None:
    """Something else in place of what `path` should be, or beside it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    match kind:
        case "empty":
            path.touch()
        case "binary":
            path.write_bytes(os.urandom(4096))
        case "deep":
            path.write_bytes(DEEP)
        case "numbers":
            path.write_bytes(NUMBERS)
        case "folder":
            path.mkdir()
            (path / "x").touch()
        case "locked":
            path.write_text("{}")
            path.chmod(0)
        case "dangling":
            path.symlink_to("nowhere")
        case "loop":
            path.symlink_to(path.name)
        case "fifo":
            os.mkfifo(path)
        case "socket":
            with socket.socket(socket.AF_UNIX) as listener:
                here = os.open(path.parent, os.O_PATH)
                listener.bind(f"/proc/self/fd/{here}/{path.name}")
                os.close(here)
        case "endless":
            path.symlink_to("/dev/zero")


KINDS = (
    "empty", "binary", "deep", "numbers", "folder", "locked", "dangling", "loop", "fifo", "socket", "endless"
)  # fmt: skip
# in place of a file that is read
FILES = (
    "state/vms/bad/vm.json",
    "state/vms/good/boot.json",
    "state/vms/good/exit.json",
    "state/vms/good/run.json",
    "state/vms/good/port.json",
    "state/volumes/bad/volume.json",
    "state/volumes/bad/volume.ext4",
    "state/images/names.json",
    "state/images/bad/image.json",
    "state/tokens.json",
    "run/hosts",
    "vms.d/bad.yaml",
)
# in a folder that is read
ENTRIES = ("state/vms/bad", "state/volumes/bad", "state/images/bad", "images/bad", "vms.d/bad", "userdb/bad")
# in place of a folder that is read
FOLDERS = ("state/vms", "state/volumes", "state/images", "state/templates", "run/vms", "run/root", "vms.d")


@pytest.mark.parametrize("kind", KINDS)
def test_garbage_in_place_of_any_file_keeps_nothing_from_working_and_is_kept(
    tmp_path: Path, kind: str, notified: Notified
) -> None:
    host = Host(tmp_path)
    for name in FILES:
        put_garbage(tmp_path / name, kind)
    # what a VM that does not run leaves of its run is removed, and what the host knows of VMs is written anew
    given_up = ("state/vms/good/run.json", "state/vms/good/port.json", "run/")
    before = {entry for entry in snapshot(tmp_path) if not entry.startswith(given_up)}

    async def scenario(client: aiohttp.ClientSession) -> None:
        assert "good" in await names(client)
        assert "data" in await names(client, "/volumes")
        await get(client, "/images")

        async with client.get("http://d/tokens") as answer:
            # a link that leads nowhere is no file
            assert answer.status == (200 if kind == "dangling" else 503)
            assert kind == "dangling" or "tokens.json" in (await answer.json())["message"]
        async with client.get("http://d/instances/bad") as answer:
            assert answer.status == 404
            assert "the record of VM bad cannot be read" in (await answer.json())["message"]

    asyncio.run(host.start(scenario))
    assert any("1 with unreadable records" in line for line in notified.read())
    assert before - snapshot(tmp_path) == set()


@pytest.mark.parametrize("kind", KINDS)
def test_garbage_among_the_entries_of_any_folder_keeps_nothing_from_working_and_is_kept(
    tmp_path: Path, kind: str
) -> None:
    host = Host(tmp_path)
    for name in ENTRIES:
        put_garbage(tmp_path / name, kind)
    before = {entry for entry in snapshot(tmp_path) if not entry.startswith("run/")}

    async def scenario(client: aiohttp.ClientSession) -> None:
        assert "good" in await names(client)
        assert await names(client, "/volumes") == ["data"]

    asyncio.run(host.start(scenario))
    assert before - snapshot(tmp_path) == set()


@pytest.mark.parametrize("place", FOLDERS)
@pytest.mark.parametrize("kind", ["empty", "dangling", "loop", "fifo"])
def test_something_else_in_place_of_any_folder_keeps_the_daemon_from_nothing_but_that(
    tmp_path: Path, place: str, kind: str
) -> None:
    host = Host(tmp_path)
    put_garbage(tmp_path / place, kind)

    async def scenario(client: aiohttp.ClientSession) -> None:
        assert await names(client) == ([] if place == "state/vms" else ["good"])
        assert await names(client, "/volumes") == ([] if place == "state/volumes" else ["data"])

    asyncio.run(host.start(scenario))
    assert (tmp_path / place).is_symlink() or not (tmp_path / place).is_dir()


def test_a_state_folder_that_is_none_is_no_reason_not_to_serve(tmp_path: Path) -> None:
    host = Host(tmp_path)
    shutil.rmtree(host.state)
    host.state.touch()

    async def scenario(client: aiohttp.ClientSession) -> None:
        assert await names(client) == []
        async with client.post("http://d/instances", json={"name": "a", "image": "x"}) as answer:
            assert answer.status >= 400

    asyncio.run(host.start(scenario))


# failures, and what hangs


@contextmanager
def failing(patch: pytest.MonkeyPatch, owner: Any, name: str, error: Exception) -> Iterator[list[None]]:
    """A function that fails in this block; who asked is counted."""
    asked: list[None] = []

    def fail(*_args: object, **_keys: object) -> None:
        asked.append(None)
        raise error

    with patch.context() as inner:
        inner.setattr(owner, name, fail)
        yield asked


STEPS: tuple[tuple[str, str], ...] = (
    ("hypemand.manager.inventory.Inventory", "load"),
    ("hypemand.manager.inventory.Inventory", "clean_up"),
    ("hypemand.storage.volumes.VolumeStore", "load"),
    ("hypemand.storage.volumes.VolumeStore", "clean_up"),
    ("hypemand.storage.store.ImageStore", "prepare"),
    ("hypemand.manager.recovery", "make_root"),
    ("hypemand.vm.runfiles", "load_notes"),
    ("hypemand.vm.vm.Vm", "recover"),
    ("hypemand.manager.net.allocation.AddressAllocation", "recover"),
    ("hypemand.manager.reload", "load_vm_dir"),
    ("hypemand.daemon", "has_leftovers"),
    ("hypemand.systemd.bus.SystemBus", "start_signals"),
    ("hypemand.systemd.units.Units", "list_vms"),
    ("hypemand.api.listener.Listener", "apply"),
)


def find_owner(dotted: str) -> Any:
    module, _, last = dotted.rpartition(".")
    if last[0].isupper():
        return getattr(__import__(module, fromlist=[last]), last)
    return __import__(dotted, fromlist=["_"])


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), RuntimeError("not foreseen")])
@pytest.mark.parametrize(("owner", "name"), STEPS)
def test_a_step_of_the_start_that_fails_is_logged_and_the_daemon_serves(
    tmp_path: Path,
    owner: str,
    name: str,
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    host = Host(tmp_path)
    before = snapshot(host.state)

    async def scenario(client: aiohttp.ClientSession) -> None:
        await get(client, "/instances")
        while not asked:  # noqa: ASYNC110 - what comes after READY
            await asyncio.sleep(0.01)

    with failing(monkeypatch, find_owner(owner), name, error) as asked:
        asyncio.run(host.start(scenario))
    assert str(error) in caplog.text
    assert before - snapshot(host.state) == set()


def test_while_the_records_hang_requests_are_refused_and_then_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host(tmp_path)
    goes_on = threading.Event()
    load = Inventory.load

    def hang(inventory: Inventory) -> None:
        goes_on.wait(DEADLINE)
        load(inventory)

    monkeypatch.setattr(Inventory, "load", hang)
    monkeypatch.setattr("hypemand.daemon._BEGIN_DEADLINE", 0.1)

    async def scenario(client: aiohttp.ClientSession) -> None:
        async with client.get("http://d/instances") as answer:
            assert answer.status == 503
            assert "the list of VMs is not available yet" in (await answer.json())["message"]
        goes_on.set()
        while True:
            async with client.get("http://d/instances") as answer:
                if answer.status == 200:
                    assert [vm["name"] for vm in await answer.json()] == ["good"]
                    return
            await asyncio.sleep(0.01)

    asyncio.run(host.start(scenario))


def test_a_bus_that_does_not_answer_makes_vms_unknown_until_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, notified: Notified
) -> None:
    host = Host(tmp_path)
    runtime = host.run / "vms/good"
    runtime.mkdir(parents=True)
    host.systemd.wait.clear()
    monkeypatch.setattr("hypemand.daemon._BUS_DEADLINE", 0.1)
    monkeypatch.setattr(recover_vms, "__defaults__", (0.1,))

    async def scenario(_client: aiohttp.ClientSession) -> None:
        while "READY=1" not in (said := notified.read()):  # noqa: ASYNC110 - it is another's socket
            await asyncio.sleep(0.01)
        assert said[-2:] == ["STATUS=VMs: 1 Unknown", "READY=1"]
        assert runtime.is_dir(), "it may run"
        host.systemd.wait.set()
        while notified.read()[-1] != "STATUS=VMs: 1 Stopped":  # noqa: ASYNC110 - likewise
            await asyncio.sleep(0.01)
        while runtime.exists():  # noqa: ASYNC110 - likewise
            await asyncio.sleep(0.01)

    asyncio.run(host.start(scenario))
