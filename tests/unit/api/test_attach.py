# SPDX-License-Identifier: Apache-2.0
"""The program of a VM over a WebSocket."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from hypemand.api.attach import parse_opening
from hypemand.api.websocket import DETACHED
from hypemand.errors import InvalidRequest
from hypemand.model.exec import AttachRequest
from hypemand.model.state import State
from tests.fakes.guest import Command
from tests.unit.api.harness import Api, description, drive


@asynccontextmanager
async def attached(api: Api, **opening: object) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """To a VM that runs and has stdin."""
    if api.host.parts.fleet.find("a") is None:
        await api.host.put("a", State.RUNNING, stdin=True)
    async with api.session.ws_connect(api.url("/instances/a/attach")) as socket:
        description().check_schema("AttachRequest", opening)
        await socket.send_json(opening)
        yield socket


async def start_of(socket: aiohttp.ClientWebSocketResponse) -> dict[str, bool]:
    """What the daemon answers first."""
    started: dict[str, bool] = await socket.receive_json()
    description().check_schema("AttachStarted", started)
    return started


async def close_of(socket: aiohttp.ClientWebSocketResponse) -> tuple[int | None, str]:
    """Code and reason of the close frame, which must come next."""
    frame = await socket.receive()
    assert frame.type is aiohttp.WSMsgType.CLOSE, frame
    return frame.data, frame.extra or ""


def test_input_output_and_the_exit_of_the_program(tmp_path: Path) -> None:
    seen: list[Command] = []

    async def program(command: Command) -> int:
        seen.append(command)
        await command.stream.write(b"prompt> ")
        assert await command.stream.read() == b"typed"
        await command.stream.write(b"error", 2)
        assert await command.stream.read() == b""
        return 7

    async def scenario(api: Api) -> None:
        api.host.guest("a").program = program
        async with attached(api, stdin=True, replay=True) as socket:
            assert await start_of(socket) == {"tty": False, "stdin": True}
            assert (await socket.receive()).data == b"\x01prompt> "
            await socket.send_bytes(b"typed")
            assert (await socket.receive()).data == b"\x02error"
            await socket.send_str('{"eof":true}')
            assert await socket.receive_json() == {"exitCode": 7, "message": "exited with code 7"}
        (command,) = seen
        assert command.values == {"stdin": "1", "replay": "1", "tty": "0"}

    drive(tmp_path, scenario)


def test_a_terminal_gets_its_sizes_and_no_signals(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        api.host.guest("a").tty = True
        async with attached(api, rows=5, cols=9) as socket:
            assert await start_of(socket) == {"tty": True, "stdin": False}
            await socket.send_json({"resize": {"rows": 3, "cols": 4}})
            assert (await socket.receive()).data == b"\x013x4\n"
            await socket.send_str('{"signal":15}')
            frame = await socket.receive()
            assert "signal" not in json.loads(frame.data)["message"]
            assert (await close_of(socket))[0] == 1008
        (command,) = api.host.vmm("a").commands
        assert (command.values["rows"], command.values["cols"]) == ("5", "9")
        assert command.signals == []

    drive(tmp_path, scenario)


@pytest.mark.parametrize("how", ["client", "daemon"])
def test_the_program_goes_on_when_the_connection_ends(tmp_path: Path, how: str) -> None:
    async def scenario(api: Api) -> None:
        async with attached(api, stdin=True) as socket:
            await start_of(socket)
            if how == "daemon":
                api.stop.set()
                assert await close_of(socket) == (1001, DETACHED)
                assert "the program goes on" in DETACHED
        (command,) = api.host.vmm("a").commands
        await command.ended.wait()
        assert not api.host.vmm("a").ended.is_set()

    drive(tmp_path, scenario)


def test_several_are_attached_at_once(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        async with attached(api, stdin=True) as one, attached(api, stdin=True) as two:
            for socket, said in ((one, b"1"), (two, b"2")):
                await start_of(socket)
                await socket.send_bytes(said)
                assert (await socket.receive()).data == b"\x01" + said

    drive(tmp_path, scenario)


def test_what_has_neither_stdin_nor_tty_is_refused_with_the_cure(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        await api.host.put("a", State.RUNNING)
        async with attached(api) as socket:
            error = await socket.receive_json()
            assert (error["code"], "neither stdin nor tty" in error["message"]) == ("invalid_state", True)
            assert "hypemanctl logs -f a" in error["hint"]
            assert (await close_of(socket))[0] == 1011
        assert api.host.vmm("a").commands == []

    drive(tmp_path, scenario)


def test_another_state_is_refused_before_the_upgrade(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        await api.host.put("a", State.STOPPED, stdin=True)
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await api.session.ws_connect(api.url("/instances/a/attach"))
        assert caught.value.status == 409

    drive(tmp_path, scenario)


def test_the_first_frame_is_checked() -> None:
    assert parse_opening("{}") == AttachRequest()
    assert parse_opening('{"stdin":true,"rows":1,"cols":2}') == AttachRequest(stdin=True, rows=1, cols=2)
    for wrong, said in (
        ('{"rows":1}', "rows and cols: one needs the other"),
        ('{"rows":0,"cols":1}', "rows: "),
        ('{"stdin":1}', "stdin: "),
        ('{"command":["x"]}', "command"),
    ):
        with pytest.raises(InvalidRequest, match=said):
            parse_opening(wrong)
