# SPDX-License-Identifier: Apache-2.0
"""The process that speaks to the system bus for the daemon, by sd-bus through pystemd.

A call of pystemd's holds Python's lock until it is answered. systemd answers nobody for seconds while it
reads hundreds of units anew, and a bus that hangs answers nobody at all: the daemon would serve nobody
meanwhile, and its watchdog would end it. So calls are made here, and the daemon waits as for anything else.

Two connections: signals that arrive during a call are not lost in it. Each is opened anew when the bus has
gone away.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from hypemand.systemd import busframes
from hypemand.systemd.busframes import HEAD, PROPERTIES, Part
from hypemand.systemd.dbuslib import DBus, DBusBaseError, DBusNoReplyError, apply_signature

_BUS = (b"org.freedesktop.DBus", b"/org/freedesktop/DBus", b"org.freedesktop.DBus")
_MANAGER = (b"org.freedesktop.systemd1", b"/org/freedesktop/systemd1", b"org.freedesktop.systemd1.Manager")
_PROPERTIES = "org.freedesktop.DBus.Properties"
_GONE = {errno.ENOTCONN, errno.ECONNRESET, errno.EPIPE, errno.ESHUTDOWN}
_RECONNECT_FIRST, _RECONNECT_MOST = 0.1, 5.0
# A connection that has lasted so many seconds was a good one: the next is tried at once again.
_LASTING = 30.0
# One rule for all units: dbus-daemon allows a connection 512 of them (max_match_rules_per_connection), which
# a rule for each VM would use up. What is of other units is dropped here.
_RULE = (
    "type='signal',sender='org.freedesktop.systemd1',path_namespace='/org/freedesktop/systemd1/unit',"
    f"interface='{_PROPERTIES}',member='PropertiesChanged'"
)
_TRIES = 3


class Argument(NamedTuple):
    """One step of a message under construction, as pystemd takes it: a type's code and its value."""

    code: int
    value: Any


class Failure(Exception):
    """A call that failed, with words for it. `number`: the errno of the answer."""

    def __init__(self, words: str, number: int) -> None:
        super().__init__(words)
        self.number = number


def encode_arguments(parts: Sequence[Part]) -> list[Any]:
    """All arguments of a call, as pystemd takes them."""
    steps: list[Any] = []
    for signature, values in parts:
        if signature == PROPERTIES:
            steps += _encode_properties(values)
        else:
            steps += apply_signature(signature.encode(), list(values))
    return steps


def _encode_properties(properties: Sequence[tuple[str, str, Any]]) -> list[Any]:
    steps: list[Any] = [Argument(ord("a"), b"(sv)")]
    for name, signature, value in properties:
        steps += [Argument(ord("r"), b"sv"), Argument(ord("s"), name.encode())]
        steps += [Argument(ord("v"), signature.encode())]
        steps += apply_signature(signature.encode(), [value])
        steps += [Argument(-1, None), Argument(-1, None)]
    steps.append(Argument(-1, None))
    return steps


