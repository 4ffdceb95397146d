# SPDX-License-Identifier: Apache-2.0
"""logs: the console of a VM, as it is."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping

from hypemand.cli.context import Context
from hypemand.cli.exitcode import ExitCode
from hypemand.cli.terminal import write_raw
from hypemand.cli.values import parse_moment


def build_log_query(
    *, tail: int | None, follow: bool, source: str = "app", sentinels: bool = False, as_json: bool = False
) -> dict[str, str]:
    """The query of a request for logs. `tail` None: all."""
    query = {"tail": "all" if tail is None else str(tail), "source": source}
    switches = {"follow": follow, "sentinels": sentinels, "json": as_json}
    return query | {key: "true" for key, is_on in switches.items() if is_on}


def show_logs(context: Context) -> int:
    """Lines, oldest first, as they come. Following ends with the VM's run."""
    args = context.args
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
                write_raw(_stamp(event))
            else:
                write_raw(f"{event}\n")
            if args.follow or sys.stdout.isatty():
                sys.stdout.flush()
    return ExitCode.OK


def _stamp(event: Mapping[str, object]) -> str:
    moment = parse_moment(event.get("time"))
    stamp = moment.astimezone().isoformat(timespec="milliseconds") if moment else "-"
    return f"{stamp} {event.get('text', '')}\n"
