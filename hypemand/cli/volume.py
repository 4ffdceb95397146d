# SPDX-License-Identifier: Apache-2.0
"""volume create, list, inspect, rm, attach, detach, resize, import, export; df."""

from __future__ import annotations

import contextlib
import sys

from hypemand.cli.client import CHANGE_SECONDS, Json, build_target, parse, parse_all
from hypemand.cli.context import Context, for_each
from hypemand.cli.exitcode import ExitCode
from hypemand.cli.listing import Listing, show_list
from hypemand.cli.terminal import LiveLine, print_json, print_table
from hypemand.cli.transfer import STREAM, download_from, open_source, read_pieces, save, upload_to
from hypemand.cli.values import escape_controls, format_bytes, format_minute, format_tags
from hypemand.model.answers.volume import PoolSpace, Space, SpaceUse, Volume

_HEADER = ("NAME", "SIZE", "USED", "STATUS", "ATTACHED", "CREATED")
_WIDE_HEADER = (*_HEADER, "ID", "TAGS")
_SPACE_HEADER = ("WHAT", "FILES", "SIZE", "USED", "RECLAIMABLE")
_DEFAULT_SIZE = "10G"
# a resize checks the file system, which may be large
_RESIZE_SECONDS = 1800.0


def create(context: Context) -> int:
    """Create an empty volume, and print its id."""
    args = context.args
    body = {"name": args.name, "size": args.size or _DEFAULT_SIZE, "tags": dict(args.tag)}
    body |= {key: value for key in ("owner", "mode") if (value := getattr(args, key)) is not None}
    return _show_made(context, context.client.post("volumes", body=body))


def _show_made(context: Context, answer: Json) -> int:
    volume = parse(Volume, answer)
    print_json(answer) if context.wants_json else print(escape_controls(volume.id))
    return ExitCode.OK


def list_volumes(context: Context) -> int:
    """A table of volumes, or their names, or JSON."""
    answer = context.client.get("volumes")
    show_list(context, _LISTING, parse_all(Volume, answer), answer)
    return ExitCode.OK


def _row(volume: Volume, wide: bool) -> list[str]:
    attached = [f"{item.instance_name}{'(ro)' if item.readonly else ''}" for item in volume.attachments]
    return [
        volume.name,
        format_bytes(volume.size_bytes),
        format_bytes(volume.used_bytes),
        volume.status or "?",
        ",".join(attached) or "-",
        format_minute(volume.created_at),
        *([volume.id, format_tags(volume.tags)] if wide else []),
    ]


_LISTING = Listing("volumes", _HEADER, _row, name=lambda volume: volume.name, wide=_WIDE_HEADER)


def inspect(context: Context) -> int:
    """Details of one volume. The document is JSON unless YAML is asked for."""
    context.print_document(context.client.get("volumes", context.args.volume))
    return ExitCode.OK


def remove(context: Context) -> int:
    """Remove volumes."""
    removed: list[str] = []

    def remove_one(name: str) -> None:
        context.client.delete("volumes", name)
        removed.append(name)

    failure = for_each(context.args.volume, remove_one)
    if context.wants_json:
        print_json(removed)
    return failure


def attach(context: Context) -> int:
    """Attach a volume to a VM that does not run."""
    args = context.args
    body: dict[str, Json] = {"mount_path": args.path, "readonly": args.readonly, "overlay": args.overlay}
    instance = context.client.post("instances", args.name, "volumes", args.volume, body=body)
    if context.wants_json:
        print_json(instance)
    return ExitCode.OK


def detach(context: Context) -> int:
    """Detach one."""
    args = context.args
    instance = context.client.call(
        "DELETE", "instances", args.name, "volumes", args.volume, timeout=CHANGE_SECONDS
    )
    if context.wants_json:
        print_json(instance)
    return ExitCode.OK


def resize(context: Context) -> int:
    """Grow a volume."""
    args = context.args
    with LiveLine(f"resizing {args.volume}"):
        volume = context.client.post(
            "volumes", args.volume, "resize", body={"size": args.size}, timeout=_RESIZE_SECONDS
        )
    if context.wants_json:
        print_json(volume)
    return ExitCode.OK


def import_archive(context: Context) -> int:
    """Create a volume from an archive, and print its id."""
    args = context.args
    query = {"name": args.name, "size": args.size or _DEFAULT_SIZE}
    query |= {f"tags[{key}]": value for key, value in args.tag}
    with contextlib.ExitStack() as stack:
        source = (
            sys.stdin.buffer if args.archive == STREAM else stack.enter_context(open_source(args.archive))
        )
        stack.enter_context(LiveLine(f"importing {args.name}"))
        target = build_target("volumes", "from-archive", query=query)
        volume = upload_to(context.client, "POST", target, read_pieces(source))
    return _show_made(context, volume)


def export_archive(context: Context) -> int:
    """Write the contents of a volume as a tar archive; an incomplete file is removed."""
    args = context.args
    pieces = download_from(context.client, build_target("volumes", args.volume, "archive"))
    save(pieces, args.archive, args.volume)
    return ExitCode.OK


def show_space(context: Context) -> int:
    """Disk usage of hypemand, by kind."""
    answer = context.client.call("GET", "df", timeout=CHANGE_SECONDS)
    space = parse(Space, answer)
    if context.wants_document:
        context.print_document(answer)
        return ExitCode.OK
    total = SpaceUse(
        "total",
        sum(use.count for use in space.kinds),
        sum(use.size_bytes for use in space.kinds),
        sum(use.used_bytes for use in space.kinds),
        sum(use.reclaimable_bytes for use in space.kinds),
    )
    rows = [_space_row(use) for use in (*space.kinds, total)]
    print_table(None if context.args.no_legend else _SPACE_HEADER, rows, [None] * len(rows))
    if not context.args.no_legend:
        system = space.filesystem
        print()
        print(
            escape_controls(
                f"{system.path}: {format_bytes(system.free_bytes)} free of"
                f" {format_bytes(system.total_bytes)}; disks and volumes have allocated"
                f" {format_bytes(space.promised_bytes)} of {format_bytes(space.allowed_bytes)}"
            )
        )
        for pool in space.pools:
            print(escape_controls(_describe_pool(pool)))
    return ExitCode.OK


def _describe_pool(pool: PoolSpace) -> str:
    shared = ", shared" if pool.shared else ""
    if pool.problem:
        return f"pool {pool.name}{shared}: not available: {pool.problem}"
    return (
        f"pool {pool.name} ({pool.path}{shared}): {format_bytes(pool.free_bytes)} free of"
        f" {format_bytes(pool.total_bytes)}; volumes: {pool.volumes}, which have allocated"
        f" {format_bytes(pool.promised_bytes)} of {format_bytes(pool.allowed_bytes)}"
    )


def _space_row(use: SpaceUse) -> list[str]:
    sizes = (format_bytes(size) for size in (use.size_bytes, use.used_bytes, use.reclaimable_bytes))
    return [escape_controls(cell) for cell in (use.kind, str(use.count), *sizes)]
