# SPDX-License-Identifier: Apache-2.0
"""The API on a unix socket, over the real manager on a fake host. Every answer that is read here is checked
against openapi.yaml."""

from __future__ import annotations

import asyncio
import io
import json
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import aiohttp
from aiohttp import web
from yarl import URL

from hypemand.api.server import make_app, serve
from hypemand.api.services import Limits, Services
from hypemand.config.schemafile import load_schema
from hypemand.manager.service import VmManager
from tests.fakes.api import make_services
from tests.fakes.host import FakeHost, folder_in_memory, running
from tests.openapi_check import Description, parse_events

load_schema("vm")  # as the daemon does before it serves
DEADLINE = 60.0
NOBODY = 65534
IMAGE = "builtin:busybox"
DEFAULTS = Limits()

Json: TypeAlias = Any


@cache
def description() -> Description:
    """The API's description."""
    return Description()


@dataclass(frozen=True)
class Answer:
    """A whole answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Json:
        """The body."""
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """Of an error."""
        return str(self.json["code"])

    @property
    def events(self) -> list[tuple[str | None, Json]]:
        """Of a stream."""
        return list(parse_events(self.body))


@dataclass
class Api:
    """A running server and a client of it."""

    path: Path
    host: FakeHost
    services: Services
    session: aiohttp.ClientSession
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def manager(self) -> VmManager:
        """The one behind it."""
        return self.host.manager

    def url(self, target: str) -> URL:
        """Of a path that is quoted already."""
        return URL(f"http://localhost{target}", encoded=True)

    async def ask(self, method: str, target: str, body: Json = None, *, data: bytes | None = None) -> Answer:
        """One request; its answer is as described."""
        stream = None if data is None else io.BytesIO(data)
        async with self.session.request(method, self.url(target), json=body, data=stream) as response:
            content = await response.read()
            answer = Answer(response.status, response.headers, content)
        description().check_answer(
            method, target, answer.status, answer.headers.get("Content-Type"), answer.body
        )
        return answer

    async def ask_raw(self, text: bytes) -> bytes:
        """Bytes there, and all that comes back until the server closes."""
        reader, writer = await asyncio.open_unix_connection(str(self.path))
        writer.write(text)
        await writer.drain()
        try:
            return await reader.read()
        finally:
            writer.close()
            await writer.wait_closed()


@asynccontextmanager
async def run_api(folder: Path, limits: Limits = DEFAULTS) -> AsyncIterator[Api]:
    """Serve until the block ends or `stop` is set; the socket is removed. The host is in memory."""
    with folder_in_memory() as place:
        async with running(place / "host") as host, _serving(host, folder, limits) as api:
            yield api


@asynccontextmanager
async def _serving(host: FakeHost, folder: Path, limits: Limits) -> AsyncIterator[Api]:
    path = folder / "api.sock"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen()  # as systemd hands it over: who comes early waits
    timeout = aiohttp.ClientTimeout(total=DEADLINE)
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path)), timeout=timeout) as session:
        services = replace(make_services(host), spool=folder)
        api = Api(path, host, services, session)
        served = asyncio.create_task(_serve(make_app(services, limits), listener, api.stop))
        try:
            yield api
        finally:
            api.stop.set()
            await served
            path.unlink()


async def _serve(app: web.Application, listener: socket.socket, stop: asyncio.Event) -> None:
    async with serve(app, listener):
        await stop.wait()


def connect_as(uid: int, path: Path) -> socket.socket:
    """A connection that the kernel knows to be of `uid`: it takes down who connects."""
    assert os.geteuid() == 0, "run this as root: it has to become somebody else"
    for folder in list(path.parents)[:4]:
        if folder.stat().st_mode & 0o005 != 0o005:
            folder.chmod(0o755)
    path.chmod(0o666)
    connection = socket.socket(socket.AF_UNIX)
    os.seteuid(uid)
    try:
        connection.connect(str(path))
    finally:
        os.seteuid(0)
    return connection


async def ask_as(uid: int, path: Path, method: str, target: str, body: Json = None) -> bytes:
    """The whole answer to a request of another user."""
    reader, writer = await asyncio.open_unix_connection(sock=connect_as(uid, path))
    content = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {target} HTTP/1.0\r\nContent-Length: {len(content)}\r\n\r\n"
    writer.write(head.encode() + content)
    answer = await reader.read()
    writer.close()
    return answer


def drive(folder: Path, scenario: Callable[[Api], Awaitable[None]], limits: Limits = DEFAULTS) -> None:
    """Run `scenario` against a server of its own."""

    async def main() -> None:
        async with asyncio.timeout(DEADLINE), run_api(folder, limits) as api:
            await scenario(api)

    asyncio.run(main())
