# SPDX-License-Identifier: Apache-2.0
"""vm export, vm import."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from hypemand.cli.client import IMPORT_SECONDS, ApiError, Client, build_target, parse
from hypemand.cli.context import Context
from hypemand.cli.exitcode import ExitCode
from hypemand.cli.terminal import LiveLine, print_json
from hypemand.cli.transfer import STREAM, download_from, open_source, read_pieces, save, upload_to
from hypemand.cli.values import escape_controls
from hypemand.errors import InvalidRequest
from hypemand.model.answers.instance import Instance


def export_vm(context: Context) -> int:
    """Write a VM to a file: a new one takes the place of what was there when it is whole."""
    args = context.args
    if args.file == STREAM and sys.stdout.isatty():
        raise InvalidRequest("refusing to write an archive to a terminal", hint="specify a file")
    query = {"volumes": ",".join(args.volume)} if args.volume else {}
    query |= {key: "true" for key in ("all_volumes", "image") if getattr(args, key)}
    target = build_target("instances", args.name, "export", query=query)
    # with its image, that is packed first
    pieces = download_from(context.client, target, begin=IMPORT_SECONDS)
    save(pieces, args.file, args.name)
    return ExitCode.OK


def import_vm(context: Context) -> int:
    """Create a VM from a file, print its name, and say what it lacks on this host."""
    args = context.args
    query = {"name": args.name} if args.name else {}
    query |= {"keep_identity": "true"} if args.keep_identity else {}
    query |= {f"volumes[{old}]": new for old, new in args.volume}
    with contextlib.ExitStack() as stack:
        source = sys.stdin.buffer if args.file == STREAM else stack.enter_context(open_source(args.file))
        stack.enter_context(LiveLine(f"importing {args.file}"))
        target = build_target("instances", "import", query=query)
        # with its image, that is unpacked when all has come
        answer = upload_to(context.client, "POST", target, read_pieces(source), answer=IMPORT_SECONDS)
    made = parse(Instance, answer)
    print_json(answer) if context.wants_json else print(escape_controls(made.name))
    for words in _list_missing(context.client, made):
        print(escape_controls(f"hypemanctl: {words}"), file=sys.stderr)
    return ExitCode.OK


def _list_missing(client: Client, made: Instance) -> Iterator[str]:
    """What a start of the VM will need that this host does not have yet."""
    if made.image and not _is_there(client, "images", made.image):
        yield f"the image {made.image} is not on this host yet; hypemanctl start pulls it, if it can"
    for volume in made.volumes:
        if not _is_there(client, "volumes", volume.volume_id):
            yield f"the volume {volume.volume_id} is not on this host; create or import it before the start"


def _is_there(client: Client, *parts: str) -> bool:
    try:
        client.get(*parts)
    except ApiError as error:
        return error.code not in ("not_found", "image_not_found", "volume_not_found")
    return True
