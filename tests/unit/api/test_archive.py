# SPDX-License-Identifier: Apache-2.0
"""Trees to and from guests as tar archives."""

import asyncio
import io
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from hypemand.model.files import FileKind
from hypemand.model.state import State
from hypemand.tar import find_error
from tests.unit.api.harness import Api, drive


def make_archive(*members: tuple[str, bytes | None]) -> bytes:
    """Of files, and directories where there are no contents."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE if data is None else tarfile.REGTYPE
            info.size = len(data or b"")
            info.mode, info.uid = 0o750, 12
            archive.addfile(info, io.BytesIO(data or b""))
    return stream.getvalue()


async def download(api: Api, target: str, into: bytearray) -> None:
    """What comes of an answer, to the place where it ends or breaks off."""
    async with api.session.get(api.url(target)) as response:
        async for piece in response.content.iter_any():
            into += piece


async def until_copies(api: Api, count: int) -> None:
    """Wait until so many copies are under way; a deadline stands around every scenario."""
    while api.host.guest("a").files.copies_open != count:
        await api.ask("GET", "/health")


def test_a_tree_comes_as_an_archive(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        await api.host.put("a", State.RUNNING)
        files = api.host.guest("a").files
        files.put("/srv/x", FileKind.DIRECTORY, mode=0o1777)
        files.put("/srv/x/one", data=b"1" * 20_000, mode=0o4755, uid=9)
        files.put("/srv/x/holes", data=bytes(100_000))
        files.put("/srv/x/sock", FileKind.SOCKET)
        files.put("/srv/x/link", FileKind.SYMLINK, target="one")
        answer = await api.ask("GET", "/instances/a/archive?path=/srv/x/")
        with tarfile.open(fileobj=io.BytesIO(answer.body)) as archive:
            names = {m.name: m for m in archive.getmembers()}
            assert list(names) == ["x", "x/holes", "x/link", "x/one"]
            assert (names["x/one"].mode, names["x/one"].uid) == (0o4755, 9)
            assert names["x/one"].mtime == 1_700_000_000.5
            holes = archive.extractfile("x/holes")
            assert holes is not None
            assert holes.read() == bytes(100_000)
        one = await api.ask("GET", "/instances/a/archive?path=/srv/x/one")
        with tarfile.open(fileobj=io.BytesIO(one.body)) as archive:
            assert archive.getnames() == ["one"]
        await until_copies(api, 0)

    drive(tmp_path, scenario)


def test_an_archive_is_unpacked_into_a_directory_that_keeps_its_mode(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        await api.host.put("a", State.RUNNING)
        files = api.host.guest("a").files
        archive = make_archive(("./", None), ("./d", None), ("./d/big", b"z" * 300_000), ("e", bytes(70_000)))
        answer = await api.ask("PUT", "/instances/a/archive?path=/tmp", data=archive)
        assert answer.json == {"bytes_written": 370_000}
        assert files.files["/tmp/d/big"].data == b"z" * 300_000
        assert files.files["/tmp/e"].data == bytes(70_000)
        assert (files.files["/tmp/d"].info.mode, files.files["/tmp/d"].info.uid) == (0o750, 12)
        assert files.files["/tmp"].info.mode == 0o755
        await until_copies(api, 0)

    drive(tmp_path, scenario)


@pytest.mark.parametrize(
    ("path", "archive", "status", "code"),
    [
        ("/tmp", b"no archive" * 100, 400, "invalid_archive"),
        ("/tmp", make_archive(("../x", b"")), 400, "invalid_archive"),
        ("/tmp", make_archive(("x", b"1" * 5000))[:3000], 400, "invalid_archive"),
        ("/nowhere", make_archive(("x", b"")), 404, "path_not_found"),
        ("/etc/motd", make_archive(("x", b"")), 400, "invalid_path"),
        ("tmp", b"", 400, "invalid_request"),
    ],
)
def test_what_is_wrong_is_refused_and_nothing_is_half_there(
    tmp_path: Path, path: str, archive: bytes, status: int, code: str
) -> None:
    async def scenario(api: Api) -> None:
        await api.host.put("a", State.RUNNING)
        api.host.guest("a").files.put("/etc/motd")
        answer = await api.ask("PUT", f"/instances/a/archive?path={path}", data=archive)
        assert (answer.status, answer.code) == (status, code)
        assert "/tmp/x" not in api.host.guest("a").files.files
        await until_copies(api, 0)

    drive(tmp_path, scenario)


def test_refusals_before_the_archive_are_answers_like_any_other(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        await api.host.put("a", State.RUNNING)
        await api.host.put("b")
        assert (await api.ask("GET", "/instances/a/archive?path=/nothing")).code == "not_found"
        assert (await api.ask("GET", "/instances/b/archive?path=/etc")).code == "invalid_state"
        assert (await api.ask("PUT", "/instances/b/archive?path=/etc", data=b"")).code == "invalid_state"
        assert (await api.ask("GET", "/instances/a/archive")).status == 400

    drive(tmp_path, scenario)


def test_an_archive_that_breaks_off_is_seen_as_such_and_says_why(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        await api.host.put("a", State.RUNNING)
        files = api.host.guest("a").files
        files.put("/srv", data=b"x" * 100_000)
        files.failure, files.fails_after = "input/output error", 50_000
        got = bytearray()
        with pytest.raises(aiohttp.ClientPayloadError):
            await download(api, "/instances/a/archive?path=/srv", got)
        assert find_error(got[-8192:]) == "input/output error"
        await until_copies(api, 0)

    drive(tmp_path, scenario)


def test_a_client_that_goes_ends_the_copy_both_ways(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        await api.host.put("a", State.RUNNING)
        files = api.host.guest("a").files
        files.put("/srv", data=b"x" * 100_000)
        files.gate = asyncio.Event()
        response = await api.session.get(api.url("/instances/a/archive?path=/srv"))
        assert files.copies_open == 1
        response.close()
        await until_copies(api, 0)

        async def endless() -> AsyncIterator[bytes]:
            yield make_archive(("x", b"1" * 5000))[:3000]
            await asyncio.Event().wait()

        sending = asyncio.create_task(
            api.session.put(api.url("/instances/a/archive?path=/tmp"), data=endless()).__aenter__()
        )
        await until_copies(api, 1)
        sending.cancel()
        await until_copies(api, 0)
        assert "/tmp/x" not in files.files

    drive(tmp_path, scenario)


def test_a_tree_of_any_size_passes_in_pieces(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        await api.host.put("a", State.RUNNING)
        files = api.host.guest("a").files
        files.put("/srv", data=b"0123456789abcdef" * 2_000_000)
        archive = (await api.ask("GET", "/instances/a/archive?path=/srv")).body
        await api.ask("PUT", "/instances/a/archive?path=/tmp", data=archive)
        assert files.files["/tmp/srv"].data == files.files["/srv"].data

    drive(tmp_path, scenario)
