# SPDX-License-Identifier: Apache-2.0
"""Commands in guests over a WebSocket."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from hypemand.api.exec import Opening, exit_frame, parse_opening
from hypemand.api.services import Limits
from hypemand.api.websocket import STOPPING
from hypemand.errors import HypemandError, InvalidRequest
from hypemand.model.exec import ExecRequest
from hypemand.model.state import State
from hypemand.model.vm import ExitReport
from tests.unit.agent.support import WINDOW
from tests.unit.api.harness import Api, description, drive


async def open_socket(api: Api) -> aiohttp.ClientWebSocketResponse:
    """To a VM that runs."""
    if api.host.parts.fleet.find("a") is None:
        await api.host.put("a", State.RUNNING)
    return await api.session.ws_connect(api.url("/instances/a/exec"))


@asynccontextmanager
async def connect(api: Api) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """The same, closed at the end."""
    socket = await open_socket(api)
    try:
        yield socket
    finally:
        await socket.close()


async def close_of(socket: aiohttp.ClientWebSocketResponse) -> tuple[int | None, str]:
    """Code and reason of the close frame, which must come next."""
    frame = await socket.receive()
    assert frame.type is aiohttp.WSMsgType.CLOSE, frame
    return frame.data, frame.extra or ""


def test_the_published_way_gives_plain_output_and_the_code_alone(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        async with connect(api) as socket:
            await socket.send_str('{"command":["both"],"tty":false,"wait_for_agent":5,"timeout":0}')
            assert [(await socket.receive()).data for _ in range(2)] == [b"out", b"err"]
            last = (await socket.receive()).data
            assert json.loads(last) == {"exitCode": 3}
            description().check_schema("ExecExit", json.loads(last))
            assert await close_of(socket) == (1000, "")
        assert parse_opening('{"command":["x"],"timeout":0}').request.timeout is None
        await api.host.vmm("a").commands[0].ended.wait()

    drive(tmp_path, scenario, Limits(closing=0.05))


def test_after_the_exit_it_is_the_client_that_closes(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        async with connect(api) as socket:
            await socket.send_str('{"command":["both"]}')
            frames = [await socket.receive() for _ in range(3)]
            assert json.loads(frames[2].data) == {"exitCode": 3}
            for _ in range(5):
                await socket.send_bytes(b"late" * 10_000)
            with pytest.raises(TimeoutError):
                await socket.receive(timeout=0.2)
            assert await socket.close()

    drive(tmp_path, scenario)


def test_with_streams_each_frame_says_which_and_the_exit_has_words(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        opening = {
            "command": ["both", "x"],
            "env": {"A": "1"},
            "cwd": "/tmp",
            "user": "u",
            "timeout": 30.5,
            "streams": True,
        }
        description().check_schema("ExecRequest", opening)
        async with connect(api) as socket:
            await socket.send_json(opening)
            assert [(await socket.receive()).data for _ in range(2)] == [b"\x01out", b"\x02err"]
            assert (await socket.receive_json()) == {
                "exitCode": 3,
                "message": "exited with code 3",
            }
        (command,) = api.host.vmm("a").commands
        assert (command.argv, command.env["A"], command.values["cwd"], command.values["user"]) == (
            ["both", "x"],
            "1",
            "/tmp",
            "u",
        )
        assert parse_opening(json.dumps(opening)).request == ExecRequest(
            ("both", "x"), {"A": "1"}, "/tmp", "u", 30.5
        )

    drive(tmp_path, scenario)


def test_input_its_end_and_signals_reach_the_command(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        async with connect(api) as socket:
            await socket.send_str('{"command":["cat"]}')
            for block in (b"hello", b"\x00\xff" * 40_000):
                await socket.send_bytes(block)
                seen = b""
                while len(seen) < len(block):
                    seen += (await socket.receive()).data
                assert seen == block
            await socket.send_str('{"eof":true}')
            assert await socket.receive_json() == {"exitCode": 0}
        async with api.session.ws_connect(api.url("/instances/a/exec")) as socket:
            await socket.send_str('{"command":["cat"]}')
            await socket.send_str('{"signal":15}')
            assert await socket.receive_json() == {"exitCode": 143}
        assert api.host.vmm("a").commands[1].signals == [15]

    drive(tmp_path, scenario)


def test_a_terminal_is_asked_for_with_its_size_and_told_of_a_new_one(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        opening = {"command": ["cat"], "tty": True, "rows": 50, "cols": 132, "umask": 0o027, "streams": True}
        description().check_schema("ExecRequest", opening)
        async with connect(api) as socket:
            await socket.send_json(opening)
            resize = {"resize": {"rows": 3, "cols": 4}}
            description().check_schema("ExecControl", resize)
            await socket.send_json(resize)
            assert (await socket.receive()).data == b"\x013x4\n"
        values = api.host.vmm("a").commands[0].values
        assert (values["tty"], values["rows"], values["cols"], values["umask"]) == ("1", "50", "132", "23")
        async with api.session.ws_connect(api.url("/instances/a/exec")) as socket:
            await socket.send_str('{"command":["both"],"tty":true}')
            await socket.receive()
        values = api.host.vmm("a").commands[1].values
        assert (values["rows"], values["cols"], values.get("umask")) == ("24", "80", None)

    drive(tmp_path, scenario)


def test_a_command_is_ended_when_its_client_goes(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        for politely in (True, False):
            socket = await open_socket(api)
            await socket.send_str('{"command":["cat"]}')
            await socket.send_bytes(b"x")
            await socket.receive()
            if politely:
                await socket.close()
            else:
                socket._response.close()
            await api.host.vmm("a").commands[-1].ended.wait()

    drive(tmp_path, scenario)


def test_a_client_that_goes_is_noticed_while_the_guest_takes_no_input(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        socket = await open_socket(api)
        await socket.send_str('{"command":["sleep"]}')
        for _ in range(3):
            await socket.send_bytes(b"x" * 100_000)
        commands = api.host.vmm("a").commands
        await api.host.until_true(lambda: bool(commands) and commands[0].stream.waiting == WINDOW)
        socket._response.close()
        await commands[0].ended.wait()

    drive(tmp_path, scenario)


def test_a_command_is_ended_when_the_daemon_stops(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        socket = await open_socket(api)
        await socket.send_str('{"command":["cat"]}')
        await socket.send_bytes(b"x")
        await socket.receive()
        api.stop.set()
        assert await close_of(socket) == (1001, STOPPING), "whole: it fits into a close frame"
        assert "restarted, for example by an upgrade; the command was terminated" in STOPPING
        await api.host.vmm("a").commands[0].ended.wait()

    drive(tmp_path, scenario)


def test_another_state_is_refused_before_the_upgrade(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        await api.host.put("a", State.INITIALIZING)
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await api.session.ws_connect(api.url("/instances/a/exec"))
        assert caught.value.status == 409
        assert (await api.ask("GET", "/instances/a/exec")).code == "invalid_state"
        assert (await api.ask("GET", "/instances/nobody/exec")).code == "not_found"
        api.host.vmm("a").come_up()
        await api.host.until(State.RUNNING, "a")
        plain = await api.ask("GET", "/instances/a/exec")
        assert (plain.status, plain.code) == (400, "invalid_request")

    drive(tmp_path, scenario)


def test_an_exit_that_nobody_knows_is_not_made_up(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        async with connect(api) as socket:
            await socket.send_str('{"command":["lost"]}')
            code, reason = await close_of(socket)
            assert code == 1011
            assert reason.startswith("guest_error: ")

    drive(tmp_path, scenario)


def test_a_refusal_of_the_guest_is_told_in_the_close_and_whole_to_who_asked_for_streams(
    tmp_path: Path,
) -> None:
    async def scenario(api: Api) -> None:
        api.host.guest("a").refusal = "ä" * 200
        async with connect(api) as socket:
            await socket.send_str('{"command":["x"]}')
            code, reason = await close_of(socket)
            assert (code, reason) == (1011, "guest_error: the guest refused: " + "ä" * 45)
        async with api.session.ws_connect(api.url("/instances/a/exec")) as socket:
            await socket.send_str('{"command":["x"],"streams":true}')
            told = await socket.receive_json()
            description().check_schema("Error", told)
            assert (told["code"], told["message"]) == ("guest_error", "the guest refused: " + "ä" * 200)
            assert (await close_of(socket))[0] == 1011

    drive(tmp_path, scenario)


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        ('{"command":["x"],"tty":1}', "tty"),
        ('{"command":["x"],"rows":3}', "rows"),
        ('{"command":["x"],"tty":false,"cols":3}', "cols"),
        ('{"command":["x"],"tty":true,"rows":0}', "rows"),
        ('{"command":["x"],"tty":true,"cols":65536}', "cols"),
        ('{"command":["x"],"umask":512}', "umask"),
        ('{"command":["x"],"umask":"022"}', "umask"),
        ('{"command":[]}', "command"),
        ('{"command":"x"}', "command"),
        ('{"command":[""]}', "command"),
        ('{"command":[1]}', "command"),
        ('{"command":["a\\u0000"]}', "command"),
        ('{"command":["x"],"env":["A=1"]}', "env"),
        ('{"command":["x"],"env":{"A":1}}', "env.A"),
        ('{"command":["x"],"env":{"A=B":"1"}}', "env"),
        ('{"command":["x"],"timeout":-1}', "timeout"),
        ('{"command":["x"],"timeout":true}', "timeout"),
        ('{"command":["x"],"wait_for_agent":"1"}', "wait_for_agent"),
        ('{"command":["x"],"cwd":5}', "cwd"),
        ('{"command":["x"],"streams":"yes"}', "streams"),
        ('{"command":["x"],"shell":true}', "shell"),
        ('["x"]', "first frame"),
        ("no json", "first frame"),
        ('{"command":["\\ud800"]}', "UTF-8"),
        ("[" * 100_000, "first frame"),
    ],
)
def test_a_wrong_first_frame_is_refused_by_name(frame: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        parse_opening(frame)


def test_an_exit_without_a_status_is_an_error_and_no_zero() -> None:
    with pytest.raises(HypemandError, match="the exit status of the command is not known: lost"):
        exit_frame(ExitReport(None, "lost"), streams=False)


def test_nulls_of_the_first_frame_count_as_left_out() -> None:
    whole = '{"command":["x"],"env":null,"cwd":null,"user":null,"timeout":null,"tty":null,"streams":null}'
    assert parse_opening(whole) == Opening(ExecRequest(("x",), {}, None, None, None), streams=False)


def test_wrong_frames_close_the_connection_with_the_reason(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        async with connect(api) as socket:
            await socket.send_bytes(b"x")
            assert await close_of(socket) == (
                1008,
                "invalid_request: the first frame must be a text frame with the request",
            )
        for frame in (
            '{"resize":{"rows":1}}',
            '{"resize":{"rows":0,"cols":1}}',
            '{"resize":{"rows":1,"cols":1},"eof":true}',
            '{"signal":0}',
            '{"signal":true}',
            '{"eof":false}',
            "x",
        ):
            async with api.session.ws_connect(api.url("/instances/a/exec")) as socket:
                await socket.send_str('{"command":["cat"]}')
                await socket.send_str(frame)
                assert (await close_of(socket))[0] == 1008, frame
            await api.host.vmm("a").commands[-1].ended.wait()

    drive(tmp_path, scenario)


def test_a_client_that_never_says_what_to_run_is_closed(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        async with connect(api) as socket:
            code, reason = await close_of(socket)
            assert code == 1008
            assert "no request came" in reason

    drive(tmp_path, scenario, Limits(opening=0.05))
