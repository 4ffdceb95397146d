# SPDX-License-Identifier: Apache-2.0
"""Files to and from guests over a WebSocket, and what is at a path."""

import asyncio
import json
from pathlib import Path

import aiohttp
import pytest

from hypemand.api.cp import parse_order
from hypemand.api.entries import name_entry
from hypemand.api.render import path_json
from hypemand.api.services import Limits
from hypemand.errors import GuestError, InvalidRequest
from hypemand.model.files import FileInfo, FileKind
from hypemand.model.state import State
from tests.unit.api.harness import Api, Json, description, drive

TO = {"direction": "to", "guest_path": "/tmp/a", "is_dir": False, "mode": 0o640}
FROM = {"direction": "from", "guest_path": "/srv", "follow_links": False}


async def open_socket(api: Api) -> aiohttp.ClientWebSocketResponse:
    """To a VM that runs."""
    if api.host.parts.fleet.find("a") is None:
        await api.host.put("a", State.RUNNING)
    return await api.session.ws_connect(api.url("/instances/a/cp"))


async def receive_all(socket: aiohttp.ClientWebSocketResponse) -> list[Json]:
    """What comes until the final end or an error: frames of text as JSON, of data as bytes."""
    frames: list[Json] = []
    while True:
        frame = await socket.receive()
        if frame.type is aiohttp.WSMsgType.BINARY:
            frames.append(frame.data)
            continue
        assert frame.type is aiohttp.WSMsgType.TEXT, frame
        frames.append(json.loads(frame.data))
        description().check_schema("CopyFrame", frames[-1])
        if frames[-1].get("final") or frames[-1]["type"] in ("error", "result"):
            return frames


