# SPDX-License-Identifier: Apache-2.0
"""GET /health: what it shows of the event loop."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any, cast

from aiohttp import web

from hypemand.api.routes import Routes
from hypemand.api.services import Limits
from hypemand.turns import TurnCounts
from tests.openapi_check import Description
from tests.unit.api.test_description import services


def ask(turns: TurnCounts) -> dict[str, int]:
    """What it says of the loop."""
    routes = Routes(replace(services(), turns=lambda: turns), asyncio.Event(), Limits())
    answer = cast(web.Response, asyncio.run(routes.health(cast(Any, None))))
    assert answer.text is not None
    Description().check_answer("GET", "/health", 200, "application/json", answer.text)
    shown: dict[str, int] = json.loads(answer.text)["loop"]
    return shown


def test_slow_turns_are_shown_in_milliseconds() -> None:
    assert ask(TurnCounts()) == {"slow_turns": 0, "longest_ms": 0, "longest_cpu_ms": 0}
    assert ask(TurnCounts(3, 2.5, 0.12)) == {"slow_turns": 3, "longest_ms": 2500, "longest_cpu_ms": 120}
