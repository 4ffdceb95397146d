# SPDX-License-Identifier: Apache-2.0
"""Restarts that systemd makes by itself: how often, why, and when it gives up. Pure.

systemd counts the starts of a unit within StartLimitIntervalSec= and makes no more than StartLimitBurst= of
them (systemd.unit(5)). It keeps the result of the last run then, so that it has given up follows from the
count. The interval is long enough for all the restarts that a definition allows; that a stable run begins
a new count, the daemon sees to (hypemand.vm.stability).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hypemand.config.definition import Definition, Restart
from hypemand.config.durations import parse_duration
from hypemand.model.health import is_unhealthy
from hypemand.model.state import RestartBlock
from hypemand.model.vm import RestartStatus
from hypemand.vm.exitrecord import REQUESTED, ExitRecord


@dataclass(frozen=True, slots=True)
class StartLimit:
    """`burst` starts within `interval` seconds; 0 of either: there is no limit."""

    burst: int
    interval: float

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


_LONGEST_BOOT = 86400.0


def derive_start_limit(definition: Definition) -> StartLimit:
    """The start limit of a VM's unit: that of its `unit:`, else one for the restarts that it may have in a
    row, none of which was stable."""
    attempts = definition.restart_max_attempts
    boot = _LONGEST_BOOT if definition.boot_timeout is None else definition.boot_timeout
    delay = max(definition.restart_backoff, definition.restart_backoff_max)
    burst = attempts + 1 if attempts else 0
    interval = burst * (boot + definition.restart_stable_after + delay)
    given = definition.unit
    if "StartLimitBurst" in given:
        burst = int(given["StartLimitBurst"][0])
    if "StartLimitIntervalSec" in given:
        seconds = parse_duration(given["StartLimitIntervalSec"][0])
        interval = math.inf if seconds is None else seconds
    return StartLimit(burst, interval)


def derive_delay(definition: Definition) -> float | None:
    """Seconds before each restart. None: that differs, or there is none."""
    if definition.restart_backoff_max > definition.restart_backoff:
        return None
    given = definition.unit.get("RestartSec")
    return definition.restart_backoff if given is None else parse_duration(given[0])


@dataclass(frozen=True, slots=True)
class RestartFacts:
    """What is known of a VM's restarts. `restarts`: systemd's NRestarts=. `started_at`: of the run that is
    on, None between two; `is_running`: it has become Running. `ended`: its runs before, the newest first.
    `exit`: how the last run ended, of a VM that has stopped; `failed`: its unit has. `refused`: systemd has
    counted the restart that it has not made, too. `stopped`: while it was between two. `delay`: seconds
    between two, None: not known."""

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
    stopped: bool = False
    delay: float | None = None


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
            _derive_next(facts, last) if facts.between else None,
        )
    block = _derive_block(facts, last)
    attempts, words = facts.restarts, ""
    if block is RestartBlock.LIMIT:
        attempts -= facts.refused
        words = f"gave up after {facts.limit.burst} starts: {reason}"
    at = last.started_at if last is not None and attempts else None
    return RestartStatus(attempts, at, block, reason, words)


def _derive_next(facts: RestartFacts, last: ExitRecord | None) -> float | None:
    """When systemd starts it again."""
    return None if last is None or facts.delay is None else last.ended_at + facts.delay


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
    if facts.stopped or (last is not None and last.message.startswith(REQUESTED)):
        return RestartBlock.MANUAL
    if last is None or not facts.failed or not _is_wanted(facts.policy, last):
        return None
    limit, starts = facts.limit, _list_starts(facts)
    is_complete = len(starts) > facts.restarts
    counted = limit.count(starts) if is_complete else facts.restarts + 1
    # what else would keep systemd from it is a stop before it was due
    return RestartBlock.LIMIT if limit.is_set and counted >= limit.burst else RestartBlock.MANUAL


def _is_wanted(policy: Restart, last: ExitRecord) -> bool:
    if policy is Restart.NO:
        return is_unhealthy(last.message)  # on-watchdog
    return policy is Restart.ALWAYS or not last.success


def format_ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th, 11th."""
    suffix = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix}"
