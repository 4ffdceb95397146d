# SPDX-License-Identifier: Apache-2.0
"""Accessors for an instance of the API. A missing field never raises."""

from __future__ import annotations

import math
from typing import Any

from hypemand.cli.client import Client, Instance
from hypemand.cli.values import parse_span
from hypemand.errors import TimedOut

STOP_MARGIN_SECONDS = 30.0
BOOT_MARGIN_SECONDS = 15.0
DEFAULT_BOOT_SECONDS = 90.0
DEFAULT_STOP_SECONDS = 30.0
ENDED_STATES = frozenset({"Stopped", "Standby"})


def get_instance(client: Client, ref: str) -> Instance:
    """One instance. Raises ApiError."""
    instance: Instance = client.get("instances", ref)
    return instance


def read_definition(instance: Instance, key: str) -> Any:
    """A key of its definition, or None."""
    definition = instance.get("definition")
    return definition.get(key) if isinstance(definition, dict) else None


def read_name(instance: Instance) -> str:
    """Its name."""
    return str(instance.get("name") or instance.get("id") or "?")


def read_state(instance: Instance) -> str:
    """Its state in the API's words."""
    return str(instance.get("state") or "Unknown")


def _read_span(instance: Instance, key: str, default: float) -> float:
    """A timeout of its definition in seconds, which the API writes as a number, a span, or null."""
    definition = instance.get("definition")
    if not isinstance(definition, dict) or key not in definition:
        return default
    value = definition[key]
    if value is None:
        return math.inf
    try:
        return parse_span(str(value))
    except ValueError:
        return default


def find_boot_deadline(instance: Instance) -> float:
    """Seconds after which a boot must have ended one way or the other: systemd ends it before."""
    return _read_span(instance, "boot_timeout", DEFAULT_BOOT_SECONDS) + BOOT_MARGIN_SECONDS


def find_stop_deadline(instance: Instance, timeout: float | None) -> float:
    """Seconds after which a stop must be over. `timeout`: what was asked for instead of its own."""
    own = _read_span(instance, "stop_timeout", DEFAULT_STOP_SECONDS)
    return (own if timeout is None else timeout) + STOP_MARGIN_SECONDS


def has_failed(instance: Instance) -> bool:
    """Has the last run ended in a failure? False while it runs, and when there was none."""
    return read_state(instance) in ENDED_STATES and instance.get("exit_success") is False


def describe_exit(instance: Instance) -> str:
    """How the last run ended, in words; empty when nothing is known of it."""
    code, message = instance.get("exit_code"), str(instance.get("exit_message") or "")
    if code is None or message == f"exited with code {code}":
        return message
    return ": ".join([f"exited with {code}"] + ([message] if message else []))


def build_timed_out(name: str, wanted: str, seconds: float, instance: Instance | None) -> TimedOut:
    """The error for a wait that came to its deadline."""
    now = ""
    if instance is not None:
        now = f"; it is {instance.get('status_text') or read_state(instance)}"
    return TimedOut(f"{name} was not {wanted} within {seconds:g} s{now}")