def to_text(value: Any) -> Any:
    """Bytes of a reply to text, in whatever they are nested."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, list):
        return [to_text(v) for v in value]
    if isinstance(value, tuple):
        return tuple(to_text(v) for v in value)
    if isinstance(value, dict):
        return {to_text(k): to_text(v) for k, v in value.items()}
    return value


class BusWorker:
    """Does what the daemon asks for on `control`, until the other end is closed. `open_bus` makes a
    connection, or raises Failure."""

    def __init__(self, control: socket.socket, open_bus: Callable[[], DBus] | None = None) -> None:
        self._control = control
        self._open = open_bus or _open
        self._calls: DBus | None = None
        self._signals: DBus | None = None
        self._signals_fd = -1
        # of a path: the names of its properties by their interfaces
        self._watches: dict[str, dict[str, list[str]]] = {}
        self._retry_at: float | None = None
        self._backoff = _RECONNECT_FIRST
        self._connected_at = 0.0
        self._work: dict[str, Callable[..., Any]] = {
            "call": self._call,
            "get": self._get,
            "unit": self._get_of_unit,
        }

    def run(self) -> None:
        """Serve. Returns when the daemon is gone."""
        try:
            while True:
                pause = None if self._retry_at is None else max(self._retry_at - time.monotonic(), 0.0)
                fds = [self._control.fileno(), *([] if self._signals is None else [self._signals_fd])]
                ready, _, _ = select.select(fds, [], [], pause)
                if self._retry_at is not None and self._retry_at <= time.monotonic():
                    self._try_again()
                if self._signals is not None and self._signals_fd in ready:
                    self._receive()
                if self._control.fileno() in ready:
                    self._take(busframes.decode(self._read(HEAD.unpack(self._read(HEAD.size))[0])))
        except (EOFError, ConnectionError):
            pass
        finally:
            self._drop_signals()
            if self._calls is not None:
                self._calls.close()

    def _read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            if not (more := self._control.recv(count - len(data))):
                raise EOFError
            data += more
        return data

    def _tell(self, *frame: Any) -> None:
        self._control.sendall(busframes.encode(frame))

    def _take(self, frame: tuple[Any, ...]) -> None:
        match frame:
            case ("watch", path, names):
                self._watches[path] = _by_interface(names)
            case ("unwatch", path):
                self._watches.pop(path, None)
            case ("listen",):
                self._retry_at = time.monotonic()
            case (what, *values):
                try:
                    answer = self._work[what](*values)
                except Failure as failure:
                    self._tell("error", str(failure), failure.number)
                except Exception as error:  # arguments of ours that are no message
                    traceback.print_exc()
                    self._tell("error", f"{type(error).__name__}: {error}", errno.EINVAL)
                else:
                    self._tell("answer", answer)

    def _get_of_unit(self, unit: str, path: str, names: Sequence[str]) -> list[Any] | None:
        service, manager, interface = (word.decode() for word in _MANAGER)
        try:
            self._call(service, manager, f"{interface}.GetUnit", [("s", (unit,))])
        except Failure as failure:
            if failure.number != errno.ENOENT:
                raise
            return None
        return [self._get(service, path, name) for name in names]

    def _get(self, service: str, path: str, name: str) -> Any:
        interface, _, prop = name.rpartition(".")
        return self._call(service, path, f"{_PROPERTIES}.Get", [("ss", [interface, prop])])

    def _call(self, service: str, path: str, member: str, arguments: Sequence[Part]) -> Any:
        interface, _, method = member.rpartition(".")
        names = (service.encode(), path.encode(), interface.encode(), method.encode())
        fresh = self._calls is None
        bus = self._calls = self._calls or self._open()
        try:
            return to_text(_ask(bus, *names, encode_arguments(arguments)).body)
        except DBusBaseError as error:
            failure = _failure(error)
        if failure.number in _GONE:
            self._calls = None
            if not fresh:
                return self._call(service, path, member, arguments)
        raise failure

    def _connect_signals(self) -> None:
        bus = self._open()
        try:
            _ask(bus, *_MANAGER, b"Subscribe", [])
            _ask(bus, *_BUS, b"AddMatch", encode_arguments([("s", [_RULE])]))
        except DBusBaseError as error:
            bus.close()
            raise _failure(error) from None
        self._signals = bus
        # A copy: sd-bus closes its own when it is cut off, and may say nothing then. The copy stays readable,
        # which leads to the error, and nobody else is given its number meanwhile.
        self._signals_fd = os.dup(bus.get_fd())
        self._connected_at = time.monotonic()
        # the calls may have read signals off the socket into sd-bus's own queue
        self._receive()

    def _receive(self) -> None:
        while self._signals is not None:
            try:
                message = self._signals.process()
                if message.is_empty():
                    return
                path = to_text(message.get_path()) or ""
                if path not in self._watches:
                    continue  # still encoded: the host has many more units than ours
                message.process_reply(False)
            except DBusBaseError as error:
                self._lose(error)
                return
            self._pass_on(path, message.body)

    def _pass_on(self, path: str, body: Any) -> None:
        if not isinstance(body, list) or len(body) != 3 or not isinstance(body[1], dict):
            return
        interface = str(to_text(body[0]))
        if names := self._watches[path].get(interface):
            # of some 70 values few are wanted: to decode the others would take most of the time
            found = {f"{interface}.{name}": to_text(body[1].get(name.encode())) for name in names}
            self._tell("signal", path, {name: value for name, value in found.items() if value is not None})

    def _lose(self, error: DBusBaseError) -> None:
        self._tell("lost", _words(error))
        self._drop_signals()
        if time.monotonic() - self._connected_at >= _LASTING:
            self._backoff = _RECONNECT_FIRST
        self._retry()

    def _drop_signals(self) -> None:
        if self._signals is not None:
            os.close(self._signals_fd)
            self._signals.close()
            self._signals = None

    def _retry(self) -> None:
        self._retry_at = time.monotonic() + self._backoff
        self._backoff = min(self._backoff * 2, _RECONNECT_MOST)

    def _try_again(self) -> None:
        self._retry_at = None
        try:
            self._connect_signals()
        except Failure:
            self._retry()
        else:
            self._tell("listening")


def _by_interface(names: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for interface, _, name in (name.rpartition(".") for name in names):
        found.setdefault(interface, []).append(name)
    return found


def _open() -> DBus:
    bus = DBus()
    try:
        bus.open()
    except DBusBaseError as error:
        raise Failure(f"cannot reach the system bus: {_words(error)}", errno.ENOTCONN) from None
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
    return str(to_text(error.err_message)) if error.err_message else str(error)


def _failure(error: DBusBaseError) -> Failure:
    return Failure(_words(error), abs(error.errno))


def main() -> None:
    """Serve the daemon at the other end of standard input."""
    # of a terminal, or of systemd for the whole unit: the daemon needs the bus until it has ended
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(fileno=0) as control:
        BusWorker(control).run()


if __name__ == "__main__":
    main()
