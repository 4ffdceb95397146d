# SPDX-License-Identifier: Apache-2.0
"""analyze: the timeline of a boot, as text or SVG."""

from __future__ import annotations

from hypemand.cli.client import parse
from hypemand.cli.context import Context
from hypemand.cli.exitcode import ExitCode
from hypemand.cli.terminal import write_raw
from hypemand.cli.timeline import render_svg, render_text
from hypemand.model.timeline import Timeline


def show_text(context: Context) -> int:
    """The steps of the last boot, with their times."""
    answer = context.client.get("instances", context.args.name, "timeline")
    if context.wants_document:
        context.print_document(answer)
    else:
        write_raw(_end_line(render_text(parse(Timeline, answer))))
    return ExitCode.OK


def show_plot(context: Context) -> int:
    """The last boot as an SVG document."""
    answer = context.client.get("instances", context.args.name, "timeline")
    write_raw(_end_line(render_svg(parse(Timeline, answer))))
    return ExitCode.OK


def _end_line(text: str) -> bytes:
    return (text if text.endswith("\n") else f"{text}\n").encode("utf-8", "replace")
