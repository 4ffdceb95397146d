# SPDX-License-Identifier: Apache-2.0
"""The host's half of the agent channel, small and blocking, for tests of the guest's half alone."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Self

HEADER = struct.Struct("<IIBBH")
DEADLINE_S = 60.0
WINDOW = 262144


class Type(IntEnum):
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
    ENTRY = 16
    HOLE = 17
    END = 18
    HEALTH = 19
    ATTACH = 20
    FREEZE = 21
    THAW = 22


@dataclass(frozen=True)
class Frame:
    type: Type
    stream: int
    channel: int
    payload: bytes

    def records(self) -> dict[str, str]:
        """The payload's records; the last of a key wins."""
        pairs = (record.split(b"=", 1) for record in self.payload.split(b"\0")[:-1])
        return {key.decode(): value.decode(errors="replace") for key, value in pairs}


@dataclass
class Result:
    """All that a stream brought until its EXIT."""

    output: dict[int, bytes] = field(default_factory=lambda: {1: b"", 2: b""})
    ended: set[int] = field(default_factory=set)
    pid: int | None = None
    code: int = -1
    message: str = ""


def format_item(kind: int, payload: bytes = b"") -> bytes:
    """A frame as it stands in the bytes of a FILES stream."""
    return HEADER.pack(len(payload), 0, kind, 0, 0) + payload


def format_entry(path: str, kind: str = "file", **more: object) -> bytes:
    """An ENTRY, of an empty file if not said otherwise. None leaves a record out."""
    values = {"mode": 420, "uid": -1, "gid": -1, "size": 0, "mtime": 1} | more
    pairs = [("path", path), ("kind", kind)] + [
        (key, str(value)) for key, value in values.items() if value is not None
    ]
    return format_item(Type.ENTRY, format_records(pairs))


def parse_items(data: bytes) -> list[Frame]:
    """The items that bytes consist of."""
    items = []
    while data:
        length, stream, kind, channel, _ = HEADER.unpack_from(data)
        end = HEADER.size + length
        items.append(Frame(Type(kind), stream, channel, data[HEADER.size : end]))
        data = data[end:]
    return items


def format_records(pairs: Iterable[tuple[str, str]]) -> bytes:
    return b"".join(f"{key}={value}".encode() + b"\0" for key, value in pairs)


class Channel:
    """A connection to an agent. Every wait ends after DEADLINE_S with TimeoutError."""

    def __init__(self, connection: socket.socket, boot: str) -> None:
        self.connection = connection
        self.boot = boot
        connection.settimeout(DEADLINE_S)
        self.buffer = b""
        self.next_stream = 1

    @classmethod
    def connect(cls, path: str, boot: str) -> Self:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(path)
        return cls(connection, boot)

    def close(self) -> None:
        self.connection.close()

    def send(self, kind: int, payload: bytes = b"", stream: int = 0, channel: int = 0) -> None:
        self.connection.sendall(HEADER.pack(len(payload), stream, kind, channel, 0) + payload)

    def receive(self) -> Frame:
        """The next frame. EOFError if the agent is gone."""
        header = self._take(HEADER.size)
        length, stream, kind, channel, zero = HEADER.unpack(header)
        assert (zero, length <= 65536) == (0, True)
        return Frame(Type(kind), stream, channel, self._take(length))

    def _take(self, size: int) -> bytes:
        while len(self.buffer) < size:
            got = self.connection.recv(65536)
            if not got:
                raise EOFError
            self.buffer += got
        taken, self.buffer = self.buffer[:size], self.buffer[size:]
        return taken

    def expect(self, kind: Type) -> Frame:
        frame = self.receive()
        assert frame.type is kind, frame
        return frame

    def greet(self) -> dict[str, str]:
        """Send HELLO; the records of the one that answers it."""
        self.send(Type.HELLO, format_records((("version", "1"), ("boot", self.boot))))
        return self.expect(Type.HELLO).records()

    def start(self, argv: Iterable[str], **records: str) -> int:
        """EXEC on a new stream, whose number it gives back. `env` is one variable."""
        stream = self.next_stream
        self.next_stream += 1
        pairs = [("arg", argument) for argument in argv] + list(records.items())
        self.send(Type.EXEC, format_records(pairs), stream)
        return stream

    def files(self, operation: str, path: str, data: bytes = b"", **records: str) -> list[Frame]:
        """The items that answer a FILES whose input is `data` (at most a window)."""
        stream = self.next_stream
        self.next_stream += 1
        pairs = [("operation", operation), ("path", path), *records.items()]
        self.send(Type.FILES, format_records(pairs), stream)
        for at in range(0, len(data), 65536):
            self.send(Type.DATA, data[at : at + 65536], stream)
        self.send(Type.DATA, b"", stream)
        result = self.collect(stream)[stream]
        assert result.code == 0, result
        return parse_items(result.output[1])

    def check(self, check: str, **records: str) -> int:
        """HEALTH on a new stream, whose number it gives back."""
        stream = self.next_stream
        self.next_stream += 1
        pairs = [("check", check), ("loopback", "1"), *records.items()]
        self.send(Type.HEALTH, format_records(pairs), stream)
        return stream

    def report(self, stream: int) -> dict[str, str]:
        """The next report of a HEALTH."""
        while (frame := self.receive()).type is Type.STARTED:
            pass
        assert (frame.type, frame.stream, frame.channel) == (Type.DATA, stream, 1), frame
        self.send(Type.CREDIT, struct.pack("<I", len(frame.payload)), stream, 1)
        (item,) = parse_items(frame.payload)
        assert item.type is Type.HEALTH, item
        return item.records()

    def order(self, kind: Type, payload: bytes = b"") -> tuple[int, str]:
        """A request that its EXIT answers: code and words."""
        stream = self.next_stream
        self.next_stream += 1
        self.send(kind, payload, stream)
        result = self.collect(stream)[stream]
        return result.code, result.message

    def collect(self, *streams: int) -> dict[int, Result]:
        """Everything of these streams up to their EXIT, giving credit back as it comes."""
        results = {stream: Result() for stream in streams}
        open_streams = set(streams)
        deadline = time.monotonic() + DEADLINE_S
        while open_streams:
            if time.monotonic() > deadline:
                raise TimeoutError(f"streams without EXIT: {open_streams}")
            frame = self.receive()
            if frame.stream not in results:
                raise AssertionError(frame)
            assert frame.stream in open_streams, f"frame after EXIT: {frame}"
            self._sort(results[frame.stream], frame, open_streams)
        return results

    def _sort(self, result: Result, frame: Frame, open_streams: set[int]) -> None:
        if frame.type is Type.STARTED:
            result.pid = int(frame.records()["pid"])
        elif frame.type is Type.DATA and frame.payload:
            assert frame.channel not in result.ended
            result.output[frame.channel] += frame.payload
            self.send(Type.CREDIT, struct.pack("<I", len(frame.payload)), frame.stream, frame.channel)
        elif frame.type is Type.DATA:
            result.ended.add(frame.channel)
        elif frame.type is Type.EXIT:
            result.code = int(frame.records()["code"])
            result.message = frame.records()["message"]
            open_streams.discard(frame.stream)
        else:
            assert frame.type is Type.CREDIT, frame

    def run(self, argv: Iterable[str], stdin: bytes = b"", **records: str) -> Result:
        """EXEC, stdin whole (at most a window), and its end."""
        stream = self.start(argv, **records)
        for at in range(0, len(stdin), 65536):
            self.send(Type.DATA, stdin[at : at + 65536], stream)
        self.send(Type.DATA, b"", stream)
        return self.collect(stream)[stream]
