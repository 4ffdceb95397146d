# SPDX-License-Identifier: Apache-2.0
"""list, status, show."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any

from hypemand.cli.client import parse
from hypemand.cli.context import Context, for_each
from hypemand.cli.exitcode import ExitCode
from hypemand.cli.instance import (
    CHANGED_ON_DISK,
    ENDED_STATES,
    describe_exit,
    find_effective,
    find_memory,
    find_state_colour,
    get_instance,
    has_failed,
    list_instances,
)
from hypemand.cli.limits import describe_disk_limits
from hypemand.cli.listing import Listing, show_list
from hypemand.cli.options import FILTERS
from hypemand.cli.terminal import BOLD, DIM, RED, YELLOW, paint
from hypemand.cli.values import (
    describe_compression,
    escape_controls,
    escape_line,
    format_bytes,
    format_milliseconds,
    format_minute,
    format_seconds,
    format_tags,
    parse_moment,
    shorten_note,
)
from hypemand.errors import HypemandError, InvalidRequest, NotFound
from hypemand.model.answers.guest import LogEntry
from hypemand.model.answers.instance import (
    Instance,
    InstanceHeaders,
    InstanceHealth,
    InstanceNetwork,
    InstanceOperation,
    InstanceStandby,
)
from hypemand.model.health import HealthState
from hypemand.model.state import HeadersState, Origin, State

STATUS_LINES = 10
_HEADER = (
    "NAME", "STATE", "READY", "ADDRESS", "PORTS", "IMAGE", "MEMORY", "VCPUS", "RESTARTS", "EXIT", "NOTE"
)  # fmt: skip
_WIDE_HEADER = (*_HEADER[:-1], "ID", "GROUP", "CREATED", "TAGS", _HEADER[-1])
# of a VM that publishes more, the rest is counted
_MAX_PORTS = 4


def _get_named_or_all(context: Context) -> tuple[list[Instance], ExitCode]:
    """The named VMs, or all; and the exit status for those that could not be read."""
    if not context.args.name:
        return list_instances(context.client), ExitCode.OK
    instances: list[Instance] = []
    failure = for_each(context.args.name, lambda ref: instances.append(get_instance(context.client, ref)))
    return instances, failure


def list_vms(context: Context) -> int:
    """A table of VMs, or their names, or JSON."""
    args = context.args
    instances, failure = _get_named_or_all(context)
    instances = [i for i in instances if _is_listed(i, args.state, args.filter)]
    show_list(context, _LISTING, instances, [instance.document for instance in instances])
    return failure


def _is_listed(instance: Instance, states: Sequence[State], filters: Sequence[tuple[str, str]]) -> bool:
    """Is it in one of the states, of one of the images, and has it all of the tags?"""
    wanted = {key: [value for name, value in filters if name == key] for key in FILTERS}
    images = wanted["image"]
    return (
        (not states or instance.state in states)
        and (not wanted["state"] or instance.state in wanted["state"])
        and (not images or any(fnmatchcase(instance.image or "", image) for image in images))
        and all(_has_tag(instance, tag) for tag in wanted["tag"])
    )


def _has_tag(instance: Instance, tag: str) -> bool:
    """`KEY`, or `KEY=VALUE`; a key may have = in it, too."""
    return tag in instance.tags or any(tag == f"{key}={value}" for key, value in instance.tags.items())


def _list_row(instance: Instance, wide: bool) -> list[str]:
    code = instance.exit_code
    notes = ", ".join([*_notes_of_runs(instance), *_notes_of_standby(instance), *_notes(instance)])
    network = instance.network
    more = [
        instance.id,
        (network.group if network is not None else None) or "-",
        format_minute(instance.created_at),
        format_tags(instance.tags),
    ]
    return [
        instance.name,
        instance.state,
        format_milliseconds(instance.ready_ms),
        _find_address(instance) or "-",
        _describe_ports(instance, most=None if wide else _MAX_PORTS) or "-",
        instance.image or "-",
        format_bytes(find_memory(instance)),
        str(instance.vcpus or "-"),
        "0" if instance.restart_status is None else str(instance.restart_status.attempts),
        "-" if code is None else str(code),
        *(more if wide else []),
        notes if wide else shorten_note(notes),
    ]


_LISTING = Listing(
    "VMs",
    _HEADER,
    _list_row,
    name=lambda instance: instance.name,
    wide=_WIDE_HEADER,
    colour=lambda instance: find_state_colour(instance.state, failed=has_failed(instance)),
    optional="PORTS",
)


def _describe_ports(instance: Instance, *, most: int | None) -> str:
    """Ports of the host that lead to it now, in one word. `most`: the rest is counted."""
    network = instance.network
    ports = network.publish if network is not None and network.interface else ()
    more = [f"+{len(ports) - most}"] if most is not None and len(ports) > most else []
    return ",".join([*ports[:most], *more])


def _find_address(instance: Instance) -> str | None:
    """One is enough to reach it by: that of IPv4 where it has both."""
    network = instance.network
    return None if network is None else network.ip or network.ip6


def _notes_of_runs(instance: Instance) -> Iterator[str]:
    """How its last run ended, unless that was as it was asked for, or the exit status says it."""
    restart, message = instance.restart_status, instance.exit_message
    if restart is not None and restart.text:
        yield restart.text
    elif message and has_failed(instance) and message != f"exited with code {instance.exit_code}":
        yield message


def _notes_of_standby(instance: Instance) -> Iterator[str]:
    standby = instance.standby
    if standby is not None and standby.restore_error:
        yield f"cannot be restored: {standby.restore_error}"
    if standby is not None and standby.size_bytes is not None:
        yield f"saved, {format_bytes(standby.size_bytes)} on disk{_describe_form(standby)}"


def _describe_form(standby: InstanceStandby) -> str:
    words = describe_compression(standby.compression_state)
    return f" ({words})" if words else ""


def _notes(instance: Instance) -> Iterator[str]:
    health = instance.health_status
    if health is not None and health.status == HealthState.UNHEALTHY:
        yield f"unhealthy: {health.last_error}" if health.last_error else "unhealthy"
    if instance.needs_restart:
        changes = ", ".join(instance.pending_changes)
        yield f"needs restart: {changes}" if changes else "needs restart"
    if instance.needs_reload:
        yield CHANGED_ON_DISK
    if instance.removed_from_config:
        yield "file removed"


def show_status(context: Context) -> int:
    """What VMs do, in words, with the last lines of their consoles."""
    args = context.args
    instances, failure = _get_named_or_all(context)
    if context.wants_document:
        context.print_document([instance.document for instance in instances])
    else:
        wanted = STATUS_LINES if args.lines is None else args.lines
        for index, instance in enumerate(instances):
            print("\n" if index else "", end="")
            _print_status(context, instance, wanted)
    if failure or not args.name:
        return failure
    is_up = all(instance.state == State.RUNNING for instance in instances)
    return ExitCode.OK if is_up else ExitCode.NOT_RUNNING


def _print_status(context: Context, instance: Instance, wanted_lines: int) -> None:
    failed = has_failed(instance)
    state = instance.state
    colour = find_state_colour(state, failed=failed)
    dot = paint("✗" if failed else "○" if state in ENDED_STATES else "●", colour, sys.stdout)
    name = paint(escape_controls(instance.name), BOLD, sys.stdout)
    print(f"{dot} {name} - {_describe_program(instance)}")
    for label, text in _status_fields(instance):
        print(f"{label:>10}: {text}")
    if limits := describe_disk_limits(context.client, instance):
        print(f"{'Disk IO':>10}: {limits}")
    lines = list(_read_last_lines(context, instance, wanted_lines))
    if lines:
        print()
        for line in lines:
            print(line)


def _describe_program(instance: Instance) -> str:
    words = [instance.image or "?"]
    for key in ("entrypoint", "cmd"):
        words += [shlex.quote(str(word)) for word in find_effective(instance).get(key) or ()]
    return escape_controls(" ".join(words))


def _describe_health(health: InstanceHealth) -> str:
    """The status, and how many attempts in a row have failed; the last error, unless it is healthy."""
    words = str(health.status)
    if health.consecutive_failures:
        times = "failure" if health.consecutive_failures == 1 else "failures in a row"
        words += f", {health.consecutive_failures} {times}"
    if health.last_error and health.status != HealthState.HEALTHY:
        words += f": {health.last_error}"
    text = escape_controls(words)
    return paint(text, RED, sys.stdout) if health.status == HealthState.UNHEALTHY else text


def _status_fields(instance: Instance) -> Iterator[tuple[str, str]]:
    state = instance.state
    colour = find_state_colour(state, failed=has_failed(instance))
    yield "State", f"{paint(state, colour, sys.stdout)}{_describe_since(instance)}"
    for label, text in (("Error", instance.state_error), ("Status", instance.status_text)):
        if text not in (None, state):
            yield label, escape_controls(str(text))
    if instance.health_status is not None and instance.health_status.status != HealthState.DISABLED:
        yield "Health", _describe_health(instance.health_status)
    restart = instance.restart_status
    if restart is not None and (restart.attempts or restart.text):
        yield "Restarts", escape_controls(": ".join(filter(None, [str(restart.attempts), restart.text])))
    if instance.operation is not None:
        yield "Operation", _describe_operation(instance.operation)
    if instance.standby is not None:
        yield "Saved", _describe_saved(instance.standby)
        if instance.standby.compression_error is not None:
            yield "Compression", escape_controls(instance.standby.compression_error)
    if describe_exit(instance):
        words = escape_controls(describe_exit(instance))
        yield "Exit", paint(words, RED, sys.stdout) if has_failed(instance) else words
    yield "Defined", _describe_origin(instance)
    if (end := parse_moment(instance.expires_at)) is not None:
        yield "Expires", f"{end.astimezone():%a %Y-%m-%d %H:%M:%S %Z}, and is deleted then"
    if instance.unit:
        yield "Unit", escape_controls(instance.unit)
    if instance.main_pid:
        yield "Main PID", f"{instance.main_pid} (user id {instance.uid})"
    if instance.kernel_headers is not None:
        yield "Headers", _describe_headers(instance.kernel_headers)
    yield "Network", escape_controls(_describe_network(instance.network))
    yield "Memory", _describe_memory(instance)
    yield "CPUs", str(instance.vcpus or "-")


def _describe_saved(standby: InstanceStandby) -> str:
    text, size = "", standby.size_bytes
    if size is not None:
        text = f"memory and devices, {format_bytes(size)} on disk{_describe_form(standby)}; "
    if standby.restore_error:
        text += paint(f"cannot be restored: {escape_controls(standby.restore_error)}", RED, sys.stdout)
    return text.removesuffix("; ")


def _describe_since(instance: Instance) -> str:
    # of one that never ran, or went down with the host, there is no such time
    is_stopped = instance.state == State.STOPPED
    since = parse_moment(instance.stopped_at if is_stopped else instance.current_phase_since)
    if instance.standby is not None:
        since = parse_moment(instance.standby.saved_at)
    if since is None:
        return ""
    ago = format_seconds((datetime.now(UTC) - since).total_seconds())
    return f" since {since.astimezone():%a %Y-%m-%d %H:%M:%S %Z}; {ago} ago"


def _describe_origin(instance: Instance) -> str:
    words = "in a file" if instance.origin == Origin.FILE else "by the API"
    notes = ", ".join(_notes(instance))
    return f"{words}; {paint(notes, YELLOW, sys.stdout)}" if notes else words


def _describe_operation(operation: InstanceOperation) -> str:
    since = parse_moment(operation.since)
    ago = "" if since is None else f" since {format_seconds((datetime.now(UTC) - since).total_seconds())}"
    return escape_controls(f"{operation.name}{ago}, by {operation.owner}")


def _describe_headers(headers: InstanceHeaders) -> str:
    text = escape_controls(": ".join([headers.state, *([headers.error] if headers.error else [])]))
    return paint(text, RED, sys.stdout) if headers.state == HeadersState.FAILED else text


def _describe_network(network: InstanceNetwork | None) -> str:
    if network is None or not network.enabled:
        return "none"
    addresses = [address for address in (network.ip, network.ip6) if address]
    words = [f"{network.name}, {' '.join(addresses) or 'no address yet'}"]
    if network.group:
        words.append(f"in group {network.group}")
    elif network.isolated is False:
        words.append("not isolated")
    if network.publish:
        words.append(f"publishes {' '.join(network.publish)}")
    if network.counters is not None:
        sent, received = network.counters.sent_bytes, network.counters.received_bytes
        words.append(f"{format_bytes(sent)} sent, {format_bytes(received)} received")
    return "; ".join(words)


def _describe_memory(instance: Instance) -> str:
    guest = escape_controls(format_bytes(find_memory(instance)))
    used = instance.memory_current
    return f"{guest} for the guest" if used is None else f"{format_bytes(used)} used; {guest} for the guest"


def _read_last_lines(context: Context, instance: Instance, wanted: int) -> Iterator[str]:
    """The last lines of the console, with their time. They come from a guest and are escaped."""
    if not wanted:
        return
    query = {"tail": str(wanted), "json": "true"}
    try:
        with context.client.events("instances", instance.name, "logs", query=query, timeout=10) as events:
            for event in events:
                line = parse(LogEntry, event)
                moment = parse_moment(line.time)
                stamp = f"{moment.astimezone():%b %d %H:%M:%S}" if moment else ""
                yield f"{paint(stamp, DIM, sys.stdout)} {escape_line(line.text)}"
    except (HypemandError, TimeoutError) as error:
        yield paint(f"(cannot read its log: {str(error) or 'no answer in 10 s'})", DIM, sys.stdout)


def show_properties(context: Context) -> int:
    """All properties of a VM, one `key=value` a line; nested keys are joined by dots."""
    args = context.args
    instance = get_instance(context.client, args.name)
    document: Mapping[str, Any] = instance.document
    if args.definition:
        return _print_definition(context, instance)
    flat = dict(_flatten("", document))
    if args.property:
        flat = {k: v for k, v in flat.items() if _is_wanted(k, args.property)}
        if not flat:
            raise NotFound(
                f"{instance.name} has no property {', '.join(args.property)}",
                hint="see: hypemanctl show NAME",
            )
        document = flat
    if context.wants_document:
        context.print_document(document)
        return ExitCode.OK
    for key, value in flat.items():
        text = _format_property(value)
        print(text if args.value else f"{escape_controls(key)}={text}")
    return ExitCode.OK


def _print_definition(context: Context, instance: Instance) -> int:
    """It as the text of a definition file."""
    if context.args.property or context.args.value:
        raise InvalidRequest("--definition prints all of it", hint="omit --property and --value")
    if context.wants_document:
        context.print_document(instance.definition)
        return ExitCode.OK
    from hypemand.cli.definition import format_definition

    sys.stdout.write(format_definition(instance.definition))
    return ExitCode.OK


def _flatten(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict) or not value:
        yield prefix, value
        return
    for key, inner in value.items():
        yield from _flatten(f"{prefix}.{key}" if prefix else str(key), inner)


def _is_wanted(key: str, wanted: list[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in wanted)


def _format_property(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return escape_controls(value if isinstance(value, str) else json.dumps(value))
