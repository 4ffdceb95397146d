# SPDX-License-Identifier: Apache-2.0
"""Pulls an image, with progress in bytes and layers on a terminal."""

from __future__ import annotations

from hypemand.cli.client import PULL_SECONDS, ApiError, Client, StreamBroken, parse
from hypemand.cli.progress import format_bar
from hypemand.cli.terminal import LiveLine
from hypemand.cli.values import format_bytes
from hypemand.config.imagepull import ImagePull
from hypemand.model.answers.image import Image
from hypemand.model.images import PullStatus

_DOING: dict[str, str] = {
    PullStatus.PENDING: "asking for",
    PullStatus.PULLING: "pulling",
    PullStatus.CONVERTING: "unpacking",
}


def pull_image(client: Client, name: str, *, quiet: bool = False) -> Image:
    """Pull an image and return it. Raises ApiError with the error of the registry."""
    image = parse(Image, client.post("images", body={"name": name}))
    watching = client.events("images", image.name, "watch", timeout=PULL_SECONDS)
    with LiveLine(describe_pull(image)) as line, watching as events:
        for event in events:
            image = parse(Image, event)
            if not quiet:
                line.update(describe_pull(image))
    if image.status == PullStatus.FAILED:
        raise ApiError(str(image.error), code=image.error_code or "pull_failed")
    if image.status != PullStatus.READY:
        raise StreamBroken(f"{name} is still {image.status}", hint="see: hypemanctl image list")
    return image


def ensure_image(client: Client, name: str, when: str | None) -> None:
    """Pull the image for a new VM, if it does not exist locally or `when` is always."""
    if when == ImagePull.NEVER or name.startswith("builtin:"):
        return
    if when != ImagePull.ALWAYS:
        try:
            if parse(Image, client.get("images", name)).status == PullStatus.READY:
                return
        except ApiError as error:
            if error.code != "image_not_found":
                raise
    pull_image(client, name)


def describe_pull(image: Image) -> str:
    """What is done for an image now, in one line."""
    doing, done = _DOING.get(image.status, "got"), image.progress
    if image.status != PullStatus.PULLING or done is None or not done.total_bytes:
        return f"{doing} {image.name}"
    share = f"{format_bytes(done.bytes)} of {format_bytes(done.total_bytes)}"
    layers = f"{done.layers} of {done.total_layers} layers"
    return f"{format_bar(done.bytes / done.total_bytes)}  {share}  {layers}  {image.name}"
