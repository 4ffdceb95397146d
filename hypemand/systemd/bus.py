# SPDX-License-Identifier: Apache-2.0
"""The system bus, through a separate process that may block: hypemand.systemd.busworker."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import re
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple, Protocol

from hypemand.errors import HostNotReady
from hypemand.systemd import busframes
from hypemand.systemd.busframes import HEAD, Part
from hypemand.tasks import Tasks

_log = logging.getLogger(__name__)

_GONE = {errno.ENOTCONN, errno.ECONNRESET, errno.EPIPE, errno.ESHUTDOWN}
_CALL_DEADLINE = 30.0  # sd-bus itself gives up after 25 s
_RESTART_FIRST, _RESTART_MOST = 0.1, 5.0
# A process that has lasted so many seconds was a good one.
_LASTING = 30.0
_WORKER = (sys.executable, "-I", "-m", "hypemand.systemd.busworker")
_ESCAPED = re.compile(rb"^[0-9]|[^A-Za-z0-9]")


def unit_path(unit: str) -> str:
    """D-Bus object path of a unit of the system manager, sd_bus_path_encode(3)."""
    name = _ESCAPED.sub(lambda found: b"_%02x" % ord(found[0]), unit.encode()).decode()
    return f"/org/freedesktop/systemd1/unit/{name or '_'}"


class BusError(HostNotReady):
    """A call that failed. `number` is the errno of the answer; `gone`: the bus is not available."""

    code = "bus_error"

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number
        self.gone = number in _GONE


class Worker(Protocol):
    """The process, or a fake of it."""

    def kill(self) -> None:
        """End it."""

    async def wait(self) -> object:
        """Until it has ended."""


class _Watch(NamedTuple):
    """Watched properties of an object: their names, dotted with their interfaces, and the callback."""

    names: tuple[str, ...]
    callback: Callable[[dict[str, Any]], None]


async def start_worker(end: socket.socket) -> Worker:
    """Start the process, with its end of a pair of sockets. Raises OSError."""
    return await asyncio.create_subprocess_exec(*_WORKER, stdin=end.fileno())


class _WorkerEnded(BusError):
    """The process has ended, with the question in it."""


class SystemBus:
    """The system bus. Made on the event loop; `start` starts its process, and starts it again whenever it
    has ended. Calls wait for that, and for each other, at most 30 s altogether."""

    def __init__(self, start: Callable[[socket.socket], Awaitable[Worker]] = start_worker) -> None:
        self._start_worker = start
        self._tasks = Tasks("the system bus")
        self._writer: asyncio.StreamWriter | None = None
        self._closed = False
        self._up = asyncio.Event()
        self._turn = asyncio.Lock()
        self._answer: asyncio.Future[Any] | None = None
        self._watches: dict[str, _Watch] = {}
        self._wants_signals = False
        self._listening = asyncio.Event()
        self._on_reconnect: Callable[[], None] | None = None

    def start(self) -> None:
        """Start the process: it takes as long as Python does, and others can work meanwhile."""
        self._tasks.start("process", self._run())

    async def close(self) -> None:
        """End the process. A call that is under way fails."""
        self._closed = True
        await self._tasks.close()

    async def call(self, service: str, path: str, member: str, arguments: Sequence[Part]) -> Any:
        """Call `member` (interface and method, dotted) of an object. Raises BusError."""
        return await self._ask(member, "call", service, path, member, arguments)

    async def get_property(self, service: str, path: str, name: str) -> Any:
        """A property of an object, its name dotted with its interface."""
        return await self._get("get", service, path, name)

    async def get_unit_properties(self, unit: str, names: Sequence[str]) -> list[Any] | None:
        """Properties of a unit of systemd's, each name dotted with its interface, asked for together. None
        where it is not loaded: to answer for such a one, systemd would load it for each of them, signal that
        it and all that it depends on have changed, and forget it again."""
        answer: list[Any] | None = await self._get("unit", unit, unit_path(unit), tuple(names))
        return answer

    async def _get(self, *request: Any) -> Any:
        """What is read can be read again: by the next process, where one ends with the question."""
        try:
            return await self._ask("Get", *request)
        except _WorkerEnded:
            if self._closed:
                raise
            return await self._ask("Get", *request)

    def watch_properties(
        self, path: str, names: Sequence[str], callback: Callable[[dict[str, Any]], None]
    ) -> None:
        """Call `callback` with what a signal of a systemd object says of these properties, each name dotted
        with its interface: systemd signals all of an interface when one has changed. One watch for each
        object."""
        watch = self._watches[path] = _Watch(tuple(names), callback)
        self._send("watch", path, watch.names)

    def unwatch_properties(self, path: str) -> None:
        """Undo watch_properties; a path that is not watched is no error."""
        if self._watches.pop(path, None) is not None:
            self._send("unwatch", path)

    async def start_signals(self, on_reconnect: Callable[[], None], patience: float) -> None:
        """Begin to receive signals, and wait for that, but no more than `patience` seconds: a bus that is
        slow, or not there, is tried again until it is. `on_reconnect` is called when signals may have been
        missed: after a connection that was lost, or was not there in time, is there."""
        self._wants_signals = True
        self._send("listen")
        try:
            async with asyncio.timeout(patience):
                await self._listening.wait()
        except TimeoutError:
            _log.warning("the system bus is not available; retrying")
        self._on_reconnect = on_reconnect

    async def _ask(self, what: str, *request: Any) -> Any:
        """One request at a time: one that nobody waits for any more is not begun. One that was begun is not
        taken back, and its answer is awaited before the next."""
        try:
            async with asyncio.timeout(_CALL_DEADLINE):
                await self._turn.acquire()
                try:
                    await self._up.wait()
                except BaseException:
                    self._turn.release()
                    raise
                answer = self._answer = asyncio.get_running_loop().create_future()
                answer.add_done_callback(self._end_turn)
                try:
                    self._send(*request)
                except BaseException:
                    answer.cancel()
                    raise
                return await asyncio.shield(answer)
        except TimeoutError:
            raise BusError(f"no answer to {what} in {_CALL_DEADLINE:.0f} s", errno.ETIMEDOUT) from None

    def _end_turn(self, answer: asyncio.Future[Any]) -> None:
        if not answer.cancelled():
            answer.exception()  # whoever has asked may have gone
        self._turn.release()

    def _send(self, *frame: Any) -> None:
        """Nothing without a process: the next one gets the whole list of watches."""
        if self._writer is not None:
            self._writer.write(busframes.encode(frame))

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        pause = _RESTART_FIRST
        while True:
            began = loop.time()
            try:
                await self._serve()
            except OSError as error:
                _log.error("cannot start the process for the system bus: %s", error)
            else:
                _log.error("the process for the system bus has ended; restarting it")
            if loop.time() - began >= _LASTING:
                pause = _RESTART_FIRST
            await asyncio.sleep(pause)
            pause = min(pause * 2, _RESTART_MOST)

    async def _serve(self) -> None:
        """Start a process, and take what it says until it ends. Raises OSError if there is none."""
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                worker = await self._start_worker(theirs)
            try:
                reader, self._writer = await asyncio.open_connection(sock=ours)
                for path, watch in self._watches.items():
                    self._send("watch", path, watch.names)
                if self._wants_signals:
                    self._send("listen")
                self._up.set()
                with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                    while True:
                        (length,) = HEAD.unpack(await reader.readexactly(HEAD.size))
                        self._take(busframes.decode(await reader.readexactly(length)))
            finally:
                self._up.clear()
                if self._writer is not None:
                    self._writer.transport.abort()
                    self._writer = None
                self._finish(error=_WorkerEnded("the process for the system bus has ended", errno.ENOTCONN))
                with contextlib.suppress(ProcessLookupError):
                    worker.kill()
                await worker.wait()

    def _take(self, frame: tuple[Any, ...]) -> None:
        match frame:
            case ("answer", value):
                self._finish(value)
            case ("error", words, number):
                self._finish(error=BusError(words, number))
            case ("signal", path, changed):
                if (watch := self._watches.get(path)) is not None:
                    try:
                        watch.callback(changed)
                    except Exception:  # of one VM: the others' signals go on
                        _log.exception("what systemd signals of %s could not be taken", path)
            case ("lost", words):
                _log.warning("lost the system bus: %s", words)
            case ("listening",):
                self._listening.set()
                if self._on_reconnect is not None:
                    self._on_reconnect()

    def _finish(self, value: Any = None, *, error: BusError | None = None) -> None:
        if self._answer is None or self._answer.done():
            return
        if error is None:
            self._answer.set_result(value)
        else:
            self._answer.set_exception(error)
