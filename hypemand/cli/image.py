# SPDX-License-Identifier: Apache-2.0
"""image list, inspect, pull, tag, rm, prune, import, export."""

from __future__ import annotations

import contextlib
import http.client
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from hypemand.cli.client import IMPORT_SECONDS, Json, Unreachable, explain_broken, parse, parse_all
from hypemand.cli.context import Context, for_each
from hypemand.cli.exitcode import ExitCode
from hypemand.cli.listing import Listing, show_list
from hypemand.cli.progress import Progress
from hypemand.cli.pull import pull_image
from hypemand.cli.terminal import RED, LiveLine, print_json
from hypemand.cli.values import escape_controls, format_bytes, format_minute
from hypemand.errors import InvalidRequest
from hypemand.model.answers.image import Image, PruneReport
from hypemand.model.images import PullStatus

_HEADER = ("NAME", "STATUS", "SIZE", "PLATFORM", "CREATED", "DIGEST")
_WIDE_HEADER = (*_HEADER, "VMS")
_BLOCK = 256 * 1024
_DIGEST_LENGTH = 19  # sha256: and twelve digits


def list_images(context: Context) -> int:
    """A table of images, or their names, or JSON."""
    answer = context.client.get("images")
    show_list(context, _LISTING, parse_all(Image, answer), answer)
    return ExitCode.OK


def _row(image: Image, wide: bool) -> list[str]:
    digest = image.digest or "-"
    return [
        image.name,
        image.status,
        format_bytes(image.size_bytes),
        image.platform or "-",
        format_minute(image.created_at),
        *([digest, ",".join(image.in_use_by) or "-"] if wide else [digest[:_DIGEST_LENGTH]]),
    ]


_LISTING = Listing(
    "images",
    _HEADER,
    _row,
    name=lambda image: image.name,
    wide=_WIDE_HEADER,
    colour=lambda image: RED if image.status == PullStatus.FAILED else None,
)


def inspect(context: Context) -> int:
    """Details of one image. The document is JSON unless YAML is asked for."""
    context.print_document(context.client.get("images", context.args.image))
    return ExitCode.OK


def remove(context: Context) -> int:
    """Remove images."""
    removed: list[str] = []

    def remove_one(name: str) -> None:
        context.client.delete("images", name)
        removed.append(name)

    failure = for_each(context.args.image, remove_one)
    if context.wants_json:
        print_json(removed)
    return failure


def pull(context: Context) -> int:
    """Get images, one after the other, and show how far they are."""
    pulled: list[Image] = []
    quiet = context.args.quiet or context.wants_json

    def pull_one(name: str) -> None:
        image = pull_image(context.client, name, quiet=quiet)
        pulled.append(image)
        if not context.wants_json:
            _print_made(image)

    failure = for_each(context.args.image, pull_one)
    if context.wants_json:
        print_json([image.document for image in pulled])
    return failure


def _print_made(image: Image) -> None:
    print(escape_controls(f"{image.name} {image.digest}".rstrip()))


def _show_made(context: Context, answer: Json) -> int:
    image = parse(Image, answer)
    print_json(image.document) if context.wants_json else _print_made(image)
    return ExitCode.OK


def tag(context: Context) -> int:
    """Give an image one more name."""
    body = {"target": context.args.name}
    return _show_made(context, context.client.post("images", context.args.image, "tag", body=body))


def prune(context: Context) -> int:
    """Remove what no VM needs."""
    body = {"all": context.args.all, "dry_run": context.args.dry_run}
    with LiveLine("removing images"):
        answer = context.client.post("images", "prune", body=body, timeout=IMPORT_SECONDS)
    pruned = parse(PruneReport, answer)
    if context.wants_json:
        print_json(answer)
        return ExitCode.OK
    for image in pruned.images:
        print(escape_controls(f"{', '.join(image.names)}  {format_bytes(image.size_bytes)}"))
    verb = "would be freed" if context.args.dry_run else "freed"
    print(f"{format_bytes(pruned.freed_bytes)} {verb}")
    return ExitCode.OK


def export(context: Context) -> int:
    """Write an image to a file: a new one takes the place of what was there when it is whole."""
    name, target = context.args.image, context.args.file
    if target == "-" and sys.stdout.isatty():
        raise InvalidRequest("refusing to write an archive to a terminal", hint="specify a file")
    with contextlib.ExitStack() as stack:
        with LiveLine(f"exporting {name}"):
            response = stack.enter_context(context.client.download("images", name, "export"))
        total = int(response.headers.get("Content-Length") or 0)
        progress = stack.enter_context(Progress(name, total))
        if target == "-":
            _copy_archive(response, sys.stdout.buffer, total, progress)
            sys.stdout.buffer.flush()
        else:
            with _replace(Path(target)) as file:
                _copy_archive(response, file, total, progress)
    return ExitCode.OK


@contextlib.contextmanager
def _replace(path: Path) -> Iterator[IO[bytes]]:
    """A file that becomes `path` at the end of the block, or is gone."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            yield file
            file.flush()
            mask = os.umask(0)
            os.umask(mask)
            os.fchmod(file.fileno(), 0o666 & ~mask)
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def _copy_archive(response: IO[bytes], target: IO[bytes], total: int, progress: Progress) -> None:
    """All of it, or Unreachable: what was cut off is no archive."""
    done = 0
    try:
        while block := response.read(_BLOCK):
            target.write(block)
            done += len(block)
            progress.count(len(block))
    except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
        raise explain_broken(error) from None
    if done != total:
        raise Unreachable("the archive is incomplete", hint="see: systemctl status hypemand")


def import_image(context: Context) -> int:
    """Let the daemon make an image of what lies at a path of this host."""
    name, (kind, path) = context.args.image, _split_source(context.args.path)
    path = os.path.abspath(path)
    # what holds several images may have a tag behind it
    if not any(os.path.exists(path[:end]) for end, char in enumerate(f"{path}:") if char == ":"):
        raise InvalidRequest(
            f"there is no {path}", hint=("specify a directory, a tar archive or an OCI layout")
        )
    with LiveLine(f"importing {name}"):
        body = {"name": name, "path": kind + path}
        answer = context.client.post("images", "import", body=body, timeout=IMPORT_SECONDS)
    return _show_made(context, answer)


def _split_source(source: str) -> tuple[str, str]:
    """`oci:`, `docker-archive:` or `dir:` before a path, "" for none, and the path."""
    for kind in ("oci:", "docker-archive:", "dir:"):
        if source.startswith(kind) and not os.path.exists(source):
            return kind, source.removeprefix(kind)
    return "", source
