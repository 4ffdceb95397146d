# SPDX-License-Identifier: Apache-2.0
"""openapi.yaml says what the server has, and nothing else."""

import asyncio
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from hypemand.api.events import EventRoutes
from hypemand.api.host import HostRoutes
from hypemand.api.images import ImageRoutes
from hypemand.api.networks import NetworkRoutes
from hypemand.api.routes import Routes
from hypemand.api.schedules import ScheduleRoutes
from hypemand.api.server import make_app
from hypemand.api.services import Limits, Services
from hypemand.api.snapshots import SnapshotRoutes
from hypemand.api.templates import TemplateRoutes
from hypemand.api.tokens import TokenStore
from hypemand.api.transfer import TransferRoutes
from hypemand.api.volumes import VolumeRoutes
from hypemand.config.schemafile import load_schema
from hypemand.model.state import State
from tests.openapi_check import Description, Json

HEALTHY = '{"status":"ok","version":"1","loop":{"slow_turns":0,"longest_ms":0,"longest_cpu_ms":0}}'


def services() -> Services:
    nothing: Any = None  # nobody is asked
    tokens = TokenStore(Path("/nowhere"))
    return Services(nothing, nothing, nothing, tokens, *[nothing] * 11)


def test_the_routes_of_the_app_and_of_the_description_are_the_same() -> None:
    app = make_app(services())
    served = {(r.method, r.resource.canonical) for r in app.router.routes() if r.resource is not None}
    assert served == Description().routes()


def test_no_handler_is_left_without_a_route() -> None:
    for kind in (
        Routes, EventRoutes, ImageRoutes, VolumeRoutes, SnapshotRoutes, ScheduleRoutes, NetworkRoutes,
        HostRoutes, TransferRoutes, TemplateRoutes,
    ):  # fmt: skip
        routes = kind(services(), asyncio.Event(), Limits())
        used = {route.handler.__name__ for route in routes.table()}
        public = {name for name in vars(kind) if not name.startswith("_")} - {"table"}
        assert used == public


def test_every_schema_is_one_and_every_reference_leads_somewhere() -> None:
    description = Description()
    for schema in description.document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    pending: list[Json] = [description.document]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            assert description.resolve(value) is not None
            pending += value.values()
        elif isinstance(value, list):
            pending += value


def test_states_and_definition_keys_are_those_of_the_code() -> None:
    schemas = Description().document["components"]["schemas"]
    assert set(schemas["State"]["enum"]) == set(State)
    described, keys = schemas["Definition"]["properties"], load_schema("vm")["properties"]
    assert list(described) == list(keys)
    assert described["vcpus"] == {name: keys["vcpus"][name] for name in keys["vcpus"] if name[:2] != "x-"}
    assert described["network"]["properties"]["publish"]["items"]["pattern"]
    assert "x-size" in keys["memory"]
    assert "x-size" not in described["memory"]
    assert schemas["CreateInstance"]["properties"]["name"]


def test_the_checker_refuses_what_is_not_described() -> None:
    description = Description()
    description.check_answer("GET", "/health", 200, "application/json", HEALTHY)
    with pytest.raises(AssertionError, match="'ok' was expected"):
        description.check_answer("GET", "/health", 200, "application/json", HEALTHY.replace("ok", "bad"))
    with pytest.raises(AssertionError, match="is not described"):
        description.check_answer("GET", "/health", 201, "application/json", HEALTHY)
    with pytest.raises(AssertionError, match="text/plain"):
        description.check_answer("GET", "/health", 200, "text/plain", HEALTHY)
    with pytest.raises(AssertionError, match="not described"):
        description.check_answer("GET", "/nothing", 200, "application/json", "{}")
