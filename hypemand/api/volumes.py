# SPDX-License-Identifier: Apache-2.0
"""Handlers of the routes of volumes, and of the disk usage."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import TypeVar

from aiohttp import web

from hypemand.api.archive import receive_pieces, send_archive
from hypemand.api.bodies.host import (
    AttachVolume,
    CreateVolume,
    CreateVolumeFromArchive,
    ListVolumes,
    ResizeVolume,
)
from hypemand.api.render import Json, instance_json, json_response, time_json
from hypemand.api.requests import parse_ref, read_body, read_query, refuse_query
from hypemand.api.services import Limits, Services
from hypemand.config.definition import GIB, VolumeMount
from hypemand.config.names import VOLUME_PATTERN
from hypemand.config.sizes import format_size
from hypemand.errors import InvalidRequest, NotFound
from hypemand.inflate import GZIP, Inflater, InvalidGzip
from hypemand.model.answers.volume import Attachment, FileSystem, PoolSpace, Space, SpaceUse, Volume
from hypemand.model.document import encode
from hypemand.model.space import SpaceReport
from hypemand.model.volumes import VolumeRoot, VolumeView

_REF = re.compile(VOLUME_PATTERN)

F = TypeVar("F")


class VolumeRoutes:
    """The handlers. `closing` is set when the daemon stops."""

    def __init__(self, services: Services, closing: asyncio.Event, limits: Limits) -> None:
        self._manager = services.manager
        self._volumes = services.volumes
        self._closing = closing
        self._limits = limits

    def table(self) -> list[web.RouteDef]:
        """Every route of volumes."""
        one, attached = "/volumes/{volume}", "/instances/{ref}/volumes/{volume}"
        return [
            web.get("/volumes", self.list_volumes, allow_head=False),
            web.post("/volumes", self.create_volume),
            web.post("/volumes/from-archive", self.create_from_archive),
            web.get(one, self.get_volume, allow_head=False),
            web.delete(one, self.delete_volume),
            web.post(f"{one}/resize", self.resize_volume),
            web.get(f"{one}/archive", self.read_volume, allow_head=False),
            web.post(attached, self.attach_volume),
            web.delete(attached, self.detach_volume),
            web.get("/df", self.read_space, allow_head=False),
        ]

    async def _read(self, request: web.Request, form: type[F]) -> F:
        return await read_body(request, form, self._limits.body)

    async def list_volumes(self, request: web.Request) -> web.StreamResponse:
        """All volumes, or those with tags."""
        wanted = read_query(request, ListVolumes).tags
        volumes = await self._volumes.list_volumes()
        return json_response([volume_json(v) for v in volumes if wanted.items() <= v.tags.items()])

    async def create_volume(self, request: web.Request) -> web.StreamResponse:
        """Create an empty volume."""
        body = await self._read(request, CreateVolume)
        size = _choose_size(body.size_gb, body.size)
        volume = await self._volumes.create_volume(
            body.name, size, body.tags, body.id or None, _choose_root(body.owner, body.mode)
        )
        return json_response(volume_json(volume), status=201)

    async def create_from_archive(self, request: web.Request) -> web.StreamResponse:
        """Create a volume from a tar archive, optionally compressed with gzip."""
        query = read_query(request, CreateVolumeFromArchive)
        size = _choose_size(query.size_gb, query.size)
        async with self._volumes.fill_volume(query.name, size, query.tags, query.id) as fill:
            _, root = await receive_pieces(request, fill.copy, self._closing, _inflate(request))
            if root is not None:
                await fill.set_root(root)
        return json_response(volume_json(fill.volume), status=201)

    async def get_volume(self, request: web.Request) -> web.StreamResponse:
        """One volume."""
        refuse_query(request)
        return json_response(volume_json(await self._volumes.get_volume(_parse_volume(request))))

    async def delete_volume(self, request: web.Request) -> web.StreamResponse:
        """Remove a volume that no definition uses."""
        refuse_query(request)
        await self._volumes.remove_volume(_parse_volume(request))
        return web.Response(status=204)

    async def resize_volume(self, request: web.Request) -> web.StreamResponse:
        """Grow a volume."""
        body = await self._read(request, ResizeVolume)
        size = _choose_size(body.size_gb, body.size)
        volume = await self._volumes.resize_volume(_parse_volume(request), size)
        return json_response(volume_json(volume))

    async def read_volume(self, request: web.Request) -> web.StreamResponse:
        """Contents of a volume as a tar archive."""
        refuse_query(request)
        async with self._volumes.read_volume(_parse_volume(request)) as copy:
            return await send_archive(request, copy, "/", self._closing)

    async def attach_volume(self, request: web.Request) -> web.StreamResponse:
        """Attach a volume to a stopped VM."""
        body = await self._read(request, AttachVolume)
        mount = VolumeMount(
            volume=_parse_volume(request),
            mount_path=body.mount_path,
            readonly=body.readonly,
            overlay=body.overlay,
        )
        if body.overlay_size is not None:
            view = self._manager.view_vm(parse_ref(request))
            check_overlay_size(body.overlay_size, view.definition.disk)
        return json_response(instance_json(await self._manager.attach_volume(parse_ref(request), mount)))

    async def detach_volume(self, request: web.Request) -> web.StreamResponse:
        """Detach a volume from a stopped VM."""
        refuse_query(request)
        view = await self._manager.detach_volume(parse_ref(request), _parse_volume(request))
        return json_response(instance_json(view))

    async def read_space(self, request: web.Request) -> web.StreamResponse:
        """Disk usage of hypemand."""
        refuse_query(request)
        return json_response(space_json(await self._volumes.measure_space()))


def volume_json(volume: VolumeView) -> Json:
    """A volume."""
    answer = Volume(
        id=volume.id,
        name=volume.name,
        size_gb=-(-volume.size // GIB),
        created_at=time_json(volume.created_at),
        tags=volume.tags,
        attachments=tuple(
            Attachment(
                instance_id=attachment.vm_id,
                mount_path=attachment.mount.mount_path,
                readonly=not attachment.mount.writes,
                instance_name=attachment.vm,
                running=attachment.running,
            )
            for attachment in volume.attachments
        ),
        size_bytes=volume.size,
        used_bytes=volume.used,
        status="ready" if volume.ready else "filling",
    )
    return encode(answer)


def space_json(report: SpaceReport) -> Json:
    """Disk usage."""
    answer = Space(
        kinds=tuple(
            SpaceUse(use.kind, use.count, use.size, use.used, use.reclaimable) for use in report.uses
        ),
        filesystem=FileSystem(str(report.room.folder), report.room.total, report.room.free),
        promised_bytes=report.promised,
        allowed_bytes=report.allowed,
        pools=tuple(
            PoolSpace(
                pool.name,
                str(pool.room.folder),
                shared=pool.shared,
                volumes=pool.volumes,
                total_bytes=pool.room.total,
                free_bytes=pool.room.free,
                promised_bytes=pool.promised,
                allowed_bytes=pool.allowed,
                problem=pool.problem or None,
            )
            for pool in report.pools
        ),
    )
    return encode(answer)


def check_overlay_size(size: int, disk: int) -> None:
    """Raise InvalidRequest for an overlay that is larger than the VM's disk, which it is stored on."""
    if size > disk:
        raise InvalidRequest(
            f"overlay_size: {format_size(size)} is larger than the disk of the VM,"
            f" which has {format_size(disk)}",
            hint="use a smaller size, or a larger disk for the VM",
        )


