# SPDX-License-Identifier: Apache-2.0
"""Handlers of the routes below /images."""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path
from typing import BinaryIO, TypeVar

from aiohttp import web

from hypemand.api.access import check_root
from hypemand.api.bodies.host import (
    BEARER_PATTERN,
    CreateImage,
    ImportImage,
    ListImages,
    PruneImages,
    RegistryLogin,
    TagImage,
)
from hypemand.api.platforms import check_platform
from hypemand.api.render import image_json, json_response, pruned_json
from hypemand.api.requests import read_body, read_query, refuse_query
from hypemand.api.services import Limits, Services
from hypemand.api.streams import send_events
from hypemand.errors import InvalidRequest, Stopping
from hypemand.model.images import Credentials
from hypemand.storage.references import parse_reference
from hypemand.workers import Lent, Pool, run_in

_BLOCK = 256 * 1024
_PATH_OF_HOST = "import an image from a path of the host"

F = TypeVar("F")


class ImageRoutes:
    """The handlers. `closing` is set when the daemon stops: what would go on ends then."""

    def __init__(self, services: Services, closing: asyncio.Event, limits: Limits) -> None:
        self._images = services.images
        self._closing = closing
        self._limits = limits

    def table(self) -> list[web.RouteDef]:
        """Every route of images."""
        image = "/images/{name}"
        return [
            web.get("/images", self.list_images, allow_head=False),
            web.post("/images", self.create_image),
            web.post("/images/import", self.import_image),
            web.post("/images/prune", self.prune_images),
            web.get(image, self.get_image, allow_head=False),
            web.delete(image, self.delete_image),
            web.post(f"{image}/tag", self.tag_image),
            web.get(f"{image}/watch", self.watch_image, allow_head=False),
            web.get(f"{image}/export", self.export_image, allow_head=False),
        ]

    async def _read(self, request: web.Request, form: type[F]) -> F:
        return await read_body(request, form, self._limits.body)

    async def list_images(self, request: web.Request) -> web.StreamResponse:
        """All images, or those with tags."""
        wanted = read_query(request, ListImages).tags
        images = await self._images.list_images()
        return json_response([image_json(image) for image in images if wanted.items() <= image.tags.items()])

    async def create_image(self, request: web.Request) -> web.StreamResponse:
        """Pull an image from a registry, or import it from a path of this host, in the background."""
        body = await self._read(request, CreateImage)
        check_platform(body.platform)
        refuse_path_of_host(request, body.name)
        credentials = None if body.credentials is None else _derive_credentials(body.credentials)
        image = await self._images.pull_image(body.name, credentials, body.tags)
        return json_response(image_json(image), status=202)

    async def get_image(self, request: web.Request) -> web.StreamResponse:
        """One image."""
        refuse_query(request)
        return json_response(image_json(await self._images.get_image(request.match_info["name"])))

    async def watch_image(self, request: web.Request) -> web.StreamResponse:
        """The image now and at each change, as events, until it is ready or has failed."""
        refuse_query(request)
        name = request.match_info["name"]
        await self._images.get_image(name)  # a stranger is told by a status, not in the stream
        return await send_events(
            request, self._images.watch_image(name), image_json, self._closing, self._limits
        )

    async def delete_image(self, request: web.Request) -> web.StreamResponse:
        """Remove an image, or cancel its pull."""
        refuse_query(request)
        await self._images.remove_image(request.match_info["name"])
        return web.Response(status=204)

    async def tag_image(self, request: web.Request) -> web.StreamResponse:
        """Add a name to an image."""
        target = (await self._read(request, TagImage)).target
        return json_response(
            image_json(await self._images.tag_image(request.match_info["name"], target)), status=201
        )

    async def prune_images(self, request: web.Request) -> web.StreamResponse:
        """Remove unused images."""
        body = await self._read(request, PruneImages)
        pruned = await self._images.prune_images(every=body.all, dry_run=body.dry_run)
        return json_response(pruned_json(pruned))

    async def import_image(self, request: web.Request) -> web.StreamResponse:
        """Create an image from files on this host. The daemon reads the path with its own permissions, so
        this is only for root."""
        check_root(request, _PATH_OF_HOST)
        body = await self._read(request, ImportImage)
        return json_response(image_json(await self._images.import_image(body.name, body.path)), status=201)

    async def export_image(self, request: web.Request) -> web.StreamResponse:
        """An image as an OCI archive."""
        refuse_query(request)
        async with self._images.export_image(request.match_info["name"]) as path:
            response = web.StreamResponse(headers={"Content-Type": "application/x-tar"})
            await self._send_file(request, response, path)
            return response

    async def _send_file(self, request: web.Request, response: web.StreamResponse, path: Path) -> None:
        opened, response.content_length = await run_in(Pool.IMAGES, _open_sized, path)
        file = Lent(Pool.IMAGES, opened, lambda file: file.close())
        try:
            await response.prepare(request)
            while block := await file.run(lambda file: file.read(_BLOCK)):
                if self._closing.is_set():
                    raise Stopping
                await response.write(block)
        finally:
            file.close()


def _derive_credentials(login: RegistryLogin) -> Credentials | None:
    """None: none are given. InvalidRequest where they are neither of the two kinds."""
    if login.registry_token is not None:
        if login.username is not None or login.password is not None:
            raise InvalidRequest(
                "credentials: give either registry_token, or username and password", hint="omit one of them"
            )
        if re.fullmatch(BEARER_PATTERN, login.registry_token) is None:
            raise InvalidRequest("credentials.registry_token: is not a token", hint="it has no blanks")
        return Credentials(token=login.registry_token)
    if login.username is None and login.password is None:
        return None
    for key in ("username", "password"):
        if getattr(login, key) is None:
            raise InvalidRequest(f"credentials.{key}: is missing", hint="give username and password")
    return Credentials(login.username or "", login.password or "")


def _open_sized(path: Path) -> tuple[BinaryIO, int]:
    """A file to be read, and its size in bytes. Blocks."""
    file = path.open("rb")
    return file, os.fstat(file.fileno()).st_size


def refuse_path_of_host(request: web.Request, image: str) -> None:
    """Raise Forbidden for an image from a path of this host, unless the client is root."""
    if parse_reference(image).transport.is_local:
        check_root(request, _PATH_OF_HOST)
