# SPDX-License-Identifier: Apache-2.0
"""snapshot schedule set, show, rm."""

from __future__ import annotations

import math

from hypemand.cli.client import CHANGE_SECONDS, Json, parse
from hypemand.cli.context import Context
from hypemand.cli.exitcode import ExitCode
from hypemand.cli.terminal import print_json
from hypemand.cli.values import format_second
from hypemand.errors import InvalidRequest
from hypemand.model.answers.snapshot import SnapshotSchedule

_WHERE = "snapshot-schedule"


def set_schedule(context: Context) -> int:
    """Set the schedule of a VM, and print when its next snapshot is made."""
    args = context.args
    if args.interval is None or math.isinf(args.interval):
        raise InvalidRequest("--interval is missing", hint="give the time between snapshots, such as 1h")
    age = None if args.max_age is None or math.isinf(args.max_age) else f"{args.max_age:.3f}s"
    body: dict[str, Json] = {
        "interval": f"{args.interval:.3f}s",
        "retention": {"max_count": args.max_count, "max_age": age},
        "name_prefix": args.name_prefix,
        "metadata": dict(args.tag),
    }
    answer = context.client.call("PUT", "instances", args.vm, _WHERE, body=body, timeout=CHANGE_SECONDS)
    if context.wants_json:
        print_json(answer)
    else:
        print(f"next snapshot: {format_second(parse(SnapshotSchedule, answer).next_run_at)}")
    return ExitCode.OK


def show(context: Context) -> int:
    """The schedule of a VM. The document is JSON unless YAML is asked for."""
    context.print_document(context.client.get("instances", context.args.vm, _WHERE))
    return ExitCode.OK


def remove(context: Context) -> int:
    """Remove the schedule of a VM."""
    context.client.call("DELETE", "instances", context.args.vm, _WHERE, timeout=CHANGE_SECONDS)
    if context.wants_json:
        print_json(context.args.vm)
    return ExitCode.OK
