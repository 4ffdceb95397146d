# SPDX-License-Identifier: Apache-2.0
"""Handlers of the routes of snapshots."""

from __future__ import annotations

import asyncio
import re
from typing import TypeVar

from aiohttp import web

from hypemand.api.access import find_peer
from hypemand.api.bodies.snapshots import (
    CreateSnapshot,
    ForkInstance,
    ForkSnapshot,
    ListSnapshots,
    RestoreSnapshot,
    TargetState,
    derive_compression,
)
from hypemand.api.lifetimes import derive_lifetime
from hypemand.api.render import HYPERVISOR, Json, instance_json, json_response, time_json
from hypemand.api.requests import parse_ref, read_body, read_query, refuse_query
from hypemand.api.services import Limits, Services
from hypemand.config.vmdef import definition_to_json
from hypemand.errors import InvalidRequest, NotFound
from hypemand.model.answers.compression import SnapshotCompression
from hypemand.model.answers.snapshot import Snapshot
from hypemand.model.compression import CompressionView
from hypemand.model.document import encode
from hypemand.model.fork import ForkWanted
from hypemand.model.snapshots import SnapshotView
from hypemand.model.state import State

_REF = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")

F = TypeVar("F")


class SnapshotRoutes:
    """The handlers."""

    def __init__(self, services: Services, closing: asyncio.Event, limits: Limits) -> None:
        self._snapshots = services.snapshots
        self._forks = services.forks
        self._limits = limits

    def table(self) -> list[web.RouteDef]:
        """Every route of snapshots."""
        one, of_vm = "/snapshots/{snapshot}", "/instances/{ref}/snapshots"
        return [
            web.get("/snapshots", self.list_snapshots, allow_head=False),
            web.get(one, self.get_snapshot, allow_head=False),
            web.delete(one, self.delete_snapshot),
            web.post(of_vm, self.create_snapshot),
            web.post(f"{of_vm}/{{snapshot}}/restore", self.restore_snapshot),
            web.post(f"{one}/fork", self.fork_snapshot),
            web.post("/instances/{ref}/fork", self.fork_instance),
        ]

    async def list_snapshots(self, request: web.Request) -> web.StreamResponse:
        """All snapshots, or those of a VM, of a kind, with a name, or with tags."""
        wanted = read_query(request, ListSnapshots)
        return json_response(
            [
                snapshot_json(view)
                for view in await self._snapshots.list_snapshots()
                if wanted.kind in (None, view.kind)
                and wanted.name in (None, view.name)
                and wanted.source_instance_id in (None, view.vm_id)
                and wanted.tags.items() <= view.tags.items()
            ]
        )

    async def get_snapshot(self, request: web.Request) -> web.StreamResponse:
        """One snapshot."""
        refuse_query(request)
        return json_response(snapshot_json(await self._snapshots.get_snapshot(_parse_snapshot(request))))

    async def delete_snapshot(self, request: web.Request) -> web.StreamResponse:
        """Remove a snapshot."""
        refuse_query(request)
        await self._snapshots.remove_snapshot(_parse_snapshot(request))
        return web.Response(status=204)

    async def create_snapshot(self, request: web.Request) -> web.StreamResponse:
        """Make a snapshot of a VM."""
        ref = parse_ref(request)
        body = await read_body(request, CreateSnapshot, self._limits.body)
        lifetime = derive_lifetime(body.ttl, body.expires_at)
        compression = derive_compression(body.compression)
        what = (ref, body.kind, body.name, body.tags, lifetime, compression)
        view = await self._snapshots.create_snapshot(*what)
        return json_response(snapshot_json(view), status=201)

    async def restore_snapshot(self, request: web.Request) -> web.StreamResponse:
        """Restore a VM from one of its snapshots."""
        ref, snapshot = parse_ref(request), _parse_snapshot(request)
        body = await read_body(request, RestoreSnapshot, self._limits.body)
        _check_hypervisor(body.target_hypervisor)
        target = None if body.target_state is None else State(body.target_state)
        view = await self._snapshots.restore_snapshot(ref, snapshot, target)
        return json_response(instance_json(view))

    async def fork_instance(self, request: web.Request) -> web.StreamResponse:
        """Make a VM of another."""
        ref = parse_ref(request)
        body = await read_body(request, ForkInstance, self._limits.body)
        wanted = _derive_fork(request, body.name, body.target_state, from_running=body.from_running)
        return json_response(instance_json(await self._forks.fork_vm(ref, wanted)), status=201)

    async def fork_snapshot(self, request: web.Request) -> web.StreamResponse:
        """Make a VM of a snapshot."""
        snapshot = _parse_snapshot(request)
        body = await read_body(request, ForkSnapshot, self._limits.body)
        _check_hypervisor(body.target_hypervisor)
        wanted = _derive_fork(request, body.name, body.target_state)
        return json_response(instance_json(await self._forks.fork_snapshot(snapshot, wanted)), status=201)


def _derive_fork(
    request: web.Request, name: str, target: TargetState | None, *, from_running: bool = False
) -> ForkWanted:
    state = None if target is None else State(target)
    return ForkWanted(name, from_running, state, short_name=find_peer(request).is_root)


def _check_hypervisor(wanted: str | None) -> None:
    if wanted not in (None, HYPERVISOR):
        raise InvalidRequest(
            f"target_hypervisor: {str(wanted)[:40]!r} is not supported", hint=f"use {HYPERVISOR}"
        )


def snapshot_json(view: SnapshotView) -> Json:
    """A snapshot."""
    compression = view.compression or CompressionView()
    answer = Snapshot(
        id=view.id,
        kind=view.kind,
        name=view.name,
        created_at=time_json(view.created_at),
        source_instance_id=view.vm_id,
        source_instance_name=view.vm,
        source_hypervisor=HYPERVISOR,
        size_bytes=view.size,
        uncompressed_size_bytes=view.memory,
        compression_state=None if view.memory is None else compression.state,
        compression=SnapshotCompression.of(compression),
        compressed_size_bytes=compression.size,
        compression_error=compression.error,
        tags=view.tags,
        disk_bytes=view.disk,
        definition=definition_to_json(view.definition),
        restore_error=view.problem,
        expires_at=time_json(view.expires_at),
        scheduled=view.is_scheduled,
    )
    return encode(answer)


def _parse_snapshot(request: web.Request) -> str:
    ref = request.match_info["snapshot"]
    if _REF.fullmatch(ref) is None:
        raise NotFound(f"there is no snapshot {ref[:80]!r}", hint="a name or an id has only a-z, 0-9 and '-'")
    return ref
