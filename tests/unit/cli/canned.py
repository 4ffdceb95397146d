# SPDX-License-Identifier: Apache-2.0
"""Answers of the API by hand, for how hypemanctl shows them and what it asks. What is asked changes nothing:
whatever depends on what a daemon does runs on a real one (live.py)."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

BREAK = object()


class Failure(NamedTuple):
    """The answer to what is refused."""

    status: int
    body: dict[str, Any]


class Events(NamedTuple):
    """A stream: documents, functions that give one when it is time, an error that ends it, or BREAK."""

    items: tuple[Any, ...]


class Archive(NamedTuple):
    """What Content-Length says, and what comes."""

    length: int
    content: bytes


class Each(NamedTuple):
    """One answer after the other; the last one for all that comes then."""

    answers: list[Any]


def make_instance(name: str, state: str = "Running", **changes: Any) -> dict[str, Any]:
    """An instance as the API writes it. A code other than 0 is a failure unless `changes` says otherwise."""
    if "exit_code" in changes or "exit_message" in changes:
        changes.setdefault("exit_success", changes.get("exit_code") == 0)
    return {
        "id": f"{name}-id",
        "name": name,
        "image": "builtin:busybox",
        "state": state,
        "state_error": None,
        "current_phase_since": "2026-03-01T10:00:00.000Z",
        "exit_code": None,
        "exit_message": None,
        "exit_success": None,
        "size": "1GB",
        "vcpus": 2,
        "env": {"A": "1"},
        "tags": {},
        "origin": "file",
        "status_text": f"{state}: ready in 612 ms" if state == "Running" else state,
        "ready_ms": 612.4 if state == "Running" else None,
        "needs_restart": False,
        "removed_from_config": False,
        "unit": f"hypeman-vm-{name}.service",
        "main_pid": 4242 if state == "Running" else None,
        "uid": 61184,
        "memory_current": 150 * 1024 * 1024 if state == "Running" else None,
        "definition": {
            "memory": "512M",
            "entrypoint": None,
            "cmd": ["sleep", "1 2"],
            "boot_timeout": "1min 30s",
            "stop_timeout": "30s",
        },
    } | changes


@dataclass
class Shown:
    """A VM that is shown. `lines` of its console: texts, functions that give one, or an error."""

    instance: dict[str, Any]
    lines: list[Any] = field(default_factory=list)


class Canned:
    """Serves on `path`. `answers`: by method and path, before all else; `requests`: method, path,
    query and body of each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.vms: dict[str, Shown] = {}
        self.answers: dict[str, Any] = {}
        self.requests: list[tuple[str, str, dict[str, str], Any]] = []

    def add(self, name: str, state: str = "Running", **changes: Any) -> Shown:
        """Have a VM shown: in the list, by its name, by its events, and with its log."""
        shown = self.vms[name] = Shown(make_instance(name, state, **changes))
        return shown

    def refuse(self, request: str, status: int, **body: Any) -> None:
        """Have a request refused."""
        self.answers[request] = Failure(status, body)

    def find(self, method: str, path: str, query: dict[str, str]) -> Any:
        """The answer to a request."""
        found = self.answers.get(f"{method} {path}")
        if isinstance(found, Each):
            return found.answers.pop(0) if len(found.answers) > 1 else found.answers[0]
        if found is not None:
            return found
        match method, path.strip("/").split("/"):
            case "GET", ["instances"]:
                return [shown.instance for shown in self.vms.values()]
            case "GET", ["instances", name] if name in self.vms:
                return self.vms[name].instance
            case "GET", ["instances", name, "watch"] if name in self.vms:
                return Events((self.vms[name].instance,))
            case "GET", ["instances", name, "logs"] if name in self.vms:
                return Events(tuple(_show_lines(self.vms[name].lines, query)))
        return Failure(404, {"code": "not_found", "message": f"there is no {path}"})

    @contextmanager
    def serve(self) -> Iterator[Canned]:
        """Listen while it is entered."""
        canned = self

        class Handler(_Handler):
            server_of = canned

        class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
            daemon_threads = True
            request_queue_size = 32

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that went away is no fault of ours."""

        with Server(str(self.path), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.01,), name="canned")
            thread.start()
            try:
                yield self
            finally:
                server.shutdown()
                thread.join()


def _show_lines(lines: list[Any], query: dict[str, str]) -> Iterator[Any]:
    if query["tail"] != "all":
        lines = lines[len(lines) - min(int(query["tail"]), len(lines)) :]
    for text in lines:
        if query.get("json") == "true" and isinstance(text, str):
            yield {"time": "2026-03-01T10:00:00.250Z", "text": text, "invocation_id": "ab"}
        else:
            yield text


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of: Canned

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: Any) -> None:
        """The test's own output is enough."""

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_DELETE(self) -> None:
        self._serve()

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        query, path = dict(parse_qsl(parts.query)), unquote(parts.path)
        self.server_of.requests.append((self.command, path, query, body))
        match self.server_of.find(self.command, path, query):
            case Failure(status, document):
                self._answer(document, status)
            case Events(items):
                self._stream(items)
            case Archive(size, content):
                self._send_archive(size, content)
            case document:
                self._answer(document)

    def _send_archive(self, length: int, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/x-tar")
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(content)
        self.close_connection = True

    def _stream(self, items: tuple[Any, ...]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for item in items:
            if item is BREAK:
                self.close_connection = True
                return
            if isinstance(item, Exception):
                data = json.dumps({"code": "guest_error", "message": str(item)})
                self._send_chunk(f"event: error\ndata: {data}\n\n".encode())
                self.close_connection = True
                return
            document = item() if isinstance(item, Callable) else item  # type: ignore[arg-type]
            self._send_chunk(f": hello\ndata: {json.dumps(document)}\n\n".encode())
        self.wfile.write(b"0\r\n\r\n")

    def _send_chunk(self, data: bytes) -> None:
        # In two pieces, as a stream may be cut anywhere.
        half = len(data) // 2
        for piece in (data[:half], data[half:]):
            self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            self.wfile.flush()

    def _answer(self, value: Any, status: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()
