# SPDX-License-Identifier: Apache-2.0
"""The system bus, by sd-bus through pystemd.

Two connections. Calls run on a thread of their own, since sd_bus_call(3) blocks; signals arrive on the
event loop. Each is opened anew when the bus has gone away.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from hypemand.errors import HostNotReady
from hypemand.systemd.dbuslib import DBus, DBusBaseError, DBusNoReplyError, apply_signature, path_encode

_log = logging.getLogger(__name__)
T = TypeVar("T")

_BUS = (b"org.freedesktop.DBus", b"/org/freedesktop/DBus", b"org.freedesktop.DBus")
_PROPERTIES = b"org.freedesktop.DBus.Properties"
_GONE = {errno.ENOTCONN, errno.ECONNRESET, errno.EPIPE, errno.ESHUTDOWN}
_CALL_DEADLINE = 30.0  # sd-bus itself gives up after 25 s
_RECONNECT_FIRST, _RECONNECT_MOST = 0.1, 5.0
# A connection that has lasted so many seconds was a good one: the next is tried at once again.
_LASTING = 30.0
# One rule for all units: dbus-daemon allows a connection 512 of them (max_match_rules_per_connection), which
# a rule for each VM would use up. What is of other units is dropped here.
_RULE = (
    "type='signal',sender='org.freedesktop.systemd1',path_namespace='/org/freedesktop/systemd1/unit',"
    f"interface='{_PROPERTIES.decode()}',member='PropertiesChanged'"
)
_TRIES = 3


class Argument(NamedTuple):
    """One step of a message under construction, as pystemd takes it: a type's code and its value."""

    code: int
    value: Any


def encode_arguments(signature: str, values: Sequence[Any]) -> list[Any]:
    """Arguments of plain D-Bus types (no variants), e.g. ``encode_arguments("ss", ["name", "fail"])``."""
    return list(apply_signature(signature.encode(), list(values))) if signature else []


def encode_properties(properties: Sequence[tuple[str, str, Any]]) -> list[Any]:
    """An ``a(sv)`` of (name, signature, value): what StartTransientUnit and SetUnitProperties take."""
    steps: list[Any] = [Argument(ord("a"), b"(sv)")]
    for name, signature, value in properties:
        steps += [Argument(ord("r"), b"sv"), Argument(ord("s"), name.encode())]
        steps += [Argument(ord("v"), signature.encode())]
        steps += apply_signature(signature.encode(), [value])
        steps += [Argument(-1, None), Argument(-1, None)]
    steps.append(Argument(-1, None))
    return steps


def unit_path(unit: str) -> str:
    """D-Bus object path of a unit of the system manager."""
    return bytes(path_encode(b"/org/freedesktop/systemd1/unit", unit.encode())).decode()


