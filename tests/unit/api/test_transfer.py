# SPDX-License-Identifier: Apache-2.0
"""VMs as archives over HTTP: who may have what, and clients that do not go on."""

import asyncio
import io
import json
import os
import tarfile
from pathlib import Path

import pytest

import hypemand.api.archive
from hypemand.model.state import State
from hypemand.tar import find_error
from tests.unit.api.harness import NOBODY, Api, connect_as, drive

BIG = 32 * 1024 * 1024


async def import_as(uid: int, api: Api, target: str, data: bytes) -> tuple[int, str]:
    """Status and message of the answer to a user of that uid."""
    reader, writer = await asyncio.open_unix_connection(sock=connect_as(uid, api.path))
    writer.write(f"POST {target} HTTP/1.0\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return int(head.split()[1]), str(json.loads(body).get("message", ""))


async def export(api: Api, name: str = "a") -> bytes:
    return (await api.ask("GET", f"/instances/{name}/export")).body


def folders(api: Api) -> set[str]:
    return {path.name for path in (api.host.config.state_dir / "vms").iterdir()}


async def until_staged(api: Api) -> None:
    await api.host.until_true(lambda: any(name.endswith(".making") for name in folders(api)))


async def until_left(api: Api) -> None:
    await api.host.until_true(lambda: not any(name.startswith(".") for name in folders(api)))


async def put_big(api: Api) -> None:
    """A stopped VM whose disk fills every buffer on the way."""
    await api.host.run("a")
    await api.host.stop_for_good("a")

    def fill() -> None:
        with api.host.vm("a").places.disk.open("r+b") as file:
            file.seek(BIG)
            file.write(os.urandom(1024 * 1024) * 16)

    await asyncio.to_thread(fill)


def test_a_vm_leaves_as_an_archive_and_comes_back(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        await api.host.run("a")
        refused = await api.ask("GET", "/instances/a/export")
        assert (refused.status, refused.code) == (409, "invalid_state")
        await api.host.stop_for_good("a")
        data = await export(api)
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            assert archive.getnames() == ["manifest.json", "definition.yaml", "disk.ext4", "SHA256SUMS"]
        made = await api.ask("POST", "/instances/import?name=b", data=data)
        assert (made.status, made.json["name"], made.json["state"]) == (201, "b", "Stopped")
        for target, words in (
            ("/instances/import", "already exists"),
            ("/instances/import?name=-x", "name"),
            ("/instances/import?colour=blue", "colour"),
            ("/instances/import?name=c&volumes[x]=y", "no volume 'x'"),
        ):
            wrong = await api.ask("POST", target, data=data)
            assert (wrong.status, words in wrong.json["message"]) == (400, True), wrong.json
        broken = await api.ask("POST", "/instances/import?name=c", data=data[:-2000])
        assert (broken.status, broken.code) == (400, "invalid_archive")
        for target, status in (
            ("/a/export?volumes=nope", 404),
            ("/nope/export", 404),
            ("/a/export?x=1", 400),
        ):
            assert (await api.ask("GET", f"/instances{target}")).status == status
        assert folders(api) == {"a", "b"}

    drive(tmp_path, scenario)


def test_an_archive_reaches_no_further_into_the_host_than_a_request_does(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        definition = {"image": "builtin:app", "disk": "64M", "memory": "96M", "network": "none"}
        unit = {"Conflicts": "ssh.service", "Nice": -5}
        body = {"name": "a", "start": False, "definition": {**definition, "unit": unit}}
        assert (await api.ask("POST", "/instances", body)).status == 201
        data = await export(api)
        status, message = await import_as(NOBODY, api, "/instances/import?name=b", data)
        assert (status, "unit.Conflicts (ssh.service); unit.Nice (-5)" in message) == (403, True)
        assert folders(api) == {"a"}
        assert (await import_as(0, api, "/instances/import?name=b", data))[0] == 201
        body["name"], body["definition"] = "c", {**definition, "image": "dir:/nowhere"}
        assert (await api.ask("POST", "/instances", body)).status != 201
        plain = {"name": "c", "start": False, "definition": definition}
        assert (await api.ask("POST", "/instances", plain)).status == 201
        data = (await export(api, "c")).replace(b'"builtin:app"', b'"dir:/rooot/"')
        status, message = await import_as(NOBODY, api, "/instances/import?name=d", data)
        assert (status, "only root may import an image from a path" in message) == (403, True)
        # it has got as far as to the checksums
        status, message = await import_as(0, api, "/instances/import?name=d", data)
        assert (status, "checksum" in message) == (400, True)
        assert folders(api) == {"a", "b", "c"}
        body["name"], body["definition"] = "h", {**definition, "env_file": ["/etc/shop.env"]}
        assert (await api.ask("POST", "/instances", body)).status == 201
        status, message = await import_as(0, api, "/instances/import?name=i", await export(api, "h"))
        words = "the VM in the archive would read files of the host: env_file (/etc/shop.env)"
        assert (status, words in message) == (403, True)
        assert folders(api) == {"a", "b", "c", "h"}
        data = await export(api, "c")
        assert (await import_as(NOBODY, api, "/instances/import?name=e", data))[0] == 201
        assert api.host.vm("e").record.short_name is False

    drive(tmp_path, scenario)


def test_a_client_that_reads_no_more_loses_the_export_and_the_vm_can_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hypemand.api.archive, "STALL", 0.2)

    async def scenario(api: Api) -> None:
        await put_big(api)
        reader, writer = await asyncio.open_unix_connection(str(api.path), limit=1024)
        writer.write(b"GET /instances/a/export HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.readline()).split()[1] == b"200"
        operations = api.host.vm("a").operations
        assert operations.current is not None
        await api.host.until_true(lambda: operations.current is None)
        await api.host.start("a")
        rest = await reader.read()
        assert find_error(rest[-8192:]) == "the client has taken no data for 0.2 s"
        writer.close()

    drive(tmp_path, scenario)


def test_a_client_that_goes_away_ends_its_export(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        await put_big(api)
        async with api.session.get(api.url("/instances/a/export")) as response:
            await response.content.readexactly(1024)
            assert api.host.vm("a").operations.current is not None
        await api.host.until_true(lambda: api.host.vm("a").operations.current is None)
        await api.host.start("a")

    drive(tmp_path, scenario)


@pytest.mark.parametrize("how", ["goes away", "sends no more"])
def test_a_client_that_does_not_send_all_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    if how == "sends no more":
        monkeypatch.setattr(hypemand.api.archive, "STALL", 0.5)

    async def scenario(api: Api) -> None:
        await put_big(api)
        data = await export(api)
        reader, writer = await asyncio.open_unix_connection(str(api.path))
        head = f"POST /instances/import?name=b HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
        writer.write(head.encode() + data[: len(data) // 2])
        await until_staged(api)
        if how == "goes away":
            writer.close()
            await until_left(api)
        else:
            assert b"504" in await reader.readline()
            writer.close()
        assert folders(api) == {"a"}
        assert api.host.parts.fleet.find("b") is None
        assert api.host.vm("a").state is State.STOPPED

    drive(tmp_path, scenario)


def test_the_end_of_the_daemon_ends_both_ways(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        await put_big(api)
        data = await export(api)
        reader, writer = await asyncio.open_unix_connection(str(api.path), limit=1024)
        head = f"POST /instances/import?name=b HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
        writer.write(head.encode() + data[: len(data) // 2])
        await until_staged(api)
        exporting, sender = await asyncio.open_unix_connection(str(api.path), limit=1024)
        sender.write(b"GET /instances/a/export HTTP/1.1\r\nHost: x\r\n\r\n")
        await exporting.readline()
        api.stop.set()
        assert b"503" in await reader.readline()
        await until_left(api)
        await api.host.until_true(lambda: api.host.vm("a").operations.current is None)
        for one in (writer, sender):
            one.close()
        assert folders(api) == {"a"}

    drive(tmp_path, scenario)
