# SPDX-License-Identifier: Apache-2.0
"""The host's end of a guest's agent channel: one connection to the VMM's socket, many commands at once.

The guest is hostile: a frame that docs/protocol.md does not allow closes the channel with a reason, and
nothing that is kept for a guest grows with what it sends. Connecting again is the caller's business;
after a violation not at once, so that the guest sees that the host was away.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
import struct
import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypemand.agent.files import IncomingCopy, OutgoingCopy, check_path, read_stat
from hypemand.agent.session import MAX_SIDE, Session, clean_message
from hypemand.budget import Budget, Price, Reserve, Turn
from hypemand.errors import GuestError, InvalidRequest, TimedOut
from hypemand.model.exec import AttachRequest, ExecRequest, ExecStream
from hypemand.model.files import CopyIn, CopyOut, FileInfo
from hypemand.protocol.frames import (
    MAX_PAYLOAD,
    MAX_PING,
    VERSION,
    Frame,
    FrameParser,
    FrameType,
    HelloFinder,
)
from hypemand.protocol.records import ProtocolError, encode_records, parse_records
from hypemand.protocol.thaw import Thaw, encode_thaw
from hypemand.tasks import Tasks

MAX_STREAMS = 64
MAX_GRACE = 86400
MAX_PINGS_PER_SECOND = 16
MAX_UNANSWERED = 64
MAX_FEATURES = 64
MAX_UMASK = 0o777
_U64 = struct.Struct("<Q")
_READ_BYTES = 16 * 1024
# More than all streams together may have queued, each its EXEC and a piece of input: the guest does not read.
QUEUE_LIMIT = 8 * 1024 * 1024
_FAREWELL = 1.0
_START_TIMEOUT = 15.0
# The guest's own limits are 2 s for its processes and 5 s for its file systems.
_FREEZE_TIMEOUT = 20.0
_THAW_TIMEOUT = 20.0
_CURE = "restart the VM, which gives it the guest files of this version"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AgentHello:
    """What the agent said of itself. `features`: what it can do beside what every agent can; `frozen`: the
    guest stands still until it is thawed."""

    version: str
    features: frozenset[str] = frozenset()
    frozen: bool = False


class AgentChannel:
    """A connection to an agent. Made by `connect`, ended by `close` or by the guest."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        boot: str,
        queue_limit: int,
        budget: Budget,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._tasks = Tasks(f"boot {boot}")
        self._closed: asyncio.Future[GuestError] = loop.create_future()
        self._hello: asyncio.Future[AgentHello] = loop.create_future()
        self._reader = reader
        self._writer = writer
        self._boot = boot
        self._queue_limit = queue_limit
        self._budget = budget
        self._finder: HelloFinder | None = HelloFinder()
        self._parser = FrameParser()
        self._sessions: dict[int, Session] = {}
        # since FREEZE: what is not sent
        self._held: list[Frame] | None = None
        self._numbers = itertools.count(1)
        self._pings: dict[bytes, asyncio.Future[None]] = {}
        self._ping_second = 0
        self._ping_count = 0
        self._tasks.start("agent channel", self._serve())

    @classmethod
    async def connect(
        cls,
        path: Path,
        boot_id: str,
        budget: Budget | None = None,
        *,
        timeout: float = 5.0,
        queue_limit: int = QUEUE_LIMIT,
    ) -> AgentChannel:
        """Connect to the VMM's socket and greet. `boot_id` is what the guest must answer with. Its frames are
        paid from `budget`, else from one of this channel; a guest that leaves more than `queue_limit` bytes
        unread loses the channel.

        The socket accepts as soon as the VMM runs; the agent is there when `ready` returns.
        """
        try:
            async with asyncio.timeout(timeout):
                reader, writer = await asyncio.open_unix_connection(path, limit=_READ_BYTES)
        except TimeoutError:
            raise GuestError(f"the VMM did not accept a connection to {path} in {timeout:g} s") from None
        except OSError as error:
            raise GuestError(f"cannot connect to the agent at {path}: {error.strerror or error}") from error
        channel = cls(reader, writer, boot_id, queue_limit, budget or Budget())
        hello = encode_records([("version", VERSION), ("boot", boot_id)])
        channel.send(Frame(FrameType.HELLO, payload=hello))
        return channel

    # --- for the caller ---

    @property
    def closed(self) -> asyncio.Future[GuestError]:
        """A future of the reason why the channel ended: wait for it or add a callback. It never raises,
        and who cancels it (a timeout does) cancels only his own waiting."""
        return asyncio.shield(self._closed)

    @property
    def is_ready(self) -> bool:
        """Has the agent of this boot answered, and is the channel open?"""
        return self._hello.done() and not self._closed.done()

    async def ready(self) -> AgentHello:
        """Wait for the agent's HELLO, as long as it takes: the deadline is the caller's. GuestError when
        the channel closes before."""
        await _wait_any(self._hello, self._closed)
        if not self._hello.done():
            raise self._closed.result()
        return self._hello.result()

    async def exec(self, request: ExecRequest, *, start_timeout: float = _START_TIMEOUT) -> Session:
        """Start a command. A program that cannot be started has an exit of 126, 127 or 125, as in a shell.

        GuestError: not ready, too many at once, or the channel broke; TimedOut: no answer in time.
        """
        if request.tty:
            self._require("tty", "no terminals")
        if request.umask is not None:
            self._require("umask", "no umask")
        streams = (ExecStream.STDOUT,) if request.tty else tuple(ExecStream)
        payload = _encode_exec(request)
        session = self._open(FrameType.EXEC, payload, streams=streams, terminal=request.tty)
        if request.timeout is not None:
            session.start_timer(request.timeout)
        async with _deadline(session, start_timeout, f"start {request.argv[0]}"):
            await session.started
        return session

    async def attach(self, request: AttachRequest, *, start_timeout: float = _START_TIMEOUT) -> Session:
        """Attach to the program of the VM, which goes on when the session is closed. GuestError, TimedOut."""
        self._require("attach", "attaching")
        payload = _encode_attach(request)
        session = self._open(FrameType.ATTACH, payload, streams=tuple(ExecStream), terminal=True)
        async with _deadline(session, start_timeout, "attach to its program"):
            await session.started
        if not session.has_begun:
            raise GuestError(f"cannot attach: {(await session.wait()).message}")
        return session

    def _open(
        self, kind: FrameType, payload: bytes, *, streams: Collection[ExecStream], terminal: bool = False
    ) -> Session:
        """Ask for something that has a stream of its own."""
        self._check_ready()
        if len(self._sessions) >= MAX_STREAMS:
            raise GuestError(
                (f"{MAX_STREAMS} commands are already running in this guest"), code="too_many_commands"
            )
        session = Session(self, next(self._numbers), streams=streams, terminal=terminal)
        self._sessions[session.number] = session
        self.send(Frame(kind, session.number, payload=payload))
        return session

    def _require(self, feature: str, lack: str, *, hint: str = "restart the VM") -> None:
        self._check_ready()
        if feature not in self._hello.result().features:
            raise GuestError(
                f"the agent of the VM is older than this hypemand and does not support {lack}",
                hint=hint,
                code="agent_too_old",
            )

    def _open_files(self, operation: str, path: str, *, follow: bool = False) -> Session:
        self._require("files", "files")
        pairs = [("operation", operation), ("path", check_path(path)), ("follow", "1" if follow else "0")]
        return self._open(FrameType.FILES, encode_records(pairs), streams=(ExecStream.STDOUT,))

    async def stat(self, path: str, *, follow: bool = False) -> FileInfo | None:
        """See `Manager.stat_path`. GuestError, TimedOut."""
        session = self._open_files("stat", path, follow=follow)
        async with _deadline(session, _START_TIMEOUT, f"look at {path}"):
            return await read_stat(session)

    async def copy_out(self, path: str, *, follow: bool = False) -> CopyOut:
        """See `Manager.copy_out`. NotFound, GuestError, TimedOut."""
        session = self._open_files("out", path, follow=follow)
        copy = OutgoingCopy(session)
        async with _deadline(session, _START_TIMEOUT, f"copy {path}"):
            await copy.begin()
        return copy

    async def copy_in(self, path: str) -> CopyIn:
        """See `Manager.copy_in`. GuestError, TimedOut."""
        session = self._open_files("in", path)
        async with _deadline(session, _START_TIMEOUT, f"copy to {path}"):
            await session.started
        return IncomingCopy(session, f"a copy to {path}")

    async def check_health(self, order: bytes) -> Session:
        """Have the agent repeat a check, of which hypemand.agent.health has the order and the reports, until
        the session is closed. GuestError, TimedOut."""
        self._require("health", "health checks")
        if len(order) > MAX_PAYLOAD:
            raise GuestError(f"the health check and its environment take more than {MAX_PAYLOAD} bytes")
        session = self._open(FrameType.HEALTH, order, streams=(ExecStream.STDOUT,))
        async with _deadline(session, _START_TIMEOUT, "start its health check"):
            await session.started
        return session

    async def set_clock(self, now_ns: int | None = None, *, timeout: float = 5.0) -> None:
        """Set the guest's clock to nanoseconds since the epoch, else the host's time: after a
        guest was restored it is where it stood. GuestError, TimedOut."""
        self._require("clock", "no clock")
        payload = _U64.pack(time.time_ns() if now_ns is None else now_ns)
        await self._order(
            FrameType.CLOCK, payload, timeout, "set its clock", "the guest's clock cannot be set"
        )

    async def freeze(self, *, timeout: float = _FREEZE_TIMEOUT) -> str:
        """Have all in the guest stand still but PID 1 and the agent, also when this channel is closed, and
        its file systems write what they hold. The agent's words, which say whether all was written in time.
        GuestError: nothing stands still. TimedOut: it is not known.

        Nothing else is sent after it until THAW: a guest that is saved with a part of a frame takes the HELLO
        of the next connection for the rest of it, since it may not see that this one has ended."""
        self._require("freeze", "standby", hint=_CURE)
        try:
            order = self._order(FrameType.FREEZE, b"", timeout, "stand still", "the guest cannot be frozen")
            return await order
        except GuestError:
            self._release()
            raise

    async def thaw(self, thaw: Thaw, *, timeout: float = _THAW_TIMEOUT) -> None:
        """Have what stands still go on. With an identity the guest has another boot id afterwards: this
        channel stays open, the next one needs the new id. InvalidRequest, GuestError: it stands still.
        TimedOut: it is not known."""
        self._require("freeze", "standby", hint=_CURE)
        self._release()
        await self._order(FrameType.THAW, encode_thaw(thaw), timeout, "go on", "the guest cannot go on")

    async def _order(self, kind: FrameType, payload: bytes, timeout: float, what: str, refused: str) -> str:
        """A request that its EXIT answers: the agent's words."""
        session = self._open(kind, payload, streams=())
        if kind is FrameType.FREEZE:
            self._held = []
        async with _deadline(session, timeout, what):
            report = await session.wait()
        if report.code != 0:
            raise GuestError(f"{refused}: {report.message}")
        return report.message

    async def ping(self, *, timeout: float = 5.0) -> float:
        """Seconds until the agent answered. TimedOut, GuestError."""
        self._check_ready()
        if len(self._pings) >= MAX_UNANSWERED:
            raise TimedOut(f"the agent has left {len(self._pings)} PINGs unanswered")
        token = next(self._numbers).to_bytes(8, "little")
        answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pings[token] = answered
        started = time.monotonic()
        self.send(Frame(FrameType.PING, payload=token))
        await _wait_any(answered, self._closed, timeout=timeout)
        if answered.done():
            return time.monotonic() - started
        if self._closed.done():
            raise self._closed.result()
        raise TimedOut(f"the agent did not answer in {timeout:g} s")

    async def shutdown(self, grace: float) -> None:
        """Ask the guest to stop its program, with `grace` seconds until SIGKILL, and to power off."""
        self._check_ready()
        seconds = min(MAX_GRACE, max(0, math.ceil(grace)))
        self.send(Frame(FrameType.SHUTDOWN, payload=encode_records([("grace", str(seconds))])))
        await self.flush()

    async def close(self, why: str = "the agent channel was closed") -> None:
        """End the connection; the agent kills what runs in it, and whoever uses it gets `why`. At any
        time, and also after `closed`."""
        self._end(GuestError(why))
        await self._tasks.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    def _check_ready(self) -> None:
        if self._closed.done():
            raise self._closed.result()
        if not self._hello.done():
            raise GuestError("the guest agent has not answered yet", code="agent_not_ready")

    # --- Link, for the sessions ---

    def send(self, frame: Frame) -> None:
        """Queue a frame. A guest that does not take what it is sent loses the channel. While the guest stands
        still the frame is held."""
        if self._held is not None:
            # no more than streams have credit for, and than a guest asks for
            self._held.append(frame)
        elif not self._closed.done():
            self._write(frame)

    def _release(self) -> None:
        held, self._held = self._held, None
        for frame in held or ():
            self.send(frame)

    def _write(self, frame: Frame) -> None:
        self._writer.write(frame.encode())
        if self._writer.transport.get_write_buffer_size() > self._queue_limit:
            self._end(GuestError("the guest agent does not read its input"))

    async def flush(self) -> None:
        """Wait until the guest has taken most of what is queued. Returns also when the channel closes."""
        if not self._closed.done():
            with contextlib.suppress(OSError):
                await self._writer.drain()

    # --- from the guest ---

    async def _serve(self) -> None:
        """Read until the connection ends. Its one way out is `_end`."""
        try:
            while data := await self._reader.read(_READ_BYTES):
                await self._take(data)
                if self._closed.done():
                    return
                await self._budget.wait(Reserve.FRAMES)
                # A read that finds bytes does not yield: a guest that floods would have the loop alone.
                await asyncio.sleep(0)
            self._end(GuestError("the VMM closed the agent channel"))
        except ProtocolError as error:
            self._refuse(error)
        except OSError as error:
            self._end(GuestError(f"the agent channel failed: {error.strerror or error}"))
        except asyncio.CancelledError:
            self._end(GuestError("the agent channel was closed"))
            raise
        except Exception as error:
            _log.exception("agent channel of boot %s failed", self._boot)
            self._end(GuestError(f"the agent channel failed: {error}"))

    async def _take(self, data: bytes) -> None:
        rest: bytes | None = data
        if self._finder is not None:
            rest = self._finder.feed(data)
            if rest is None:
                return
            self._finder = None
        turn = Turn()
        for frame in self._parser.feed(rest or b""):
            self._budget.spend(Price.FRAME)
            self._handle(frame)
            if self._closed.done():
                return
            await turn.pause()

    def _handle(self, frame: Frame) -> None:
        if frame.stream == 0:
            self._handle_channel(frame)
            return
        session = self._sessions.get(frame.stream)
        if session is None:
            raise ProtocolError(f"{frame.type.name} for a command that does not run")
        if session.handle(frame):
            del self._sessions[frame.stream]

    def _handle_channel(self, frame: Frame) -> None:
        match frame.type:
            case FrameType.HELLO:
                self._handle_hello(frame)
            case FrameType.PING:
                self._handle_ping(frame)
            case FrameType.PONG:
                self._handle_pong(frame)
            case FrameType.ERROR:
                message = parse_records(frame.payload).find("message") or "no reason given"
                self._end(GuestError(f"the guest's agent closed the channel: {clean_message(message)}"))
            case _:
                raise ProtocolError(f"{frame.type.name} on stream 0, or from the wrong side")

    def _handle_hello(self, frame: Frame) -> None:
        if self._hello.done():
            raise ProtocolError("HELLO came twice: the agent has begun anew")
        records = parse_records(frame.payload)
        if records.get("version") != VERSION:
            shown = clean_message(records.get("version"))
            raise ProtocolError(f"the agent speaks version {shown} of the protocol, not {VERSION}")
        if records.get("boot") != self._boot:
            raise ProtocolError("HELLO is of another boot than this one")
        words = records.all("feature")
        if len(words) > MAX_FEATURES or any(len(word) > MAX_FEATURES for word in words):
            raise ProtocolError("HELLO with too many features, or too long ones")
        features = frozenset(word.decode(errors="replace") for word in words)
        frozen = records.find("frozen") == "1"
        self._hello.set_result(AgentHello(clean_message(records.find("agent") or ""), features, frozen))

    def _handle_pong(self, frame: Frame) -> None:
        """An answer may come when nobody waits for it any more, but there is one for each PING at most."""
        answered = self._pings.pop(frame.payload, None)
        if answered is None:
            raise ProtocolError("PONG that answers no PING")
        answered.set_result(None)

    def _handle_ping(self, frame: Frame) -> None:
        if len(frame.payload) > MAX_PING:
            raise ProtocolError(f"PING of more than {MAX_PING} bytes")
        second = int(time.monotonic())
        self._ping_count = self._ping_count + 1 if second == self._ping_second else 1
        self._ping_second = second
        if self._ping_count > MAX_PINGS_PER_SECOND:
            raise ProtocolError(f"more than {MAX_PINGS_PER_SECOND} PINGs in a second")
        self.send(Frame(FrameType.PONG, payload=frame.payload))

    # --- the end ---

    def _refuse(self, error: ProtocolError) -> None:
        """Tell the guest why, then end."""
        records = encode_records([("code", "protocol"), ("message", clean_message(error.message))])
        self.send(Frame(FrameType.ERROR, payload=records))
        self._end(GuestError(f"the guest broke the agent protocol: {error.message}", code="protocol_error"))

    def _end(self, reason: GuestError) -> None:
        """The one place where the channel ends. The first reason counts."""
        if self._closed.done():
            return
        self._closed.set_result(reason)
        for session in self._sessions.values():
            session.fail(reason)
        self._sessions.clear()
        # What is queued goes out if the guest takes it soon.
        self._writer.close()
        asyncio.get_running_loop().call_later(_FAREWELL, self._writer.transport.abort)


