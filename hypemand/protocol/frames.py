# SPDX-License-Identifier: Apache-2.0
"""Frames of the agent channel (docs/protocol.md, "Agent channel"): codec and bounded parser. No I/O.

The other end is hostile: whatever bytes come, the parser keeps at most one frame and raises nothing but
ProtocolError.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

from hypemand.protocol.records import ProtocolError, parse_records

VERSION = "1"
HEADER = struct.Struct("<IIBBH")
MAX_PAYLOAD = 65536
MAX_PING = 64
WINDOW = 262144
# What a guest may have had under way for the connection before: its buffers and the port's queue.
MAX_NOISE = 1024 * 1024
# Of HELLOs for connections before this one: each was at most this one's noise.
MAX_LOOKALIKES = 16
_MAX_HELLO = 4096


class FrameType(IntEnum):
    """Type byte of a frame."""

    HELLO = 1
    PING = 2
    PONG = 3
    ERROR = 4
    EXEC = 5
    STARTED = 6
    DATA = 7
    CREDIT = 8
    EXIT = 9
    SIGNAL = 10
    CLOSE = 11
    SHUTDOWN = 12
    RESIZE = 13
    FILES = 14
    CLOCK = 15
    # Only among the items that the bytes of a FILES stream consist of, as DATA is too.
    ENTRY = 16
    HOLE = 17
    END = 18
    # As a frame the order to repeat a check, as an item in that stream a report.
    HEALTH = 19
    ATTACH = 20
    FREEZE = 21
    THAW = 22


class Channel(IntEnum):
    """Channel byte of a frame; STDIN also where it means nothing."""

    STDIN = 0
    STDOUT = 1
    STDERR = 2


_TYPES = {member.value: member for member in FrameType}
_CHANNELS = {member.value: member for member in Channel}
# HELLO and ERROR on stream 0, from the second field on.
_HELLO_TAIL = HEADER.pack(0, 0, FrameType.HELLO, 0, 0)[4:]
_FIRST_TAILS = (_HELLO_TAIL, HEADER.pack(0, 0, FrameType.ERROR, 0, 0)[4:])


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame."""

    type: FrameType
    stream: int = 0
    channel: Channel = Channel.STDIN
    payload: bytes = b""

    def encode(self) -> bytes:
        """Its bytes. ValueError if the payload is too long."""
        if len(self.payload) > MAX_PAYLOAD:
            raise ValueError(f"a frame carries at most {MAX_PAYLOAD} bytes, not {len(self.payload)}")
        return HEADER.pack(len(self.payload), self.stream, self.type, self.channel, 0) + self.payload


def _parse_header(data: bytes | bytearray, at: int) -> tuple[int, FrameType, int, Channel]:
    """Length, type, stream and channel of the header at an offset."""
    length, stream, kind, channel, zero = HEADER.unpack_from(data, at)
    if length > MAX_PAYLOAD:
        raise ProtocolError(f"a frame of {length} bytes, at most {MAX_PAYLOAD} are allowed")
    if kind not in _TYPES:
        raise ProtocolError(f"a frame of the unknown type {kind}")
    if channel not in _CHANNELS or zero:
        raise ProtocolError("a frame header with a channel that is none, or without its zero field")
    return length, _TYPES[kind], stream, _CHANNELS[channel]


class FrameParser:
    """Bytes to frames. A header is judged as soon as it is there, before its payload."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """Take bytes, give the frames that are whole now. After a ProtocolError it is of no more use."""
        self._buffer += data
        frames = []
        at = 0
        while len(self._buffer) - at >= HEADER.size:
            length, kind, stream, channel = _parse_header(self._buffer, at)
            end = at + HEADER.size + length
            if len(self._buffer) < end:
                break
            payload = bytes(self._buffer[at + HEADER.size : end])
            frames.append(Frame(kind, stream, channel, payload))
            at = end
        del self._buffer[:at]
        return frames


class HelloFinder:
    """Skips what a guest had under way for the connection before, up to its HELLO.

    An ERROR that comes first is not skipped: so the agent refuses the host's HELLO. What is skipped is not
    kept, and what only looks like a HELLO is read no more than MAX_LOOKALIKES times, so that the cost is
    linear in what the guest sends.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._skipped = 0
        self._lookalikes = 0

    def feed(self, data: bytes) -> bytes | None:
        """Take bytes; give all from the HELLO (or ERROR) on once it is there.

        ProtocolError when MAX_NOISE bytes came before it.
        """
        self._buffer += data
        buffer = self._buffer
        if not self._skipped and len(buffer) >= HEADER.size and buffer[4 : HEADER.size] in _FIRST_TAILS:
            return bytes(buffer)
        start = 0
        while (at := buffer.find(_HELLO_TAIL, start + 4) - 4) >= 0:
            found = self._is_hello(at)
            if found:
                return bytes(buffer[at:])
            if found is None:
                self._skip(at)
                return None
            start = at + 1
        self._skip(max(start, len(buffer) - HEADER.size))
        return None

    def _skip(self, count: int) -> None:
        del self._buffer[:count]
        self._skipped += count
        if self._skipped > MAX_NOISE:
            raise ProtocolError(f"no HELLO in the first {MAX_NOISE} bytes")

    def _is_hello(self, at: int) -> bool | None:
        """Is there a HELLO at this offset? None: not all of it is there yet."""
        length = HEADER.unpack_from(self._buffer, at)[0]
        if not 0 < length <= _MAX_HELLO:
            return False
        start = at + HEADER.size
        if len(self._buffer) < start + length:
            return None
        self._lookalikes += 1
        if self._lookalikes > MAX_LOOKALIKES:
            raise ProtocolError(f"more than {MAX_LOOKALIKES} frames that look like a HELLO and are none")
        try:
            records = parse_records(bytes(self._buffer[start : start + length]))
            return records.find("version") is not None and records.find("boot") is not None
        except ProtocolError:
            return False
