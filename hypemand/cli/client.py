# SPDX-License-Identifier: Apache-2.0
"""HTTP and server-sent events over hypemand's unix socket, with a deadline for every call.

Whatever goes wrong is an ApiError: what the server says, or `unreachable` where it says nothing.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import os
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias, TypeVar
from urllib.parse import quote, urlencode

from hypemand.errors import HypemandError, Problem
from hypemand.model.answers.error import Error
from hypemand.model.document import BadDocument, decode

DEFAULT_SOCKET = "/run/hypemand/api.sock"
QUERY_SECONDS = 10.0
CHANGE_SECONDS = 60.0
IMPORT_SECONDS = 1800.0
# until an image is there: to be fetched, unpacked and written
PULL_SECONDS = 7200.0
# until the memory of a VM is on the disk, or is unpacked; the daemon decides when it takes too long
SAVE_SECONDS = 7200.0
CONNECT_SECONDS = 5.0
MAX_EVENT_BYTES = 16 * 1024 * 1024

Json: TypeAlias = Any
T = TypeVar("T")


class ApiError(HypemandError):
    """What the API answered instead of what was asked for."""

    def __init__(
        self, message: str, *, code: str, hint: str = "", problems: tuple[Problem, ...] = ()
    ) -> None:
        super().__init__(message, hint=hint, code=code)
        self.problems = problems


class Unreachable(ApiError):
    """hypemand cannot be reached, broke off, or did not answer in time."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint, code="unreachable")


class ConnectionLost(Unreachable):
    """The daemon has closed the connection before its answer: most often since it has ended."""


class StreamBroken(Unreachable):
    """A stream of events ended before the server ended it."""


def find_socket(given: str | None) -> str:
    """The socket's path: as given, by the environment, or the usual one."""
    return given or os.environ.get("HYPEMAN_SOCKET") or DEFAULT_SOCKET


def connect(path: str, timeout: float = CONNECT_SECONDS) -> socket.socket:
    """A connected socket. Raises Unreachable with what to do about it."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout)
        sock.connect(path)
    except OSError as error:
        sock.close()
        raise _explain_connect(path, error) from None
    return sock


def _explain_connect(path: str, error: OSError) -> Unreachable:
    match error:
        case FileNotFoundError() | ConnectionRefusedError():
            hint = "start it with: systemctl start hypemand.socket"
            return Unreachable(f"hypemand does not listen on {path}", hint=hint)
        case PermissionError():
            hint = "become root, or a member of the group hypemand"
            return Unreachable(f"no permission to use {path}", hint=hint)
        case TimeoutError() | BlockingIOError():
            return Unreachable(f"hypemand does not accept connections on {path}", hint=_HINT_STUCK)
        case _:
            return Unreachable(f"cannot connect to {path}: {error.strerror or error}")


_HINT_STUCK = "see: systemctl status hypemand"


class Connection(http.client.HTTPConnection):
    """HTTPConnection over a unix socket."""

    def __init__(self, path: str, timeout: float | None) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = connect(self._path)
        self.sock.settimeout(self.timeout)


def _finite(seconds: float | None) -> float | None:
    """A timeout for a socket: None is for ever."""
    return None if seconds is None or math.isinf(seconds) else max(seconds, 0.001)


class Events:
    """A stream of server-sent events. Iterating gives the JSON value of each one's data.

    Ends when the server ends it. Raises StreamBroken when the connection breaks, TimeoutError at the
    deadline.
    """

    def __init__(self, sock: socket.socket, response: http.client.HTTPResponse, deadline: float) -> None:
        self._socket = sock
        self._response = response
        self._deadline = deadline

    def __iter__(self) -> Iterator[Json]:
        pending = b""
        kind, data = b"", list[bytes]()
        while block := self._read():
            lines = (pending + block).split(b"\n")
            pending = lines.pop()
            if len(pending) > MAX_EVENT_BYTES:
                raise StreamBroken("hypemand sent an event that is too long")
            for line in lines:
                field, colon, value = line.removesuffix(b"\r").partition(b":")
                if field == b"data":
                    data.append(value.removeprefix(b" "))
                elif field == b"event":
                    kind = value.strip()
                elif not field and not colon and data:
                    yield _parse_event(kind, b"\n".join(data))
                    kind, data = b"", []

    def _read(self) -> bytes:
        try:
            self._socket.settimeout(self._remaining())
            return self._response.read1(65536)
        except TimeoutError:
            raise
        except (OSError, http.client.HTTPException, ValueError):
            raise StreamBroken("the connection to hypemand was lost", hint=_HINT_STUCK) from None

    def _remaining(self) -> float | None:
        if math.isinf(self._deadline):
            return None
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def abort(self) -> None:
        """Make a reader in another thread return."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)


