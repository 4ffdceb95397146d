# SPDX-License-Identifier: Apache-2.0
"""events: what happens on the host, across restarts of the daemon."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence

from hypemand.cli.client import ApiError, Client, StreamBroken, parse
from hypemand.cli.context import Context
from hypemand.cli.exitcode import ExitCode
from hypemand.cli.instance import get_instance
from hypemand.cli.spec import Format
from hypemand.cli.values import escape_controls, format_second, format_tags, format_utc
from hypemand.cli.watch import MAX_BREAKS
from hypemand.model.answers.event import HostEvent


def show_events(context: Context) -> int:
    """A line for each event, or a document."""
    args = context.args
    query = {"vms": ",".join(args.name), "kinds": ",".join(args.kind or ())}
    if isinstance(args.since, str):
        query["cursor"] = args.since
    elif args.since is not None or args.follow:
        query["since"] = format_utc(args.since or 0.0)
    query["follow"] = "true" if args.follow else ""
    wanted = {key: value for key, value in query.items() if value}
    is_known = not args.name
    try:
        if args.follow:
            _check_names(context.client, args.name)
            is_known = True
        for event, document in _read(context.client, wanted, follow=args.follow):
            is_known = True
            print(_render(event, document, context.output), flush=args.follow)
    except KeyboardInterrupt:
        if not args.follow:
            raise
    if not is_known:
        _check_names(context.client, args.name)
    return ExitCode.OK


def _check_names(client: Client, names: Sequence[str]) -> None:
    """Raise ApiError for a name that no VM has, unless an event that is kept is of one that had it."""
    for name in names:
        try:
            get_instance(client, name)
        except ApiError as error:
            if error.code != "not_found" or next(_read(client, {"vms": name}, follow=False), None) is None:
                raise


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


def _render(event: HostEvent, document: object, output: Format | None) -> str:
    if output is Format.JSON:
        return json.dumps(document)
    if output is Format.YAML:
        # takes longer to import than hypemanctl may take to start
        from hypemand.config.source import format_yaml

        return f"---\n{format_yaml(document)}".removesuffix("\n")
    text = f"{format_second(event.time)} {event.vm or '-'} {event.kind}: {event.message}"
    if output is Format.WIDE:
        details = {**event.details, "cursor": event.cursor}
        words = {key: word if isinstance(word, str) else json.dumps(word) for key, word in details.items()}
        text += f" ({format_tags(words)})"
    return escape_controls(text) if sys.stdout.isatty() else text
