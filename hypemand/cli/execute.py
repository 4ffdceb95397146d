# SPDX-License-Identifier: Apache-2.0
"""exec, shell: a command in a Running VM, with its streams apart or on a terminal, its signals and its exit
status as if it ran here."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from types import FrameType

from hypemand.cli.channel import (
    EOF,
    Sender,
    format_frame,
    forward_sizes,
    open_channel,
    parse_frame,
    pass_stdin,
    receive,
    report_exit,
)
from hypemand.cli.context import Context
from hypemand.cli.rawmode import raw_terminal, read_size
from hypemand.cli.run import find_variables
from hypemand.errors import InvalidRequest
from hypemand.model.answers.exec import ExecCommand, ExecExit, ExecSignal

# Who interrupts this often wants out, whatever the command does.
INTERRUPTS_TO_GIVE_UP = 3
_LOST = "the connection to hypemand was lost before the command exited"
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
    with open_channel(context.client.path, context.args.name, "exec") as websocket:
        sender = Sender(websocket)
        with _forward_signals(sender, terminal=terminal):
            if terminal:
                # Asked for after changes of it are noticed, so that none is missed.
                rows, cols = read_size()
                request = replace(request, rows=rows, cols=cols)
            websocket.send(format_frame(request))
            sender.start()
            with raw_terminal(0) if terminal and interactive else contextlib.nullcontext():
                if interactive:
                    threading.Thread(target=pass_stdin, args=(sender,), name="stdin", daemon=True).start()
                else:
                    sender.send_text(EOF)
                last = receive(websocket, _LOST)
    return report_exit(parse_frame(ExecExit, last))


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
def _forward_signals(sender: Sender, *, terminal: bool) -> Iterator[None]:
    """While it is entered signals go to the command in the VM, and with a terminal its new sizes. Many
    interrupts end us instead."""
    interrupts = 0

    def forward(number: int, _frame: FrameType | None) -> None:
        nonlocal interrupts
        interrupts += number == signal.SIGINT
        if interrupts >= INTERRUPTS_TO_GIVE_UP:
            raise KeyboardInterrupt
        sender.send_text(format_frame(ExecSignal(number)))

    with contextlib.ExitStack() as stack:
        for number in _FORWARDED:
            stack.callback(signal.signal, number, signal.signal(number, forward))
        if terminal:
            stack.enter_context(forward_sizes(sender))
        yield
