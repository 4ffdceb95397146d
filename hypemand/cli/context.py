# SPDX-License-Identifier: Apache-2.0
"""Context of a command: its arguments and the client of the daemon."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hypemand.cli.client import Client, Json
from hypemand.cli.exitcode import ExitCode, derive_exit_code
from hypemand.cli.spec import Format
from hypemand.cli.terminal import print_error, print_json
from hypemand.errors import HypemandError, InvalidRequest


@dataclass(frozen=True, slots=True)
class Context:
    """One call of hypemanctl."""

    args: Namespace
    client: Client

    @property
    def wants_json(self) -> bool:
        """Is one JSON document asked for, and nothing else?"""
        return bool(getattr(self.args, "json", False))

    @property
    def output(self) -> Format | None:
        """The format that is asked for; None: that for people. Raises InvalidRequest."""
        chosen = Format(self.args.output) if self.args.output else None
        if self.args.json and chosen not in (None, Format.JSON):
            raise InvalidRequest(f"--json cannot be combined with -o {chosen}", hint="omit one of them")
        return Format.JSON if self.args.json else chosen

    @property
    def wants_document(self) -> bool:
        """Is one document asked for, and nothing else?"""
        return self.output in (Format.JSON, Format.YAML)

    @property
    def compression(self) -> dict[str, Json]:
        """What of a body asks for compression, if that is asked for."""
        level = self.args.compress_level
        if level is None and not self.args.compress:
            return {}
        return {"compression": {"enabled": True, "level": level}}

    def print_document(self, value: Json) -> None:
        """One document on standard output, in YAML if that is asked for."""
        if self.output is not Format.YAML:
            print_json(value)
            return
        # takes longer to import than hypemanctl may take to start
        from hypemand.config.source import format_yaml

        sys.stdout.write(format_yaml(value))


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
