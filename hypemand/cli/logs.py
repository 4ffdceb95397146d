# SPDX-License-Identifier: Apache-2.0
"""logs: the console of a VM; on a terminal nothing in it reaches the terminal as a control sequence."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping

from hypemand.cli.context import Context
from hypemand.cli.exitcode import ExitCode
from hypemand.cli.terminal import write_raw
from hypemand.cli.values import escape_line, parse_moment


def build_log_query(
    *, tail: int | None, follow: bool, source: str = "app", sentinels: bool = False, as_json: bool = False
) -> dict[str, str]:
    """The query of a request for logs. `tail` None: all."""
    query = {"tail": "all" if tail is None else str(tail), "source": source}
    switches = {"follow": follow, "sentinels": sentinels, "json": as_json}
    return query | {key: "true" for key, is_on in switches.items() if is_on}


def show_logs(context: Context) -> int:
    """Lines, oldest first, as they come. Following ends with the VM's run.

    Into a file or a pipe they go as they are. On a terminal they are escaped unless --raw: what a guest
    prints there could set its title, clear it, or make it answer as if somebody typed.
    """
    args = context.args
    show = str if args.raw or not sys.stdout.isatty() else escape_line
    query = build_log_query(
        tail=args.lines,
        follow=args.follow,
        source=args.source or "app",
        sentinels=args.all,
        as_json=args.json or args.timestamps,
    )
    with context.client.events("instances", args.name, "logs", query=query) as events:
        for event in events:
            if args.json:
                print(json.dumps(event))
            elif args.timestamps:
                write_raw(f"{_stamp(event)} {show(_read_text(event))}\n")
            else:
                write_raw(f"{show(str(event))}\n")
            if args.follow or sys.stdout.isatty():
                sys.stdout.flush()
    return ExitCode.OK


def _stamp(event: Mapping[str, object]) -> str:
    moment = parse_moment(event.get("time"))
    return moment.astimezone().isoformat(timespec="milliseconds") if moment else "-"


def _read_text(event: Mapping[str, object]) -> str:
    return str(event.get("text", ""))
