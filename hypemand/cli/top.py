# SPDX-License-Identifier: Apache-2.0
"""top: resource usage of VMs, updated continuously."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from hypemand.cli.context import Context
from hypemand.cli.exitcode import ExitCode
from hypemand.cli.instance import find_memory, find_state_colour, list_instances
from hypemand.cli.terminal import print_table
from hypemand.cli.values import escape_controls, format_bytes, format_seconds, parse_moment
from hypemand.errors import InvalidRequest, NotFound
from hypemand.model.answers.instance import Instance

DELAY_SECONDS = 2.0
# What one look that stands alone compares with the look before it.
FIRST_SECONDS = 1.0
_HEADER = ("NAME", "STATE", "CPU%", "MEMORY", "OF", "VCPUS", "TIME", "UP")
_CLEAR = "\x1b[H\x1b[J"


@dataclass(frozen=True, slots=True)
class Usage:
    """Resource usage of one VM. `cpu_percent`: 100 is one CPU of the host; None if not known."""

    name: str
    state: str
    cpu_percent: float | None
    cpu_seconds: float | None
    memory_current: int | None
    memory: str
    vcpus: int | None
    up_seconds: float | None


def top(context: Context) -> int:
    """On a terminal continuously until interrupted; else once."""
    args = context.args
    delay = DELAY_SECONDS if args.delay is None else args.delay
    if not 0.1 <= delay < 3600:
        raise InvalidRequest("--delay: must be at least 100ms and less than an hour")
    live = sys.stdout.isatty() and os.environ.get("TERM") != "dumb" and not context.wants_document
    count = 1 if args.once else args.count if args.count is not None else None if live else 1
    if context.wants_document and count != 1:
        raise InvalidRequest(f"-o {context.output} prints one document", hint="omit --count")
    before, at = _ask(context), time.monotonic()
    shown = 0
    try:
        while count is None or shown < count:
            time.sleep(delay if shown else min(delay, FIRST_SECONDS))
            now, then = _ask(context), at
            at = time.monotonic()
            rows = [_compare(instance, before.get(instance.id), at - then) for instance in now.values()]
            _show(context, rows, clear=live and count != 1)
            before, shown = now, shown + 1
    except KeyboardInterrupt:
        print()  # it is how one leaves
    return ExitCode.OK


def _ask(context: Context) -> dict[str, Instance]:
    """The VMs that are wanted, by id."""
    instances = list_instances(context.client)
    wanted = set(context.args.name)
    if wanted:
        instances = [i for i in instances if {i.name, i.id} & wanted]
        missing = wanted - {word for i in instances for word in (i.name, i.id)}
        if missing:
            raise NotFound(f"there is no VM {', '.join(sorted(missing))}", hint="see: hypemanctl list")
    return {instance.id: instance for instance in instances}


def _compare(instance: Instance, before: Instance | None, seconds: float) -> Usage:
    """What was used between two looks. A VM that was started anew in between begins at nothing."""
    used = instance.cpu_seconds
    percent = None
    if used is not None:
        is_same_run = before is not None and before.invocation_id == instance.invocation_id
        start = before.cpu_seconds if before is not None and is_same_run else 0.0
        percent = None if start is None else max(used - start, 0.0) / seconds * 100
    started = parse_moment(instance.started_at)
    is_up = started is not None and instance.main_pid is not None
    return Usage(
        name=instance.name,
        state=instance.state,
        cpu_percent=None if percent is None else round(percent, 1),
        cpu_seconds=used,
        memory_current=instance.memory_current,
        memory=find_memory(instance) or "-",
        vcpus=instance.vcpus,
        up_seconds=(datetime.now(UTC) - started).total_seconds() if is_up and started is not None else None,
    )


def _show(context: Context, rows: Sequence[Usage], *, clear: bool) -> None:
    # The busiest first; those that do nothing by name.
    ordered = sorted(rows, key=lambda row: (-(row.cpu_percent or 0.0), row.name))
    if context.wants_document:
        context.print_document([asdict(row) for row in ordered])
        return
    if clear:
        sys.stdout.write(_CLEAR)
        ordered = ordered[: max(shutil.get_terminal_size().lines - 2, 1)]
    colours = [find_state_colour(row.state, failed=False) for row in ordered]
    print_table(_HEADER, [_format_row(row) for row in ordered], colours)
    sys.stdout.flush()


def _format_row(row: Usage) -> list[str]:
    cells = [
        row.name,
        row.state,
        "-" if row.cpu_percent is None else f"{row.cpu_percent:.1f}",
        format_bytes(row.memory_current),
        row.memory,
        "-" if row.vcpus is None else str(row.vcpus),
        "-" if row.cpu_seconds is None else f"{row.cpu_seconds:.1f}s",
        "-" if row.up_seconds is None else format_seconds(row.up_seconds, ""),
    ]
    return [escape_controls(cell) for cell in cells]
