# SPDX-License-Identifier: Apache-2.0
"""reload, version: the daemon itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hypemand.cli.client import CHANGE_SECONDS, ApiError, parse_problems
from hypemand.cli.context import Context
from hypemand.cli.exitcode import ExitCode
from hypemand.cli.terminal import LiveLine, print_error, print_json
from hypemand.cli.values import escape_controls
from hypemand.errors import Problem
from hypemand.version import VERSION

_WORDS = (
    ("defined", "Defined: {}."),
    ("changed", "Changed, from the next start on: {}."),
    ("removed", "Removed, stopped: {}."),
)


def reload(context: Context) -> int:
    """Let the daemon read the definitions again, and show what it made of them.

    --quiet is for hypemand.service, whose journal has all of that from the daemon already.
    """
    with LiveLine("reloading"):
        report = context.client.post("reload", timeout=CHANGE_SECONDS * 2)
    problems = parse_problems(report.get("problems"))
    if not context.args.quiet:
        _show_report(context, report, problems)
    return ExitCode.INVALID if problems else ExitCode.OK


def _show_report(context: Context, report: dict[str, Any], problems: Iterable[Problem]) -> None:
    if context.wants_json:
        print_json(report)
    else:
        for key, words in _WORDS:
            if report.get(key):
                print(escape_controls(words.format(", ".join(report[key]))))
    for problem in problems:
        print_error(str(problem))


def show_version(context: Context) -> int:
    """Our version, and the daemon's if it can be asked."""
    version: str | None = None
    try:
        health = context.client.get("health")
        version = health.get("version")
        words = version or "answers without its version"
    except ApiError as error:
        words = f"does not answer: {error}"
    if context.wants_json:
        print_json({"hypemanctl": VERSION, "hypemand": version})
    else:
        print(f"hypemanctl {VERSION}")
        print(f"hypemand {escape_controls(str(words))}")
    return ExitCode.OK
