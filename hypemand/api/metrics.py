# SPDX-License-Identifier: Apache-2.0
"""GET /metrics: in Prometheus' text format; and what the API counts for it."""

from __future__ import annotations

from aiohttp import web

from hypemand.api.failures import Handler
from hypemand.api.requests import refuse_query
from hypemand.model.metrics import ApiCounts
from hypemand.model.services import MetricsService

_MEDIA = "text/plain; version=0.0.4; charset=utf-8"
# of requests for what there is not: names that clients make up must not become labels
_NO_ROUTE = "none"
_METHODS = frozenset({"GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"})
_GONE = "499"


class MetricsRoutes:
    """The handler of the route."""

    def __init__(self, metrics: MetricsService) -> None:
        self._metrics = metrics

    def table(self) -> list[web.RouteDef]:
        """Every route of metrics."""
        return [web.get("/metrics", self.read_metrics, allow_head=False)]

    async def read_metrics(self, request: web.Request) -> web.StreamResponse:
        """All metrics."""
        refuse_query(request)
        return web.Response(body=await self._metrics.render(), headers={"Content-Type": _MEDIA})


class RequestCounter:
    """Counts requests when they were answered."""

    def __init__(self, counts: ApiCounts) -> None:
        self._counts = counts

    @web.middleware
    async def count(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Middleware around what answers: the status is final."""
        code = _GONE
        try:
            response = await handler(request)
            code = str(response.status)
        finally:
            # one whose client has gone, or whose token was revoked, ends by an exception
            resource = request.match_info.route.resource
            route = _NO_ROUTE if resource is None else resource.canonical
            method = request.method if request.method in _METHODS else _NO_ROUTE
            self._counts.requests[method, route, code] += 1
        return response
