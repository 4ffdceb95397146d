# SPDX-License-Identifier: Apache-2.0
"""A command in a guest: the host's end of a stream, with flow control in both directions.

The session never reads or writes the socket: frames for it are handed in, frames of it go to a Link. What
it holds is bounded by the windows, whoever is slow.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import AsyncIterator, Collection
from typing import Protocol

from hypemand.errors import GuestError, HypemandError, InvalidRequest, TimedOut, WrongState
from hypemand.model.exec import ExecStream
from hypemand.model.vm import ExitReport
from hypemand.protocol.frames import WINDOW, Channel, Frame, FrameType
from hypemand.protocol.records import ProtocolError, parse_records

_INPUT_CHUNK = 32 * 1024
_CREDIT_BATCH = WINDOW // 4
# Output is kept in its order up to so many changes between the two streams, then each joins its own.
_MAX_RUNS = 256
_MAX_MESSAGE = 512
_STREAMS = {Channel.STDOUT: ExecStream.STDOUT, Channel.STDERR: ExecStream.STDERR}
_CHANNELS = {stream: channel for channel, stream in _STREAMS.items()}
_U32 = struct.Struct("<I")
_SIZE = struct.Struct("<HH")
MAX_SIDE = 65535


class Link(Protocol):
    """What a session needs of its channel."""

    def send(self, frame: Frame) -> None:
        """Queue a frame. Does nothing once the channel is closed."""

    async def flush(self) -> None:
        """Wait until the guest has taken most of what is queued."""


def clean_message(text: str) -> str:
    """A guest's words, fit for a terminal and a log: bounded, on one line."""
    return "".join(c if c.isprintable() else "?" for c in text[:_MAX_MESSAGE])


class _Output:
    """What has come and was not read yet, in order."""

    def __init__(self) -> None:
        self._runs: deque[tuple[ExecStream, bytearray]] = deque()
        self._last: dict[ExecStream, bytearray] = {}

    def add(self, stream: ExecStream, data: bytes) -> None:
        newest = self._runs[-1][0] if self._runs else None
        if stream in self._last and (newest is stream or len(self._runs) >= _MAX_RUNS):
            self._last[stream] += data
            return
        run = bytearray(data)
        self._runs.append((stream, run))
        self._last[stream] = run

    def take(self) -> tuple[ExecStream, bytes] | None:
        if not self._runs:
            return None
        stream, run = self._runs.popleft()
        if self._last.get(stream) is run:
            del self._last[stream]
        return stream, bytes(run)

    def clear(self) -> None:
        self._runs.clear()
        self._last.clear()


