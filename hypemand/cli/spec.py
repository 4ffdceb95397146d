# SPDX-License-Identifier: Apache-2.0
"""What a command is: the types of the table in `commands`, which feeds parser, help and completion."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from keyword import iskeyword

from hypemand.cli.exitcode import ExitCode


class Completes(StrEnum):
    """What a shell offers for an argument."""

    NOTHING = "nothing"
    VM = "vm"
    IMAGE = "image"
    VOLUME = "volume"
    NETWORK = "network"
    SNAPSHOT = "snapshot"
    TEMPLATE = "template"
    FILE = "file"
    DEFINITION = "definition"
    DIRECTORY = "directory"
    STATE = "state"
    SIGNAL = "signal"


class Kind(StrEnum):
    """What an option's or argument's text must be."""

    TEXT = "text"
    COUNT = "count"
    LINES = "lines"
    SPAN = "span"
    SINCE = "since"
    POSITION = "position"
    SIGNAL = "signal"
    STATE = "state"
    PAIR = "pair"
    FILTER = "filter"


class Format(StrEnum):
    """How something is shown that is not shown for people, and the table with more columns."""

    JSON = "json"
    YAML = "yaml"
    WIDE = "wide"


@dataclass(frozen=True, slots=True)
class Option:
    """One option. Without `metavar` it is a switch. `repeat`: may be given many times, gives a list.

    `choices` closes the set of values, and is what a shell offers.
    """

    flags: tuple[str, ...]
    help: str
    metavar: str | None = None
    kind: Kind = Kind.TEXT
    repeat: bool = False
    choices: tuple[str, ...] = ()
    completes: Completes = Completes.NOTHING

    @property
    def dest(self) -> str:
        """The attribute that holds its value: the first long flag, as an identifier."""
        name = next((f for f in self.flags if f.startswith("--")), self.flags[0])
        name = name.lstrip("-").replace("-", "_")
        return f"{name}_" if iskeyword(name) else name


@dataclass(frozen=True, slots=True)
class Argument:
    """One positional argument. `count`: "1", "?", "*", "+", or "..." for all that follows, options too."""

    metavar: str
    help: str
    count: str = "1"
    completes: Completes = Completes.NOTHING
    attribute: str = ""

    @property
    def dest(self) -> str:
        """The attribute that holds its value: the metavar in lower case, if it has no other."""
        return self.attribute or self.metavar.lower()


@dataclass(frozen=True, slots=True)
class Command:
    """One command.

    `path` is its words ("image", "import"), `handler` "module:function" of this folder, imported when the
    command runs. `passes_exit_code`: the exit status is that of a program in a VM, and our own failures
    are 125. `failure`: the exit status of failures that have none of their own.
    """

    path: tuple[str, ...]
    help: str
    handler: str
    description: str = ""
    arguments: tuple[Argument, ...] = ()
    options: tuple[Option, ...] = ()
    more_options: Callable[[], tuple[Option, ...]] = tuple
    passes_exit_code: bool = False
    failure: ExitCode = ExitCode.FAILURE

    @property
    def all_options(self) -> tuple[Option, ...]:
        """Those of its own, not of all commands."""
        return (*self.options, *self.more_options())

    @property
    def name(self) -> str:
        """Its words as typed."""
        return " ".join(self.path)
