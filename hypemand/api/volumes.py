# SPDX-License-Identifier: Apache-2.0
"""Handlers of the routes of volumes, and of the disk usage."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace

from aiohttp import web

from hypemand.api.archive import receive_pieces, send_archive
from hypemand.api.render import Json, instance_json, json_response, time_json
from hypemand.api.requests import parse_ref, read_object, read_query, refuse_unknown
from hypemand.api.services import Limits, Services
from hypemand.config.definition import GIB, VolumeMount
from hypemand.config.sizes import format_size, parse_size
from hypemand.errors import InvalidRequest, NotFound
from hypemand.inflate import GZIP, Inflater, InvalidGzip
from hypemand.model.answers.volume import Attachment, FileSystem, Space, SpaceUse, Volume
from hypemand.model.document import encode
from hypemand.model.space import SpaceReport
from hypemand.model.volumes import VolumeRoot, VolumeView

_REF = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_CREATE_KEYS = ("name", "size_gb", "size", "id", "tags", "owner", "mode")
_OWNER = re.compile(r"([0-9]{1,10}):([0-9]{1,10})")
_MODE = re.compile(r"[0-7]{1,5}")
# (uid_t) -1 stands for no user
_MAX_ID = 2**32 - 2
_MAX_MODE = 0o7777


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

    async def _read_object(self, request: web.Request) -> dict[str, object]:
        return await read_object(request, self._limits.body)

    async def list_volumes(self, request: web.Request) -> web.StreamResponse:
        """All volumes, or those with tags."""
        wanted = _read_tags(request)
        volumes = await self._volumes.list_volumes()
        return json_response([volume_json(v) for v in volumes if wanted.items() <= v.tags.items()])

    async def create_volume(self, request: web.Request) -> web.StreamResponse:
        """An empty volume."""
        body = await self._read_object(request)
        refuse_unknown(body, _CREATE_KEYS)
        tags = body.get("tags") or {}
        if not isinstance(tags, dict) or not all(isinstance(value, str) for value in tags.values()):
            raise InvalidRequest("tags: must be an object of strings")
        volume_id = _text(body, "id") if body.get("id") else None
        volume = await self._volumes.create_volume(
            _text(body, "name"), _parse_size(body), tags, volume_id, _parse_root(body)
        )
        return json_response(volume_json(volume), status=201)

    async def create_from_archive(self, request: web.Request) -> web.StreamResponse:
        """A volume with what is in a tar archive, plain or with gzip."""
        tags = _read_tags(request, "name", "size_gb", "size", "id")
        query: dict[str, object] = dict(request.query)
        name, volume_id = _text(query, "name"), request.query.get("id")
        async with self._volumes.fill_volume(name, _parse_size(query), tags, volume_id) as fill:
            _, root = await receive_pieces(request, fill.copy, self._closing, _inflate(request))
            if root is not None:
                await fill.set_root(root)
        return json_response(volume_json(fill.volume), status=201)

    async def get_volume(self, request: web.Request) -> web.StreamResponse:
        """One volume."""
        read_query(request)
        return json_response(volume_json(await self._volumes.get_volume(_parse_volume(request))))

    async def delete_volume(self, request: web.Request) -> web.StreamResponse:
        """Remove a volume that no VM is defined with."""
        read_query(request)
        await self._volumes.remove_volume(_parse_volume(request))
        return web.Response(status=204)

    async def resize_volume(self, request: web.Request) -> web.StreamResponse:
        """Let a volume grow."""
        body = await self._read_object(request)
        refuse_unknown(body, ("size_gb", "size"))
        volume = await self._volumes.resize_volume(_parse_volume(request), _parse_size(body))
        return json_response(volume_json(volume))

    async def read_volume(self, request: web.Request) -> web.StreamResponse:
        """What is in a volume, as a tar archive."""
        read_query(request)
        async with self._volumes.read_volume(_parse_volume(request)) as copy:
            return await send_archive(request, copy, "/", self._closing)

    async def attach_volume(self, request: web.Request) -> web.StreamResponse:
        """Give a stopped VM a volume."""
        body = await self._read_object(request)
        refuse_unknown(body, ("mount_path", "readonly", "overlay", "overlay_size"))
        mount = VolumeMount(
            volume=_parse_volume(request),
            mount_path=_text(body, "mount_path"),
            readonly=_flag(body, "readonly"),
            overlay=_flag(body, "overlay"),
        )
        if body.get("overlay_size") is not None:
            view = self._manager.view_vm(parse_ref(request))
            check_overlay_size(body["overlay_size"], view.definition.disk)
        return json_response(instance_json(await self._manager.attach_volume(parse_ref(request), mount)))

    async def detach_volume(self, request: web.Request) -> web.StreamResponse:
        """Take a volume from a stopped VM."""
        read_query(request)
        view = await self._manager.detach_volume(parse_ref(request), _parse_volume(request))
        return json_response(instance_json(view))

    async def read_space(self, request: web.Request) -> web.StreamResponse:
        """What hypemand keeps on the host's disk."""
        read_query(request)
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
    """What takes the host's disk."""
    answer = Space(
        kinds=tuple(
            SpaceUse(use.kind, use.count, use.size, use.used, use.reclaimable) for use in report.uses
        ),
        filesystem=FileSystem(str(report.room.folder), report.room.total, report.room.free),
        promised_bytes=report.promised,
        allowed_bytes=report.allowed,
    )
    return encode(answer)


