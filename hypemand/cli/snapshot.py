# SPDX-License-Identifier: Apache-2.0
"""snapshot create, list, show, restore, fork, rm; fork."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from hypemand.cli.client import CHANGE_SECONDS, SAVE_SECONDS, ApiError, Json, parse, parse_all
from hypemand.cli.context import Context, for_each
from hypemand.cli.exitcode import ExitCode
from hypemand.cli.instance import get_instance
from hypemand.cli.listing import Listing, show_list
from hypemand.cli.terminal import print_json
from hypemand.cli.values import (
    describe_compression,
    escape_controls,
    format_bytes,
    format_minute,
    format_tags,
    shorten_note,
)
from hypemand.cli.watch import show_progress, wait_until_started
from hypemand.errors import NotFound
from hypemand.model.answers.instance import Instance
from hypemand.model.answers.snapshot import Snapshot
from hypemand.model.state import State

_HEADER = ("ID", "NAME", "VM", "KIND", "SIZE", "CREATED", "NOTE")
_WIDE_HEADER = (*_HEADER[:-1], "MEMORY", "DISK", "VM-ID", "TAGS", "NOTE")
_SHORT_ID = 12


def create(context: Context) -> int:
    """Make a snapshot of a VM, and print its id."""
    args = context.args
    body: dict[str, Json] = {"kind": args.kind, "name": args.name, "tags": dict(args.tag)}
    if args.ttl is not None and not math.isinf(args.ttl):
        body["ttl"] = f"{args.ttl:.3f}s"
    body |= context.compression
    with show_progress(context.client, args.vm, "making a snapshot"):
        answer = context.client.post("instances", args.vm, "snapshots", body=body, timeout=SAVE_SECONDS)
    print_json(answer) if context.wants_json else print(escape_controls(parse(Snapshot, answer).id))
    return ExitCode.OK


def list_snapshots(context: Context) -> int:
    """A table of snapshots, or their ids, or JSON."""
    args = context.args
    query: Mapping[str, str] = {}
    if args.vm is not None:
        query = {"source_instance_id": _find_vm(context, args.vm)}
    answer = context.client.get("snapshots", query=query)
    show_list(context, _LISTING, parse_all(Snapshot, answer), answer)
    return ExitCode.OK


def _find_vm(context: Context, ref: str) -> str:
    """The id of a VM, or of one that was removed and has snapshots left."""
    try:
        return get_instance(context.client, ref).id
    except ApiError as error:
        if error.code != NotFound.code:
            raise
        left = parse_all(Snapshot, context.client.get("snapshots"))
        ids = {s.source_instance_id for s in left if ref in (s.source_instance_id, s.source_instance_name)}
        if len(ids) != 1 or (found := ids.pop()) is None:
            raise
        return found


def _row(snapshot: Snapshot, wide: bool) -> list[str]:
    cells = [
        snapshot.id if wide else snapshot.id[:_SHORT_ID],
        snapshot.name or "-",
        snapshot.source_instance_name or "-",
        snapshot.kind,
        format_bytes(snapshot.size_bytes),
        format_minute(snapshot.created_at),
    ]
    if wide:
        cells += [format_bytes(snapshot.uncompressed_size_bytes), format_bytes(snapshot.disk_bytes)]
        cells += [snapshot.source_instance_id or "-", format_tags(snapshot.tags)]
    notes = ", ".join(_notes(snapshot))
    return [*cells, notes if wide else shorten_note(notes)]


_LISTING = Listing("snapshots", _HEADER, _row, name=lambda snapshot: snapshot.id, wide=_WIDE_HEADER)


def _notes(snapshot: Snapshot) -> Iterator[str]:
    if words := describe_compression(snapshot.compression_state):
        yield ": ".join(filter(None, [words, snapshot.compression_error]))
    if snapshot.expires_at:
        yield f"expires {format_minute(snapshot.expires_at)}"
    if snapshot.restore_error:
        yield f"cannot be restored: {snapshot.restore_error}"


def show(context: Context) -> int:
    """Details of one snapshot. The document is JSON unless YAML is asked for."""
    context.print_document(context.client.get("snapshots", context.args.snapshot))
    return ExitCode.OK


def restore(context: Context) -> int:
    """Restore a VM from one of its snapshots."""
    args, client = context.args, context.client
    snapshot = parse(Snapshot, client.get("snapshots", args.snapshot))
    vm = snapshot.source_instance_id or ""
    try:
        name = get_instance(client, vm).name
    except ApiError as error:
        if error.code != NotFound.code:
            raise
        raise NotFound(
            f"VM {snapshot.source_instance_name} of the snapshot does not exist any more",
            hint=f"its definition: hypemanctl snapshot show {snapshot.id}",
        ) from None
    body = {"target_state": args.state}
    with show_progress(client, name, "being restored"):
        where = ("instances", vm, "snapshots", snapshot.id, "restore")
        instance = parse(Instance, client.post(*where, body=body, timeout=SAVE_SECONDS))
    return _finish_start(context, instance)


def fork_vm(context: Context) -> int:
    """Make a VM that begins as another one is."""
    args = context.args
    body: dict[str, Json] = {"name": args.new, "from_running": args.from_running, "target_state": args.state}
    with show_progress(context.client, args.name, "being forked"):
        answer = context.client.post("instances", args.name, "fork", body=body, timeout=SAVE_SECONDS)
    return _finish_start(context, parse(Instance, answer))


def fork_snapshot(context: Context) -> int:
    """Make a VM of a snapshot."""
    args = context.args
    body: dict[str, Json] = {"name": args.new, "target_state": args.state}
    answer = context.client.post("snapshots", args.snapshot, "fork", body=body, timeout=SAVE_SECONDS)
    return _finish_start(context, parse(Instance, answer))


def _finish_start(context: Context, instance: Instance) -> int:
    if context.args.wait and instance.state not in (State.STOPPED, State.STANDBY):
        instance = wait_until_started(context.client, instance, context.args.timeout)
    if context.wants_json:
        print_json(instance.document)
    return ExitCode.OK


def remove(context: Context) -> int:
    """Remove snapshots."""
    removed: list[str] = []

    def remove_one(ref: str) -> None:
        context.client.call("DELETE", "snapshots", ref, timeout=CHANGE_SECONDS)
        removed.append(ref)

    failure = for_each(context.args.snapshot, remove_one)
    if context.wants_json:
        print_json(removed)
    return failure
