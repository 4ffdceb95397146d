# SPDX-License-Identifier: Apache-2.0
"""Context of a command: its arguments and the client of the daemon."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hypemand.cli.client import Client
from hypemand.cli.exitcode import ExitCode, derive_exit_code
from hypemand.cli.terminal import print_error
from hypemand.errors import HypemandError


@dataclass(frozen=True, slots=True)
class Context:
    """One call of hypemanctl."""

    args: Namespace
    client: Client

    @property
    def wants_json(self) -> bool:
        """Is one JSON document asked for, and nothing else?"""
        return bool(getattr(self.args, "json", False))


def explain(error: HypemandError) -> str:
    """The text of an error: its problems, one a line, where it has some."""
    problems = getattr(error, "problems", ())
    return "\n".join(str(p) for p in problems) if problems else str(error)


def for_each(names: Sequence[str], work: Callable[[str], None]) -> ExitCode:
    """Do `work` for every name. One that fails is reported and does not keep the others from theirs.

    Gives the exit code of the first failure. A daemon that cannot be reached ends it at once.
    """
    first = ExitCode.OK
    for name in names:
        try:
            work(name)
        except HypemandError as error:
            print_error(explain(error))
            first = first or derive_exit_code(error.code)
            if first is ExitCode.UNREACHABLE:
                break
    return first
