# SPDX-License-Identifier: Apache-2.0
"""image list, inspect, rm, import."""

from __future__ import annotations

import os
import sys
from typing import Any

from hypemand.cli.client import IMPORT_SECONDS
from hypemand.cli.context import Context, for_each
from hypemand.cli.exitcode import ExitCode
from hypemand.cli.terminal import RED, LiveLine, print_json, print_table
from hypemand.cli.values import escape_controls, format_bytes, parse_moment
from hypemand.errors import InvalidRequest

_HEADER = ("NAME", "STATUS", "SIZE", "PLATFORM", "CREATED", "DIGEST")
_DIGEST_LENGTH = 19  # sha256: and twelve digits


def list_images(context: Context) -> int:
    """A table of images, or their names, or JSON."""
    images: list[dict[str, Any]] = context.client.get("images")
    if context.wants_json:
        print_json(images)
    elif context.args.quiet:
        for image in images:
            print(escape_controls(str(image.get("name"))))
    elif images:
        colours = [RED if image.get("status") == "failed" else None for image in images]
        print_table(None if context.args.no_legend else _HEADER, [_row(image) for image in images], colours)
    elif sys.stdout.isatty():
        print("No images.")
    return ExitCode.OK


def _row(image: dict[str, Any]) -> list[str]:
    created = parse_moment(image.get("created_at"))
    cells = [
        str(image.get("name") or "?"),
        str(image.get("status") or "?"),
        format_bytes(image.get("size_bytes")),
        str(image.get("platform") or "-"),
        f"{created.astimezone():%Y-%m-%d %H:%M}" if created else "-",
        str(image.get("digest") or "-")[:_DIGEST_LENGTH],
    ]
    return [escape_controls(cell) for cell in cells]


def inspect(context: Context) -> int:
    """All about one image. The document is JSON with or without --json."""
    print_json(context.client.get("images", context.args.image))
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


def import_image(context: Context) -> int:
    """Let the daemon make an image of what lies at a path of this host."""
    name, path = context.args.image, os.path.abspath(context.args.path)
    # an OCI layout may have its tag behind it
    if not os.path.exists(path) and not os.path.isdir(path.rpartition(":")[0]):
        raise InvalidRequest(f"there is no {path}", hint="give a directory, a tar archive or an OCI layout")
    with LiveLine(f"importing {name}"):
        image = context.client.post(
            "images", "import", body={"name": name, "path": path}, timeout=IMPORT_SECONDS
        )
    if context.wants_json:
        print_json(image)
    else:
        print(escape_controls(f"{image['name']} {image.get('digest') or ''}".rstrip()))
    return ExitCode.OK
