# SPDX-License-Identifier: Apache-2.0
"""A guest's side of the agent channel that a test plays by hand, with a codec of its own."""

from __future__ import annotations

import asyncio
import functools
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ParamSpec

from hypemand.agent.channel import AgentChannel

BOOT = "0123456789abcdef0123456789abcdef"
DEADLINE = 60.0
HELLO, PING, PONG, ERROR, EXEC, STARTED, DATA, CREDIT, EXIT, SIGNAL, CLOSE, SHUTDOWN = range(1, 13)
RESIZE, FILES, CLOCK, ENTRY, HOLE, END, HEALTH, ATTACH, FREEZE, THAW = range(13, 23)
WINDOW = 262144

P = ParamSpec("P")


def in_loop(test: Callable[P, Awaitable[None]]) -> Callable[P, None]:
    """Run a test in an event loop, with a deadline."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        async def limited() -> None:
            async with asyncio.timeout(DEADLINE):
                await test(*args, **kwargs)

        asyncio.run(limited())

    return run


def pack(kind: int, stream: int = 0, payload: bytes = b"", channel: int = 0) -> bytes:
    """A frame's bytes."""
    return struct.pack("<IIBBH", len(payload), stream, kind, channel, 0) + payload


def records(*pairs: tuple[str, str]) -> bytes:
    """Records' bytes."""
    return b"".join(f"{key}={value}\0".encode() for key, value in pairs)


_WORDS = ("tty", "umask", "files", "clock", "health", "attach", "freeze")
FEATURES = tuple(("feature", word) for word in _WORDS)
_GREETING = (("version", "1"), ("boot", BOOT), ("agent", "7"), *FEATURES)
GREETING = pack(HELLO, 0, records(*_GREETING))
# Of one whose guest stands still.
FROZEN_GREETING = pack(HELLO, 0, records(*_GREETING, ("frozen", "1")))
# Of an agent that is older than anything that is a feature.
OLD_GREETING = pack(HELLO, 0, records(("version", "1"), ("boot", BOOT), ("agent", "1")))


class Guest:
    """The accepted connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        """Send bytes, whatever they are."""
        self.writer.write(data)

    async def receive(self) -> tuple[int, int, int, bytes]:
        """The host's next frame: type, stream, channel, payload."""
        header = await self.reader.readexactly(12)
        length, stream, kind, channel, zero = struct.unpack("<IIBBH", header)
        assert zero == 0
        return kind, stream, channel, await self.reader.readexactly(length)

    async def expect(self, kind: int) -> tuple[int, int, bytes]:
        """The host's next frame, which has to be of that type: stream, channel, payload."""
        got, stream, channel, payload = await self.receive()
        assert got == kind, (got, stream, channel, payload)
        return stream, channel, payload

    async def start(self) -> int:
        """Answer an EXEC; gives its stream."""
        stream, _, _ = await self.expect(EXEC)
        self.send(pack(STARTED, stream, records(("pid", "42"))))
        return stream

    def exit(self, stream: int, code: int = 0, message: str = "") -> None:
        """End a stream as a program that ended."""
        self.send(pack(EXIT, stream, records(("code", str(code)), ("message", message))))


@asynccontextmanager
async def listening(path: Path) -> AsyncIterator[asyncio.Queue[Guest]]:
    """A VMM's socket that accepts; gives the connections."""
    guests: asyncio.Queue[Guest] = asyncio.Queue()
    accepted: list[asyncio.StreamWriter] = []

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.append(writer)
        guests.put_nowait(Guest(reader, writer))

    server = await asyncio.start_unix_server(accept, path)
    try:
        yield guests
    finally:
        server.close()
        for writer in accepted:
            writer.close()
        await server.wait_closed()


@asynccontextmanager
async def connected(folder: Path) -> AsyncIterator[tuple[AgentChannel, Guest]]:
    """A channel and its guest; neither has answered the other's HELLO yet."""
    path = folder / "agent.sock"
    async with listening(path) as guests:
        channel = await AgentChannel.connect(path, BOOT)
        try:
            yield channel, await guests.get()
        finally:
            await channel.close()


@asynccontextmanager
async def greeted(folder: Path, greeting: bytes = GREETING) -> AsyncIterator[tuple[AgentChannel, Guest]]:
    """A channel that is ready, and its guest."""
    async with connected(folder) as (channel, guest):
        guest.send(greeting)
        await channel.ready()
        await guest.expect(HELLO)
        yield channel, guest