def decode(value: Any) -> Any:
    """Bytes of a reply to text, in whatever they are nested."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, list):
        return [decode(v) for v in value]
    if isinstance(value, tuple):
        return tuple(decode(v) for v in value)
    if isinstance(value, dict):
        return {decode(k): decode(v) for k, v in value.items()}
    return value


class BusError(HostNotReady):
    """A call that failed. `number` is the errno of the answer, `gone` tells that the bus is not there."""

    code = "bus_error"

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number
        self.gone = number in _GONE


class _Watch(NamedTuple):
    """Properties that are watched: whose, of which of its interfaces, and who is told."""

    interface: str
    names: tuple[str, ...]
    callback: Callable[[dict[str, Any]], None]


class SystemBus:
    """The system bus. Made on the event loop; `close` ends its thread and its connections. `open_bus` makes
    a connection, or raises BusError."""

    def __init__(self, open_bus: Callable[[], DBus] | None = None) -> None:
        self._open = open_bus or _open
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="bus")
        self._calls: DBus | None = None
        self._signals: DBus | None = None
        self._signals_fd = -1
        self._watches: dict[str, _Watch] = {}
        self._reconnect: asyncio.TimerHandle | None = None
        self._backoff = _RECONNECT_FIRST
        self._connected_at = 0.0
        self._on_reconnect: Callable[[], None] | None = None

    async def call(self, service: str, path: str, member: str, arguments: list[Any]) -> Any:
        """Call `member` (interface and method, dotted) of an object. Raises BusError."""
        return await self._in_thread(member, self._call, service, path, member, arguments)

    async def get_property(self, service: str, path: str, name: str) -> Any:
        """A property of an object, its name dotted with its interface."""
        return await self._in_thread("Get", self._get, service, path, name)

    async def get_properties(
        self, service: str, path: str, names: Sequence[str], unless: Mapping[str, str]
    ) -> list[Any] | None:
        """Properties of an object, each name dotted with its interface, with one change of threads. None
        when all properties of `unless` have the values that are named there."""
        return await self._in_thread("Get", self._get_all, service, path, names, unless)

    async def _in_thread(self, what: str, work: Callable[..., T], *arguments: Any) -> T:
        task = asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)
        try:
            return await asyncio.wait_for(task, _CALL_DEADLINE)
        except TimeoutError:
            raise BusError(f"no answer to {what} in {_CALL_DEADLINE:.0f} s", errno.ETIMEDOUT) from None

    def _get_all(
        self, service: str, path: str, names: Sequence[str], unless: Mapping[str, str]
    ) -> list[Any] | None:
        if all(self._get(service, path, name) == value for name, value in unless.items()):
            return None
        return [self._get(service, path, name) for name in names]

    def _get(self, service: str, path: str, name: str) -> Any:
        interface, _, prop = name.rpartition(".")
        arguments = encode_arguments("ss", [interface, prop])
        return self._call(service, path, f"{_PROPERTIES.decode()}.Get", arguments)

    def _call(self, service: str, path: str, member: str, arguments: list[Any]) -> Any:
        interface, _, method = member.rpartition(".")
        names = (service.encode(), path.encode(), interface.encode(), method.encode())
        fresh = self._calls is None
        bus = self._calls = self._calls or self._open()
        try:
            return decode(_ask(bus, *names, arguments).body)
        except DBusBaseError as error:
            failure = _failure(error)
        if failure.gone:
            self._calls = None
        if not failure.gone or fresh:
            raise failure
        return self._call(service, path, member, arguments)

    def watch_properties(
        self, path: str, interface: str, names: Sequence[str], callback: Callable[[dict[str, Any]], None]
    ) -> None:
        """Call `callback` with what a signal of a systemd object's interface says of these properties:
        systemd signals all of them when one has changed. One watch for each object."""
        self._watches[path] = _Watch(interface, tuple(names), callback)

    def unwatch_properties(self, path: str) -> None:
        """Undo watch_properties; a path that is not watched is no error."""
        self._watches.pop(path, None)

    def start_signals(self, on_reconnect: Callable[[], None]) -> None:
        """Begin to receive signals. `on_reconnect` is called after a lost connection is back, when
        signals may have been missed. Raises BusError when there is no bus now."""
        self._on_reconnect = on_reconnect
        self._connect_signals()

    def _connect_signals(self) -> None:
        bus = self._open()
        try:
            manager = (
                b"org.freedesktop.systemd1",
                b"/org/freedesktop/systemd1",
                b"org.freedesktop.systemd1.Manager",
            )
            _ask(bus, *manager, b"Subscribe", [])
            _ask(bus, *_BUS, b"AddMatch", encode_arguments("s", [_RULE]))
        except DBusBaseError as error:
            bus.close()
            raise _failure(error) from None
        self._signals = bus
        # A copy: sd-bus closes its own when it is cut off, and may say nothing then. The copy stays readable,
        # which leads to the error, and nobody else is given its number meanwhile.
        self._signals_fd = os.dup(bus.get_fd())
        loop = asyncio.get_running_loop()
        self._connected_at = loop.time()
        loop.add_reader(self._signals_fd, self._receive)
        # the calls may have read signals off the socket into sd-bus's own queue
        self._receive()

    def _receive(self) -> None:
        while self._signals is not None:
            try:
                message = self._signals.process()
                if message.is_empty():
                    return
                watch = self._watches.get(decode(message.get_path()) or "")
                if watch is None:
                    continue  # still encoded: the host has many more units than ours
                message.process_reply(False)
            except DBusBaseError as error:
                self._lose(error)
                return
            self._dispatch(watch, message.body)

    def _dispatch(self, watch: _Watch, body: Any) -> None:
        if not isinstance(body, list) or len(body) != 3 or not isinstance(body[1], dict):
            return
        if decode(body[0]) != watch.interface:
            return
        # of some 70 values few are wanted: to decode the others would take most of the time
        changed = {name: body[1].get(name.encode()) for name in watch.names}
        watch.callback({name: decode(value) for name, value in changed.items() if value is not None})

    def _lose(self, error: DBusBaseError) -> None:
        _log.warning("lost the system bus: %s", _words(error))
        self._drop_signals()
        if asyncio.get_running_loop().time() - self._connected_at >= _LASTING:
            self._backoff = _RECONNECT_FIRST
        self._retry()

    def _drop_signals(self) -> None:
        if self._signals is not None:
            asyncio.get_running_loop().remove_reader(self._signals_fd)
            os.close(self._signals_fd)
            self._signals.close()
            self._signals = None

    def _retry(self) -> None:
        self._reconnect = asyncio.get_running_loop().call_later(self._backoff, self._try_again)
        self._backoff = min(self._backoff * 2, _RECONNECT_MOST)

    def _try_again(self) -> None:
        try:
            self._connect_signals()
        except BusError:
            self._retry()
            return
        if self._on_reconnect is not None:
            self._on_reconnect()

    def close(self) -> None:
        """Let go of both connections. A call that is under way ends first."""
        if self._reconnect is not None:
            self._reconnect.cancel()
        self._drop_signals()
        self._thread.shutdown(wait=True)
        if self._calls is not None:
            self._calls.close()
            self._calls = None


def _open() -> DBus:
    bus = DBus()
    try:
        bus.open()
    except DBusBaseError as error:
        raise BusError(f"cannot reach the system bus: {_words(error)}", errno.ENOTCONN) from None
    return bus


def _ask(
    bus: DBus, service: bytes, path: bytes, interface: bytes, method: bytes, arguments: list[Any]
) -> Any:
    """Call a method, and again if who was asked has left the bus before it answered. That is what systemd
    does at a daemon-reexec, as at each upgrade of its package: it answers what it has taken, leaves, and
    comes back some 100 ms later. (That it does not answer for too long is another error.)"""
    for _ in range(_TRIES - 1):
        with contextlib.suppress(DBusNoReplyError):
            return bus.call_method(service, path, interface, method, arguments)
    return bus.call_method(service, path, interface, method, arguments)


def _words(error: DBusBaseError) -> str:
    return str(decode(error.err_message)) if error.err_message else str(error)


def _failure(error: DBusBaseError) -> BusError:
    return BusError(_words(error), abs(error.errno))
