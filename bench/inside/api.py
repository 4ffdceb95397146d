# SPDX-License-Identifier: Apache-2.0
"""A client of the API that does no more than it has to, so that what is measured is the daemon."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

_SOCKET = "/run/hypemand/api.sock"
_DEADLINE = 90.0


class _Connection(http.client.HTTPConnection):
    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(_DEADLINE)
        self.sock.connect(_SOCKET)


def request(method: str, path: str, body: Mapping[str, object] | None = None) -> Any:
    """The answer's JSON. RuntimeError for an answer that is no success."""
    connection = _Connection("localhost")
    data = None if body is None else json.dumps(body)
    try:
        connection.request(method, path, data, {"Content-Type": "application/json"} if data else {})
        return _read(connection.getresponse(), f"{method} {path}")
    finally:
        connection.close()


def _read(response: http.client.HTTPResponse, what: str) -> Any:
    body = response.read()
    if response.status >= 300:
        raise RuntimeError(f"{what}: {response.status} {body.decode(errors='replace')}")
    return json.loads(body) if body else None


@contextmanager
def _watch(name: str) -> Iterator[Iterator[dict[str, Any]]]:
    connection = _Connection("localhost")
    try:
        connection.request("GET", f"/instances/{name}/watch")
        response = connection.getresponse()
        if response.status != 200:
            _read(response, f"watch {name}")
        yield (json.loads(line[5:]) for line in iter(response.readline, b"") if line.startswith(b"data:"))
    finally:
        connection.close()


def start_and_watch(
    name: str, order: str = "start", body: Mapping[str, object] | None = None
) -> tuple[float, float, dict[str, Any]]:
    """POST start (or restore), with /watch open before: when it was asked for, when Running was seen
    (CLOCK_MONOTONIC seconds), and the instance as it came then."""
    with _watch(name) as events:
        next(events)
        asked = time.monotonic()
        request("POST", f"/instances/{name}/{order}", body)
        return asked, *_await_running(name, events)


def wait_running(name: str) -> tuple[float, dict[str, Any]]:
    """When a VM that starts is seen to be Running, or was before, and the instance then."""
    with _watch(name) as events:
        return _await_running(name, events)


def _await_running(name: str, events: Iterator[dict[str, Any]]) -> tuple[float, dict[str, Any]]:
    has_begun = False
    for instance in events:
        if instance["state"] == "Running":
            return time.monotonic(), instance
        # what comes first may be of the end of the run before
        has_begun = has_begun or instance["state"] in ("Initializing", "Created")
        if has_begun and instance["state"] in ("Stopped", "Standby", "Unknown"):
            raise RuntimeError(f"{name} is {instance['state']}: {instance.get('status_text')}")
    raise RuntimeError(f"the watch of {name} ended before it was Running")


@contextmanager
def open_exec(name: str) -> Iterator[Any]:
    """A WebSocket to run one command on."""
    import websocket

    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(_DEADLINE)
        sock.connect(_SOCKET)
        link = websocket.create_connection(
            f"ws://localhost/instances/{name}/exec", socket=sock, timeout=_DEADLINE
        )
        yield link


def execute(name: str, command: list[str]) -> float:
    """Run a command in the guest; seconds from connecting to its exit code."""
    start = time.monotonic()
    with open_exec(name) as link:
        link.send(json.dumps({"command": command, "streams": True}))
        link.send(json.dumps({"eof": True}))
        while True:
            frame = link.recv()
            if isinstance(frame, str) and "exitCode" in (answer := json.loads(frame)):
                if answer["exitCode"] != 0:
                    raise RuntimeError(f"{command} in {name}: {answer}")
                return time.monotonic() - start
