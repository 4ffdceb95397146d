# SPDX-License-Identifier: Apache-2.0
"""Entry of hypemanctl. The only place where errors become output and an exit status."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from io import TextIOWrapper

from hypemand.cli.client import Client, find_socket
from hypemand.cli.context import Context, explain
from hypemand.cli.exitcode import ExitCode, derive_exit_code
from hypemand.cli.parser import HelpAsked, UsageError, VersionAsked, parse_command_line
from hypemand.cli.spec import Command
from hypemand.cli.terminal import print_error
from hypemand.errors import HypemandError
from hypemand.version import VERSION

Handler = Callable[[Context], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run hypemanctl with `argv` (without the program's name). Returns the exit status."""
    _make_output_safe()
    try:
        status = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        _forget_output()
        return ExitCode.BROKEN_PIPE
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED


def load_handler(command: Command) -> Handler:
    """The function that does a command. Only its module is imported, and only now."""
    module, _, function = command.handler.partition(":")
    handler: Handler = getattr(importlib.import_module(f"hypemand.cli.{module}"), function)
    return handler


def _run(argv: list[str]) -> int:
    try:
        command, args = parse_command_line(argv)
    except HelpAsked as asked:
        sys.stdout.write(asked.text)
        return ExitCode.OK
    except VersionAsked:
        print(f"hypemanctl {VERSION}")
        return ExitCode.OK
    except UsageError as error:
        sys.stderr.write(error.text.rstrip("\n") + "\n")
        return error.exit_code
    context = Context(args, Client(find_socket(args.socket)))
    try:
        return load_handler(command)(context)
    except HypemandError as error:
        print_error(explain(error))
        return ExitCode.OWN_FAILURE if command.passes_exit_code else derive_exit_code(error.code)


def _make_output_safe() -> None:
    """A locale that cannot show a character must not end us."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _forget_output() -> None:
    """Nobody reads any more: let the interpreter's own flush at exit go nowhere."""
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, sys.stdout.fileno())
    os.close(sink)


if __name__ == "__main__":
    sys.exit(main())
