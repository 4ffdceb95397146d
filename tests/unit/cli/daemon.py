# SPDX-License-Identifier: Apache-2.0
"""A daemon that behaves as the API's contract says, small enough to be put into any situation by a test."""

from __future__ import annotations

import json
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

BREAK = object()
ENDED = ("Stopped", "Standby")
PATIENCE = 10.0


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
class VmScript:
    """A VM of the fake.

    `lines` are its console's: texts, functions that give one when it is time, or an error that ends them.
    `boots_to`: the changes that a start brings about, one after the other. A stop waits for `stop_gate`.
    """

    instance: dict[str, Any]
    lines: list[Any] = field(default_factory=list)
    stop_gate: threading.Event | None = None
    boots_to: list[dict[str, Any]] = field(default_factory=lambda: [{"state": "Running", "ready_ms": 612.4}])
    stops_with: dict[str, Any] = field(
        default_factory=lambda: {
            "state": "Stopped",
            "exit_code": 143,
            "exit_message": "stopped on request: killed by signal 15",
            "exit_success": True,
        }
    )


class FakeDaemon:
    """Serves the API on `path`. What it is asked is in `requests`: method, path, query, body."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.vms: dict[str, VmScript] = {}
        self.images: list[dict[str, Any]] = []
        self.networks: list[dict[str, Any]] = []
        self.pull_events: list[dict[str, Any]] = []
        # what Content-Length says, and what comes
        self.archive: tuple[int, bytes] = (0, b"")
        self.requests: list[tuple[str, str, dict[str, str], Any]] = []
        self.failures: dict[str, tuple[int, dict[str, Any]]] = {}
        self.loop = {"slow_turns": 0, "longest_ms": 0, "longest_cpu_ms": 0}
        self.reload_report: dict[str, Any] = {"defined": [], "changed": [], "removed": [], "problems": []}
        self.timeline: dict[str, Any] = {}
        self.breaks_after: list[int] = []
        self.run_script = VmScript(make_instance("unused"))
        self.create_gate: threading.Event | None = None
        self.changed = threading.Condition()
        self.watchers = 0

    def add(self, name: str, state: str = "Running", **changes: Any) -> VmScript:
        """Make a VM."""
        script = VmScript(make_instance(name, state, **changes))
        self.vms[name] = script
        return script

    def asked(self, method: str) -> list[str]:
        """The paths that were asked with a method."""
        return [path for used, path, _, _ in self.requests if used == method]

    def await_watcher(self) -> None:
        """Wait until somebody watches a VM."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.watchers, 60), "nobody watches"

    def update(self, script: VmScript, change: dict[str, Any]) -> None:
        """A change that watchers see."""
        with self.changed:
            script.instance = script.instance | change
            self.changed.notify_all()

    def remove(self, name: str) -> None:
        """Remove a VM; watchers see its end."""
        with self.changed:
            del self.vms[name]
            self.changed.notify_all()

    @contextmanager
    def serve(self) -> Iterator[FakeDaemon]:
        """Listen while it is entered."""
        daemon = self

        class Handler(_Handler):
            fake = daemon

        class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
            daemon_threads = True
            request_queue_size = 32

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that went away is no fault of the fake."""

        with Server(str(self.path), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.01,), name="fake-daemon")
            thread.start()
            try:
                yield self
            finally:
                server.shutdown()
                thread.join()


class _Refusal(Exception):
    def __init__(self, status: int, code: str, message: str, **more: Any) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"code": code, "message": message} | more


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake: FakeDaemon

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
        query = dict(parse_qsl(parts.query))
        with self.fake.changed:
            self.fake.requests.append((self.command, unquote(parts.path), query, body))
            self.fake.changed.notify_all()
        try:
            failure = self.fake.failures.get(f"{self.command} {unquote(parts.path)}")
            if failure is not None:
                raise _Refusal(failure[0], **failure[1])
            words = [unquote(word) for word in parts.path.strip("/").split("/")]
            self._dispatch(words, query, body)
        except _Refusal as refusal:
            self._answer(refusal.body, refusal.status)

    def _dispatch(self, words: list[str], query: dict[str, str], body: Any) -> None:
        match self.command, words:
            case "GET", ["health"]:
                self._answer({"status": "ok", "version": "9.9", "loop": self.fake.loop})
            case "POST", ["reload"]:
                self._answer(self.fake.reload_report)
            case "GET", ["images"]:
                self._answer(self.fake.images)
            case "POST", ["images"]:
                self._answer({"name": f"docker.io/{body['name']}", "status": "pending"}, 202)
            case "GET", ["images", _, "watch"]:
                self._stream(iter(self.fake.pull_events))
            case "GET", ["images", _, "export"]:
                self._send_archive(self.fake.archive)
            case "POST", ["images", name, "tag"]:
                self._answer({"name": body["target"], "digest": "sha256:1234"}, 201)
            case "POST", ["images", "prune"]:
                gone = {"names": ["a", "b"], "digest": "sha256:1", "size_bytes": 2097152}
                self._answer({"images": [gone], "freed_bytes": 2097152})
            case "POST", ["images", "import"]:
                self._answer({"name": body["name"], "digest": "sha256:1234"}, 201)
            case _, ["images", name]:
                self._serve_image(name)
            case "GET", ["networks"]:
                self._answer(self.fake.networks)
            case "GET", ["networks", name]:
                found = [network for network in self.fake.networks if network["name"] == name]
                if not found:
                    raise _Refusal(404, "not_found", f"there is no network {name!r}")
                self._answer(found[0])
            case "GET", ["instances"]:
                self._answer([script.instance for script in self.fake.vms.values()])
            case "POST", ["instances"]:
                self._create(body)
            case _, ["instances", ref, *action]:
                self._serve_instance(self._find(ref), action, query, body)
            case _:
                raise _Refusal(404, "unknown_route", f"there is no {self.path}")

    def _serve_image(self, name: str) -> None:
        images = [*self.fake.images, {"name": "box", "status": "ready"}]
        found = next((image for image in images if image["name"] == name), None)
        if found is None:
            raise _Refusal(404, "image_not_found", f"there is no image {name!r}")
        if self.command == "DELETE":
            self.fake.images.remove(found)
        self._answer(None if self.command == "DELETE" else found, 204 if self.command == "DELETE" else 200)

    def _find(self, ref: str) -> VmScript:
        for name, script in self.fake.vms.items():
            if ref in (name, script.instance["id"]):
                return script
        raise _Refusal(404, "not_found", f"there is no VM {ref!r}", hint="see: hypemanctl list")

    def _create(self, body: dict[str, Any]) -> None:
        if self.fake.create_gate is not None:
            self.fake.create_gate.wait(PATIENCE)
        name = body["definition"]["name"]
        if name in self.fake.vms:
            raise _Refusal(409, "already_exists", f"there is a VM {name!r}")
        script = self.fake.run_script
        script.instance = make_instance(name, "Initializing", origin="api")
        self.fake.vms[name] = script
        self._answer(script.instance, 201)

    def _serve_instance(
        self, script: VmScript, action: list[str], query: dict[str, str], body: dict[str, Any]
    ) -> None:
        fake, name = self.fake, str(script.instance["name"])
        match self.command, action:
            case "GET", []:
                self._answer(script.instance)
            case "DELETE", []:
                fake.remove(name)
                self._answer(None, 204)
            case "POST", ["start" | "restart"]:
                fake.update(script, {"state": "Initializing", "status_text": "Initializing: kernel up"})
                self._answer(script.instance)
                for change in script.boots_to:
                    fake.update(script, change)
            case "POST", ["stop"]:
                if script.stop_gate is not None:
                    script.stop_gate.wait(PATIENCE)
                if script.instance["state"] not in ENDED:
                    fake.update(script, script.stops_with)
                self._answer(script.instance)
            case "POST", ["kill"]:
                if script.instance["state"] in ENDED:
                    raise _Refusal(409, "invalid_state", f"cannot kill {name} in state Stopped")
                fake.update(script, {"state": "Stopped", "exit_message": f"killed by {body['signal']}"})
                self._answer(script.instance)
            case "GET", ["watch"]:
                self._stream(self._watch(name))
            case "GET", ["logs"]:
                self._stream(self._logs(script, query))
            case "GET", ["timeline"]:
                self._answer(fake.timeline)
            case _:
                raise _Refusal(404, "unknown_route", f"there is no {self.path}")

    def _watch(self, name: str) -> Iterator[Any]:
        fake, end = self.fake, time.monotonic() + PATIENCE
        last: dict[str, Any] | None = None
        while time.monotonic() < end:
            with fake.changed:
                while (script := fake.vms.get(name)) is not None and script.instance is last:
                    if not fake.changed.wait(PATIENCE):
                        return
            if script is None:
                return
            last = script.instance
            yield last
            with fake.changed:
                fake.watchers += 1
                fake.changed.notify_all()

    def _logs(self, script: VmScript, query: dict[str, str]) -> Iterator[Any]:
        lines = list(script.lines)
        if query["tail"] != "all":
            lines = lines[len(lines) - min(int(query["tail"]), len(lines)) :]
        limit = self.fake.breaks_after.pop(0) if self.fake.breaks_after else None
        for number, line in enumerate(lines):
            if number == limit:
                yield BREAK
                return
            text = line() if callable(line) else line
            if query.get("json") == "true" and isinstance(text, str):
                yield {"time": "2026-03-01T10:00:00.250Z", "text": text, "invocation_id": "ab"}
            else:
                yield text

    def _send_archive(self, archive: tuple[int, bytes]) -> None:
        length, content = archive
        self.send_response(200)
        self.send_header("Content-Type", "application/x-tar")
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(content)
        self.close_connection = True

    def _stream(self, items: Iterator[Any]) -> None:
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
            self._send_chunk(f": hello\ndata: {json.dumps(item)}\n\n".encode())
        self.wfile.write(b"0\r\n\r\n")

    def _send_chunk(self, data: bytes) -> None:
        # In two pieces, as a stream may be cut anywhere.
        half = len(data) // 2
        for piece in (data[:half], data[half:]):
            self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            self.wfile.flush()

    def _answer(self, value: Any, status: int = 200) -> None:
        content = b"" if status == 204 else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        if status != 204:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()
