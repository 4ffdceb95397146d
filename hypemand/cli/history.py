# SPDX-License-Identifier: Apache-2.0
"""history: the last runs of a VM."""

from __future__ import annotations

import sys

from hypemand.cli.client import parse_all
from hypemand.cli.context import Context
from hypemand.cli.exitcode import ExitCode
from hypemand.cli.spec import Format
from hypemand.cli.terminal import print_table
from hypemand.cli.values import escape_controls, format_milliseconds, format_second
from hypemand.model.answers.instance import Run

_HEADER = ("STARTED", "READY", "ENDED", "EXIT", "WHY")
_WIDE_HEADER = (*_HEADER[:-1], "RUN", _HEADER[-1])


def show_history(context: Context) -> int:
    """A table of runs, the last one below, or a document."""
    answer = context.client.get("instances", context.args.name, "history")
    runs = parse_all(Run, answer)
    if context.wants_document:
        context.print_document(answer)
    elif runs:
        wide = context.output is Format.WIDE
        header = _WIDE_HEADER if wide else _HEADER
        rows = [_row(run, wide=wide) for run in runs]
        print_table(None if context.args.no_legend else header, rows, [None] * len(runs))
    elif sys.stdout.isatty():
        print("No runs.")
    return ExitCode.OK


def _row(run: Run, *, wide: bool) -> list[str]:
    cells = [
        format_second(run.started_at),
        format_milliseconds(run.ready_ms),
        format_second(run.ended_at),
        "-" if run.exit_code is None else str(run.exit_code),
        *([run.invocation_id] if wide else []),
        "" if run.exit_success is None else run.exit_message or "",
    ]
    return [escape_controls(cell) for cell in cells]