async def _wait_any(*futures: asyncio.Future[Any], timeout: float | None = None) -> None:
    """Wait for the first of them, and cancel none when the waiting is cancelled."""
    await asyncio.wait(futures, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)


@asynccontextmanager
async def _deadline(session: Session, seconds: float, what: str) -> AsyncIterator[None]:
    """What goes wrong, or takes longer, ends the session."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        await session.close()
        raise TimedOut(f"the guest did not {what} in {seconds:g} s") from None
    except BaseException:
        await session.close()
        raise


def _encode_attach(request: AttachRequest) -> bytes:
    pairs = [("stdin", str(int(request.stdin))), ("replay", str(int(request.replay)))]
    for key, side in (("rows", request.rows), ("cols", request.cols)):
        if side is not None:
            pairs.append((key, str(min(max(side, 0), MAX_SIDE))))
    return encode_records(pairs)


def _encode_exec(request: ExecRequest) -> bytes:
    env = dict(request.env)
    pairs = [*(("arg", arg) for arg in request.argv), *request.settings]
    if request.tty:
        env.setdefault("TERM", "xterm")
        pairs += [("tty", "1"), ("rows", str(request.rows)), ("cols", str(request.cols))]
        if not (0 <= request.rows <= MAX_SIDE and 0 <= request.cols <= MAX_SIDE):
            raise InvalidRequest(
                f"{request.rows} rows and {request.cols} columns are not a valid terminal size"
            )
    if request.umask is not None:
        if not 0 <= request.umask <= MAX_UMASK:
            raise InvalidRequest(f"{request.umask} is not a valid umask", hint="give one from 0 to 0777")
        pairs.append(("umask", str(request.umask)))
    pairs += [("env", f"{key}={value}") for key, value in env.items()]
    pairs += [("cwd", request.cwd)] if request.cwd is not None else []
    pairs += [("user", request.user)] if request.user is not None else []
    if not request.argv or any("\0" in value for _, value in pairs):
        raise InvalidRequest("a command needs a program, and must not contain NUL bytes")
    payload = encode_records(pairs)
    if len(payload) > MAX_PAYLOAD:
        raise InvalidRequest(
            f"the command and its environment take {len(payload)} bytes, at most {MAX_PAYLOAD} are allowed",
            hint="send large data on standard input",
        )
    return payload
