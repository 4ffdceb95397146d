# SPDX-License-Identifier: Apache-2.0
"""logs: the console of a VM; on a terminal nothing in it reaches the terminal as a control sequence."""

from __future__ import annotations

import json
import sys
from base64 import b64decode
from collections.abc import Sequence
from dataclasses import dataclass

from hypemand.cli.client import Unreachable, parse
from hypemand.cli.context import Context
from hypemand.cli.exitcode import ExitCode
from hypemand.cli.severallogs import read_several
from hypemand.cli.terminal import write_raw
from hypemand.cli.values import escape_line, format_utc, parse_moment
from hypemand.model.answers.guest import LogEntry
from hypemand.model.logs import MAX_LINE, LogSource


def build_log_query(
    *,
    tail: int | None,
    follow: bool,
    source: str = LogSource.APP,
    sentinels: bool = False,
    as_json: bool = False,
    since: float | None = None,
) -> dict[str, str]:
    """The query of a request for logs. `tail` None: all. Not `as_json`: strings, and objects for lines of
    which a string is not all (`parse_event`)."""
    query = {"tail": "all" if tail is None else str(tail), "source": source}
    if since is not None:
        query["since"] = format_utc(since)
    switches = {"follow": follow, "sentinels": sentinels, "json": as_json, "exact": not as_json}
    return query | {key: "true" for key, is_on in switches.items() if is_on}


@dataclass(frozen=True, slots=True)
class ShownLine:
    """A line as it is to be written: what the guest wrote, with its end if it has one. `missing`: see
    LogEntry."""

    data: bytes
    missing: int = 0

    def escape(self) -> ShownLine:
        """The same for a terminal, which nothing in it controls."""
        ends = self.data.endswith(b"\n")
        text = escape_line(self.data.removesuffix(b"\n").decode("utf-8", "replace"))
        return ShownLine(text.encode("utf-8", "replace") + b"\n" * ends, self.missing)


def parse_event(event: object) -> ShownLine:
    """An event of a log. Raises Unreachable for what is none."""
    if isinstance(event, str):
        return ShownLine(event.encode("utf-8", "replace") + b"\n")
    line = parse(LogEntry, event)
    data = line.text.encode("utf-8", "replace")
    if line.base64 is not None:
        try:
            data = b64decode(line.base64, validate=True)
        except ValueError:
            raise Unreachable("hypemand's answer cannot be understood: base64 of a line") from None
    return ShownLine(data + b"\n" * (not line.partial), line.missing)


def show_logs(context: Context) -> int:
    """Lines, oldest first, as they come. Following ends with the VM's run.

    Into a file or a pipe they go as they are. On a terminal they are escaped unless --raw: what a guest
    prints there could set its title, clear it, or make it answer as if somebody typed.
    """
    args = context.args
    if len(names := list(dict.fromkeys(args.name))) > 1:
        return show_several(context, names)
    is_raw = args.raw or not sys.stdout.isatty()
    query = build_log_query(
        tail=args.lines,
        follow=args.follow,
        source=args.source or LogSource.APP,
        sentinels=args.all,
        as_json=args.json or args.timestamps,
        since=args.since,
    )
    last = b"\n"
    with context.client.events("instances", names[0], "logs", query=query) as events:
        for event in events:
            if args.json:
                print(json.dumps(event))
                continue
            line = parse_event(event)
            if not last.endswith(b"\n") and len(last) < MAX_LINE:
                write_raw(b"\n")  # the next run, or what a marker has parted
            last = line.data
            if args.timestamps:
                write_raw(f"{format_stamp(parse(LogEntry, event))} ".encode())
            write_raw((line if is_raw else line.escape()).data)
            if args.follow or sys.stdout.isatty():
                sys.stdout.flush()
    return ExitCode.OK


def format_stamp(line: LogEntry) -> str:
    """The time of a line, in local time."""
    moment = parse_moment(line.time)
    return moment.astimezone().isoformat(timespec="milliseconds") if moment else "-"


def show_several(context: Context, names: Sequence[str]) -> int:
    """Lines of several VMs, each with the name of its VM: in the order of their time, and what is followed as
    it comes."""
    args = context.args
    query = build_log_query(
        tail=args.lines,
        follow=args.follow,
        source=args.source or LogSource.APP,
        sentinels=args.all,
        as_json=True,
        since=args.since,
    )
    width = max(map(len, names))
    is_raw = args.raw or not sys.stdout.isatty()
    for name, event in read_several(context.client, names, query, follow=args.follow):
        if args.json:
            print(json.dumps({"vm": name, **event}))
        else:
            line = parse_event(event)
            stamp = f"{format_stamp(parse(LogEntry, event))} " if args.timestamps else ""
            write_raw(f"{name:{width}} | {stamp}".encode())
            shown = line if is_raw else line.escape()
            write_raw(shown.data.removesuffix(b"\n") + b"\n")
        if args.follow or sys.stdout.isatty():
            sys.stdout.flush()
    return ExitCode.OK
