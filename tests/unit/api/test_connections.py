# SPDX-License-Identifier: Apache-2.0
"""Clients that take all they can get, and those who want to be served beside them."""

import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest

from hypemand.api.connections import Places, derive_address, notice_loss
from hypemand.api.services import Limits
from hypemand.model.state import State
from tests.unit.api.harness import DEADLINE, Api, drive
from tests.unit.api.test_listener import Place, over_tcp

# linux/tcp.h: the socket is closed without a word to its peer
TCP_REPAIR = 19

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def connect(place: Place, count: int, address: str = "127.0.0.1") -> list[Streams]:
    """Connections from that address which the server has accepted."""
    made = [
        await asyncio.open_connection(place.config.host, place.config.port, local_addr=(address, 0))
        for _ in range(count)
    ]
    # the server has taken those that came before this one
    assert await place.ask("GET", "/health", None) == 401
    return made


def close(streams: Sequence[Streams]) -> None:
    for _, writer in streams:
        writer.close()


async def ask_on(streams: Streams, token: str) -> bytes:
    """The status line of a request on a connection that stays open."""
    reader, writer = streams
    writer.write(f"GET /health HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
    status = await reader.readline()
    await reader.readuntil(b"}}")
    return status


def test_silent_connections_of_one_address_keep_nobody_out(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        token = await place.token()
        silent = await connect(place, 300)
        for _ in range(15):
            assert await place.ask("GET", "/instances", token) == 200
        close(silent)

    over_tcp(tmp_path, scenario)


def test_connections_of_other_addresses_and_those_that_were_let_in_stay(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        token = await place.token()
        (other,) = await connect(place, 1, "127.0.0.2")
        (known,) = await connect(place, 1)
        assert b" 200 " in await ask_on(known, token)
        silent = await connect(place, 300)
        assert b" 200 " in await ask_on(known, token)
        assert b" 200 " in await ask_on(other, token)
        close([other, known, *silent])

    over_tcp(tmp_path, scenario)


def test_the_address_with_the_most_silent_connections_makes_room() -> None:
    closed: list[str] = []
    places = Places(Limits(connections=5, strangers=4))

    def take(address: str, name: str) -> bool:
        return places.take(address, lambda: closed.append(name)) is not None

    assert all(take("a", f"a{n}") for n in range(4))
    assert take("b", "b0")
    assert closed == []
    assert take("c", "c0")
    assert closed == ["a0"]
    assert take("a", "a4")
    assert closed == ["a0", "a1"]
    assert len(places) == 5


def test_places_are_given_back_once() -> None:
    places = Places(Limits(connections=1))
    place = places.take("a", lambda: None)
    assert place is not None
    places.know(place)
    assert places.take("a", lambda: None) is None
    places.give_back(place)
    places.give_back(place)
    places.know(place)  # too late
    assert len(places) == 0


# ends with the run
LONG = "/instances/web/wait?state=Paused&timeout=5m"


def test_requests_of_one_token_are_bounded_and_others_are_served(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        token, other = await place.token("one"), await place.token("other")
        host = place.api.host
        vmm = host.vmm("web")
        async with AsyncExitStack() as stack:
            stopping = [asyncio.create_task(place.ask("GET", LONG, token)) for _ in range(2)]
            stack.callback(vmm.power_off)
            await host.until_true(lambda: host.watchers("web") == 2)
            assert await place.ask("GET", "/instances", token) == 429
            assert await place.ask("GET", "/instances", other) == 200
            assert (await place.api.ask("GET", "/instances")).status == 200  # root
            # of the address, which both tokens share
            more = asyncio.create_task(place.ask("GET", LONG, other))
            await host.until_true(lambda: host.watchers("web") == 3)
            assert await place.ask("GET", "/instances", other) == 429
        assert [await task for task in (*stopping, more)] == [200, 200, 200]
        assert await place.ask("GET", "/instances", token) == 200

    over_tcp(tmp_path, scenario, Limits(client_requests=2, address_requests=3))


def test_requests_of_one_address_are_bounded_whatever_tokens_they_have(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        tokens = [await place.token(f"t{number}") for number in range(6)]
        host = place.api.host
        vmm = host.vmm("web")
        async with AsyncExitStack() as stack:
            stack.callback(vmm.power_off)
            ask = place.ask
            stops = [asyncio.create_task(ask("GET", LONG, token)) for token in tokens[:4]]
            await host.until_true(lambda: host.watchers("web") == 4)
            # none of these tokens has more than one under way, and each is refused here
            assert [await ask("GET", "/instances", token) for token in tokens] == [429] * len(tokens)
            assert await place.ask("GET", "/health", None) == 401, "a stranger is no client"
            (elsewhere,) = await connect(place, 1, "127.0.0.2")
            assert b" 200 " in await ask_on(elsewhere, tokens[5])
            assert (await place.api.ask("GET", "/instances")).status == 200  # root
            close([elsewhere])
        assert [await task for task in stops] == [200] * len(stops)
        assert [await ask("GET", "/instances", token) for token in tokens] == [200] * len(tokens)

    over_tcp(tmp_path, scenario, Limits(client_requests=2, address_requests=4))


def test_root_on_the_socket_is_not_bounded(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        await api.host.put("a", State.RUNNING)
        api.host.guest("a").heeds = False
        stopping = [asyncio.create_task(api.ask("POST", "/instances/a/stop")) for _ in range(3)]
        assert (await api.ask("GET", "/health")).status == 200
        api.host.vmm("a").power_off()
        assert [(await task).status for task in stopping] == [200, 200, 200]

    drive(tmp_path, scenario, Limits(client_requests=1))


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("nonsense", ""),
    ],
)
def test_whom_an_address_counts_for(host: str, address: str) -> None:
    assert derive_address(host) == address


def test_the_kernel_looks_after_connections_over_tcp() -> None:
    with socket.socket(socket.AF_INET) as sock:
        notice_loss(sock)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 120_000
    with socket.socket(socket.AF_UNIX) as sock:
        notice_loss(sock)


def find_accepted(client: socket.socket) -> socket.socket:
    """The server's end of a connection: it is this process too."""
    for number in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):
            if not stat.S_ISSOCK(os.fstat(number).st_mode):
                continue
            with socket.socket(fileno=os.dup(number)) as found:
                ends = found.getpeername(), found.getsockname()
                if ends == (client.getsockname(), client.getpeername()):
                    return found.dup()
    raise AssertionError("no such connection")


def test_a_connection_that_is_accepted_is_looked_after(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        (streams,) = await connect(place, 1)
        with find_accepted(streams[1].get_extra_info("socket")) as sock:
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 120_000
        close([streams])

    over_tcp(tmp_path, scenario)


def vanish(response: aiohttp.ClientResponse) -> None:
    """Be a client whose host has lost its power, and that answers when it is asked after its reboot."""
    assert response.connection is not None
    transport = response.connection.transport
    assert transport is not None
    transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
    transport.abort()


def test_a_command_ends_with_a_client_that_vanished(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        headers = {"Authorization": f"Bearer {await place.token()}"}
        async with place.session.ws_connect(place.url("/instances/web/exec"), headers=headers) as websocket:
            await websocket.send_str('{"command":["sleep"]}')
            await websocket.send_bytes(b"x")
            commands = place.api.host.vmm("web").commands
            await place.api.host.until_true(lambda: bool(commands) and commands[0].stream.waiting > 0)
            vanish(websocket._response)
            await commands[0].ended.wait()

    over_tcp(tmp_path, scenario, Limits(heartbeat=0.05))


def test_a_stream_ends_with_a_client_that_vanished(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        headers = {"Authorization": f"Bearer {await place.token()}"}
        response = await place.session.get(place.url("/instances/web/watch"), headers=headers)
        assert (await response.content.readline()).startswith(b"data: ")
        assert place.api.host.watchers("web") == 1
        vanish(response)
        await place.api.host.until_true(lambda: place.api.host.watchers("web") == 0)
        response.close()

    over_tcp(tmp_path, scenario, Limits(heartbeat=0.05))


def test_a_silent_stream_shows_that_it_lives(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        await api.host.put("a", State.RUNNING)
        async with api.session.get(api.url("/instances/a/watch")) as response:
            assert (await response.content.readline()).startswith(b"data: ")
            assert await response.content.readline() == b"\n"
            assert await response.content.readline() == b":\n"
            response.close()
        async with api.session.ws_connect(api.url("/instances/a/exec"), autoping=False) as websocket:
            await websocket.send_str('{"command":["cat"]}')
            for _ in range(3):
                assert (await websocket.receive()).type is aiohttp.WSMsgType.PING
            # no answer is needed: the client may be busy
            await websocket.send_bytes(b"still there")
            while (frame := await websocket.receive()).type is aiohttp.WSMsgType.PING:
                pass
            assert frame.data == b"still there"

    drive(tmp_path, scenario, Limits(heartbeat=0.05))


def test_a_connection_whose_set_up_fails_gives_its_place_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_handler: object) -> None:
        raise LookupError("a fault of ours")

    async def scenario(place: Place) -> None:
        opened = place.listener._open
        assert opened is not None
        places = opened.server._keeper.places
        with monkeypatch.context() as patch:
            patch.setattr("hypemand.api.server.bound_head", fail)
            reader, writer = await asyncio.open_connection(place.config.host, place.config.port)
            async with asyncio.timeout(DEADLINE):
                assert await reader.read() == b""
            writer.close()
        assert len(places) == 0
        assert "connection of the API failed" in caplog.text
        assert await place.ask("GET", "/health", None) == 401

    over_tcp(tmp_path, scenario)
