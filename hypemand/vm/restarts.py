# SPDX-License-Identifier: Apache-2.0
"""Restarts that systemd makes by itself: how often, why, and when it gives up. Pure.

systemd counts the starts of a unit within StartLimitIntervalSec= and makes no more than StartLimitBurst= of
them (systemd.unit(5)). It keeps the result of the last run then, so that it has given up follows from the
count.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hypemand.config.definition import Restart
from hypemand.config.durations import parse_duration
from hypemand.model.state import RestartBlock
from hypemand.model.vm import RestartStatus
from hypemand.systemd.units import START_LIMIT_BURST, START_LIMIT_INTERVAL
from hypemand.vm.exitrecord import REQUESTED, ExitRecord


@dataclass(frozen=True, slots=True)
class StartLimit:
    """`burst` starts within `interval` seconds; 0 of either: there is no limit."""

    burst: int = START_LIMIT_BURST
    interval: float = START_LIMIT_INTERVAL

    @property
    def is_set(self) -> bool:
        """Is there one?"""
        return self.burst > 0 and self.interval > 0

    def count(self, starts: Sequence[float]) -> int:
        """What systemd has counted after the last of these starts, oldest first: the interval begins with the
        first start after it is over (systemd's src/basic/ratelimit.c)."""
        begin, number = -math.inf, 0
        for at in starts:
            if at - begin > self.interval:
                begin, number = at, 0
            number += 1
        return number


def find_start_limit(unit: Mapping[str, tuple[str, ...]]) -> StartLimit:
    """The start limit of a definition's `unit:`."""
    burst, interval = unit.get("StartLimitBurst"), unit.get("StartLimitIntervalSec")
    seconds = START_LIMIT_INTERVAL if interval is None else parse_duration(interval[0])
    return StartLimit(
        START_LIMIT_BURST if burst is None else int(burst[0]), math.inf if seconds is None else seconds
    )


@dataclass(frozen=True, slots=True)
class RestartFacts:
    """What is known of a VM's restarts. `restarts`: systemd's NRestarts=. `started_at`: of the run that is
    on, None between two; `is_running`: it has become Running. `ended`: its runs before, the newest first.
    `exit`: how the last run ended, of a VM that has stopped; `failed`: its unit has. `refused`: systemd has
    counted the restart that it has not made, too."""

    policy: Restart
    limit: StartLimit
    restarts: int
    between: bool = False
    started_at: float | None = None
    is_running: bool = False
    ended: Sequence[ExitRecord] = ()
    exit: ExitRecord | None = None
    failed: bool = False
    refused: bool = False


def derive_restart_status(facts: RestartFacts, now: float) -> RestartStatus | None:
    """None: systemd has not restarted it, and would not. `now`: seconds since the epoch."""
    if facts.policy is Restart.NO and facts.restarts == 0:
        return None
    last = facts.exit if facts.exit is not None else next(iter(facts.ended), None)
    reason = None if last is None else last.message
    is_live = facts.between or facts.started_at is not None
    if is_live:
        again = facts.between or facts.restarts > 0
        return RestartStatus(
            facts.restarts,
            facts.started_at if facts.restarts else None,
            None,
            reason if again else None,
            _describe_live(facts, reason, now) if again else "",
        )
    block = _derive_block(facts, last)
    if block is not RestartBlock.LIMIT:
        return RestartStatus(facts.restarts, None, block, reason, "")
    words = f"gave up after {facts.limit.burst} starts: {reason}"
    return RestartStatus(facts.restarts - facts.refused, None, block, reason, words)


def _describe_live(facts: RestartFacts, reason: str | None, now: float) -> str:
    """In words, as long as its last restart counts."""
    starts = _list_starts(facts)
    if facts.between:
        starts = [*starts, now]
    elif facts.is_running and starts and now - starts[-1] > facts.limit.interval:
        return ""
    words = "restarted" if facts.is_running else "restarting"
    number = facts.limit.count(starts)
    nth = ""
    if facts.limit.is_set and number <= facts.limit.burst and len(starts) > facts.restarts:
        nth = f"{format_ordinal(number)} of {facts.limit.burst}"
    return f"{words}: {', '.join(word for word in (reason, nth) if word)}".removesuffix(": ")


def _list_starts(facts: RestartFacts) -> list[float]:
    """When it was started since it was started on request, oldest first; those that are known."""
    before = facts.ended[: facts.restarts + (1 if facts.between or facts.started_at is None else 0)]
    starts = [record.started_at for record in reversed(before) if record.started_at is not None]
    return starts if facts.started_at is None else [*starts, facts.started_at]


def _derive_block(facts: RestartFacts, last: ExitRecord | None) -> RestartBlock | None:
    """Why it is not restarted although its policy says so."""
    if last is not None and last.message.startswith(REQUESTED):
        return RestartBlock.MANUAL
    if last is None or not facts.failed or not _is_wanted(facts.policy, last):
        return None
    limit, starts = facts.limit, _list_starts(facts)
    is_complete = len(starts) > facts.restarts
    counted = limit.count(starts) if is_complete else facts.restarts + 1
    return RestartBlock.LIMIT if limit.is_set and counted >= limit.burst else None


def _is_wanted(policy: Restart, last: ExitRecord) -> bool:
    return policy is Restart.ALWAYS or (policy is Restart.ON_FAILURE and not last.success)


def format_ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th, 11th."""
    suffix = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix}"
