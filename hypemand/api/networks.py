# SPDX-License-Identifier: Apache-2.0
"""Handlers of the routes of networks."""

from __future__ import annotations

import asyncio

from aiohttp import web

from hypemand.api.render import Json, derive_group, json_response
from hypemand.api.requests import refuse_query
from hypemand.api.services import Limits, Services
from hypemand.config.names import is_name
from hypemand.config.netparse import format_egress, format_host_port, format_publish
from hypemand.errors import NotFound
from hypemand.model.answers.network import HostNetwork, NetworkMember
from hypemand.model.document import encode
from hypemand.model.networks import Member, NetworkInfo


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
        refuse_query(request)
        return json_response([network_json(info) for info in await self._networks.list_networks()])

    async def get_network(self, request: web.Request) -> web.StreamResponse:
        """One network."""
        refuse_query(request)
        name = request.match_info["network"]
        if not is_name(name):
            raise NotFound(f"there is no network {name[:80]!r}", hint="GET /networks lists the networks")
        return json_response(network_json(await self._networks.get_network(name)))


def network_json(info: NetworkInfo) -> Json:
    """A network."""
    answer = HostNetwork(
        name=info.name,
        bridge=info.bridge,
        ipv4=None if info.ipv4 is None else str(info.ipv4),
        ipv6=None if info.ipv6 is None else str(info.ipv6),
        mtu=info.mtu,
        dns=tuple(str(server) for server in info.dns),
        nat=info.nat,
        managed=info.managed,
        dhcp=info.dhcp,
        isolation=info.isolation,
        host_ports=tuple(format_host_port(port) for port in info.host_ports),
        connections=info.connections,
        egress=None if info.egress is None else tuple(format_egress(one) for one in info.egress),
        link_local=info.link_local,
        problem=info.problem or None,
        warnings=info.warnings,
        pending=info.pending,
        addresses=info.addresses,
        free_addresses=info.free_addresses,
        members=tuple(_derive_member(member) for member in info.members),
    )
    return encode(answer)


def _derive_member(member: Member) -> NetworkMember:
    group, isolated = derive_group(member.group)
    return NetworkMember(
        instance_id=member.vm_id,
        instance_name=member.vm,
        ip=None if member.ipv4 is None else str(member.ipv4),
        ip6=None if member.ipv6 is None else str(member.ipv6),
        mac=member.mac,
        group=group,
        isolated=isolated,
        publish=tuple(format_publish(publish) for publish in member.publish),
        attached=member.attached,
    )
