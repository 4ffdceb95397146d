# SPDX-License-Identifier: Apache-2.0
"""analyze: the timeline of a boot, as text or SVG."""

from __future__ import annotations

from hypemand.cli.client import Json
from hypemand.cli.context import Context
from hypemand.cli.exitcode import ExitCode
from hypemand.cli.terminal import print_json, write_raw
from hypemand.manager.view import Span, Timeline
from hypemand.timeline import render_svg, render_text


def show_text(context: Context) -> int:
    """The steps of the last boot, with their times."""
    answer = context.client.get("instances", context.args.name, "timeline")
    if context.wants_json:
        print_json(answer)
    else:
        write_raw(_end_line(render_text(parse_timeline(answer))))
    return ExitCode.OK


def show_plot(context: Context) -> int:
    """The last boot as an SVG document."""
    answer = context.client.get("instances", context.args.name, "timeline")
    write_raw(_end_line(render_svg(parse_timeline(answer))))
    return ExitCode.OK


def parse_timeline(value: Json) -> Timeline:
    """A timeline as the API writes it."""
    spans = tuple(
        Span(str(s["name"]), str(s["lane"]), float(s["start_ms"]), float(s["end_ms"])) for s in value["spans"]
    )
    running = value.get("running_ms")
    return Timeline(
        vm=str(value["vm"]),
        boot=str(value["boot"]),
        spans=spans,
        running_ms=None if running is None else float(running),
    )


def _end_line(text: str) -> str:
    return text if text.endswith("\n") else f"{text}\n"
