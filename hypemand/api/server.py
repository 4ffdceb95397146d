# SPDX-License-Identifier: Apache-2.0
"""The HTTP server: one application, one listening socket, and a shutdown with a deadline."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any, Protocol

from aiohttp import web, web_response
from aiohttp.web_protocol import RequestHandler

from hypemand.api.access import local_gate
from hypemand.api.connections import Place, Places, Requests, find_address, notice_loss
from hypemand.api.events import EventRoutes
from hypemand.api.failures import Handler, errors_as_json
from hypemand.api.heads import bound_head, defer_expectations, meet_expectation
from hypemand.api.hold import Hold
from hypemand.api.host import HostRoutes
from hypemand.api.images import ImageRoutes
from hypemand.api.metrics import MetricsRoutes, RequestCounter
from hypemand.api.networks import NetworkRoutes
from hypemand.api.requests import MAX_BODY
from hypemand.api.routes import Routes
from hypemand.api.schedules import ScheduleRoutes
from hypemand.api.services import Limits, Services
from hypemand.api.snapshots import SnapshotRoutes
from hypemand.api.templates import TemplateRoutes
from hypemand.api.transfer import TransferRoutes
from hypemand.api.unsupported import UnsupportedRoutes
from hypemand.api.volumes import VolumeRoutes
from hypemand.tasks import Tasks

FLUSH_DEADLINE = 1.0
ACCEPTED_AT_ONCE = 128
MAX_LINE = 8190


class Gate(Protocol):
    """A middleware that finds out who the client is, and lets it in or not."""

    def __call__(self, request: web.Request, handler: Handler) -> Awaitable[web.StreamResponse]: ...


_LIMITS = Limits()

log = logging.getLogger(__name__)

# Versions of what stands below are nobody's business. There is no other place to say so that also holds for
# what is refused before it is a request.
web_response.SERVER_SOFTWARE = "hypemand"  # type: ignore[attr-defined]


class _Keeper:
    """Knows the connections and requests of one application. `closing` is set when it must end."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.closing = asyncio.Event()
        self._requests: set[asyncio.Task[object]] = set()
        self._silent: dict[RequestHandler, asyncio.TimerHandle] = {}
        self._placed: dict[RequestHandler, Place] = {}
        self.places = Places(limits)

    @web.middleware
    async def track(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Know of a request until it is answered. With the first one its connection is silent no more,
        and from then on aiohttp's keep-alive deadline holds."""
        timer = self._silent.pop(request.protocol, None)
        if timer is not None:
            timer.cancel()
        task = asyncio.current_task()
        assert task is not None, "a handler runs in a task"
        self._requests.add(task)
        try:
            return await handler(request)
        finally:
            self._requests.discard(task)

    @web.middleware
    async def know(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Middleware after authentication: mark the connection as authenticated."""
        place = self._placed.get(request.protocol)
        if place is not None:
            self.places.know(place)
        return await handler(request)

    def admit(self, server: web.Server) -> RequestHandler:
        """The protocol of a new connection. One that asks nothing is turned away."""
        handler = server()
        bound_head(handler)
        loop = asyncio.get_running_loop()
        self._silent[handler] = loop.call_later(self.limits.first_request, self._turn_away, handler)
        return handler

    def _turn_away(self, handler: RequestHandler) -> None:
        del self._silent[handler]
        handler.force_close()

    def settle(self, handler: RequestHandler, place: Place) -> None:
        """The connection has begun: it keeps the place until it ends."""
        self._placed[handler] = place
        place.close = handler.force_close

    def clear(self) -> None:
        """Give back the places of connections that have ended."""
        for handler, place in tuple(self._placed.items()):
            if handler.transport is None:
                del self._placed[handler]
                self.places.give_back(place)

    async def finish(self) -> None:
        """End streams and WebSockets, wait for other requests up to the limits' `grace`, then cancel them."""
        self.closing.set()
        if self._requests:
            _, late = await asyncio.wait(tuple(self._requests), timeout=self.limits.grace)
            for task in late:
                log.warning(
                    "a request that took longer than the %.1f s left at the end was cancelled",
                    self.limits.grace,
                )
                task.cancel()
        for timer in self._silent.values():
            timer.cancel()
        self._silent.clear()


# aiohttp from 3.9 on warns of keys that are no AppKey, and 3.8 has none.
_KEEPER: Any = web.AppKey("keeper", _Keeper) if hasattr(web, "AppKey") else "keeper"


def make_app(
    services: Services, limits: Limits = _LIMITS, gate: Gate = local_gate, hold: Hold | None = None
) -> web.Application:
    """The application with every route. It can be served once. `gate`: finds out who asks, and lets in;
    `hold`: may keep requests off when they have been let in."""
    keeper = _Keeper(limits)
    behind_gate = [keeper.know, Requests(limits).bound, (hold or Hold()).check, meet_expectation]
    middlewares = [
        keeper.track, RequestCounter(services.counts).count, errors_as_json, gate, *behind_gate
    ]  # fmt: skip
    app = web.Application(client_max_size=MAX_BODY, middlewares=middlewares)
    app[_KEEPER] = keeper
    for routes in (
        Routes, EventRoutes, ImageRoutes, VolumeRoutes, SnapshotRoutes, ScheduleRoutes, NetworkRoutes,
        HostRoutes, TransferRoutes, TemplateRoutes,
    ):  # fmt: skip
        app.router.add_routes(routes(services, keeper.closing, limits).table())
    app.router.add_routes(UnsupportedRoutes().table())
    app.router.add_routes(MetricsRoutes(services.metrics).table())
    return app


def make_metrics_app(services: Services, limits: Limits = _LIMITS) -> web.Application:
    """The application of `metrics.listen`: it has metrics and nothing else, for all on this host."""
    keeper = _Keeper(limits)
    middlewares = [keeper.track, RequestCounter(services.counts).count, errors_as_json, meet_expectation]
    app = web.Application(client_max_size=MAX_BODY, middlewares=middlewares)
    app[_KEEPER] = keeper
    app.router.add_routes(MetricsRoutes(services.metrics).table())
    return app


class HttpServer:
    """Serves an application on a bound stream socket that listens, and closes it at the end."""

    def __init__(self, app: web.Application) -> None:
        self._keeper: _Keeper = app[_KEEPER]
        self._runner = web.AppRunner(
            app,
            access_log=None,
            keepalive_timeout=self._keeper.limits.keepalive,
            lingering_time=self._keeper.limits.lingering,
            max_line_size=MAX_LINE,
            max_field_size=MAX_LINE,
        )
        self._sock: socket.socket | None = None
        self._tls: ssl.SSLContext | None = None
        self._resuming: asyncio.TimerHandle | None = None
        self._tasks = Tasks("the API")

    async def start(self, sock: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        """Begin to take connections."""
        await self._runner.setup()
        defer_expectations(self._http)
        sock.setblocking(False)
        self._sock, self._tls = sock, tls
        self._listen()

    @property
    def _http(self) -> web.Server:
        assert self._runner.server is not None, "setup makes the server"
        return self._runner.server

    def _listen(self) -> None:
        if self._sock is not None:
            asyncio.get_running_loop().add_reader(self._sock, self._accept, self._sock)

    def _accept(self, sock: socket.socket) -> None:
        """Take what is in the socket's queue. Not asyncio's way of it: that sets no limit to connections that
        are still about their TLS."""
        self._keeper.clear()
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                connection, peer = sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                log.warning("cannot take a connection: %s", error.strerror)
                loop = asyncio.get_running_loop()
                loop.remove_reader(sock)
                self._resuming = loop.call_later(self._keeper.limits.accept_pause, self._listen)
                return
            self._adopt(connection, peer)

    def _adopt(self, connection: socket.socket, peer: object) -> None:
        try:
            connection.setblocking(False)
            address = find_address(connection, peer)
            notice_loss(connection)
        except OSError:
            connection.close()  # it has ended already
            return
        place = self._keeper.places.take(address, connection.close)
        if place is None:
            connection.close()
            return
        task = self._tasks.start("connection", self._begin(connection, self._tls, place))
        place.close = task.cancel  # until it has a protocol that can end by itself

        def end(task: asyncio.Task[bool]) -> None:
            failed = task.cancelled() or task.exception() is not None
            if failed:
                connection.close()
            if failed or not task.result():
                self._keeper.places.give_back(place)

        task.add_done_callback(end)

    async def _begin(self, connection: socket.socket, tls: ssl.SSLContext | None, place: Place) -> bool:
        """Make a connection of what was accepted. False when it comes to nothing."""
        try:
            _, handler = await asyncio.get_running_loop().connect_accepted_socket(
                lambda: self._keeper.admit(self._http),
                connection,
                ssl=tls,
                ssl_handshake_timeout=None if tls is None else self._keeper.limits.first_request,
            )
        except OSError:  # of TLS too
            return False
        self._keeper.settle(handler, place)
        return True

    def stop_listening(self) -> None:
        """Take no more connections."""
        if self._resuming is not None:
            self._resuming.cancel()
        if self._sock is not None:
            asyncio.get_running_loop().remove_reader(self._sock)
            self._sock.close()
            self._sock = None

    async def finish(self) -> None:
        """Shut down: streams are aborted, commands in guests terminated, and other requests have the limits'
        `grace` to finish."""
        self.stop_listening()
        await self._tasks.close()
        await self._keeper.finish()
        for connection in self._http.connections:
            connection.close()  # lets those go at once that have nothing more to write
        await self._http.shutdown(FLUSH_DEADLINE)
        await self._runner.cleanup()


@asynccontextmanager
async def serve(app: web.Application, sock: socket.socket) -> AsyncIterator[None]:
    """Serve on a listening socket while the block runs.

    Afterwards no connection is accepted. If systemd holds the socket too, new clients wait in its queue.
    """
    server = HttpServer(app)
    await server.start(sock)
    try:
        yield
    finally:
        await server.finish()
