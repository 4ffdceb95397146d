# SPDX-License-Identifier: Apache-2.0
"""Handlers of the routes of the host: what it can do, and what is left of its resources."""

from __future__ import annotations

import asyncio

from aiohttp import web

from hypemand.api.platforms import host_platform
from hypemand.api.render import HYPERVISOR, Json, json_response
from hypemand.api.requests import refuse_query
from hypemand.api.services import Limits, Services
from hypemand.config.network import NetworkConfig
from hypemand.model.answers.host import (
    Capabilities,
    DefaultRuntime,
    DiskBreakdown,
    HostAbout,
    ImagesAbout,
    NetworkAbout,
    Resource,
    ResourceAllocation,
    Resources,
    Runtime,
    ServerAbout,
)
from hypemand.model.document import encode
from hypemand.model.host import ResourceReport, ResourceUse
from hypemand.model.space import SpaceKind, SpaceReport
from hypemand.model.state import Operation
from hypemand.version import VERSION

# info.version of openapi.yaml
API_VERSION = "1"
# In the client's words: what the daemon has, and what its VMs can do.
_FEATURES = ("instances", "images", "volumes", "exec", "logs")
_RUNTIME_FEATURES = (Operation.PAUSE.value, Operation.STANDBY.value, "snapshots")


class HostRoutes:
    """The handlers."""

    def __init__(self, services: Services, closing: asyncio.Event, limits: Limits) -> None:
        self._host = services.host
        self._volumes = services.volumes
        self._defaults = services.defaults
        self._networks = services.networks

    def table(self) -> list[web.RouteDef]:
        """Every route of the host."""
        return [
            web.get("/capabilities", self.read_capabilities, allow_head=False),
            web.get("/resources", self.read_resources, allow_head=False),
        ]

    async def read_capabilities(self, request: web.Request) -> web.StreamResponse:
        """What this daemon can do on this host."""
        refuse_query(request)
        problem = await self._host.find_vmm_problem()
        name = self._defaults().network
        network = None if name is None else (self._networks() or {}).get(name)
        os, _, arch = host_platform().partition("/")
        answer = Capabilities(
            server=ServerAbout(VERSION, API_VERSION),
            host=HostAbout(os, arch),
            runtimes=(Runtime(HYPERVISOR, not problem, _RUNTIME_FEATURES, problem or None),),
            default_runtime=DefaultRuntime(HYPERVISOR, not problem),
            network=_derive_network(network),
            images=ImagesAbout((host_platform(),), host_platform()),
            features=_FEATURES,
        )
        return json_response(encode(answer))

    async def read_resources(self, request: web.Request) -> web.StreamResponse:
        """Resources of the host, and what VMs have of them."""
        refuse_query(request)
        report, space = await asyncio.gather(self._host.measure_resources(), self._volumes.measure_space())
        return json_response(resources_json(report, space))


def _derive_network(network: NetworkConfig | None) -> NetworkAbout:
    ipv4 = None if network is None else network.ipv4
    return NetworkAbout(
        model="bridge",
        gateway=None if ipv4 is None else str(ipv4.ip),
        subnet=None if ipv4 is None else str(ipv4.network),
        guest_to_guest=network is not None and not network.isolation,
    )


def resources_json(report: ResourceReport, space: SpaceReport) -> Json:
    """Resources of the host."""
    used = {use.kind: use.used for use in space.uses}
    answer = Resources(
        cpu=_derive_resource("cpu", report.cpu),
        memory=_derive_resource("memory", report.memory),
        disk=_derive_resource("disk", report.disk),
        network=_derive_resource("network", report.network),
        allocations=tuple(
            ResourceAllocation(
                instance_id=one.vm_id,
                instance_name=one.vm,
                cpu=one.vcpus,
                memory_bytes=one.memory,
                disk_bytes=one.disk,
                disk_io_bps=one.disk_io,
                network_download_bps=one.download,
                network_upload_bps=one.upload,
            )
            for one in report.allocations
        ),
        disk_breakdown=DiskBreakdown(
            images_bytes=used.get(SpaceKind.IMAGES, 0),
            overlays_bytes=used.get(SpaceKind.DISKS, 0),
            volumes_bytes=used.get(SpaceKind.VOLUMES, 0),
        ),
    )
    return encode(answer)


def _derive_resource(kind: str, use: ResourceUse) -> Resource:
    return Resource(kind, use.capacity, use.limit, use.overcommit, use.allocated, use.available)
