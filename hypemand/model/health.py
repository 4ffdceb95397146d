# SPDX-License-Identifier: Apache-2.0
"""The health of a VM, which is beside its state: the result of the check that its definition has."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class HealthState(StrEnum):
    """The words are the published client's."""

    DISABLED = "disabled"  # there is no check
    STARTING = "starting"  # it has not succeeded yet, and failures do not count so far
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"
    UNKNOWN = "unknown"  # the VM is not Running, or its guest has not reported


UNHEALTHY = "unhealthy"
"""How the message of a run begins that was ended because of its health."""


def is_unhealthy(message: str | None) -> bool:
    """Was a run with this message ended because of its health?"""
    return message is not None and message.startswith(f"{UNHEALTHY}: ")


@dataclass(frozen=True, slots=True)
class HealthStatus:
    """As the guest has reported it last. Numbers are of attempts in a row, times seconds since the epoch."""

    state: HealthState = HealthState.DISABLED
    failures: int = 0
    successes: int = 0
    checked_at: float | None = None
    succeeded_at: float | None = None
    failed_at: float | None = None
    error: str | None = None