def check_overlay_size(value: object, disk: int) -> None:
    """The layer of an overlay is on the VM's disk, so that is what must hold it."""
    size = _size(value, "overlay_size")
    if size > disk:
        raise InvalidRequest(
            f"overlay_size: {value} is larger than the disk of the VM, which has {format_size(disk)}",
            hint="use a smaller size, or a larger disk for the VM",
        )


def _read_tags(request: web.Request, *known: str) -> Mapping[str, str]:
    keys = [key for key in request.query if key.startswith("tags[") and key.endswith("]")]
    query = read_query(request, *known, *keys)
    return {key[5:-1]: query[key] for key in keys}


def _parse_volume(request: web.Request) -> str:
    ref = request.match_info["volume"]
    if _REF.fullmatch(ref) is None:
        raise NotFound(f"there is no volume {ref[:80]!r}", hint="a name or an id has only a-z, 0-9 and '-'")
    return ref


def _parse_size(data: Mapping[str, object]) -> int:
    """Bytes of `size_gb`, a whole number, or of `size`, as 512M."""
    if (data.get("size") is None) == (data.get("size_gb") is None):
        raise InvalidRequest("size_gb: give either size_gb or size", hint="size_gb: 10, or size: 512M")
    if data.get("size") is not None:
        return _size(data["size"], "size")
    number = data["size_gb"]
    if isinstance(number, bool) or not str(number).isdecimal() or len(str(number)) > 9:
        raise InvalidRequest(f"size_gb: {str(number)[:40]!r} is not an integer number of gigabytes")
    return int(str(number)) * GIB


def _size(value: object, key: str) -> int:
    try:
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise ValueError("is neither a text nor a number")
        return parse_size(value)
    except ValueError as error:
        raise InvalidRequest(f"{key}: {error}", hint="write it like 512M or 10G") from None


def _text(data: Mapping[str, object], key: str) -> str:
    value = data.get(key)
    if not isinstance(value, str) or not value or "\0" in value:
        raise InvalidRequest(f"{key}: must be a string that is not empty")
    return value


def _parse_root(body: Mapping[str, object]) -> VolumeRoot | None:
    """Owner and mode of a volume's root; None if the body has neither."""
    root = None
    if body.get("owner") is not None:
        owner = _OWNER.fullmatch(_text(body, "owner"))
        if owner is None or max(int(owner[1]), int(owner[2])) > _MAX_ID:
            raise InvalidRequest(
                f"owner: is not UID:GID, two numbers of at most {_MAX_ID}, such as 1000:1000"
            )
        root = VolumeRoot(int(owner[1]), int(owner[2]))
    if body.get("mode") is not None:
        mode = _text(body, "mode")
        if _MODE.fullmatch(mode) is None or int(mode, 8) > _MAX_MODE:
            raise InvalidRequest('mode: is not a string of octal digits up to 7777, such as "0750"')
        root = replace(root or VolumeRoot(), mode=int(mode, 8))
    return root


def _flag(data: Mapping[str, object], key: str) -> bool:
    value = data.get(key)
    if value is not None and not isinstance(value, bool):
        raise InvalidRequest(f"{key}: is neither true nor false")
    return bool(value)


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
