# SPDX-License-Identifier: Apache-2.0
"""Calls of the published client that are not supported: each is answered with 501 and its name.

404 for such a route would look to the client like a VM that does not exist. The table has the routes, their
description in openapi.yaml is made of it, and a test compares it with all methods of the client.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from hypemand.errors import HypemandError

_VM = "/instances/{ref}"
# Method and path, by the name that the call has in the client.
UNSUPPORTED: Mapping[str, tuple[str, str]] = {
    "instances.auto_standby.hold": ("POST", f"{_VM}/auto-standby/hold"),
    "instances.auto_standby.status": ("GET", f"{_VM}/auto-standby/status"),
    "resources.reclaim_memory": ("POST", "/resources/memory/reclaim"),
    "devices.create": ("POST", "/devices"),
    "devices.list": ("GET", "/devices"),
    "devices.list_available": ("GET", "/devices/available"),
    "devices.retrieve": ("GET", "/devices/{device}"),
    "devices.delete": ("DELETE", "/devices/{device}"),
    "ingresses.create": ("POST", "/ingresses"),
    "ingresses.list": ("GET", "/ingresses"),
    "ingresses.get": ("GET", "/ingresses/{ingress}"),
    "ingresses.delete": ("DELETE", "/ingresses/{ingress}"),
    "builders.create": ("POST", "/builders"),
    "builders.list": ("GET", "/builders"),
    "builders.get": ("GET", "/builders/{builder}"),
    "builders.delete": ("DELETE", "/builders/{builder}"),
    "builders.prune": ("POST", "/builders/{builder}/prune"),
    "builds.create": ("POST", "/builds"),
    "builds.list": ("GET", "/builds"),
    "builds.get": ("GET", "/builds/{build}"),
    "builds.cancel": ("DELETE", "/builds/{build}"),
    "builds.events": ("GET", "/builds/{build}/events"),
    "pushes.create": ("POST", "/pushes"),
    "pushes.list": ("GET", "/pushes"),
    "pushes.get": ("GET", "/pushes/{push}"),
}
_CALLS = {route: call for call, route in UNSUPPORTED.items()}


class NotSupported(HypemandError):
    """A call of the published client that this version does not support."""

    code = "not_supported"
    status = 501


class UnsupportedRoutes:
    """The handler of all of them, whatever a request to them says."""

    def table(self) -> list[web.RouteDef]:
        """Every route that is not supported."""
        return [
            web.get(path, self.refuse_unsupported, allow_head=False)
            if method == "GET"
            else web.route(method, path, self.refuse_unsupported)
            for method, path in UNSUPPORTED.values()
        ]

    async def refuse_unsupported(self, request: web.Request) -> web.StreamResponse:
        """Raise NotSupported with the name of the call."""
        resource = request.match_info.route.resource
        assert resource is not None, "a route of the table has one"
        call = _CALLS[request.method, resource.canonical]
        raise NotSupported(
            f"{call} is not supported by this version of hypemand",
            hint="GET /openapi.yaml describes what is supported",
        )


def describe_unsupported() -> Mapping[str, Mapping[str, Any]]:
    """The paths of the table, as OpenAPI describes them."""
    paths: dict[str, dict[str, Any]] = {}
    for call, (method, path) in UNSUPPORTED.items():
        words = re.split(r"[._]", call)
        paths.setdefault(path, {"parameters": [_describe(name) for name in re.findall(r"{(\w+)}", path)]})
        paths[path][method.lower()] = {
            "operationId": words[0] + "".join(word.capitalize() for word in words[1:]),
            "summary": f"{call} of the published client, which is not supported",
            "responses": {
                "501": {"$ref": "#/components/responses/NotSupported"},
                "default": {"$ref": "#/components/responses/Failed"},
            },
        }
    return paths


def _describe(parameter: str) -> Mapping[str, Any]:
    if parameter == "ref":
        return {"$ref": "#/components/parameters/Ref"}
    return {"name": parameter, "in": "path", "required": True, "schema": {"type": "string"}}
