# SPDX-License-Identifier: Apache-2.0
"""The WebSocket to what runs in a VM: input and control out, output in, until a last text frame."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from queue import SimpleQueue
from types import FrameType
from typing import Any, TypeVar

from hypemand.cli.client import QUERY_SECONDS, ApiError, Unreachable, build_target, connect, parse_error
from hypemand.cli.exitcode import FIRST_SPOKEN_CODE
from hypemand.cli.rawmode import read_size
from hypemand.cli.terminal import print_error
from hypemand.model.answers.exec import ExecEof, ExecExit, ExecResize, TerminalSize
from hypemand.model.document import BadDocument, decode, encode

STDIN_BLOCK = 32 * 1024
MAX_ERROR_BODY = 1024 * 1024
T = TypeVar("T")


def format_frame(frame: object) -> str:
    """A text frame. What is None is left out: the daemon has a default for it."""
    return json.dumps({key: value for key, value in encode(frame).items() if value is not None})


EOF = format_frame(ExecEof())


@contextlib.contextmanager
def open_channel(path: str, ref: str, what: str) -> Iterator[Any]:
    """A WebSocket over the API's socket, for `what`. A refusal of the server before it is an ApiError as
    anywhere."""
    import websocket

    target = build_target("instances", ref, what)
    with connect(path) as sock:
        sock.settimeout(QUERY_SECONDS)
        try:
            # A second descriptor, since the library closes its own before the reason of a refusal is read.
            connection = websocket.create_connection(
                f"ws://localhost{target}", socket=sock.dup(), timeout=QUERY_SECONDS, enable_multithread=True
            )
        except websocket.WebSocketBadStatusException as refusal:
            raise _read_refusal(sock, refusal) from None
        except (OSError, websocket.WebSocketException) as error:
            raise Unreachable(f"hypemand did not open the channel for {what}: {error}") from None
        try:
            connection.settimeout(None)
            yield connection
        finally:
            connection.shutdown()


def _read_refusal(sock: Any, refusal: Any) -> ApiError:
    """The error in the body of a refused upgrade. Old versions of the library leave it in the socket."""
    body = getattr(refusal, "resp_body", None)
    if body is None:
        body = b""
        headers = refusal.resp_headers or {}
        wanted = min(int(headers.get("content-length") or 0), MAX_ERROR_BODY)
        with contextlib.suppress(OSError):
            while len(body) < wanted and (block := sock.recv(wanted - len(body))):
                body += block
    return parse_error(refusal.status_code, body)


class Sender:
    """Sends frames from a thread of its own, in order, so that a signal handler never waits for the peer."""

    # Blocks of input under way. Input is read no faster than the guest takes it.
    _MAX_BLOCKS = 8

    def __init__(self, websocket: Any) -> None:
        self._websocket = websocket
        self._queue: SimpleQueue[str | bytes | None] = SimpleQueue()
        self._room = threading.Semaphore(self._MAX_BLOCKS)
        self._thread = threading.Thread(target=self._send, name="sender", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def send_text(self, text: str) -> None:
        """Queue a text frame. Safe in a signal handler."""
        self._queue.put(text)

    def send_input(self, block: bytes) -> None:
        """Queue a block of input; waits for room."""
        self._room.acquire()
        self._queue.put(block)

    def close(self) -> None:
        """Close the connection once what is queued has been sent."""
        self._queue.put(None)

    def _send(self) -> None:
        import websocket

        while True:
            frame = self._queue.get()
            try:
                if frame is None:
                    self._websocket.send_close()
                    return
                if isinstance(frame, bytes):
                    self._websocket.send_binary(frame)
                    self._room.release()
                else:
                    self._websocket.send(frame)
            except (OSError, websocket.WebSocketException):
                return  # the receiver sees the same and tells it


def pass_stdin(sender: Sender) -> None:
    """Pass standard input on to its end. An input that cannot be read ends there."""
    with contextlib.suppress(OSError):
        while block := os.read(0, STDIN_BLOCK):
            sender.send_input(block)
    sender.send_text(EOF)


def receive(connection: Any, lost: str) -> bytes:
    """Write what comes to where it belongs, until the next text frame, which it gives. The server splits no
    messages. `lost`: what is said when the connection breaks before that."""
    import websocket

    outputs = {1: sys.stdout.buffer, 2: sys.stderr.buffer}
    opcodes = websocket.ABNF
    while True:
        try:
            # Not recv_data(): it answers a close before it gives it, and fails where the peer has gone.
            frame = connection.recv_frame()
        except (OSError, websocket.WebSocketException):
            break
        data = frame.data
        if frame.opcode == opcodes.OPCODE_BINARY and data[:1] and data[0] in outputs:
            output = outputs[data[0]]
            output.write(data[1:])
            output.flush()
        elif frame.opcode == opcodes.OPCODE_TEXT:
            return bytes(data)
        elif frame.opcode == opcodes.OPCODE_PING:
            with contextlib.suppress(OSError, websocket.WebSocketException):
                connection.pong(data)
        elif frame.opcode == opcodes.OPCODE_CLOSE and len(data) > 2:
            raise parse_close_reason(data[2:].decode(errors="replace"))
        elif frame.opcode == opcodes.OPCODE_CLOSE or frame.opcode == opcodes.OPCODE_CONT:
            break
    raise Unreachable(lost)


def parse_close_reason(reason: str) -> ApiError:
    """The error of `code: message`, which is how the server ends what has no exit status."""
    code, _, message = reason.partition(": ")
    if message and code.replace("_", "").isalnum():
        return ApiError(message, code=code)
    return ApiError(reason, code="internal_error")


@contextlib.contextmanager
def forward_sizes(sender: Sender) -> Iterator[None]:
    """While it is entered each new size of our terminal is that of the one in the VM."""

    def resize(_number: int, _frame: FrameType | None) -> None:
        sender.send_text(format_frame(ExecResize(TerminalSize(*read_size()))))

    before = signal.signal(signal.SIGWINCH, resize)
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)


def report_exit(last: ExecExit) -> int:
    """The exit status, with words where they say more."""
    if last.exitCode >= FIRST_SPOKEN_CODE and last.message:
        print_error(last.message)
    return last.exitCode


def parse_frame(kind: type[T], data: bytes) -> T:
    """A text frame of the daemon. Raises the error that it has instead."""
    try:
        frame: T = decode(kind, json.loads(data))
    except (ValueError, BadDocument):
        raise parse_error(502, data) from None
    return frame
