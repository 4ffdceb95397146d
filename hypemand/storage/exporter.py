# SPDX-License-Identifier: Apache-2.0
"""An image as an OCI archive, which skopeo, podman and `hypemanctl image import` read.

It has one layer: the files as they are. The layers that the image was made of are not kept, so the archive
has another digest than the image.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypemand.storage import ocilayout
from hypemand.storage.erofs import write_tar
from hypemand.storage.images import Image
from hypemand.storage.references import Transport, parse_reference
from hypemand.storage.room import RoomWatch
from hypemand.storage.staging import name_failures, open_staging
from hypemand.storage.store import ImageStore
from hypemand.storage.tools import DirectTools, Tools


@contextmanager
def export_image(store: ImageStore, image: Image, tools: Tools | None = None) -> Iterator[Path]:
    """An OCI archive of `image`, which is there until the end of the block. Blocks, for minutes if need be.
    InsufficientResources when the disk has no room for it."""
    tools = tools or DirectTools()
    store.prepare()
    room = RoomWatch(f"the export of {image.name}", store.folder, store.reserve(), tools.cancel)
    with (
        name_failures(image.name),
        open_staging(store, f"export of {image.digest}") as staging,
        room.watching(),
    ):
        # as a tar, and that in an archive
        room.need(2 * image.size)
        tar, layout = staging / "root.tar", staging / "layout"
        write_tar(image.rootfs, tar)
        ocilayout.wrap_layer(tar, layout, image.architecture, image.config)
        archive = staging / "image.tar"
        reference = parse_reference(image.name)
        name = image.name if reference.transport is Transport.REGISTRY and "@" not in image.name else ""
        ocilayout.pack(layout, archive, name, tools)
        yield archive
