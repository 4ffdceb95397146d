# SPDX-License-Identifier: Apache-2.0
"""The API of the daemon on a fake host: the real server over the real manager, on a unix socket."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

import aiohttp

from hypemand.api.server import make_app, serve
from hypemand.api.services import Services
from hypemand.api.tokens import TokenStore
from hypemand.manager.fork import ApiForks
from hypemand.manager.metrics.metrics import Metrics
from hypemand.manager.resources.hostview import HostView
from hypemand.manager.templateservice import ApiTemplates
from hypemand.manager.transfer import Transfers
from hypemand.manager.volumes import ApiVolumes
from hypemand.model.metrics import ApiCounts
from hypemand.turns import make_durations
from tests.fakes.host import DEADLINE, FakeHost
from tests.openapi_check import Description


def make_services(host: FakeHost) -> Services:
    """What hypemand.daemon gives to the API."""
    daemon, config = host.daemon, host.config
    volumes = ApiVolumes(daemon.parts, daemon.manager)
    snapshots = daemon.snapshots
    counts = ApiCounts()
    return Services(
        manager=daemon.manager,
        guests=daemon.parts.guests,
        images=daemon.parts.images,
        tokens=TokenStore(config.state_dir / "tokens.json"),
        volumes=volumes,
        snapshots=snapshots,
        schedules=daemon.schedules,
        templates=ApiTemplates(daemon.parts),
        forks=ApiForks(daemon.parts, daemon.manager, snapshots),
        transfers=Transfers(daemon.parts, volumes),
        host_networks=daemon.parts.networks,
        host=HostView(daemon.parts),
        reload=daemon.reloader.reload,
        events=daemon.parts.events,
        metrics=Metrics(daemon.parts, counts, make_durations()),
        defaults=lambda: config.defaults,
        networks=lambda: config.networks,
        spool=config.state_dir,
        counts=counts,
    )


@cache
def _description() -> Description:
    return Description()


class Client:
    """Asks the API. Each answer is checked against its description."""

    def __init__(self, session: aiohttp.ClientSession, description: Description) -> None:
        self._session = session
        self._description = description

    async def ask(self, method: str, target: str, body: object = None) -> tuple[int, Any]:
        """Status and document of the answer."""
        async with self._session.request(method, f"http://localhost{target}", json=body) as response:
            content = await response.read()
            kind = response.headers.get("Content-Type")
            self._description.check_answer(method, target, response.status, kind, content)
            return response.status, await response.json() if content else None


@asynccontextmanager
async def serving(host: FakeHost, path: Path, services: Services | None = None) -> AsyncIterator[Client]:
    """Serve on a socket at `path` as long as the block lasts."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen()
    connector = aiohttp.UnixConnector(str(path))
    timeout = aiohttp.ClientTimeout(total=DEADLINE)
    async with (
        serve(make_app(services or make_services(host)), listener),
        aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
    ):
        yield Client(session, _description())