def _parse_volume(request: web.Request) -> str:
    ref = request.match_info["volume"]
    if _REF.fullmatch(ref) is None:
        hint = "a name or an id has only a-z, 0-9 and '-'; in a pool it is POOL/NAME"
        raise NotFound(f"there is no volume {ref[:80]!r}", hint=hint)
    return ref


def _choose_size(size_gb: int | None, size: int | None) -> int:
    """The one that is given, in bytes."""
    if size is not None and size_gb is None:
        return size
    if size_gb is not None and size is None:
        return size_gb
    raise InvalidRequest("size_gb: give either size_gb or size", hint="size_gb: 10, or size: 512M")


def _choose_root(owner: tuple[int, int] | None, mode: int | None) -> VolumeRoot | None:
    """Owner and mode of a volume's root; None if neither was given."""
    if owner is None and mode is None:
        return None
    root = VolumeRoot() if owner is None else VolumeRoot(*owner)
    return root if mode is None else replace(root, mode=mode)


async def _inflate(request: web.Request) -> AsyncIterator[bytes]:
    """The body in pieces of bounded size, out of its gzip if it has one: what it grows to is for the
    volume's size to stop."""
    inflater: Inflater | None = None
    begun: bytes | None = b""  # None once there is enough to tell
    try:
        async for data in request.content.iter_any():
            known = data if begun is None else begun + data
            if begun is not None and len(known) < len(GZIP):
                begun = known
                continue
            if begun is not None and known.startswith(GZIP):
                inflater = Inflater()
            begun = None
            for piece in (known,) if inflater is None else inflater.feed(known):
                yield piece
        if inflater is not None:
            inflater.finish()
    except InvalidGzip as error:
        raise InvalidRequest(f"the archive's gzip is broken: {error}", code="invalid_archive") from None
    if begun:
        yield begun
