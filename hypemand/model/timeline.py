# SPDX-License-Identifier: Apache-2.0
"""Where the time of a boot went."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Lane(StrEnum):
    """Who worked, in the order in which they are drawn."""

    HOST = "host"
    UNIT = "unit"
    KERNEL = "kernel"
    INIT = "init"
    AGENT = "agent"
    PROGRAM = "program"


@dataclass(frozen=True, slots=True)
class Span:
    """One step of a boot. Milliseconds since the request to start; `lane` groups spans for drawing
    (host, unit, kernel, init, agent, program)."""

    name: str
    lane: str
    start_ms: float
    end_ms: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """Where the time from the request to Running went."""

    vm: str
    boot: str
    spans: tuple[Span, ...]
    running_ms: float | None
