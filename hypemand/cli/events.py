# SPDX-License-Identifier: Apache-2.0
"""events: what happens on the host, across restarts of the daemon."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

from hypemand.cli.client import Client, StreamBroken, parse
from hypemand.cli.context import Context
from hypemand.cli.exitcode import ExitCode
from hypemand.cli.values import escape_controls, format_second, format_utc
from hypemand.cli.watch import MAX_BREAKS
from hypemand.model.answers.event import HostEvent


def show_events(context: Context) -> int:
    """A line for each event, or a JSON object."""
    args = context.args
    query = {"vms": ",".join(args.name), "kinds": ",".join(args.kind or ())}
    if isinstance(args.since, str):
        query["cursor"] = args.since
    elif args.since is not None or args.follow:
        query["since"] = format_utc(args.since or 0.0)
    query["follow"] = "true" if args.follow else ""
    wanted = {key: value for key, value in query.items() if value}
    try:
        for event, document in _read(context.client, wanted, follow=args.follow):
            print(json.dumps(document) if args.json else _format(event), flush=args.follow)
    except KeyboardInterrupt:
        if not args.follow:
            raise
    return ExitCode.OK


def _read(client: Client, query: dict[str, str], *, follow: bool) -> Iterator[tuple[HostEvent, object]]:
    """Events with their documents. A stream that breaks is asked for again behind the last one."""
    breaks = 0
    while True:
        try:
            with client.events("events", query=query) as events:
                for document in events:
                    breaks = 0
                    event = parse(HostEvent, document)
                    query.pop("since", None)
                    query["cursor"] = event.cursor
                    yield event, document
            return
        except StreamBroken:
            breaks += 1
            if not follow or breaks > MAX_BREAKS:
                raise


def _format(event: HostEvent) -> str:
    text = f"{format_second(event.time)} {event.vm or '-'} {event.kind}: {event.message}"
    return escape_controls(text) if sys.stdout.isatty() else text
