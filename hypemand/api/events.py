# SPDX-License-Identifier: Apache-2.0
"""GET /events: what happens on the host, as server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from aiohttp import web

from hypemand.api.access import Peer, find_peer
from hypemand.api.bodies.host import ReadEvents
from hypemand.api.render import time_json
from hypemand.api.requests import read_query
from hypemand.api.services import Limits, Services
from hypemand.api.streams import send_events
from hypemand.errors import InvalidRequest, NotFound
from hypemand.model.answers.event import HostEvent
from hypemand.model.document import encode
from hypemand.model.events import Cursor, Event, EventKind, Noted, Rename, Since


class EventRoutes:
    """The handler of the route."""

    def __init__(self, services: Services, closing: asyncio.Event, limits: Limits) -> None:
        self._events = services.events
        self._manager = services.manager
        self._closing = closing
        self._limits = limits

    def table(self) -> list[web.RouteDef]:
        """Every route of events."""
        return [web.get("/events", self.read_events, allow_head=False)]

    async def read_events(self, request: web.Request) -> web.StreamResponse:
        """The events that are wanted, of VMs that the client may see."""
        query = read_query(request, ReadEvents)
        if query.cursor is not None and query.since is not None:
            raise InvalidRequest("cursor and since cannot be given both", hint="omit one of them")
        cursor = None if query.cursor is None else Cursor.parse(query.cursor)
        since = Since(cursor, query.since, kept=not query.follow)
        noted = self._events.read(since, follow=query.follow)
        wanted = _filter(noted, self._derive_filter(query, find_peer(request)))
        return await send_events(request, wanted, _event_json, self._closing, self._limits)

    def _derive_filter(self, query: ReadEvents, peer: Peer) -> Callable[[Event], bool]:
        def is_wanted(event: Event) -> bool:
            kind = event.details.kind
            if kind is EventKind.MISSED:
                return True
            if query.kinds is not None and kind not in query.kinds:
                return False
            if query.vms is not None and _list_names(event).isdisjoint(query.vms):
                return False
            return peer.sees_all or self._may_see(event, peer)

        return is_wanted

    def _may_see(self, event: Event, peer: Peer) -> bool:
        """By its VM as it is now: of one that has gone a token for some VMs sees nothing."""
        try:
            view = self._manager.view_vm(event.vm_id or "-")
        except NotFound:
            return False
        return peer.may_see(view.name, view.definition.tags)


def _list_names(event: Event) -> set[str]:
    """By what its VM can be asked for."""
    former = {event.details.old} if isinstance(event.details, Rename) else set()
    return {event.vm, event.vm_id} | former


async def _filter(events: AsyncIterator[Noted], is_wanted: Callable[[Event], bool]) -> AsyncIterator[Noted]:
    async for noted in events:
        if is_wanted(noted.event):
            yield noted


def _event_json(noted: Noted) -> object:
    event = noted.event
    return encode(
        HostEvent(
            str(noted.cursor),
            time_json(event.at),
            event.details.kind,
            event.vm or None,
            event.vm_id or None,
            event.message,
            encode(event.details),
        )
    )
