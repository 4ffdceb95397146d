# SPDX-License-Identifier: Apache-2.0
"""Export and import of VMs: whole, or nothing of it, whatever comes in between."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import io
import json
import os
import tarfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hypemand.config.definition import MIB, Definition
from hypemand.config.vmdef import parse_definition
from hypemand.errors import (
    AlreadyExists,
    HypemandError,
    InsufficientResources,
    InUse,
    InvalidDefinition,
    InvalidRequest,
    NotFound,
    WrongState,
)
from hypemand.manager.images.images import Images
from hypemand.manager.transfer import Transfers
from hypemand.manager.volumes import ApiVolumes
from hypemand.model.images import ImageInfo
from hypemand.model.state import Origin, State
from hypemand.model.transfer import ExportWanted, ImportWanted
from hypemand.storage.images import Image
from hypemand.storage.vmarchive import DISK, ArchiveReader, Discarded
from hypemand.tar import InvalidArchive
from tests.fakes.host import FakeHost, drive
from tests.unit.storage.test_vmarchive import make as pack

SEED = b"what the guest has written" * 100
NETWORK: Mapping[str, Any] = {"name": "default", "mac": "02:00:00:00:00:07", "address": "10.7.0.77"}


def transfers(host: FakeHost) -> Transfers:
    return Transfers(host.parts, ApiVolumes(host.parts, host.manager))


def make(name: str, keys: Mapping[str, object]) -> Definition:
    return parse_definition(name, keys)


async def export(host: FakeHost, name: str = "web", **wanted: Any) -> bytes:
    async with transfers(host).export_vm(name, ExportWanted(**wanted)) as pieces:
        return b"".join([piece async for piece in pieces])


async def pieces_of(data: bytes, step: int = 65536) -> AsyncIterator[bytes]:
    for at in range(0, len(data), step):
        yield data[at : at + step]


async def bring(host: FakeHost, data: bytes, **wanted: Any) -> None:
    await transfers(host).import_vm(ImportWanted(**wanted), pieces_of(data), make)


def write(path: Path, at: int = 8 * MIB) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(SEED)


def read(path: Path, at: int = 8 * MIB) -> bytes:
    with path.open("rb") as file:
        file.seek(at)
        return file.read(len(SEED))


async def put(host: FakeHost, name: str = "web", **keys: Any) -> Path:
    """A stopped VM that has run; its disk."""
    await host.run(name, **keys)
    await host.stop_for_good(name)
    disk = host.vm(name).places.disk
    await asyncio.to_thread(write, disk)
    return disk


async def add_volume(host: FakeHost, name: str) -> Path:
    await ApiVolumes(host.parts, host.manager).create_volume(name, 16 * MIB, {"team": "x"}, None)
    disk = host.parts.volumes.get(name).disk
    await asyncio.to_thread(write, disk)
    return disk


def everything(host: FakeHost) -> dict[str, bytes]:
    """All that lasts on the host, but for templates of disks."""
    state = host.config.state_dir
    files = (path for path in state.rglob("*") if path.is_file() and "templates" not in path.parts)
    return {str(path.relative_to(state)): path.read_bytes() for path in files}


def folders(host: FakeHost) -> set[str]:
    return {str(p) for kind in ("vms", "volumes") for p in (host.config.state_dir / kind).iterdir()}


async def refuse(host: FakeHost, error: type[Exception], words: str, data: bytes, **wanted: Any) -> None:
    """The import is refused, and all is as it was."""
    before, there = everything(host), folders(host)
    with pytest.raises(error, match=words):
        await bring(host, data, **wanted)
    assert (everything(host), folders(host)) == (before, there)
    assert host.parts.fleet._promises == {}


def test_a_clone_has_the_disk_and_an_identity_of_its_own() -> None:
    async def scenario(host: FakeHost) -> None:
        await put(host, network=NETWORK, env={"A": "1"}, tags={"t": "x"})
        old = host.vm().record
        assert old.lease is not None
        await bring(host, await export(host), name="web2")
        vm = host.vm("web2")
        assert vm.state is State.STOPPED
        assert (vm.record.id == old.id, vm.record.uid == old.uid, vm.record.lease) == (False, False, None)
        use = vm.record.definition.network
        assert use is not None
        assert (use.mac, use.address) == (None, None)
        assert replace(vm.record.definition, name="web", network=None) == replace(
            old.definition, network=None
        )
        assert await asyncio.to_thread(read, vm.places.disk) == SEED
        assert vm.places.disk.stat().st_size == 64 * MIB
        assert vm.places.disk.stat().st_blocks * 512 < 16 * MIB
        await host.start("web2")
        await host.start("web")
        assert vm.record.lease is not None
        assert vm.record.lease.mac != old.lease.mac
        assert await asyncio.to_thread(read, vm.places.disk) == SEED

    drive(scenario)


def test_a_vm_that_moves_keeps_its_identity_and_there_is_none_twice() -> None:
    async def scenario(host: FakeHost) -> None:
        await put(host, network="default")
        old = host.vm().record
        assert old.lease is not None
        data = await export(host)
        await refuse(host, AlreadyExists, "VM web already exists", data, keep_identity=True)
        await refuse(host, AlreadyExists, "has the id", data, name="x", keep_identity=True)
        await host.manager.delete_vm("web")
        await host.create("other", network={"name": "default", "mac": old.lease.mac})
        await refuse(host, AlreadyExists, "VM other has the MAC address", data, keep_identity=True)
        await host.manager.delete_vm("other")
        await bring(host, data, keep_identity=True)
        record = host.vm().record
        assert (record.id, record.lease, record.pin) == (old.id, old.lease, old.pin)
        await host.restart_daemon()
        await host.start()
        assert host.vm().record.lease == old.lease

    drive(scenario)


def test_addresses_of_another_network_than_the_definitions_are_left_behind() -> None:
    async def scenario(host: FakeHost) -> None:
        await put(host, network="default")
        record = host.vm().record
        assert record.lease is not None
        await host.parts.records.update("web", replace(record.definition, network=None), Origin.API)
        data = await export(host)
        await host.manager.delete_vm("web")
        await bring(host, data, keep_identity=True)
        assert (host.vm().record.id, host.vm().record.lease) == (record.id, None)

    drive(scenario)


def test_a_vm_that_was_never_started_and_one_without_a_lasting_disk_have_none_in_the_archive() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.create()
        await put(host, "temp", persistent=False)
        for name in ("web", "temp"):
            data = await export(host, name)
            assert len(data) < 16384
            await bring(host, data, name=f"{name}2")
            assert not host.vm(f"{name}2").places.disk.exists()
            await host.start(f"{name}2")

    drive(scenario)


def test_only_a_stopped_vm_is_exported_and_it_is_not_started_meanwhile() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run()
        with pytest.raises(WrongState, match="export needs state Stopped, and web is Running; stop it first"):
            await export(host)
        await host.stop_for_good()
        async with transfers(host).export_vm("web", ExportWanted()) as pieces:
            await anext(pieces)
            for refused in (host.manager.start_vm("web"), host.manager.restart_vm("web"), export(host)):
                with pytest.raises(WrongState, match="it is being exported since"):
                    await refused
            shown = (await host.manager.get_vm("web")).operation
            assert shown is not None
            assert shown.name == "export"
        await host.start()

    drive(scenario)


@pytest.mark.parametrize("what", ["stop", "delete"])
def test_a_stop_or_a_removal_ends_an_export(what: str) -> None:
    async def scenario(host: FakeHost) -> None:
        await put(host)
        vm = host.vm()

        async def read_on(pieces: AsyncIterator[bytes]) -> None:
            async for _ in pieces:
                pass

        async with transfers(host).export_vm("web", ExportWanted()) as pieces:
            await anext(pieces)
            ending: Coroutine[Any, Any, object]
            ending = host.manager.stop_vm("web") if what == "stop" else host.manager.delete_vm("web")
            end = asyncio.create_task(ending)
            current = vm.operations.current
            assert current is not None
            await host.until_true(lambda: current.is_cancelled)
            with pytest.raises(WrongState, match="cancelled by another operation"):
                await read_on(pieces)
            assert not end.done()
        await end
        if what == "delete":
            host.check_gone()
        else:
            await host.start()

    drive(scenario)


def test_volumes_that_are_asked_for_come_along() -> None:
    async def scenario(host: FakeHost) -> None:
        old = await add_volume(host, "data")
        await add_volume(host, "more")
        mounts = [{"volume": "data", "mount_path": "/d"}, {"volume": "more", "mount_path": "/m"}]
        await put(host, volumes=mounts)
        data = await export(host, volumes=("data",))
        await refuse(host, AlreadyExists, "a volume data already exists", data, name="web2")
        await refuse(host, HypemandError, "no volume 'nope'", data, name="x", volumes={"nope": "y"})
        await bring(host, data, name="web2", volumes={"data": "data2"})
        made = host.parts.volumes.get("data2")
        assert (made.ready, made.imported_for, made.size, dict(made.tags)) == (
            True,
            "",
            16 * MIB,
            {"team": "x"},
        )
        assert await asyncio.to_thread(read, made.disk) == SEED
        names = [mount.volume for mount in host.vm("web2").record.definition.volumes]
        assert names == ["data2", "more"]
        with pytest.raises(NotFound, match="is not one of VM web2"):
            await export(host, "web2", volumes=("data",))
        every = await export(host, all_volumes=True)
        both = {"data": "x", "more": "x"}
        await refuse(host, InvalidDefinition, "x is already used", every, name="y", volumes=both)
        for name in ("web", "web2"):
            await host.manager.delete_vm(name)
        ids = {volume.name: volume.id for volume in host.parts.volumes}
        for name in ("data", "data2", "more"):
            await ApiVolumes(host.parts, host.manager).remove_volume(name)
        assert not old.exists()
        await bring(host, every)
        # the overlays of VMs are found by the ids of volumes
        assert {volume.name: volume.id for volume in host.parts.volumes} == {
            name: ids[name] for name in ("data", "more")
        }
        await host.start()

    drive(scenario)


def test_a_volume_is_not_written_to_while_it_is_exported() -> None:
    async def scenario(host: FakeHost) -> None:
        await add_volume(host, "data")
        mount = {"volume": "data", "mount_path": "/d"}
        await put(host, volumes=[mount])
        await host.run("writer", volumes=[mount])
        with pytest.raises(InUse, match="in use by the running VM writer and cannot be exported"):
            await export(host, all_volumes=True)
        await host.stop_for_good("writer")
        await host.run("reader", volumes=[{**mount, "readonly": True}])
        async with transfers(host).export_vm("web", ExportWanted(all_volumes=True)) as pieces:
            with pytest.raises(InUse, match="the volume data is being exported"):
                await host.manager.start_vm("writer")
            async for _ in pieces:
                pass

    drive(scenario)


Spoil = Callable[[bytes], bytes]
SPOILT: dict[str, tuple[Spoil, type[Exception], str]] = {
    "cut off": (lambda data: data[: len(data) // 2], InvalidArchive, "the archive ends in"),
    "cut at the end": (lambda data: data[:-3000], InvalidArchive, "archive"),
    "damaged": (lambda data: data.replace(SEED[:50], b"x" * 50), InvalidArchive, "checksum of disk.ext4"),
    "no archive": (lambda data: b"no" * 1000, InvalidArchive, "not a tar archive"),
    "empty": (lambda data: b"", InvalidArchive, "not complete"),
}


@pytest.mark.parametrize("how", SPOILT)
def test_what_is_damaged_changes_nothing(how: str) -> None:
    async def scenario(host: FakeHost) -> None:
        await add_volume(host, "data")
        await put(host, volumes=[{"volume": "data", "mount_path": "/d"}])
        data = await export(host, all_volumes=True)
        spoil, error, words = SPOILT[how]
        await refuse(host, error, words, spoil(data), name="web2", volumes={"data": "data2"})

    drive(scenario)


def test_a_client_that_goes_away_leaves_nothing() -> None:
    async def scenario(host: FakeHost) -> None:
        await put(host)
        data = await export(host)
        before = folders(host)
        begun = asyncio.Event()

        async def hang() -> AsyncIterator[bytes]:
            yield data[: len(data) // 2]
            begun.set()
            await asyncio.Event().wait()

        work = asyncio.create_task(transfers(host).import_vm(ImportWanted(name="web2"), hang(), make))
        await begun.wait()
        assert len(folders(host)) == len(before) + 1
        work.cancel()
        with suppress(asyncio.CancelledError):
            await work
        assert folders(host) == before

    drive(scenario)


@pytest.mark.parametrize("policy", [{"reserve": 1 << 60}, {"overcommit": 1e-9}])
def test_what_the_host_has_no_room_for_is_refused_before_it_comes(policy: dict[str, Any]) -> None:
    async def scenario(host: FakeHost) -> None:
        await put(host)
        data = await export(host)
        host.parts.config.replace(replace(host.config, disk=replace(host.config.disk, **policy)))
        await refuse(host, InsufficientResources, "import of VM web2", data, name="web2")

    drive(scenario)


def test_a_disk_that_is_full_in_the_middle_is_named_and_nothing_is_left() -> None:
    async def scenario(host: FakeHost) -> None:
        await put(host)
        data = await export(host)
        before = folders(host)

        async def pieces() -> AsyncIterator[bytes]:
            yield data[: len(data) // 2]
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with pytest.raises(InsufficientResources, match="no space left to import a VM: the file system"):
            await transfers(host).import_vm(ImportWanted("x"), pieces(), make)
        assert folders(host) == before

    drive(scenario)


def test_a_volume_whose_file_is_missing_is_not_left_out() -> None:
    async def scenario(host: FakeHost) -> None:
        disk = await add_volume(host, "data")
        await put(host, volumes=[{"volume": "data", "mount_path": "/d"}])
        await asyncio.to_thread(disk.unlink)
        with pytest.raises(FileNotFoundError, match=r"volume\.ext4"):
            await export(host, all_volumes=True)
        await export(host)

    drive(scenario)


def test_of_two_imports_under_one_name_one_is_whole_and_nothing_is_left_of_the_other() -> None:
    async def scenario(host: FakeHost) -> None:
        await add_volume(host, "data")
        await put(host, volumes=[{"volume": "data", "mount_path": "/d"}])
        data = await export(host, all_volumes=True)
        wanted = [ImportWanted("web2", volumes={"data": name}) for name in ("data2", "data3")]
        ended = await asyncio.gather(
            *(transfers(host).import_vm(one, pieces_of(data, 4096), make) for one in wanted),
            return_exceptions=True,
        )
        (error,) = [one for one in ended if isinstance(one, BaseException)]
        assert isinstance(error, AlreadyExists)
        (mount,) = host.vm("web2").record.definition.volumes
        assert {volume.name for volume in host.parts.volumes} == {"data", mount.volume}
        assert not [path for path in folders(host) if Path(path).name.startswith(".")]
        await host.start("web2")

    drive(scenario)


@pytest.mark.parametrize("name", [f"app@sha256:{'ab' * 32}", "oci:/srv/app", "builtin:app"])
def test_no_archive_says_what_stands_behind_a_digest_or_a_path(name: str) -> None:
    async def scenario(host: FakeHost) -> None:
        await host.create(image="builtin:app")
        data = await export(host)
        definition = replace(host.vm().record.definition, image=name)
        parts = dict(_members(data))
        manifest = json.loads(parts["manifest.json"])
        manifest["image"] = {"name": name, "digest": "", "included": True}
        parts["manifest.json"] = json.dumps(manifest).encode()
        del parts["SHA256SUMS"]
        hostile = pack([*((member, text, None) for member, text in parts.items()), ("image.tar", b"x", None)])

        def make_it(name: str, _: Mapping[str, object]) -> Definition:
            return replace(definition, name=name)

        with pytest.raises(InvalidRequest, match="cannot be in an archive"):
            await transfers(host).import_vm(ImportWanted("b"), pieces_of(hostile), make_it)

    drive(scenario)


def _members(data: bytes) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive:
            file = archive.extractfile(member)
            assert file is not None
            yield member.name, file.read()


def test_an_image_that_is_named_by_its_digest_is_not_exported() -> None:
    async def scenario(host: FakeHost) -> None:
        name = f"docker.io/library/app@sha256:{'ab' * 32}"
        host.add_image(name)
        await host.create(image=name)
        with pytest.raises(InvalidRequest, match="cannot be in an archive"):
            await export(host, image=True)
        await export(host)

    drive(scenario)


class Carried(Images):
    """An image store whose archives are a few bytes."""

    def __init__(self, host: FakeHost) -> None:
        super().__init__(host.parts.images.store, host.daemon.pulls, host.parts.fleet.image_uses)
        self._host = host
        self.brought: list[bytes] = []

    @asynccontextmanager
    async def export_content(self, image: Image) -> AsyncIterator[Path]:
        path = self._host.folder / "packed.tar"
        await asyncio.to_thread(path.write_bytes, f"content of {image.name}".encode())
        yield path
        await asyncio.to_thread(path.unlink)

    async def import_image(self, name: str, path: str) -> ImageInfo:
        self.brought.append(await asyncio.to_thread(Path(path).read_bytes))
        await asyncio.to_thread(self._host.add_image, name)
        await asyncio.to_thread(self.store.bind, name, self._digest(name))
        return await self.get_image(name)

    @staticmethod
    def _digest(name: str) -> str:
        return f"sha256:{hashlib.sha256(name.encode()).hexdigest()}"


def test_an_image_that_is_asked_for_comes_along_and_goes_with_an_import_that_fails() -> None:
    async def scenario(host: FakeHost) -> None:
        images = Carried(host)
        carrier = Transfers(replace(host.parts, images=images), ApiVolumes(host.parts, host.manager))
        name = "docker.io/library/app:1"
        await asyncio.to_thread(host.add_image, name)
        await asyncio.to_thread(images.store.bind, name, images._digest(name))
        await put(host, image=name)
        old = host.vm().record
        async with carrier.export_vm("web", ExportWanted(image=True)) as pieces:
            data = b"".join([piece async for piece in pieces])
        # what the VM keeps to is here already
        await carrier.import_vm(ImportWanted("same"), pieces_of(data), make)
        assert (images.brought, host.vm("same").record.pin) == ([], old.pin)
        for vm in ("web", "same"):
            await host.manager.delete_vm(vm)
        await images.remove_image(name)

        async def raced() -> AsyncIterator[bytes]:
            yield data
            await host.create("b")

        with pytest.raises(AlreadyExists):
            await carrier.import_vm(ImportWanted("b"), raced(), make)
        assert len(images.brought) == 1
        assert await asyncio.to_thread(images.store.find_image, name) is None
        await carrier.import_vm(ImportWanted("c"), pieces_of(data), make)
        assert images.brought[1:] == [f"content of {name}".encode()]
        assert host.vm("c").record.pin == old.pin
        assert not (host.vm("c").places.state / "image.tar").exists()
        await host.start("c")

    drive(scenario)


def test_an_import_leaves_another_one_of_the_same_id_alone() -> None:
    async def scenario(host: FakeHost) -> None:
        await put(host)
        data = await export(host)
        await host.manager.delete_vm("web")
        go_on = asyncio.Event()

        async def slow() -> AsyncIterator[bytes]:
            yield data[: len(data) // 2]
            await go_on.wait()
            yield data[len(data) // 2 :]

        first = asyncio.create_task(transfers(host).import_vm(ImportWanted("a", True), slow(), make))
        await host.until_true(lambda: len(folders(host)) == 1)
        with pytest.raises(WrongState, match="under way already"):
            await bring(host, data, name="b", keep_identity=True)
        go_on.set()
        assert (await first).name == "a"
        await host.start("a")

    drive(scenario)


def test_a_definition_that_is_not_valid_or_not_allowed_is_refused() -> None:
    async def scenario(host: FakeHost) -> None:
        await put(host)
        data = await export(host)
        await refuse(host, InvalidDefinition, "memory", _edit(data, '"96M"', '"96X"'), name="web2")
        await refuse(host, InvalidDefinition, "name", data, name="../x")

    drive(scenario)


def _edit(data: bytes, old: str, new: str) -> bytes:
    """An archive with another text of the same length in its definition."""
    assert len(old) == len(new)
    assert old.encode() in data
    return data.replace(old.encode(), new.encode(), 1)


def test_a_disk_without_a_file_system_is_refused() -> None:
    async def scenario(host: FakeHost) -> None:
        disk = await put(host)
        with disk.open("r+b") as file:
            file.write(os.urandom(8192))
        await refuse(host, InvalidArchive, "no ext4 file system", await export(host), name="web2")

    drive(scenario)


def test_a_name_that_is_taken_meanwhile_leaves_nothing_of_the_import() -> None:
    async def scenario(host: FakeHost) -> None:
        await add_volume(host, "data")
        await put(host, volumes=[{"volume": "data", "mount_path": "/d"}])
        data = await export(host, all_volumes=True)

        async def pieces() -> AsyncIterator[bytes]:
            yield data
            await host.create("web2")

        volumes = {"data": "data2"}
        wanted = ImportWanted(name="web2", volumes=volumes)
        with pytest.raises(AlreadyExists, match="web2 already exists"):
            await transfers(host).import_vm(wanted, pieces(), make)
        assert host.parts.volumes.find("data2") is None
        names = {Path(path).name for path in folders(host)}
        assert names == {"web", "web2", host.parts.volumes.get("data").id}

    drive(scenario)


@pytest.mark.parametrize("is_there", [True, False])
def test_after_a_crash_the_volumes_of_an_import_are_there_if_the_vm_is(is_there: bool) -> None:
    async def scenario(host: FakeHost) -> None:
        await host.create()
        store = host.parts.volumes
        vm_id = host.vm().record.id if is_there else "ab" * 16

        def leave() -> None:
            volume, making = store.plan_import("data", 16 * MIB, {}, "some-id", vm_id)
            ready = store.create("seed", 16 * MIB, {})
            making.mkdir()
            (making / "volume.ext4").write_bytes(ready.disk.read_bytes())
            store.add_imported(volume, making)
            (host.config.state_dir / "vms" / f".{'cd' * 16}.making").mkdir()

        await asyncio.to_thread(leave)
        await host.restart_daemon()
        await host.daemon.recovery.clean_up()
        found = host.parts.volumes.find("data")
        assert (found is not None) == is_there
        assert found is None or (found.ready, found.imported_for) == (True, "")
        assert not (host.config.state_dir / "vms" / f".{'cd' * 16}.making").exists()

    drive(scenario)


def test_after_a_crash_nothing_is_removed_while_it_is_not_known_which_vms_there_are() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.create()
        store = host.parts.volumes

        def leave() -> None:
            volume, making = store.plan_import("data", 16 * MIB, {}, "some-id", host.vm().record.id)
            ready = store.create("seed", 16 * MIB, {})
            making.mkdir()
            (making / "volume.ext4").write_bytes(ready.disk.read_bytes())
            store.add_imported(volume, making)
            (host.config.state_dir / "vms/web/vm.json").write_text("{")

        await asyncio.to_thread(leave)
        await host.restart_daemon()
        await host.daemon.recovery.clean_up()
        assert host.parts.volumes.get("data").ready is False

    drive(scenario)


def test_the_definition_in_an_archive_is_a_file_that_takes_the_vm_over() -> None:
    async def scenario(host: FakeHost) -> None:
        await put(host)
        data = await export(host)

        def parse() -> tuple[bytes, Mapping[str, int]]:
            reader = ArchiveReader()
            assert reader.feed(data)
            assert reader.manifest is not None
            reader.go_on({DISK: Discarded()})
            reader.finish()
            return reader.definition, reader.manifest.sizes()

        text, sizes = await asyncio.to_thread(parse)
        assert sizes == {DISK: 64 * MIB}
        vm_id = host.vm().record.id
        host.write(**{**json.loads(text), "memory": "64M"})
        assert [problem.message for problem in (await host.reload()).problems] == [
            "a VM web was already created with the API"
        ]
        host.write(**json.loads(text))
        report = await host.reload()
        assert (report.problems, report.changed) == ((), ("web",))
        assert (host.vm().record.origin, host.vm().record.id) == (Origin.FILE, vm_id)
        assert await asyncio.to_thread(read, host.vm().places.disk) == SEED

    drive(scenario)
