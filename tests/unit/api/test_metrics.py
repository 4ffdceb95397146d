# SPDX-License-Identifier: Apache-2.0
"""GET /metrics: who may read it, and what is counted of the API's requests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client.parser import text_string_to_metric_families

from hypemand.api.metrics import RequestCounter
from hypemand.api.server import make_metrics_app
from hypemand.model.metrics import ApiCounts
from tests.unit.api.harness import Api, drive

# Debian 12 has no types of it
parse_metrics: Callable[[str], Iterable[Any]] = text_string_to_metric_families


def read_requests(text: bytes) -> dict[tuple[str, str, str], float]:
    """Requests by method, route and status."""
    return {
        (sample.labels["method"], sample.labels["route"], sample.labels["code"]): sample.value
        for family in parse_metrics(text.decode())
        for sample in family.samples
        if sample.name == "hypemand_api_requests_total"
    }


def test_requests_are_counted_by_route_and_status_and_never_by_what_a_client_makes_up(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        await api.host.create()
        for ref in ("web", "none-1", "none-2"):
            await api.ask("GET", f"/instances/{ref}")
        for path in ("/nothing", "/nothing/else"):
            await api.ask("GET", path)
        await api.ask("POST", "/health")
        await api.ask_raw(b"PROPFIND /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = await api.ask("GET", "/metrics")
        assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        found = read_requests(answer.body)
        assert found["GET", "/instances/{ref}", "200"] == 1.0
        assert found["GET", "/instances/{ref}", "404"] == 2.0
        assert found["GET", "none", "404"] == 2.0
        assert sum(found.values()) == 7.0
        assert all("PROPFIND" not in key and "web" not in key for key in found)
        again = await api.ask("GET", "/metrics")
        assert read_requests(again.body)["GET", "/metrics", "200"] == 1.0
        assert (await api.ask("GET", "/metrics?x=1")).status == 400

    drive(tmp_path, scenario)


def test_a_request_that_ends_without_an_answer_is_counted_as_that() -> None:
    counts = ApiCounts()

    async def end(_request: web.Request) -> web.StreamResponse:
        raise asyncio.CancelledError  # as when its token is revoked

    nowhere = SimpleNamespace(route=SimpleNamespace(resource=None))
    request = cast(Any, SimpleNamespace(method="GET", match_info=nowhere))

    async def scenario() -> None:
        with pytest.raises(asyncio.CancelledError):
            await RequestCounter(counts).count(request, end)

    asyncio.run(scenario())
    assert counts.requests == {("GET", "none", "499"): 1}


def test_where_metrics_need_no_token_there_is_nothing_else(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        app: web.Application = make_metrics_app(api.services)
        async with TestClient(TestServer(app)) as client:
            answer = await client.get("/metrics")
            assert answer.status == 200
            assert b"hypemand_vms{" in await answer.read()
            for path in ("/health", "/instances", "/tokens", "/openapi.yaml"):
                assert (await client.get(path)).status == 404

    drive(tmp_path, scenario)
