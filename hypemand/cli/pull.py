# SPDX-License-Identifier: Apache-2.0
"""Pulls an image, with progress in bytes and layers on a terminal."""

from __future__ import annotations

from typing import Any

from hypemand.cli.client import PULL_SECONDS, ApiError, Client, StreamBroken
from hypemand.cli.progress import format_bar
from hypemand.cli.terminal import LiveLine
from hypemand.cli.values import format_bytes

_DOING = {"pending": "asking for", "pulling": "pulling", "converting": "unpacking"}


def pull_image(client: Client, name: str, *, quiet: bool = False) -> dict[str, Any]:
    """Have what `name` stands for now; the image. Raises ApiError with what the registry said."""
    image: dict[str, Any] = client.post("images", body={"name": name})
    watching = client.events("images", str(image["name"]), "watch", timeout=PULL_SECONDS)
    with LiveLine(describe_pull(image)) as line, watching as events:
        for image in events:
            if not quiet:
                line.update(describe_pull(image))
    if image.get("status") == "failed":
        raise ApiError(str(image.get("error")), code=str(image.get("error_code") or "pull_failed"))
    if image.get("status") != "ready":
        raise StreamBroken(f"{name} is still {image.get('status')}", hint="see: hypemanctl image list")
    return image


def have_image(client: Client, name: str, when: str | None) -> None:
    """Pull the image of a VM that is about to be made, where it is not here or `when` is always."""
    if when == "never" or name.startswith("builtin:"):
        return
    if when != "always":
        try:
            if client.get("images", name).get("status") == "ready":
                return
        except ApiError as error:
            if error.code != "image_not_found":
                raise
    pull_image(client, name)


def describe_pull(image: dict[str, Any]) -> str:
    """What is done for an image now, in one line."""
    name, doing = image.get("name"), _DOING.get(str(image.get("status")), "got")
    done = image.get("progress") or {}
    total = done.get("total_bytes")
    if image.get("status") != "pulling" or not total:
        return f"{doing} {name}"
    share = f"{format_bytes(done['bytes'])} of {format_bytes(total)}"
    layers = f"{done['layers']} of {done['total_layers']} layers"
    return f"{format_bar(done['bytes'] / total)}  {share}  {layers}  {name}"
