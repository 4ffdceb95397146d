# SPDX-License-Identifier: Apache-2.0
"""Handlers of the routes by which VMs leave a host as archives, and come to one."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from aiohttp import web

from hypemand.api.access import find_peer
from hypemand.api.archive import receive_in_time, send_pieces
from hypemand.api.bodies.instances import ExportInstance, ImportInstance
from hypemand.api.create import parse_create
from hypemand.api.hostreach import refuse_host_paths
from hypemand.api.images import refuse_path_of_host
from hypemand.api.render import instance_json, json_response
from hypemand.api.requests import parse_ref, read_query
from hypemand.api.services import Limits, Services
from hypemand.api.tasks import Ended, unless_ended
from hypemand.config.definition import Definition
from hypemand.errors import Stopping
from hypemand.model.transfer import ExportWanted, ImportWanted


class TransferRoutes:
    """The handlers. `closing` is set when the daemon stops."""

    def __init__(self, services: Services, closing: asyncio.Event, limits: Limits) -> None:
        self._transfers = services.transfers
        self._defaults = services.defaults
        self._networks = services.networks
        self._closing = closing

    def table(self) -> list[web.RouteDef]:
        """Every route of archives of VMs."""
        return [
            web.get("/instances/{ref}/export", self.export_instance, allow_head=False),
            web.post("/instances/import", self.import_instance),
        ]

    async def export_instance(self, request: web.Request) -> web.StreamResponse:
        """A stopped VM as an archive."""
        ref = parse_ref(request)
        query = read_query(request, ExportInstance)
        wanted = ExportWanted(query.volumes or (), query.all_volumes, query.image)
        async with self._transfers.export_vm(ref, wanted) as pieces:
            return await send_pieces(request, pieces, f"export of {ref}", self._closing)

    async def import_instance(self, request: web.Request) -> web.StreamResponse:
        """Create a stopped VM from an archive."""
        query = read_query(request, ImportInstance)
        wanted = ImportWanted(query.name or "", query.keep_identity, query.volumes)
        is_root = find_peer(request).is_root

        def make_definition(name: str, keys: Mapping[str, object]) -> Definition:
            body = {"name": name, "definition": keys}
            made = parse_create(body, self._defaults(), self._networks(), is_root=is_root).definition
            refuse_path_of_host(request, made.image)
            # also for root: the archive may be a stranger's
            refuse_host_paths(made, "the VM in the archive")
            return made

        importing = self._transfers.import_vm(
            wanted, receive_in_time(request), make_definition, short_name=is_root
        )
        ended = await unless_ended(request, self._closing, importing)
        if ended is Ended.CLIENT:
            raise ConnectionResetError("the client has gone")
        if isinstance(ended, Ended):
            raise Stopping
        return json_response(instance_json(ended), status=201)
