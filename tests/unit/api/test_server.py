# SPDX-License-Identifier: Apache-2.0
"""The server itself: input that is wrong, connections that are bad, and the end."""

import asyncio
import contextlib
import errno
import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from hypemand.api.failures import error_response
from hypemand.api.server import make_app, serve
from hypemand.api.services import Limits
from hypemand.errors import HostNotReady, StartFailed, WrongState
from hypemand.model.state import State
from tests.unit.api.harness import Api, drive


def test_unknown_paths_and_methods_are_refused_in_json(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        for target in ("/", "/nothing", "/instances/a/b/c", "/instances/", "/images/a/b/c"):
            answer = await api.ask("GET", target)
            assert (answer.status, answer.code) == (404, "unknown_route"), target
        wrong = await api.ask("PUT", "/instances/a", {})
        assert (wrong.status, wrong.code) == (405, "method_not_allowed")
        assert wrong.headers["Allow"] == "DELETE, GET, PATCH"
        assert (await api.ask("PATCH", "/images", {"name": "x"})).status == 405

    drive(tmp_path, scenario)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"no json", "not JSON"),
        (b"[1]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b'{"a":1,"a":2}', "twice"),
        (b'{"a":NaN}', "NaN"),
        (b'{"a":"\xff"}', "UTF-8"),
        (b'{"a":"\\ud800"}', "UTF-8"),
        (b'{"a":' + b"9" * 5000 + b"}", "not JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":"' + b"x" * 1024 * 1024 + b'"}', "1 MiB"),
    ],
    ids=lambda value: str(value)[:16],
)
def test_a_body_that_is_no_good_is_refused_with_the_reason(tmp_path: Path, body: bytes, words: str) -> None:
    async def scenario(api: Api) -> None:
        for target in ("/instances", "/reload", "/images/import"):
            answer = await api.ask("POST", target, data=body)
            assert (answer.status, answer.code) == (400, "invalid_request")
            assert words in answer.json["message"]
        assert not list(api.host.parts.fleet)

    drive(tmp_path, scenario)


def test_a_body_that_does_not_come_is_given_up(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        answer = await api.ask_raw(b"POST /instances HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{")
        assert b"did not arrive" in answer

    drive(tmp_path, scenario, Limits(body=0.05, lingering=0.05))


@pytest.mark.parametrize(
    "text",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: " + b"x" * 100_000 + b"\r\n\r\n",
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
    ],
    ids=["binary", "header", "line", "length"],
)
def test_what_is_no_http_is_refused_and_the_server_lives(tmp_path: Path, text: bytes) -> None:
    async def scenario(api: Api) -> None:
        assert (await api.ask_raw(text)).startswith(b"HTTP/1.0 400")
        assert (await api.ask("GET", "/health")).status == 200

    drive(tmp_path, scenario)


def test_a_connection_that_asks_nothing_is_closed(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        assert await api.ask_raw(b"") == b""
        assert await api.ask_raw(b"GET /health HTTP/1.1\r\nHo") == b""
        reader, writer = await asyncio.open_unix_connection(str(api.path))
        writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b'"status":"ok"' in await reader.readuntil(b"}}")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.2)
        writer.close()

    drive(tmp_path, scenario, Limits(first_request=0.05))


def test_a_silent_connection_makes_room_for_a_new_one_and_one_that_was_let_in_does_not(
    tmp_path: Path,
) -> None:
    async def scenario(api: Api) -> None:
        known = [await asyncio.open_unix_connection(str(api.path)) for _ in range(2)]
        for reader, writer in known:
            writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b'"status":"ok"' in await reader.readuntil(b"}}")
        first = await asyncio.open_unix_connection(str(api.path))
        second = await asyncio.open_unix_connection(str(api.path))
        assert await first[0].read() == b""
        second[1].write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b'"status":"ok"' in await second[0].readuntil(b"}}")
        # now all are known
        late = await asyncio.open_unix_connection(str(api.path))
        assert await late[0].read() == b""
        for _, writer in (*known, first, second, late):
            writer.close()
            await writer.wait_closed()
        while True:
            try:
                assert (await api.ask("GET", "/health")).status == 200
                break
            except aiohttp.ClientError:
                continue

    drive(tmp_path, scenario, Limits(connections=3))


class Exhausted(socket.socket):
    """A listening socket of a process that has no descriptors left at first."""

    refusals = 2

    def accept(self) -> tuple[socket.socket, Any]:
        if self.refusals:
            self.refusals -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


def test_a_process_without_descriptors_goes_on_when_it_has_some(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = str(tmp_path / "other.sock")

    async def scenario(api: Api) -> None:
        listener = Exhausted(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(path)
        listener.listen()
        async with serve(make_app(api.services, Limits(accept_pause=0.05)), listener):
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert b'"status":"ok"' in await reader.read()
            writer.close()

    drive(tmp_path, scenario)
    assert [r.getMessage() for r in caplog.records] == ["cannot take a connection: Too many open files"] * 2


def test_a_client_is_to_ask_again_for_nothing_but_what_mends_itself() -> None:
    for error, retry in ((StartFailed("x"), "false"), (HostNotReady("x"), None), (WrongState("x"), "false")):
        assert error_response(error).headers.get("X-Should-Retry") == retry


def test_an_unforeseen_error_is_told_without_its_innards(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(api: Api) -> None:
        await api.host.put("a")
        vm = api.host.vm("a")
        derived = vm._derived
        vm._derived = None  # type: ignore[assignment]
        answer = await api.ask("GET", "/instances/a")
        vm._derived = derived
        assert (answer.status, answer.code) == (500, "internal_error")
        assert "NoneType" not in answer.body.decode()

    drive(tmp_path, scenario)
    assert "AttributeError" in caplog.text


async def until_nobody_listens(api: Api) -> None:
    """The server takes no connections any more: a deadline stands around every scenario."""
    with contextlib.suppress(OSError):
        while True:
            _, writer = await asyncio.open_unix_connection(str(api.path))
            writer.close()


def test_the_end_waits_for_a_request_that_is_on(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        await api.host.put("a", State.RUNNING)
        api.host.guest("a").heeds = False
        stopping = asyncio.create_task(api.ask("POST", "/instances/a/stop"))
        await api.host.until_true(lambda: api.host.unit("a") == "deactivating/stop")
        api.stop.set()
        await until_nobody_listens(api)
        api.host.vmm("a").power_off()
        assert (await stopping).json["state"] == "Stopped"

    drive(tmp_path, scenario)


def test_the_end_keeps_its_deadline_when_a_request_does_not(tmp_path: Path) -> None:
    ended = 0.0

    async def scenario(api: Api) -> None:
        nonlocal ended
        await api.host.put("a", State.RUNNING)
        api.host.guest("a").heeds = False
        stopping = asyncio.create_task(api.ask("POST", "/instances/a/stop"))
        await api.host.until_true(lambda: api.host.unit("a") == "deactivating/stop")
        silent = await asyncio.open_unix_connection(str(api.path))
        ended = time.monotonic()
        api.stop.set()
        with pytest.raises(aiohttp.ClientError):
            await stopping
        assert await silent[0].read() == b""
        silent[1].close()

    drive(tmp_path, scenario, Limits(grace=0.2))
    assert 0.2 <= time.monotonic() - ended < 20.0


def test_aiohttp_is_loaded_by_nothing_but_the_server() -> None:
    code = "import sys, hypemand.model.vm, hypemand.config.vmdef; print('aiohttp' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(output.stdout.lower()) is False
