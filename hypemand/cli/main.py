# SPDX-License-Identifier: Apache-2.0
"""Entry of hypemanctl. The only place where errors become output and an exit status."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from io import BufferedWriter, FileIO, TextIOWrapper
from typing import TYPE_CHECKING, TextIO

from hypemand.cli.client import Client, find_socket
from hypemand.cli.context import Context, explain
from hypemand.cli.exitcode import ExitCode, derive_exit_code
from hypemand.cli.parser import HelpAsked, UsageError, VersionAsked, parse_command_line
from hypemand.cli.spec import Command
from hypemand.cli.terminal import print_error
from hypemand.errors import HypemandError
from hypemand.version import VERSION

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

Handler = Callable[[Context], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run hypemanctl with `argv` (without the program's name). Returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    _fill_closed_streams()
    _make_output_safe()
    try:
        status = _run(words)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        _forget(sys.stdout)
        return ExitCode.BROKEN_PIPE
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except OutputFailed as error:
        _forget(sys.stdout)
        print_error(f"cannot write to standard output: {error.strerror}")
        return _find_own_failure(words)
    finally:
        try:
            sys.stderr.flush()
        except OSError:
            _forget(sys.stderr)


def load_handler(command: Command) -> Handler:
    """The function that does a command. Only its module is imported, and only now."""
    module, _, function = command.handler.partition(":")
    handler: Handler = getattr(importlib.import_module(f"hypemand.cli.{module}"), function)
    return handler


def find_failure(command: Command, code: ExitCode) -> ExitCode:
    """The exit status of a command that has failed with `code`."""
    if command.passes_exit_code:
        return ExitCode.OWN_FAILURE
    return command.failure if code is ExitCode.FAILURE else code


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
        with suppress(OSError):  # there is nowhere else to say so
            sys.stderr.write(error.text.rstrip("\n") + "\n")
        return error.exit_code
    context = Context(args, Client(find_socket(args.socket)))
    try:
        return load_handler(command)(context)
    except HypemandError as error:
        print_error(explain(error))
        return find_failure(command, derive_exit_code(error.code))


def _fill_closed_streams() -> None:
    """A standard stream that was closed (>&-) has none of our files in its place, and what is written to it
    is an error as with cat(1): nothing else would tell."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            fd = os.open(os.devnull, os.O_RDONLY)  # so that writing fails
            if fd != number:
                os.dup2(fd, number)
                os.close(fd)
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 it is for the process


class OutputFailed(OSError):
    """Standard output cannot be written, as on a full disk."""


class _Output(FileIO):
    """Raises OutputFailed for what cannot be written to a stream. The stream stays open with it."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream.fileno(), "wb", closefd=False)
        self._stream = stream

    def write(self, data: Buffer, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputFailed(error.errno, error.strerror) from None


def _make_output_safe() -> None:
    """A locale that cannot show a character must not end us."""
    sys.stdout = TextIOWrapper(
        BufferedWriter(_Output(sys.stdout)),
        encoding=sys.stdout.encoding,
        errors="backslashreplace",
        line_buffering=sys.stdout.isatty(),
    )
    if isinstance(sys.stderr, TextIOWrapper):
        sys.stderr.reconfigure(errors="backslashreplace")


def _forget(stream: TextIO) -> None:
    """Nobody reads any more: let the interpreter's own flush at exit go nowhere."""
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, stream.fileno())
    os.close(sink)


def _find_own_failure(words: list[str]) -> ExitCode:
    """The status of a failure that is not the program's, for those commands that pass that on."""
    try:
        command, _ = parse_command_line(words)
    except (HelpAsked, VersionAsked, UsageError):
        return ExitCode.FAILURE
    return find_failure(command, ExitCode.FAILURE)


if __name__ == "__main__":
    sys.exit(main())
