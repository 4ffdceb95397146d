# SPDX-License-Identifier: Apache-2.0
"""The services behind the API, and its limits."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from hypemand.api.tokens import TokenStore
from hypemand.config.definition import DefinitionDefaults
from hypemand.config.netdef import Networks
from hypemand.model.answers.host import ReloadReport
from hypemand.model.metrics import ApiCounts
from hypemand.model.services import (
    EventService,
    ForkService,
    GuestService,
    HostService,
    ImageService,
    Manager,
    MetricsService,
    NetworkService,
    ScheduleService,
    SnapshotService,
    TemplateService,
    TransferService,
    VolumeService,
)
from hypemand.turns import TurnCounts


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client may take, and how long. Seconds, but for the first four.

    `connections`: of all clients; `strangers`: of one address, without a request that was let in;
    `client_requests` and `address_requests`: under way, of one token or uid, and of one address;
    `first_request`: from the connection to the end of the first request's head; `keepalive`: between
    requests; `body`: for a request's body; `lingering`: for the rest of a body that was refused;
    `opening`: from the upgrade to what exec is to run; `closing`: for the other side to close a
    WebSocket that has done its work; `grace`: for requests that are on when the server ends;
    `accept_pause`: when no connection can be taken (no descriptors), until it is tried again; `heartbeat`:
    from one sign of life of a stream to the next.
    """

    connections: int = 256
    strangers: int = 64
    client_requests: int = 128
    address_requests: int = 192
    first_request: float = 10.0
    keepalive: float = 75.0
    body: float = 30.0
    lingering: float = 2.0
    opening: float = 10.0
    closing: float = 2.0
    grace: float = 5.0
    accept_pause: float = 0.5
    heartbeat: float = 30.0


@dataclass(frozen=True, slots=True)
class Services:
    """All services that the API uses. `defaults` and `networks`: from the current host configuration, the
    latter None if not known; `spool`: a directory for files in transit, and `reserve` the bytes that must
    stay free on its file system; `turns`: the slow turns of the event loop; `counts`: what the API counts of
    its requests."""

    manager: Manager
    guests: GuestService
    images: ImageService
    tokens: TokenStore
    volumes: VolumeService
    transfers: TransferService
    host_networks: NetworkService
    host: HostService
    reload: Callable[[], Awaitable[ReloadReport]]
    metrics: MetricsService
    events: EventService
    snapshots: SnapshotService
    schedules: ScheduleService
    forks: ForkService
    templates: TemplateService
    defaults: Callable[[], DefinitionDefaults] = DefinitionDefaults
    networks: Callable[[], Networks | None] = lambda: None
    spool: Path = Path("/var/tmp")
    reserve: Callable[[], int] = lambda: 0
    turns: Callable[[], TurnCounts] = TurnCounts
    counts: ApiCounts = field(default_factory=ApiCounts)
