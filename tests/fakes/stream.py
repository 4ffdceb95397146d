# SPDX-License-Identifier: Apache-2.0
"""A stream of the agent channel, on the guest's side: bytes both ways, with flow control."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable

from tests.unit.agent.support import CREDIT, DATA, EXIT, STARTED, WINDOW, pack, records

_PIECE = 32768


class Stream:
    """`send` puts a frame on the channel, `break_off` ends the channel with no word."""

    def __init__(self, number: int, send: Callable[[bytes], None], break_off: Callable[[], None]) -> None:
        self.number = number
        self.break_off = break_off
        self._send = send
        self._input = bytearray()
        self._input_ended = False
        self._arrived = asyncio.Event()
        self._credit = {1: WINDOW, 2: WINDOW}
        self._credited = asyncio.Event()

    @property
    def waiting(self) -> int:
        """Bytes that have come and were not read."""
        return len(self._input)

    def start(self, *more: tuple[str, str]) -> None:
        """What it is for runs."""
        self._send(pack(STARTED, self.number, records(("pid", "42"), *more)))

    async def read(self) -> bytes:
        """What has come on channel 0; empty at its end."""
        while not self._input and not self._input_ended:
            self._arrived.clear()
            await self._arrived.wait()
        data = bytes(self._input)
        self._input.clear()
        if data:
            self._send(pack(CREDIT, self.number, struct.pack("<I", len(data))))
        return data

    async def write(self, data: bytes, channel: int = 1) -> None:
        """Send, as soon as there is credit."""
        for start in range(0, len(data), _PIECE):
            piece = data[start : start + _PIECE]
            while self._credit[channel] < len(piece):
                self._credited.clear()
                await self._credited.wait()
            self._credit[channel] -= len(piece)
            self._send(pack(DATA, self.number, piece, channel))
            await asyncio.sleep(0)

    def exit(self, code: int, message: str, *, channels: tuple[int, ...] = ()) -> None:
        """The last of it."""
        ends = b"".join(pack(DATA, self.number, b"", channel) for channel in channels)
        self._send(ends + pack(EXIT, self.number, records(("code", str(code)), ("message", message))))

    def detach(self, message: str) -> None:
        """The last of one that is attached and too slow."""
        self._send(pack(EXIT, self.number, records(("detached", "1"), ("message", message))))

    # from the host

    def take_data(self, data: bytes) -> None:
        """DATA on channel 0."""
        self._input += data
        assert len(self._input) <= WINDOW, "beyond its credit"
        self._input_ended = self._input_ended or not data
        self._arrived.set()

    def take_credit(self, payload: bytes, channel: int) -> None:
        """CREDIT."""
        self._credit[channel] += struct.unpack("<I", payload)[0]
        self._credited.set()
