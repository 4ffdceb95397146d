# SPDX-License-Identifier: Apache-2.0
"""logs: the console of a VM; on a terminal nothing in it reaches the terminal as a control sequence."""

from __future__ import annotations

import json
import sys

from hypemand.cli.client import parse
from hypemand.cli.context import Context
from hypemand.cli.exitcode import ExitCode
from hypemand.cli.terminal import write_raw
from hypemand.cli.values import escape_line, parse_moment
from hypemand.model.answers.guest import LogEntry
from hypemand.model.logs import LogSource


def build_log_query(
    *,
    tail: int | None,
    follow: bool,
    source: str = LogSource.APP,
    sentinels: bool = False,
    as_json: bool = False,
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
        source=args.source or LogSource.APP,
        sentinels=args.all,
        as_json=args.json or args.timestamps,
    )
    with context.client.events("instances", args.name, "logs", query=query) as events:
        for event in events:
            if args.json:
                print(json.dumps(event))
            elif args.timestamps:
                line = parse(LogEntry, event)
                write_raw(f"{_stamp(line)} {show(line.text)}\n")
            else:
                write_raw(f"{show(str(event))}\n")
            if args.follow or sys.stdout.isatty():
                sys.stdout.flush()
    return ExitCode.OK


def _stamp(line: LogEntry) -> str:
    moment = parse_moment(line.time)
    return moment.astimezone().isoformat(timespec="milliseconds") if moment else "-"