class Session:
    """Implements model.exec.ExecSession, and AttachSession once it has started. `streams`: what the guest may
    send output on; `terminal`: that is one, which has a size."""

    def __init__(
        self,
        link: Link,
        number: int,
        *,
        streams: Collection[ExecStream] = tuple(ExecStream),
        terminal: bool = False,
    ) -> None:
        self.number = number
        self.started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._link = link
        self._output = _Output()
        self._window = {ExecStream.STDOUT: WINDOW, ExecStream.STDERR: WINDOW}
        self._owed = {ExecStream.STDOUT: 0, ExecStream.STDERR: 0}
        self._open = set(streams)
        self._terminal = terminal
        self._credit = WINDOW
        self._input_lock = asyncio.Lock()
        self._input_ended = False
        self._began = False
        self._closed = False
        self._exit: ExitReport | None = None
        self._error: HypemandError | None = None
        self._readable = asyncio.Event()
        self._writable = asyncio.Event()
        self._over = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._has_tty = self._has_stdin = False

    # --- for the caller ---

    @property
    def has_begun(self) -> bool:
        """Has the guest done what was asked for? Else its exit says why not."""
        return self._began

    @property
    def tty(self) -> bool:
        """See `AttachSession`."""
        return self._has_tty

    @property
    def stdin(self) -> bool:
        """See `AttachSession`."""
        return self._has_stdin

    async def write(self, data: bytes) -> None:
        """Send to its standard input; returns when there is credit for more. What a command that has
        ended was sent is dropped, as by a pipe that nobody reads."""
        async with self._input_lock:
            if self._input_ended:
                raise WrongState("the standard input of the command has already been closed")
            view = memoryview(data)
            while view and await self._has_input():
                await self._link.flush()
                chunk = bytes(view[: min(_INPUT_CHUNK, self._credit)])
                self._credit -= len(chunk)
                view = view[len(chunk) :]
                self._link.send(Frame(FrameType.DATA, self.number, Channel.STDIN, chunk))
            await self._has_input()

    async def _has_input(self) -> bool:
        """Wait for credit. False: nobody will read any more. Raises what broke the session."""
        while self._credit == 0 and not self.is_over:
            self._writable.clear()
            await self._writable.wait()
        if self._error is not None:
            raise self._error
        return not self.is_over

    async def write_eof(self) -> None:
        """Close its standard input. A second time does nothing."""
        async with self._input_lock:
            if self._input_ended:
                return
            self._input_ended = True
            if not self.is_over:
                self._link.send(Frame(FrameType.DATA, self.number, Channel.STDIN))

    async def signal(self, number: int) -> None:
        """Send a signal to its process group; nothing once it has ended."""
        if not 1 <= number <= 64:
            raise InvalidRequest(f"{number} is not a signal", hint="use a number from 1 to 64")
        if not self.is_over:
            self._link.send(Frame(FrameType.SIGNAL, self.number, payload=_U32.pack(number)))

    async def resize(self, rows: int, cols: int) -> None:
        """Tell its terminal the new size; nothing without one, or once it has ended."""
        if not (0 <= rows <= MAX_SIDE and 0 <= cols <= MAX_SIDE):
            raise InvalidRequest(f"{rows} rows and {cols} columns are not a valid terminal size")
        if self._terminal and not self.is_over:
            self._link.send(Frame(FrameType.RESIZE, self.number, payload=_SIZE.pack(rows, cols)))

    async def output(self) -> AsyncIterator[tuple[ExecStream, bytes]]:
        """Its output until both streams have ended, for one reader. Raises GuestError when the channel
        breaks, TimedOut when the command took too long; what came before is given first."""
        while True:
            taken = self._output.take()
            if taken is not None:
                yield taken
                self._give_credit(taken[0], len(taken[1]))
            elif self._error is not None:
                raise self._error
            elif not self._open or self.is_over:
                return
            else:
                self._readable.clear()
                await self._readable.wait()

    async def wait(self) -> ExitReport:
        """Its exit. It comes only when all output was read. Raises as `output` does."""
        await self._over.wait()
        if self._error is not None:
            raise self._error
        if self._exit is None:
            raise GuestError("the command was cancelled before it exited")
        return self._exit

    async def close(self) -> None:
        """Lose interest: what still runs is killed, group and all. May be called at any time."""
        self._abandon()

    # --- for the channel ---

    def start_timer(self, seconds: float) -> None:
        """Kill the command if it runs longer."""
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(seconds, self._expire, seconds)

    def fail(self, error: HypemandError) -> None:
        """The stream is broken: everybody who waits gets `error`. Nothing once it is over."""
        if self.is_over:
            return
        self._error = error
        if not self.started.done():
            self.started.set_exception(error)
            # Whoever waits for it may have been cancelled; then nobody is to be told.
            self.started.exception()
        self._settle()

    def handle(self, frame: Frame) -> bool:
        """Take a frame of the guest. True: it was the last one. ProtocolError if it may not come now."""
        match frame.type:
            case FrameType.STARTED:
                self._handle_started(frame)
            case FrameType.DATA:
                self._handle_data(frame)
            case FrameType.CREDIT:
                self._handle_credit(frame)
            case FrameType.EXIT:
                self._handle_exit(frame)
                return True
            case FrameType.ERROR:
                message = parse_records(frame.payload).find("message") or "no reason given"
                self.fail(GuestError(f"the guest refused: {clean_message(message)}"))
                return True
            case _:
                raise ProtocolError(f"{frame.type.name} comes from the host only")
        return False

    def _handle_started(self, frame: Frame) -> None:
        if self._began:
            raise ProtocolError("STARTED came twice")
        self._began = True
        said = parse_records(frame.payload)
        said.get_int("pid", 1, 2**31 - 1)
        self._has_tty, self._has_stdin = said.find("tty") == "1", said.find("stdin") == "1"
        if not self.started.done():
            self.started.set_result(None)

    def _handle_data(self, frame: Frame) -> None:
        stream = _STREAMS.get(frame.channel)
        if stream is None or stream not in self._open:
            raise ProtocolError(f"DATA on {frame.channel.name}, which is not open to the guest")
        if len(frame.payload) > self._window[stream]:
            raise ProtocolError(f"DATA on {frame.channel.name} beyond its credit")
        if not frame.payload:
            self._open.discard(stream)
        self._window[stream] -= len(frame.payload)
        if frame.payload and not self._closed:
            self._output.add(stream, frame.payload)
        self._readable.set()

    def _handle_credit(self, frame: Frame) -> None:
        if frame.channel is not Channel.STDIN or len(frame.payload) != _U32.size:
            raise ProtocolError("CREDIT that is not one number for STDIN")
        more: int = _U32.unpack(frame.payload)[0]
        if not 1 <= more <= WINDOW - self._credit:
            raise ProtocolError(f"CREDIT of {more} bytes, more than were sent, or none")
        self._credit += more
        self._writable.set()

    def _handle_exit(self, frame: Frame) -> None:
        records = parse_records(frame.payload)
        message = clean_message(records.find("message") or "")
        self._open.clear()
        if records.find("detached") is not None:
            self.fail(GuestError(message, code="detached"))
            return
        report = ExitReport(records.get_int("code", 0, 255), message)
        if self._error is None:
            self._exit = report
        if not self.started.done():
            self.started.set_result(None)
        self._settle()

    def _give_credit(self, stream: ExecStream, count: int) -> None:
        """Return what was passed on, in lumps: not a frame for every few bytes."""
        self._owed[stream] += count
        if self._owed[stream] < _CREDIT_BATCH or stream not in self._open or self.is_over:
            return
        payload = _U32.pack(self._owed[stream])
        self._window[stream] += self._owed[stream]
        self._owed[stream] = 0
        self._link.send(Frame(FrameType.CREDIT, self.number, _CHANNELS[stream], payload))

    def _expire(self, seconds: float) -> None:
        if not self.is_over:
            self.fail(TimedOut(f"the command ran for more than {seconds:g} s and was killed"))
            self._send_close()

    def _abandon(self) -> None:
        if not self.is_over:
            self._send_close()
        self._closed = True
        self._output.clear()
        self._settle()

    def _send_close(self) -> None:
        self._closed = True
        self._link.send(Frame(FrameType.CLOSE, self.number))

    @property
    def is_over(self) -> bool:
        """Has it ended, broken or been given up?"""
        return self._exit is not None or self._error is not None or self._closed

    def _settle(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._readable.set()
        self._writable.set()
        self._over.set()
