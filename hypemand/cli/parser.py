# SPDX-License-Identifier: Apache-2.0
"""Command line to command and values, by the table in `commands`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from typing import NoReturn

from hypemand.cli import values
from hypemand.cli.commands import COMMANDS, find_command, list_group, list_groups, list_next
from hypemand.cli.exitcode import ExitCode, format_exit_codes
from hypemand.cli.hints import find_command_hint, find_option_hints
from hypemand.cli.options import COMMON_OPTIONS, FILTERS, GLOBAL_OPTIONS, HELP, SOCKET
from hypemand.cli.spec import Argument, Command, Completes, Kind, Option
from hypemand.model.state import State


class UsageError(Exception):
    """The command line is wrong. `text` is what to print."""

    def __init__(self, text: str, exit_code: ExitCode) -> None:
        super().__init__(text)
        self.text = text
        self.exit_code = exit_code


class HelpAsked(Exception):
    """--help was given. `text` is what to print."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


class VersionAsked(Exception):
    """--version was given."""


class _WantsHelp(Exception):
    """Leaves argparse, whose own help action would print and exit."""


class _HelpAction(argparse.Action):
    def __call__(self, *_: object) -> None:
        raise _WantsHelp


class _Parser(argparse.ArgumentParser):
    """Raises UsageError where argparse would exit. `command`: its words."""

    exit_code = ExitCode.USAGE
    command = ""

    def error(self, message: str) -> NoReturn:
        usage = " ".join(self.format_usage().removeprefix("usage: ").split())
        hints = "".join(f"; {hint}" for hint in find_option_hints(self.command, message.split()))
        text = f"{self.prog}: {message}{hints}\nUsage: {usage}\nSee {self.prog} --help."
        raise UsageError(text, self.exit_code)


def parse_state(text: str) -> State:
    """A state, in whatever case it is written."""
    for state in State:
        if state.lower() == text.lower():
            return state
    raise ValueError(f"not a state: {text!r}; use one of: {', '.join(State)}")


def parse_filter(text: str) -> tuple[str, str]:
    """`tag=KEY`, `tag=KEY=VALUE`, `state=STATE` or `image=PATTERN`."""
    key, _, value = text.partition("=")
    if key not in FILTERS or not value:
        raise ValueError(f"not a filter: {text!r}; use tag=KEY, tag=KEY=VALUE, state=STATE or image=IMAGE")
    return key, str(parse_state(value)) if key == "state" else value


_PARSERS: dict[Kind, Callable[[str], object]] = {
    Kind.TEXT: str,
    Kind.COUNT: values.parse_count,
    Kind.LINES: values.parse_lines,
    Kind.SPAN: values.parse_span,
    Kind.SINCE: values.parse_since,
    Kind.POSITION: values.parse_position,
    Kind.SIGNAL: values.parse_signal,
    Kind.STATE: parse_state,
    Kind.PAIR: values.parse_pair,
    Kind.FILTER: parse_filter,
}


def parse_command_line(words: list[str]) -> tuple[Command, argparse.Namespace]:
    """The command and its values. Raises UsageError, HelpAsked and VersionAsked."""
    top = _build_top_parser()
    start = _count_global_words(words)
    rest = words[start:]
    try:
        before = top.parse_args(words[:start])
    except _WantsHelp:
        raise HelpAsked(format_overview()) from None
    if before.version:
        raise VersionAsked
    command = find_command(rest)
    if command is None:
        raise _explain_no_command(rest)
    args = _parse_command(command, rest[len(command.path) :])
    args.socket = args.socket or before.socket
    _check_text(command, args)
    return command, args


def _check_text(command: Command, args: argparse.Namespace) -> None:
    """Raise UsageError for what is not UTF-8 and is no name of a local file: it is sent as JSON."""
    items: tuple[Argument | Option, ...] = (*command.arguments, *command.all_options)
    for item in items:
        value = getattr(args, item.dest, None)
        texts = value if isinstance(value, list) else [value]
        bad = next((text for text in texts if isinstance(text, str) and not _is_utf8(text)), None)
        if bad is not None and item.completes not in _LOCAL_FILES:
            name = item.flags[-1] if isinstance(item, Option) else item.metavar
            code = ExitCode.OWN_FAILURE if command.passes_exit_code else ExitCode.USAGE
            shown = ascii(os.fsencode(bad))[1:]
            raise UsageError(f"hypemanctl {command.name}: {name}: not valid UTF-8: {shown}", code)