def test_a_file_goes_in_and_its_bytes_are_counted(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        description().check_schema("CopyOrder", TO)
        socket = await open_socket(api)
        await socket.send_json(TO | {"uid": 7, "gid": 8})
        for _ in range(3):
            await socket.send_bytes(b"x" * 40_000)
        await socket.send_json({"type": "end"})
        assert await receive_all(socket) == [{"type": "result", "success": True, "bytes_written": 120_000}]
        await socket.close()
        made = api.host.guest("a").files.files["/tmp/a"]
        assert (made.data, made.info.mode, made.info.uid, made.info.gid) == (b"x" * 120_000, 0o640, 7, 8)
        socket = await open_socket(api)
        await socket.send_json({"direction": "to", "guest_path": "/tmp/d", "is_dir": True, "mode": 0})
        await socket.send_json({"type": "end"})
        assert (await receive_all(socket))[0]["bytes_written"] == 0
        info = api.host.guest("a").files.files["/tmp/d"].info
        assert (info.kind, info.mode, info.uid) == (FileKind.DIRECTORY, 0o755, 0)
        await api.host.until_true(lambda: api.host.guest("a").files.copies_open == 0)

    drive(tmp_path, scenario)


def test_a_client_that_goes_leaves_nothing_in_the_guest(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        files = api.host.guest("a").files
        for politely in (True, False):
            socket = await open_socket(api)
            await socket.send_json(TO)
            await socket.send_bytes(b"half")
            await (socket.close() if politely else drop(socket))
        files.gate = asyncio.Event()
        socket = await open_socket(api)
        await socket.send_json(TO)
        await socket.send_bytes(b"whole")
        await socket.send_json({"type": "end"})
        while not files.copies_open:
            await api.ask("GET", "/health")
        await drop(socket)
        while not files.given_up:
            await api.ask("GET", "/health")
        assert (files.copies_open, "/tmp/a" in files.files) == (0, False)

    drive(tmp_path, scenario)


async def drop(socket: aiohttp.ClientWebSocketResponse) -> None:
    """Be gone without a word."""
    socket._response.close()


def test_a_tree_comes_out_with_its_last_end_marked(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        files = api.host.guest("a").files
        files.put("/srv", FileKind.DIRECTORY, mode=0o2755)
        files.put("/srv/big", data=b"ab" * 300_000, mode=0o4711, uid=5, gid=6)
        files.put("/srv/holes", data=bytes(600_000) + b"end")
        files.put("/srv/link", FileKind.SYMLINK, target="big")
        files.put("/srv/pipe", FileKind.FIFO)
        socket = await open_socket(api)
        await socket.send_json(FROM)
        frames = await receive_all(socket)
        headers = [f for f in frames if isinstance(f, dict) and f["type"] == "header"]
        assert [h["path"] for h in headers] == ["srv", "srv/big", "srv/holes", "srv/link"]
        big, link = headers[1], headers[3]
        assert big == {
            "type": "header", "path": "srv/big", "mode": 0o711, "is_dir": False, "is_symlink": False,
            "link_target": "", "size": 600_000, "mtime": 1_700_000_000, "uid": 5, "gid": 6,
        }  # fmt: skip
        assert (link["is_symlink"], link["link_target"], link["size"]) == (True, "big", 0)
        ends = [f for f in frames if isinstance(f, dict) and f["type"] == "end"]
        assert [e["final"] for e in ends] == [False, False, False, True]
        data = b"".join(f for f in frames if isinstance(f, bytes))
        assert data == b"ab" * 300_000 + bytes(600_000) + b"end"
        assert max(len(f) for f in frames if isinstance(f, bytes)) <= 256 * 1024
        await socket.close()
        await api.host.until_true(lambda: files.copies_open == 0)

    drive(tmp_path, scenario)


def test_a_file_that_is_not_there_or_breaks_off_is_an_error_frame(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        socket = await open_socket(api)
        await socket.send_json(FROM)
        (told,) = await receive_all(socket)
        assert told == {"type": "error", "message": "there is no /srv"}
        files = api.host.guest("a").files
        files.put("/srv", FileKind.FIFO)
        socket = await open_socket(api)
        await socket.send_json(FROM)
        (told,) = await receive_all(socket)
        assert told["message"] == "/srv is neither a file, a directory nor a symbolic link"
        files.put("/srv", data=b"x" * 100_000)
        files.failure, files.fails_after = "input/output error", 50_000
        socket = await open_socket(api)
        await socket.send_json(FROM)
        assert (await receive_all(socket))[-1] == {"type": "error", "message": "input/output error"}
        await socket.close()
        await api.host.until_true(lambda: files.copies_open == 0)

    drive(tmp_path, scenario, Limits(closing=0.05))


def test_an_error_reaches_a_client_that_is_still_sending(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        files = api.host.guest("a").files
        files.failure, files.fails_after = "no space left", 1000
        socket = await open_socket(api)
        await socket.send_json(TO)
        for _ in range(200):
            await socket.send_bytes(b"x" * 32_768)
        await socket.send_json({"type": "end"})
        assert await receive_all(socket) == [{"type": "error", "message": "no space left"}]
        await socket.close()

    drive(tmp_path, scenario)


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x", "a//b", ".", "a\0b"])
def test_a_guest_that_names_files_elsewhere_is_not_believed(tmp_path: Path, name: str) -> None:
    async def scenario(api: Api) -> None:
        api.host.guest("a").files.put("/srv", FileKind.DIRECTORY)
        api.host.guest("a").files.strange_names = (name,)
        socket = await open_socket(api)
        await socket.send_json(FROM)
        last = (await receive_all(socket))[-1]
        assert "leads out of the copy" in last["message"] or "record" in last["message"]
        await socket.close()

    drive(tmp_path, scenario, Limits(closing=0.05))


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x", "a//b", ".", "a\0b"])
def test_what_leads_out_of_a_copy_has_no_name_in_the_answer_either(name: str) -> None:
    entry = FileInfo(name, FileKind.DIRECTORY, 0o755, 0, 0, 0, 0)
    with pytest.raises(GuestError, match="leads out of the copy"):
        name_entry("/srv", entry)


def test_another_state_is_refused_before_the_upgrade(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        await api.host.put("a", State.PAUSED)
        for path in ("cp", "stat?path=/etc"):
            assert (await api.ask("GET", f"/instances/a/{path}")).code == "invalid_state"
        await api.manager.resume_vm("a")
        assert (await api.ask("GET", "/instances/a/cp")).code == "invalid_request"

    drive(tmp_path, scenario)


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        ({}, "direction"),
        ({"direction": "up"}, "direction"),
        ({"direction": "to"}, "guest_path"),
        (TO | {"guest_path": "tmp"}, "guest_path"),
        (TO | {"guest_path": "/a\0"}, "guest_path"),
        (TO | {"guest_path": "/" + "x" * 4096}, "guest_path"),
        (TO | {"mode": 0o10000}, "mode"),
        (TO | {"uid": -1}, "uid"),
        (TO | {"is_dir": 1}, "is_dir"),
        (TO | {"follow_links": True}, "follow_links"),
        (FROM | {"mode": 1}, "mode"),
    ],
)
def test_a_wrong_first_frame_is_refused_by_name(frame: Json, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        parse_order(json.dumps(frame))


def test_wrong_frames_end_the_copy_with_the_reason(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        directory = TO | {"is_dir": True}
        for order, frame in ((TO, '{"type":"stop"}'), (TO, "x"), (directory, b"data")):
            socket = await open_socket(api)
            await socket.send_json(order)
            await (socket.send_bytes(frame) if isinstance(frame, bytes) else socket.send_str(frame))
            assert (await receive_all(socket))[0]["type"] == "error"
            assert (await socket.receive()).data == 1008
        await api.host.until_true(lambda: api.host.guest("a").files.copies_open == 0)

    drive(tmp_path, scenario, Limits(closing=0.05))


def test_stat_tells_what_is_at_a_path(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        await api.host.put("a", State.RUNNING)
        api.host.guest("a").files.put("/etc/motd", data=b"hi", mode=0o600, uid=3)
        api.host.guest("a").files.put("/etc/link", FileKind.SYMLINK, target="motd")
        found = (await api.ask("GET", "/instances/a/stat?path=/etc/motd")).json
        assert (found["exists"], found["is_file"], found["is_dir"], found["size"]) == (True, True, False, 2)
        assert (found["mode"], found["uid"], found["mtime"]) == (0o600, 3, "2023-11-14T22:13:20.500Z")
        link = (await api.ask("GET", "/instances/a/stat?path=/etc/link&follow_links=false")).json
        assert (link["is_symlink"], link["link_target"]) == (True, "motd")
        odd = FileInfo("/etc/odd", FileKind.FILE, 0o644, 0, 0, 0, 2**62 * 1000)
        assert path_json(odd)["mtime"] is None
        followed = (await api.ask("GET", "/instances/a/stat?path=/etc/link&follow_links=true")).json
        assert followed["is_file"]
        assert (await api.ask("GET", "/instances/a/stat?path=/nothing")).json == {"exists": False}
        for query in ("", "?path=etc", "?path=/etc&follow_links=1", "?path=/etc&x=1"):
            assert (await api.ask("GET", f"/instances/a/stat{query}")).status == 400

    drive(tmp_path, scenario)
