# SPDX-License-Identifier: Apache-2.0
"""What the API answers on the daemon itself."""

from __future__ import annotations

from dataclasses import dataclass

from hypemand.errors import Problem


@dataclass(frozen=True, slots=True)
class EventLoop:
    """Turns of the event loop that took over 100 ms: their number, and in milliseconds what the longest took,
    and the CPU time of the one that took most of that."""

    slow_turns: int = 0
    longest_ms: int = 0
    longest_cpu_ms: int = 0


@dataclass(frozen=True, slots=True)
class Health:
    """It answers."""

    status: str
    version: str | None = None
    loop: EventLoop | None = None


@dataclass(frozen=True, slots=True)
class ReloadReport:
    """What a reload of the definition files has found: names of VMs, and what is wrong in files."""

    defined: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()
