# SPDX-License-Identifier: Apache-2.0
"""Handlers of the routes of networks."""

from __future__ import annotations

import asyncio

from aiohttp import web

from hypemand.api.render import group_json, json_response
from hypemand.api.requests import read_query
from hypemand.api.services import Limits, Services
from hypemand.config.names import is_name
from hypemand.config.netparse import format_egress, format_host_port, format_publish
from hypemand.errors import NotFound
from hypemand.manager.networkview import Member, NetworkInfo


class NetworkRoutes:
    """The handlers."""

    def __init__(self, services: Services, closing: asyncio.Event, limits: Limits) -> None:
        self._networks = services.host_networks

    def table(self) -> list[web.RouteDef]:
        """Every route of networks."""
        return [
            web.get("/networks", self.list_networks, allow_head=False),
            web.get("/networks/{network}", self.get_network, allow_head=False),
        ]

    async def list_networks(self, request: web.Request) -> web.StreamResponse:
        """All networks."""
        read_query(request)
        return json_response([network_json(info) for info in await self._networks.list_networks()])

    async def get_network(self, request: web.Request) -> web.StreamResponse:
        """One network."""
        read_query(request)
        name = request.match_info["network"]
        if not is_name(name):
            raise NotFound(f"there is no network {name[:80]!r}", hint="GET /networks lists the networks")
        return json_response(network_json(await self._networks.get_network(name)))


def network_json(info: NetworkInfo) -> dict[str, object]:
    """A network."""
    return {
        "name": info.name,
        "bridge": info.bridge,
        "ipv4": None if info.ipv4 is None else str(info.ipv4),
        "ipv6": None if info.ipv6 is None else str(info.ipv6),
        "mtu": info.mtu,
        "dns": [str(server) for server in info.dns],
        "nat": info.nat,
        "isolation": info.isolation,
        "host_ports": [format_host_port(port) for port in info.host_ports],
        "connections": info.connections,
        "egress": None if info.egress is None else [format_egress(one) for one in info.egress],
        "link_local": info.link_local,
        "problem": info.problem or None,
        "warnings": list(info.warnings),
        "pending": info.pending,
        "addresses": info.addresses,
        "free_addresses": info.free_addresses,
        "members": [_member_json(member) for member in info.members],
    }


def _member_json(member: Member) -> dict[str, object]:
    return {
        "instance_id": member.vm_id,
        "instance_name": member.vm,
        "ip": None if member.ipv4 is None else str(member.ipv4),
        "ip6": None if member.ipv6 is None else str(member.ipv6),
        "mac": member.mac,
        **group_json(member.group),
        "publish": [format_publish(publish) for publish in member.publish],
        "attached": member.attached,
    }