def _is_utf8(text: str) -> bool:
    """Python has other bytes of the command line as surrogates."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _count_global_words(words: list[str]) -> int:
    """How many words stand before the command."""
    index = 0
    while index < len(words) and words[index].startswith("-"):
        index += 2 if words[index] in SOCKET.flags else 1
    return min(index, len(words))


def _explain_no_command(words: list[str]) -> Exception:
    """What to raise when `words` name no command."""
    if not words:
        return UsageError(format_overview(), ExitCode.USAGE)
    if words[0] == "help":
        return HelpAsked(format_overview())
    group = max((g for g in list_groups() if tuple(words[: len(g)]) == g), key=len, default=())
    rest = words[len(group) :]
    if group and rest and rest[0] in HELP.flags:
        return HelpAsked(_format_command_list(list_group(*group)))
    if group:
        what = f"unknown subcommand {rest[0]!r}" if rest else "missing subcommand"
        hint = find_command_hint([*group, *rest[:1]])
        names = ", ".join(list_next(group))
        return UsageError(
            f"hypemanctl {' '.join(group)}: {what}, one of: {names}" + (f"\nUse: {hint}" if hint else ""),
            ExitCode.USAGE,
        )
    hint = find_command_hint(words[:1])
    cure = f"Use: {hint}" if hint else "See hypemanctl --help."
    return UsageError(f"hypemanctl: unknown command {words[0]!r}\n{cure}", ExitCode.USAGE)


def _parse_command(command: Command, words: list[str]) -> argparse.Namespace:
    """Parse what follows the command's words.

    Where all that follows the last argument belongs to a program, `--` before that program lets options
    stand after the arguments.
    """
    remainder = next((a for a in command.arguments if a.count == "..."), None)
    parser = build_parser(command)
    try:
        if remainder is None:
            return parser.parse_intermixed_args(words)
        if "--" not in words or _is_remainder_before_dashes(command, words):
            return parser.parse_args(words)
        cut = words.index("--")
        args = build_parser(command, without=remainder).parse_intermixed_args(words[:cut])
    except _WantsHelp:
        raise HelpAsked(build_parser(command).format_help()) from None
    setattr(args, remainder.dest, words[cut + 1 :])
    return args


def _is_remainder_before_dashes(command: Command, words: list[str]) -> bool:
    """Have the program's own words begun before the first `--`, so that it is one of them?"""
    takes_value = {flag for o in (*command.all_options, SOCKET) if o.metavar for flag in o.flags}
    plain, is_value = 0, False
    for word in words[: words.index("--")]:
        if is_value:
            is_value = False
        elif word in takes_value:
            is_value = True
        elif not word.startswith("-"):
            plain += 1
    return plain >= len(command.arguments)


def build_parser(command: Command, *, without: Argument | None = None) -> argparse.ArgumentParser:
    """argparse for one command. `without`: leave this argument out."""
    parser = _Parser(
        prog=f"hypemanctl {command.name}",
        description=f"{_as_sentence(command.help)} {command.description}".strip(),
        epilog=format_exit_codes(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
    )
    parser.command = command.name
    if command.passes_exit_code:
        parser.exit_code = ExitCode.OWN_FAILURE
    for argument in command.arguments:
        if argument is not without:
            parser.add_argument(
                argument.dest,
                metavar=argument.metavar,
                nargs=_NARGS.get(argument.count, argument.count),
                help=argument.help,
            )
    for option in (*command.all_options, *COMMON_OPTIONS):
        _add_option(parser, option)
    return parser


_LOCAL_FILES = frozenset({Completes.FILE, Completes.DIRECTORY, Completes.DEFINITION})
_NARGS = {"1": None, "...": argparse.REMAINDER}


def _build_top_parser() -> _Parser:
    parser = _Parser(
        prog="hypemanctl", usage="hypemanctl [OPTION...] COMMAND ...", add_help=False, allow_abbrev=False
    )
    for option in GLOBAL_OPTIONS:
        _add_option(parser, option)
    return parser


def _add_option(parser: argparse.ArgumentParser, option: Option) -> None:
    if option is HELP:
        parser.add_argument(*option.flags, action=_HelpAction, nargs=0, dest=option.dest, help=option.help)
    elif option.metavar is None:
        parser.add_argument(*option.flags, action="store_true", dest=option.dest, help=option.help)
    else:
        parser.add_argument(
            *option.flags,
            action="append" if option.repeat else "store",
            default=[] if option.repeat else None,
            dest=option.dest,
            metavar=option.metavar,
            type=_value_type(option.kind),
            choices=option.choices or None,
            help=option.help,
        )


def _value_type(kind: Kind) -> Callable[[str], object]:
    """The parser of a kind, with its own error text kept by argparse."""
    parse = _PARSERS[kind]

    def parse_value(text: str) -> object:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse_value


def format_overview() -> str:
    """`hypemanctl --help`."""
    options = "\n".join(f"  {', '.join(o.flags):<24}{o.help}" for o in GLOBAL_OPTIONS)
    return (
        "usage: hypemanctl [OPTION...] COMMAND ...\n\nManage micro VMs that run as systemd services.\n\n"
        f"commands:\n{_format_command_list(COMMANDS)}\n"
        f"options:\n{options}\n\n{format_exit_codes()}\n\n"
        "See hypemanctl COMMAND --help and hypemanctl(1).\n"
    )


def _format_command_list(commands: Sequence[Command]) -> str:
    return "".join(f"  {c.name:<24}{c.help}\n" for c in commands)


def _as_sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