class Client:
    """Calls to one hypemand. Paths are given as their parts, which are quoted here."""

    def __init__(self, path: str) -> None:
        self.path = path

    def get(self, *parts: str, query: Mapping[str, str] | None = None) -> Json:
        """GET; the answer's JSON value."""
        return self.call("GET", *parts, query=query)

    def post(self, *parts: str, body: Json = None, timeout: float | None = CHANGE_SECONDS) -> Json:
        """POST. `timeout` in seconds, None or infinite: for ever."""
        return self.call("POST", *parts, body=body, timeout=timeout)

    @contextlib.contextmanager
    def download(self, *parts: str, timeout: float = IMPORT_SECONDS) -> Iterator[http.client.HTTPResponse]:
        """GET of bytes, to be read in the block; `timeout` seconds until there are any, and between them."""
        connection = Connection(self.path, timeout)
        with contextlib.closing(connection):
            try:
                response = self._request(connection, "GET", parts, None, None, "application/x-tar")
                content = b"" if response.status == 200 else response.read()
            except TimeoutError:
                raise _explain_late(timeout) from None
            except (OSError, http.client.HTTPException) as error:
                raise explain_broken(error) from None
            if response.status != 200:
                raise parse_error(response.status, content)
            yield response

    def delete(
        self, *parts: str, query: Mapping[str, str] | None = None, timeout: float | None = CHANGE_SECONDS
    ) -> None:
        """DELETE."""
        self.call("DELETE", *parts, query=query, timeout=timeout)

    def call(
        self,
        method: str,
        *parts: str,
        query: Mapping[str, str] | None = None,
        body: Json = None,
        timeout: float | None = QUERY_SECONDS,
    ) -> Json:
        """One request and its answer; None for an empty answer. Raises ApiError."""
        connection = Connection(self.path, _finite(timeout))
        try:
            response = self._request(connection, method, parts, query, body)
            content = response.read()
        except TimeoutError:
            raise _explain_late(timeout) from None
        except (OSError, http.client.HTTPException) as error:
            raise explain_broken(error) from None
        finally:
            connection.close()
        if not 200 <= response.status < 300:
            raise parse_error(response.status, content)
        return parse_answer(content) if content else None

    @contextlib.contextmanager
    def events(
        self, *parts: str, query: Mapping[str, str] | None = None, timeout: float | None = None
    ) -> Iterator[Events]:
        """A stream of events, which may last `timeout` seconds; None or infinite: as long as it takes."""
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        connection = Connection(self.path, QUERY_SECONDS)
        with contextlib.ExitStack() as stack:
            stack.callback(connection.close)
            # Kept here because http.client lets go of it once it knows that the server will close.
            connection.connect()
            sock = connection.sock
            try:
                response = self._request(connection, "GET", parts, query, None, "text/event-stream")
                stack.callback(response.close)
                content = b"" if response.status == 200 else response.read()
            except TimeoutError:
                raise _explain_late(QUERY_SECONDS) from None
            except (OSError, http.client.HTTPException) as error:
                raise explain_broken(error) from None
            if response.status != 200:
                raise parse_error(response.status, content)
            yield Events(sock, response, deadline)

    def _request(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        parts: tuple[str, ...],
        query: Mapping[str, str] | None,
        body: Json,
        accept: str = "application/json",
    ) -> http.client.HTTPResponse:
        headers = {"Accept": accept}
        content = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            content = json.dumps(body).encode()
        connection.request(method, build_target(*parts, query=query), content, headers)
        return connection.getresponse()


def build_target(*parts: str, query: Mapping[str, str] | None = None) -> str:
    """Path and query of a request."""
    path = "".join(f"/{quote(part, safe='')}" for part in parts)
    return f"{path}?{urlencode(query)}" if query else path


def _explain_late(timeout: float | None) -> Unreachable:
    return Unreachable(f"hypemand did not answer within {timeout or 0:g} s", hint=_HINT_STUCK)


def explain_broken(error: Exception) -> ApiError:
    """The error for a request that got no complete response."""
    if isinstance(error, http.client.RemoteDisconnected | ConnectionError):
        return ConnectionLost("hypemand closed the connection without an answer", hint=_HINT_STUCK)
    return Unreachable(f"the answer of hypemand cannot be parsed: {error}")


def parse_answer(content: bytes) -> Json:
    """The JSON value of an answer's body."""
    try:
        return json.loads(content)
    except ValueError:
        raise Unreachable(
            ("the answer of hypemand is not JSON"), hint="is this the socket of hypemand?"
        ) from None


def parse(kind: type[T], answer: Json) -> T:
    """The value of an answer, one of `hypemand.model.answers`. Raises Unreachable for what is none."""
    try:
        value: T = decode(kind, answer)
    except BadDocument as error:
        hint = "is the daemon of another version? hypemanctl version"
        raise Unreachable(f"hypemand's answer cannot be understood: {error}", hint=hint) from None
    return value


def parse_all(kind: type[T], answer: Json) -> list[T]:
    """The same for a list of them."""
    return [*parse(tuple[kind, ...], answer)]  # type: ignore[valid-type]


def _parse_event(kind: bytes, data: bytes) -> Json:
    """The value of an event. An event of the kind `error` ends the stream with what it says."""
    if kind == b"error":
        raise parse_error(500, data)
    return parse_answer(data)


def parse_error(status: int, content: bytes) -> ApiError:
    """The error that an answer carries. Never raises, whatever the answer is."""
    try:
        error = decode(Error, json.loads(content))
    except (ValueError, RecursionError, BadDocument):
        error = Error()
    code = error.code or f"http_{status}"
    message = error.message or f"hypemand answered with HTTP status {status}"
    return ApiError(message, code=code, hint=error.hint, problems=error.problems)
