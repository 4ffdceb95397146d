# SPDX-License-Identifier: Apache-2.0
"""set: limits of a VM that runs."""

from __future__ import annotations

from collections.abc import Iterable

from hypemand.cli.client import CHANGE_SECONDS, ApiError, Client, parse
from hypemand.cli.context import Context
from hypemand.cli.exitcode import ExitCode
from hypemand.cli.terminal import print_json
from hypemand.cli.values import format_bytes
from hypemand.config.rates import format_byte_rate
from hypemand.errors import InvalidRequest
from hypemand.model.answers.instance import Instance
from hypemand.model.limits import RuntimeLimits
from hypemand.model.state import State


def set_limits(context: Context) -> int:
    """Change what is named, and print all limits as KEY=VALUE, or as JSON."""
    changes = context.args.change
    client, name = context.client, context.args.name
    if changes:
        body = {"definition": parse_changes(changes)}
        answer = client.call("PUT", "instances", name, "limits", body=body, timeout=CHANGE_SECONDS)
    else:
        answer = client.get("instances", name, "limits")
    if context.wants_json:
        print_json(answer)
    else:
        print("\n".join(_format(parse(RuntimeLimits, answer))))
    return ExitCode.OK


def parse_changes(words: Iterable[str]) -> dict[str, object]:
    """Keys of a definition, from KEY=VALUE and KEY.KEY=VALUE; without a value as the VM was started."""
    keys: dict[str, object] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise InvalidRequest(f"{word!r} is not KEY=VALUE", hint="write for example cpu_limit=0.5")
        above, dot, below = key.partition(".")
        if not dot:
            keys[key] = value or None
            continue
        group = keys.setdefault(above, {})
        if not isinstance(group, dict):
            raise InvalidRequest(f"{above} is given twice", hint=f"write {above}. before each of its keys")
        group[below] = value or None
    return keys


def describe_disk_limits(client: Client, instance: Instance) -> str:
    """Those that hold now, which may have been changed since the start; "" for none, or not known."""
    if instance.state not in (State.RUNNING, State.PAUSED):
        return ""
    try:
        disk = parse(RuntimeLimits, client.get("instances", instance.name, "limits")).disk_io
    except ApiError:
        return ""
    words = [
        f"{format_byte_rate(rate)} {key}"
        for key in ("read", "write", "total")
        if (rate := getattr(disk, key))
    ]
    return ", ".join([*words, *([f"{disk.iops} operations/s"] if disk.iops else [])])


def _format(limits: RuntimeLimits) -> Iterable[str]:
    yield f"memory={'-' if limits.memory is None else format_bytes(limits.memory)}"
    yield f"cpu_limit={'-' if limits.cpu_limit is None else format(limits.cpu_limit, 'g')}"
    for key in ("read", "write", "total"):
        rate = getattr(limits.disk_io, key)
        yield f"disk_io.{key}={'-' if rate is None else format_byte_rate(rate)}"
    yield f"disk_io.iops={'-' if limits.disk_io.iops is None else limits.disk_io.iops}"
