# SPDX-License-Identifier: Apache-2.0
"""attach: standard input, output and error of the program of a VM, or its terminal. The program goes on when
this ends."""

from __future__ import annotations

import contextlib
import os
import threading
from dataclasses import dataclass, field

from hypemand.cli.channel import (
    STDIN_BLOCK,
    Sender,
    format_frame,
    forward_sizes,
    open_channel,
    parse_frame,
    pass_stdin,
    receive,
    report_exit,
)
from hypemand.cli.client import ApiError, Unreachable
from hypemand.cli.context import Context
from hypemand.cli.exitcode import ExitCode
from hypemand.cli.instance import get_instance, report_run
from hypemand.cli.rawmode import raw_terminal, read_size
from hypemand.cli.terminal import print_error
from hypemand.cli.watch import wait_for_state, wait_until_started
from hypemand.errors import GuestError, InvalidRequest, TimedOut, WrongState
from hypemand.model.answers.exec import AttachCommand, AttachStarted, ExecExit, ExecResize, TerminalSize
from hypemand.model.state import State

# Ctrl-P Ctrl-Q, as of Docker.
DETACH_KEYS = b"\x10\x11"
_END_SECONDS = 10.0
_LOST = "the connection to hypemand was lost; the program goes on"


def attach(context: Context) -> int:
    """Attach to the program until it exits, or the user detaches."""
    name = context.args.name
    instance = get_instance(context.client, name)
    if instance.state == State.INITIALIZING:
        wait_until_started(context.client, instance, None)
    try:
        ended = attach_program(context.client.path, name, stdin=not context.args.no_stdin)
    except ChannelBroken as error:
        try:
            return report_run(wait_for_state(context.client, name, State.STOPPED, _END_SECONDS))
        except (TimedOut, WrongState):
            raise error from None
    if ended is None:
        return report_detached(f"detached from {name}")
    return report_exit(ended)


def report_detached(text: str) -> int:
    """The exit status. The terminal for the message may have gone."""
    with contextlib.suppress(OSError):
        print_error(text)
    return ExitCode.OK


class ChannelBroken(ApiError):
    """The guest has gone, or does not answer any more."""


def attach_program(path: str, name: str, *, stdin: bool, replay: bool = False) -> ExecExit | None:
    """How the program has ended; None: the user has detached, or the terminal has gone. `replay`: what it has
    written last comes first. Raises ChannelBroken once the program was attached to."""
    with open_channel(path, name, "attach") as websocket:
        websocket.send(format_frame(AttachCommand(stdin=stdin, replay=replay)))
        started = parse_frame(AttachStarted, receive(websocket, _LOST))
        is_typed = started.stdin and started.tty
        if is_typed and not os.isatty(0):
            raise InvalidRequest(
                f"the program of {name} has a terminal, which requires one as standard input",
                hint="attach with --no-stdin, or run a command: hypemanctl exec",
            )
        sender, keys = Sender(websocket), DetachKeys()
        with contextlib.ExitStack() as stack:
            if is_typed:
                stack.enter_context(forward_sizes(sender))
                sender.send_text(format_frame(ExecResize(TerminalSize(*read_size()))))
                stack.enter_context(raw_terminal(0))
            sender.start()
            if started.stdin:
                target, args = (_type, (sender, keys)) if is_typed else (pass_stdin, (sender,))
                threading.Thread(target=target, args=args, name="stdin", daemon=True).start()
            try:
                return parse_frame(ExecExit, receive(websocket, _LOST))
            except Unreachable:
                if keys.seen:
                    return None
                raise
            except ApiError as error:
                if error.code == GuestError.code:
                    raise ChannelBroken(error.message, code=error.code) from None
                raise


@dataclass
class DetachKeys:
    """Looks for the keys in what is typed. `seen`: all of them, in a row, or nothing more is to come."""

    seen: bool = False
    _held: bytes = field(default=b"", init=False)

    def take(self, typed: bytes) -> bytes:
        """What of it is for the program: a first key waits for the next. Nothing after the last one."""
        typed = self._held + typed
        before, found, _ = typed.partition(DETACH_KEYS)
        self.seen = bool(found)
        self._held = DETACH_KEYS[:1] if not found and before.endswith(DETACH_KEYS[:1]) else b""
        return before.removesuffix(self._held) if self._held else before


def _type(sender: Sender, keys: DetachKeys) -> None:
    """Pass on what is typed until the keys have been. A raw terminal has no other end than its own, which is
    not the program's to see."""
    with contextlib.suppress(OSError):
        while not keys.seen and (block := os.read(0, STDIN_BLOCK)):
            if typed := keys.take(block):
                sender.send_input(typed)
    keys.seen = True
    sender.close()
