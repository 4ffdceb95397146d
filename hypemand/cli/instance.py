# SPDX-License-Identifier: Apache-2.0
"""Accessors for an instance of the API. A missing field never raises."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from hypemand.cli.client import Client, Json, parse, parse_all
from hypemand.cli.exitcode import FIRST_SPOKEN_CODE, ExitCode
from hypemand.cli.terminal import GREEN, RED, YELLOW, print_error
from hypemand.cli.values import parse_span
from hypemand.errors import TimedOut
from hypemand.model.answers.instance import Instance
from hypemand.model.state import Operation, State

STOP_MARGIN_SECONDS = 30.0
DEFAULT_STOP_SECONDS = 30.0
CHANGED_ON_DISK = "definition changed on disk, run hypemanctl reload"
ENDED_STATES = frozenset(state for state in State if not state.is_vmm_active)
_COLOURS: dict[str, str] = {
    State.RUNNING: GREEN,
    State.CREATED: YELLOW,
    State.INITIALIZING: YELLOW,
    State.PAUSED: YELLOW,
    State.SHUTDOWN: YELLOW,
    State.UNKNOWN: RED,
}


def list_instances(client: Client) -> list[Instance]:
    """All instances. Raises ApiError."""
    return parse_all(Instance, client.get("instances"))


def get_instance(client: Client, ref: str) -> Instance:
    """One instance. Raises ApiError."""
    return parse(Instance, client.get("instances", ref))


def post_instance(client: Client, ref: str, what: str, *, body: Json, timeout: float) -> Instance:
    """Ask for a change of an instance; the instance then. Raises ApiError."""
    return parse(Instance, client.post("instances", ref, what, body=body, timeout=timeout))


def find_effective(instance: Instance) -> Mapping[str, Any]:
    """The definition that its guest has, or the next one would."""
    return instance.definition if instance.running_definition is None else instance.running_definition


def find_memory(instance: Instance) -> str | None:
    """The guest's memory as a definition has it, exact where the published client's spelling is not."""
    memory = find_effective(instance).get("memory")
    return instance.size if memory is None else str(memory)


def _read_span(instance: Instance, key: str, default: float) -> float:
    """A timeout of its definition in seconds, which the API writes as a number, a span, or null."""
    value = instance.definition.get(key, default)
    if value is None:
        return math.inf
    try:
        return parse_span(str(value))
    except ValueError:
        return default


def find_stop_deadline(instance: Instance, timeout: float | None) -> float:
    """Seconds after which a stop must be over. `timeout`: what was asked for instead of its own."""
    own = _read_span(instance, "stop_timeout", DEFAULT_STOP_SECONDS)
    return (own if timeout is None else timeout) + STOP_MARGIN_SECONDS


def find_state_colour(state: str, *, failed: bool) -> str | None:
    """Colour of a state; red where the last run failed."""
    return RED if failed and state == State.STOPPED else _COLOURS.get(state)


def has_failed(instance: Instance) -> bool:
    """Has the last run ended in a failure? False while it runs, and when there was none."""
    return instance.state in ENDED_STATES and instance.exit_success is False


def is_being_deleted(instance: Instance) -> bool:
    """Is it? Then that it has ended is not its last state."""
    return instance.operation is not None and instance.operation.name == Operation.DELETE


def describe_status(instance: Instance) -> str:
    """Its state with what it waits for or how it came about, in one line."""
    return instance.status_text or instance.state


def describe_exit(instance: Instance) -> str:
    """How the last run ended, in words; empty when nothing is known of it."""
    code, message = instance.exit_code, instance.exit_message or ""
    if code is None or message == f"exited with code {code}":
        return message
    return ": ".join([f"exited with {code}"] + ([message] if message else []))


def report_run(instance: Instance) -> int:
    """The exit status of the program of a run that has ended, with words where they say more."""
    name, code, message = instance.name, instance.exit_code, instance.exit_message
    if code is None:
        why = message or instance.status_text or "unknown reason"
        print_error(f"{name} stopped without an exit status: {why}")
        return ExitCode.OWN_FAILURE
    if code >= FIRST_SPOKEN_CODE and message:
        print_error(f"{name}: {message}")
    return code


def build_timed_out(name: str, wanted: str, seconds: float, instance: Instance | None) -> TimedOut:
    """The error for a wait that came to its deadline."""
    now = ""
    if instance is not None:
        now = f"; it is {describe_status(instance)}"
    return TimedOut(f"{name} was not {wanted} within {seconds:g} s{now}")
