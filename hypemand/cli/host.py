# SPDX-License-Identifier: Apache-2.0
"""reload, version: the daemon itself."""

from __future__ import annotations

from hypemand.cli.client import CHANGE_SECONDS, ApiError, parse
from hypemand.cli.context import Context
from hypemand.cli.exitcode import ExitCode
from hypemand.cli.terminal import LiveLine, print_error, print_json
from hypemand.cli.values import escape_controls
from hypemand.model.answers.host import EventLoop, Health, ReloadReport
from hypemand.model.document import encode
from hypemand.version import VERSION


def reload(context: Context) -> int:
    """Let the daemon read the definitions again, and show what it made of them.

    --quiet is for hypemand.service, whose journal has all of that from the daemon already.
    """
    return reload_daemon(context, quiet=context.args.quiet)


def reload_daemon(context: Context, *, quiet: bool) -> ExitCode:
    """The same for other commands."""
    with LiveLine("reloading"):
        answer = context.client.post("reload", timeout=CHANGE_SECONDS * 2)
    report = parse(ReloadReport, answer)
    if not quiet:
        print_json(answer) if context.wants_json else _show_report(report)
        for problem in report.problems:
            print_error(str(problem))
    return ExitCode.INVALID if report.problems else ExitCode.OK


def _show_report(report: ReloadReport) -> None:
    for words, names in (
        ("Defined", report.defined),
        ("Changed", [name for name in report.changed if name not in report.needs_restart]),
        ("Changed, needs a restart", report.needs_restart),
        ("Removed, being stopped", report.removed),
    ):
        if names:
            print(escape_controls(f"{words}: {', '.join(names)}."))


def show_version(context: Context) -> int:
    """Our version, and the daemon's if it can be asked, with the slow turns of its event loop, if any."""
    version: str | None = None
    loop: EventLoop | None = None
    try:
        health = parse(Health, context.client.get("health"))
        version, loop = health.version, health.loop
        words = version or "answers without its version"
    except ApiError as error:
        words = f"does not answer: {error}"
    if context.wants_document:
        context.print_document(
            {"hypemanctl": VERSION, "hypemand": version, "loop": None if loop is None else encode(loop)}
        )
    else:
        print(f"hypemanctl {VERSION}")
        print(f"hypemand {escape_controls(words)}")
        if loop is not None and loop.slow_turns:
            print(
                f"event loop: {loop.slow_turns} slow turns, the longest took {loop.longest_ms} ms,"
                f" the most CPU time in one was {loop.longest_cpu_ms} ms"
            )
    return ExitCode.OK
