# SPDX-License-Identifier: Apache-2.0
"""The table of commands. The parser, the help, the completion files and the tests of the man page read it."""

from __future__ import annotations

from hypemand.cli.hostcommands import CLUSTER, HOST, IMAGES, NETWORKS, SPACE, TEMPLATES, TOKENS
from hypemand.cli.programcommands import ARCHIVES, PROGRAMS
from hypemand.cli.spec import Command
from hypemand.cli.vmcommands import INSPECT, LIFECYCLE

COMMANDS: tuple[Command, ...] = (
    *INSPECT,
    *LIFECYCLE,
    *PROGRAMS,
    *ARCHIVES,
    *SPACE,
    *NETWORKS,
    *IMAGES,
    *TEMPLATES,
    *TOKENS,
    *CLUSTER,
    *HOST,
)


def find_command(words: list[str]) -> Command | None:
    """The command with the longest path that `words` begins with."""
    fitting = [c for c in COMMANDS if tuple(words[: len(c.path)]) == c.path]
    return max(fitting, key=lambda c: len(c.path), default=None)


def list_group(*words: str) -> list[Command]:
    """The commands below first words."""
    return [c for c in COMMANDS if c.path[: len(words)] == words]


def list_groups() -> list[tuple[str, ...]]:
    """First words that more words may follow."""
    return list(dict.fromkeys(c.path[:end] for c in COMMANDS for end in range(1, len(c.path))))


def list_next(group: tuple[str, ...]) -> list[str]:
    """The words that may follow first words."""
    below = (c.path for c in list_group(*group) if len(c.path) > len(group))
    return list(dict.fromkeys(path[len(group)] for path in below))
