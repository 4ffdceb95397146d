# SPDX-License-Identifier: Apache-2.0
"""The key `health` of a definition: plain values to a Health and back, and what is wrong in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from hypemand.config.durations import format_duration, parse_duration
from hypemand.config.health import HEALTH_CHECKS, Health, OnFailure
from hypemand.config.readydef import find_check_problems, make_check, read_check_keys, ready_to_json
from hypemand.config.source import Source
from hypemand.errors import Problem

_INTERVAL = 10.0
_TIMES = ("timeout", "start_period")
_COUNTS = ("failure_threshold", "success_threshold")


def find_health_problems(source: Source, data: Mapping[str, Any]) -> Iterator[Problem]:
    """What the schema cannot say of `health`, whose types are right."""
    said = data.get("health")
    if said is None:
        return
    problems = list(find_check_problems(source, "health", said, HEALTH_CHECKS))
    yield from problems
    if data.get("guest_agent") is False:
        what = "needs the guest agent, which makes the check"
        yield source.problem(("health",), what, "remove it, or guest_agent: false")
    if not problems and "workdir" in (keys := read_check_keys(said)) and "exec" not in keys:
        yield source.problem(("health", "workdir"), "is of an exec", "remove it")


def make_health(said: Any) -> Health | None:
    """The value of `health`, which has no problems. None: there is none."""
    if said is None:
        return None
    keys = read_check_keys(said)
    check = make_check(keys)
    if "interval" not in keys:
        check = replace(check, interval=_INTERVAL)
    values: dict[str, Any] = {key: parse_duration(keys[key]) for key in _TIMES if key in keys}
    values |= {key: int(keys[key]) for key in _COUNTS if key in keys}
    if "workdir" in keys:
        values["workdir"] = keys["workdir"]
    if "on_failure" in keys:
        values["on_failure"] = OnFailure(keys["on_failure"])
    return Health(check, **values)


def health_to_json(health: Health) -> dict[str, object]:
    """As make_health reads it."""
    result = ready_to_json(health.check)
    result |= {key: format_duration(getattr(health, key)) for key in _TIMES}
    result |= {key: getattr(health, key) for key in _COUNTS}
    if health.workdir is not None:
        result["workdir"] = health.workdir
    if health.on_failure is not None:
        result["on_failure"] = health.on_failure.value
    return result
