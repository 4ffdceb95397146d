# SPDX-License-Identifier: Apache-2.0
"""exec, shell: a command in a Running VM, with its streams apart or on a terminal, its signals and its exit
status as if it ran here."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import sys
import threading
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from queue import SimpleQueue
from types import FrameType
from typing import Any

from hypemand.cli.client import QUERY_SECONDS, ApiError, Unreachable, build_target, connect, parse_error
from hypemand.cli.context import Context
from hypemand.cli.rawmode import raw_terminal, read_size
from hypemand.cli.run import FIRST_SPOKEN_CODE, find_variables
from hypemand.cli.terminal import print_error
from hypemand.errors import InvalidRequest
from hypemand.model.answers.exec import ExecCommand, ExecEof, ExecExit, ExecResize, ExecSignal, TerminalSize
from hypemand.model.document import BadDocument, decode, encode

STDIN_BLOCK = 32 * 1024
MAX_ERROR_BODY = 1024 * 1024
# Who interrupts this often wants out, whatever the command does.
INTERRUPTS_TO_GIVE_UP = 3
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


# For /bin/sh in the guest, with nothing but what a shell has itself. $1 is not empty: stay in this folder.
_LOGIN = """\
while read -r k v _; do [ "$k" = Uid: ] && u=$v; done </proc/self/status
[ -r /etc/passwd ] && while IFS=: read -r n _ i _ _ h s; do [ "$i" = "$u" ] && break; done </etc/passwd
[ "$i" = "$u" ] || { n= h= s=; }
case $s in */nologin | */false) s= ;; esac
[ -n "$n" ] && export USER="$n" LOGNAME="$n"
[ -d "$h" ] && export HOME="$h" && [ -z "$1" ] && cd "$h"
for s in "$s" /bin/bash /bin/sh; do [ -x "$s" ] && export SHELL="$s" && exec "$s" -l; done
"""


def format_frame(frame: object) -> str:
    """A text frame of exec. What is None is left out: the daemon has a default for it."""
    return json.dumps({key: value for key, value in encode(frame).items() if value is not None})


_EOF = format_frame(ExecEof())


def execute(context: Context) -> int:
    """Run the command until it exits."""
    args = context.args
    if not args.command:
        raise InvalidRequest("no command", hint="hypemanctl exec NAME -- COMMAND [ARGUMENT...]")
    if args.tty and args.interactive and not os.isatty(0):
        raise InvalidRequest("-t with -i requires a terminal as standard input", hint="leave out -t")
    return _run(context, build_request(args, args.command, terminal=args.tty), interactive=args.interactive)


def open_shell(context: Context) -> int:
    """The login shell of a user of the guest; on a terminal if we are on one, else it reads our input."""
    args = context.args
    command = ["/bin/sh", "-c", _LOGIN, "sh", args.workdir or ""]
    return _run(context, build_request(args, command, terminal=os.isatty(0)), interactive=True)


def _run(context: Context, request: ExecCommand, *, interactive: bool) -> int:
    terminal = bool(request.tty)
    with _open(context.client.path, context.args.name) as websocket:
        sender = _Sender(websocket)
        with _forward_signals(sender, terminal=terminal):
            if terminal:
                # Asked for after changes of it are noticed, so that none is missed.
                rows, cols = read_size()
                request = replace(request, rows=rows, cols=cols)
            websocket.send(format_frame(request))
            sender.start()
            with raw_terminal(0) if terminal and interactive else contextlib.nullcontext():
                if interactive:
                    threading.Thread(target=_pass_stdin, args=(sender,), name="stdin", daemon=True).start()
                else:
                    sender.send_text(_EOF)
                last = _receive(websocket)
    return _report_exit(last)


def build_request(args: Namespace, command: list[str], *, terminal: bool) -> ExecCommand:
    """The first frame: the command and its settings. $TERM of a terminal is ours."""
    timeout = getattr(args, "timeout", None)
    env = dict(find_variables(args.env))
    if terminal and os.environ.get("TERM"):
        env.setdefault("TERM", os.environ["TERM"])
    return ExecCommand(
        command=tuple(command),
        env=env or None,
        cwd=args.workdir,
        user=args.user,
        timeout=None if timeout is None or math.isinf(timeout) else timeout,
        tty=terminal,
        streams=True,
    )


@contextlib.contextmanager
def _open(path: str, ref: str) -> Iterator[Any]:
    """A WebSocket over the API's socket. What the server refuses before it is an ApiError as anywhere."""
    import websocket

    target = build_target("instances", ref, "exec")
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
            raise Unreachable(f"hypemand did not open the channel for exec: {error}") from None
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


class _Sender:
    """Sends frames from a thread of its own, in order, so that a signal handler never waits for the peer."""

    # Blocks of input under way. Input is read no faster than the guest takes it.
    _MAX_BLOCKS = 8

    def __init__(self, websocket: Any) -> None:
        self._websocket = websocket
        self._queue: SimpleQueue[str | bytes] = SimpleQueue()
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

    def _send(self) -> None:
        import websocket

        while True:
            frame = self._queue.get()
            try:
                if isinstance(frame, bytes):
                    self._websocket.send_binary(frame)
                    self._room.release()
                else:
                    self._websocket.send(frame)
            except (OSError, websocket.WebSocketException):
                return  # the receiver sees the same and tells it


def _pass_stdin(sender: _Sender) -> None:
    """Pass standard input on to its end. An input that cannot be read ends there."""
    with contextlib.suppress(OSError):
        while block := os.read(0, STDIN_BLOCK):
            sender.send_input(block)
    sender.send_text(_EOF)


@contextlib.contextmanager
def _forward_signals(sender: _Sender, *, terminal: bool) -> Iterator[None]:
    """While it is entered signals go to the command in the VM, and with a terminal its new sizes. Many
    interrupts end us instead."""
    interrupts = 0

    def forward(number: int, _frame: FrameType | None) -> None:
        nonlocal interrupts
        interrupts += number == signal.SIGINT
        if interrupts >= INTERRUPTS_TO_GIVE_UP:
            raise KeyboardInterrupt
        sender.send_text(format_frame(ExecSignal(number)))

    def resize(_number: int, _frame: FrameType | None) -> None:
        size = TerminalSize(*read_size())
        sender.send_text(format_frame(ExecResize(size)))

    with contextlib.ExitStack() as stack:
        for number in _FORWARDED:
            stack.callback(signal.signal, number, signal.signal(number, forward))
        if terminal:
            stack.callback(signal.signal, signal.SIGWINCH, signal.signal(signal.SIGWINCH, resize))
        yield


def _receive(connection: Any) -> bytes:
    """Write what comes to where it belongs, until the last frame, which it gives. The server splits no
    messages."""
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
    raise Unreachable("the connection to hypemand was lost before the command exited")


def parse_close_reason(reason: str) -> ApiError:
    """The error of `code: message`, which is how the server ends what has no exit status."""
    code, _, message = reason.partition(": ")
    if message and code.replace("_", "").isalnum():
        return ApiError(message, code=code)
    return ApiError(reason, code="internal_error")


def _report_exit(data: bytes) -> int:
    """The exit status that the last frame has, with words where they say more."""
    try:
        last: ExecExit = decode(ExecExit, json.loads(data))
    except (ValueError, BadDocument):
        raise parse_error(502, data) from None
    if last.exitCode >= FIRST_SPOKEN_CODE and last.message:
        print_error(last.message)
    return last.exitCode
