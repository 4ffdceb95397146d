# SPDX-License-Identifier: Apache-2.0
"""The report port: the copy of every sentinel line that PID 1 and the agent write (docs/protocol.md).

A second witness beside the console, and as hostile: lines are bounded, and so is how fast they are taken.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from hypemand.errors import GuestError

MAX_LINE = 4096
# A boot has some tens of sentinels. A guest that writes more than this waits, others do not wait for it.
BURST_LINES = 500
LINES_PER_SECOND = 100
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


class _Pace:
    """A bucket of BURST_LINES tokens that fills with LINES_PER_SECOND."""

    def __init__(self) -> None:
        self._tokens = float(BURST_LINES)
        self._at = asyncio.get_running_loop().time()

    async def take(self) -> None:
        now = asyncio.get_running_loop().time()
        self._tokens = min(BURST_LINES, self._tokens + (now - self._at) * LINES_PER_SECOND)
        self._at = now
        self._tokens -= 1
        if self._tokens < 0:
            await asyncio.sleep(-self._tokens / LINES_PER_SECOND)


async def read_report(path: Path, *, timeout: float = _CONNECT_TIMEOUT) -> AsyncIterator[bytes]:
    """Connect to the VMM's socket and give lines until the VMM closes it. A line that has no end then is
    left out. GuestError if there is no such socket; connecting again is the caller's business.
    """
    try:
        async with asyncio.timeout(timeout):
            reader, writer = await asyncio.open_unix_connection(path, limit=_READ_BYTES)
    except OSError as error:  # TimeoutError is one
        why = error.strerror or "no answer"
        raise GuestError(f"cannot connect to the report port at {path}: {why}") from error
    splitter = LineSplitter()
    pace = _Pace()
    try:
        while data := await reader.read(_READ_BYTES):
            for line in splitter.feed(data):
                await pace.take()
                yield line
            await asyncio.sleep(0)
    except OSError as error:
        raise GuestError(f"the report port broke: {error.strerror or error}") from error
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
