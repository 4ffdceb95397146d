# SPDX-License-Identifier: Apache-2.0
"""The check that a guest repeats while its VM is Running, and what follows when it fails."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from hypemand.config.ready import Check, Ready, ready_fields
from hypemand.config.restart import Restart

HEALTH_CHECKS = (Check.TCP, Check.HTTP, Check.EXEC)
"""The kinds of readiness check that can be repeated."""


class OnFailure(StrEnum):
    """What becomes of a VM that is unhealthy."""

    NONE = "none"
    RESTART = "restart"


@dataclass(frozen=True, slots=True)
class Health:
    """A health check. `check`: what is checked, with the time between two attempts; times are seconds,
    thresholds attempts in a row. `workdir`: of an EXEC; None: the program's. `on_failure` None: as the
    restart policy has it for other failures."""

    check: Ready
    timeout: float = 2.0
    start_period: float = 30.0
    failure_threshold: int = 3
    success_threshold: int = 1
    workdir: str | None = None
    on_failure: OnFailure | None = None

    def restarts(self, policy: Restart) -> bool:
        """Is a VM with this restart policy restarted when it is unhealthy?"""
        if self.on_failure is None:
            return policy is not Restart.NO
        return self.on_failure is OnFailure.RESTART


def health_fields(health: Health) -> list[tuple[str, str]]:
    """The fields of the guest's record `check` (docs/protocol.md)."""
    return [*ready_fields(health.check), ("timeout", str(max(round(health.timeout * 1000), 1)))]
