# SPDX-License-Identifier: Apache-2.0
"""The report port: the copy of every sentinel line that PID 1 and the agent write (docs/protocol.md).

A second witness beside the console, and as hostile: lines are bounded, and the VM pays for them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from hypemand.budget import Budget, Price, Reserve, Turn
from hypemand.errors import GuestError

MAX_LINE = 4096
_READ_BYTES = 16 * 1024
_CONNECT_TIMEOUT = 5.0


class LineSplitter:
    """Bytes to lines without their ends. A line longer than MAX_LINE is left out, up to its end."""

    def __init__(self) -> None:
        self._rest = b""
        self._skipping = False

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes, give the lines that are whole now; empty ones are left out."""
        *lines, rest = (self._rest + data).split(b"\n")
        if lines and self._skipping:
            del lines[0]
            self._skipping = False
        if self._skipping or len(rest) > MAX_LINE:
            self._skipping = True
            rest = b""
        self._rest = rest
        return [line.removesuffix(b"\r") for line in lines if 0 < len(line) <= MAX_LINE]


@asynccontextmanager
async def open_report(
    path: Path, budget: Budget, *, timeout: float = _CONNECT_TIMEOUT
) -> AsyncIterator[AsyncIterator[bytes]]:
    """Connect to the VMM's socket; gives its lines until the VMM closes it, see `_read_lines`. GuestError if
    there is no such socket, or it breaks; connecting again is the caller's business.
    """
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_unix_connection(path, limit=_READ_BYTES)
    except OSError as error:  # TimeoutError is one
        why = error.strerror or "no answer"
        raise GuestError(f"cannot connect to the report port at {path}: {why}") from error
    try:
        yield _read_lines(reader, budget)
    except OSError as error:
        raise GuestError(f"the report port broke: {error.strerror or error}") from error
    finally:
        writer.transport.abort()


async def _read_lines(reader: asyncio.StreamReader, budget: Budget) -> AsyncIterator[bytes]:
    """Lines as they come. One that has no end when the connection ends is left out. Each is paid from the
    VM's budget: a guest that writes more waits, others do not wait for it."""
    splitter = LineSplitter()
    turn = Turn()
    while data := await reader.read(_READ_BYTES):
        for line in splitter.feed(data):
            budget.spend(Price.LINE)
            await budget.wait(Reserve.LINES)
            await turn.pause()
            yield line
        await asyncio.sleep(0)
