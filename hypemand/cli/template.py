# SPDX-License-Identifier: Apache-2.0
"""template create, list, rm."""

from __future__ import annotations

from hypemand.cli.client import parse, parse_all
from hypemand.cli.context import Context, for_each
from hypemand.cli.exitcode import ExitCode
from hypemand.cli.listing import Listing, show_list
from hypemand.cli.terminal import GREEN, YELLOW, print_json
from hypemand.cli.values import escape_controls, format_bytes, format_minute
from hypemand.errors import InvalidRequest
from hypemand.model.answers.template import Template

_HEADER = ("ID", "STATE", "MEMORY", "CPUS", "DISKS", "NETWORK", "SIZE", "CREATED", "USED")
_ID_DIGITS = 12
# as long as a boot with the least priority on a busy host, and those that are made before it
_CREATE_SECONDS = 1800.0


def create(context: Context) -> int:
    """Make the templates from which VMs can start, and print their ids."""
    made = []

    def create_one(vm: str) -> None:
        answer = context.client.post("templates", body={"instance": vm}, timeout=_CREATE_SECONDS)
        made.append(answer)
        if not context.wants_json:
            print(escape_controls(parse(Template, answer).id))

    failure = for_each(context.args.vm, create_one)
    if context.wants_json:
        print_json(made)
    return failure


def list_templates(context: Context) -> int:
    """A table of templates, or their ids, or JSON."""
    answer = context.client.get("templates")
    show_list(context, _LISTING, parse_all(Template, answer), answer)
    return ExitCode.OK


def _row(template: Template, _wide: bool) -> list[str]:
    return [
        template.id[:_ID_DIGITS],
        "outdated" if template.outdated else "ready",
        format_bytes(template.memory_bytes),
        str(template.vcpus),
        str(template.disks),
        "yes" if template.network else "no",
        format_bytes(template.size_bytes),
        format_minute(template.created_at),
        format_minute(template.last_used_at),
    ]


_LISTING = Listing(
    "templates",
    _HEADER,
    _row,
    name=lambda template: template.id,
    colour=lambda template: YELLOW if template.outdated else GREEN,
)


def remove(context: Context) -> int:
    """Remove templates, or all."""
    args = context.args
    if args.all == bool(args.template):
        raise InvalidRequest("which templates?", hint="give their ids, or --all")
    listed = parse_all(Template, context.client.get("templates")) if args.all else []
    removed: list[str] = []

    def remove_one(key: str) -> None:
        context.client.delete("templates", key)
        removed.append(key)

    failure = for_each([one.id for one in listed] if args.all else args.template, remove_one)
    if context.wants_json:
        print_json(removed)
    return failure
