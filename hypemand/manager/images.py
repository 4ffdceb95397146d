# SPDX-License-Identifier: Apache-2.0
"""The image store for the API: off the event loop, and with the VMs that use an image."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from hypemand.storage.images import ImageInfo, ImageStore, derive_info, parse_image_name
from hypemand.storage.importer import import_image


class ApiImages:
    """`in_use` gives the names of VMs by the image that they are defined with."""

    def __init__(self, store: ImageStore, in_use: Callable[[], Mapping[str, Sequence[str]]]) -> None:
        self._store = store
        self._in_use = in_use

    def _users(self, name: str) -> Sequence[str]:
        wanted = parse_image_name(name)
        return sorted(
            vm for image, vms in self._in_use().items() if parse_image_name(image) == wanted for vm in vms
        )

    async def list_images(self) -> Sequence[ImageInfo]:
        """All images, by name."""
        images = await asyncio.to_thread(self._store.list_images)
        return [derive_info(image, self._users(image.name)) for image in images]

    async def get_image(self, name: str) -> ImageInfo:
        """One image. Raises NotFound."""
        image = await asyncio.to_thread(self._store.get_image, name)
        return derive_info(image, self._users(image.name))

    async def remove_image(self, name: str) -> None:
        """Remove it. Raises NotFound, InUse."""
        await asyncio.to_thread(self._store.remove_image, name, self._users(name))

    async def import_image(self, name: str, path: str) -> ImageInfo:
        """Make an image of what is at `path`."""
        image = await asyncio.to_thread(import_image, self._store, name, path)
        return derive_info(image, self._users(image.name))
