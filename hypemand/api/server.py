# SPDX-License-Identifier: Apache-2.0
"""The HTTP server: one application, one listening socket, and an end that keeps its deadline."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from hypemand.api.failures import Handler, errors_as_json
from hypemand.api.requests import MAX_BODY
from hypemand.api.routes import Routes
from hypemand.api.services import Limits, Services

FLUSH_DEADLINE = 1.0
BACKLOG = 128
MAX_LINE = 8190

_LIMITS = Limits()

log = logging.getLogger(__name__)


class _Keeper:
    """Knows the connections and requests of one application. `closing` is set when it must end."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.closing = asyncio.Event()
        self._requests: set[asyncio.Task[object]] = set()
        self._silent: dict[RequestHandler, asyncio.TimerHandle] = {}

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

    def admit(self, server: web.Server) -> asyncio.Protocol:
        """The protocol of a new connection. One too many, and one that asks nothing, are turned away."""
        handler = server()
        patience = self.limits.first_request if len(server.connections) < self.limits.connections else 0.0
        loop = asyncio.get_running_loop()
        self._silent[handler] = loop.call_later(patience, self._turn_away, handler)
        return handler

    def _turn_away(self, handler: RequestHandler) -> None:
        del self._silent[handler]
        handler.force_close()

    async def finish(self) -> None:
        """End what goes on by itself, give the rest its grace, then cancel it."""
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


def make_app(services: Services, limits: Limits = _LIMITS) -> web.Application:
    """The application with every route. It can be served once."""
    keeper = _Keeper(limits)
    app = web.Application(client_max_size=MAX_BODY, middlewares=[keeper.track, errors_as_json])
    app[_KEEPER] = keeper
    app.router.add_routes(Routes(services, keeper.closing, limits).table())
    return app


@asynccontextmanager
async def serve(app: web.Application, sock: socket.socket) -> AsyncIterator[None]:
    """Serve on a bound stream socket, one of ours or from systemd, which is closed at the end.

    At the end no connection is taken any more; streams break off, commands in guests are ended, and other
    requests have the limits' `grace` to finish. Clients that come meanwhile wait in the socket's queue if
    systemd holds it too.
    """
    keeper: _Keeper = app[_KEEPER]
    runner = web.AppRunner(
        app,
        access_log=None,
        keepalive_timeout=keeper.limits.keepalive,
        lingering_time=keeper.limits.lingering,
        max_line_size=MAX_LINE,
        max_field_size=MAX_LINE,
    )
    await runner.setup()
    assert runner.server is not None, "setup makes the server"
    http = runner.server
    try:
        listener = await asyncio.get_running_loop().create_server(
            lambda: keeper.admit(http), sock=sock, backlog=BACKLOG
        )
        try:
            yield
        finally:
            listener.close()
            await keeper.finish()
            for connection in http.connections:
                connection.close()  # lets those go at once that have nothing more to write
            await http.shutdown(FLUSH_DEADLINE)
    finally:
        await runner.cleanup()
