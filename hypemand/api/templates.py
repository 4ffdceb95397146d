# SPDX-License-Identifier: Apache-2.0
"""Handlers of the routes of templates for warm starts."""

from __future__ import annotations

import asyncio
import re

from aiohttp import web

from hypemand.api.bodies.host import CreateTemplate
from hypemand.api.render import Json, json_response, time_json
from hypemand.api.requests import read_body, refuse_query
from hypemand.api.services import Limits, Services
from hypemand.errors import NotFound
from hypemand.model.answers.template import Template
from hypemand.model.document import encode
from hypemand.model.templates import TemplateView

_KEY = re.compile("[0-9a-f]{4,32}")


class TemplateRoutes:
    """The handlers."""

    def __init__(self, services: Services, closing: asyncio.Event, limits: Limits) -> None:
        self._templates = services.templates
        self._limits = limits

    def table(self) -> list[web.RouteDef]:
        """Every route of templates."""
        return [
            web.get("/templates", self.list_templates, allow_head=False),
            web.post("/templates", self.create_template),
            web.delete("/templates/{template}", self.delete_template),
        ]

    async def list_templates(self, request: web.Request) -> web.StreamResponse:
        """All templates."""
        refuse_query(request)
        return json_response([template_json(one) for one in await self._templates.list_templates()])

    async def create_template(self, request: web.Request) -> web.StreamResponse:
        """Make the template from which a VM can start."""
        body = await read_body(request, CreateTemplate, self._limits.body)
        view, is_new = await self._templates.create_template(body.instance)
        return json_response(template_json(view), status=201 if is_new else 200)

    async def delete_template(self, request: web.Request) -> web.StreamResponse:
        """Remove a template."""
        refuse_query(request)
        key = request.match_info["template"]
        if not _KEY.fullmatch(key):
            raise NotFound(f"there is no template {key[:80]!r}", hint="GET /templates lists the templates")
        await self._templates.remove_template(key)
        return web.Response(status=204)


def template_json(view: TemplateView) -> Json:
    """A template."""
    answer = Template(
        id=view.key,
        memory_bytes=view.kind.memory,
        vcpus=view.kind.vcpus,
        disks=view.kind.disks,
        network=view.kind.network,
        size_bytes=view.size,
        created_at=time_json(view.created_at),
        last_used_at=time_json(view.used_at),
        outdated=view.outdated,
    )
    return encode(answer)
