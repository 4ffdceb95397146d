# SPDX-License-Identifier: Apache-2.0
"""What is told of restarts that systemd makes by itself."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from hypemand.config.definition import Definition, Restart
from hypemand.model.state import RestartBlock
from hypemand.vm.exitrecord import ExitRecord
from hypemand.vm.restarts import (
    RestartFacts,
    StartLimit,
    derive_delay,
    derive_restart_status,
    derive_start_limit,
    format_ordinal,
)

LIMIT = StartLimit(3, 60.0)


def ended(number: int, message: str = "exited with code 3", *, success: bool = False) -> ExitRecord:
    """The end of the run that was started at 10 * `number`."""
    return ExitRecord(f"{number:032x}", 3, message, success, 3, 10.0 * number + 5, started_at=10.0 * number)


def text_of(facts: RestartFacts, now: float = 40.0) -> str:
    status = derive_restart_status(facts, now)
    assert status is not None
    return status.text


def test_a_vm_that_is_not_restarted_has_no_status() -> None:
    assert derive_restart_status(RestartFacts(Restart.NO, LIMIT, 0, exit=ended(1)), 40.0) is None


def test_a_first_run_has_nothing_to_tell() -> None:
    facts = RestartFacts(Restart.ON_FAILURE, LIMIT, 0, started_at=30.0, ended=(ended(1),))
    status = derive_restart_status(facts, 40.0)
    assert status is not None
    assert (status.attempts, status.last_attempt_at, status.last_reason, status.text) == (0, None, None, "")


def test_between_two_runs_and_in_the_next_boot_it_says_why_and_which_one_it_is() -> None:
    words = "restarting: exited with code 3, 2nd of 3"
    between = RestartFacts(Restart.ON_FAILURE, LIMIT, 0, between=True, ended=(ended(1),))
    assert text_of(between, 16.0) == words
    booting = RestartFacts(Restart.ON_FAILURE, LIMIT, 1, started_at=17.0, ended=(ended(1),))
    assert text_of(booting, 18.0) == words
    running = replace(booting, is_running=True)
    assert text_of(running, 19.0) == "restarted: exited with code 3, 2nd of 3"
    assert text_of(running, 17.0 + LIMIT.interval + 1) == "", "it counts no more"


def test_a_start_after_the_interval_counts_as_the_first() -> None:
    facts = RestartFacts(Restart.ALWAYS, LIMIT, 2, started_at=100.0, ended=(ended(2), ended(1)))
    assert text_of(facts, 101.0) == "restarting: exited with code 3, 1st of 3"


def test_what_is_not_known_is_not_counted() -> None:
    facts = RestartFacts(Restart.ALWAYS, LIMIT, 25, started_at=300.0, ended=[ended(n) for n in (22, 21)])
    assert text_of(facts, 301.0) == "restarting: exited with code 3"
    assert text_of(replace(facts, ended=())) == "restarting"


@pytest.mark.parametrize("limit", [StartLimit(0, 60.0), StartLimit(3, 0.0)])
def test_without_a_limit_there_is_no_last_one(limit: StartLimit) -> None:
    facts = RestartFacts(Restart.ALWAYS, limit, 1, started_at=20.0, ended=(ended(1),))
    assert text_of(facts) == "restarting: exited with code 3"


def test_one_that_was_started_too_often_was_given_up() -> None:
    runs = (ended(3), ended(2), ended(1))
    facts = RestartFacts(Restart.ON_FAILURE, LIMIT, 2, ended=runs, exit=ended(3), failed=True)
    status = derive_restart_status(facts, 40.0)
    assert status is not None
    assert (status.attempts, status.blocked_reason) == (2, RestartBlock.LIMIT)
    assert status.text == "gave up after 3 starts: exited with code 3"
    # ended by systemctl stop before its last start
    fewer = derive_restart_status(replace(facts, restarts=1, ended=runs[:2]), 40.0)
    assert fewer is not None
    assert (fewer.blocked_reason, fewer.text) == (RestartBlock.MANUAL, "")


def test_one_that_was_stopped_on_request_was_not_given_up() -> None:
    last = ended(3, "stopped on request (killed by SIGTERM)", success=True)
    facts = RestartFacts(Restart.ALWAYS, LIMIT, 2, ended=(last, ended(2), ended(1)), exit=last)
    status = derive_restart_status(facts, 40.0)
    assert status is not None
    assert (status.blocked_reason, status.text) == (RestartBlock.MANUAL, "")


WEB = Definition("web", "alpine", boot_timeout=60.0, restart_backoff=5.0, restart_stable_after=600.0)


def test_the_limit_has_room_for_all_the_restarts_in_a_row() -> None:
    limit = derive_start_limit(replace(WEB, restart_max_attempts=3))
    assert limit.burst == 4
    # each run is nearly stable, and each boot takes all of its time
    starts = [number * (60.0 + 600.0 + 5.0 - 1) for number in range(4)]
    assert limit.count(starts) == limit.burst
    assert derive_start_limit(replace(WEB, boot_timeout=None)).interval > 5 * 86400
    assert not derive_start_limit(replace(WEB, restart_max_attempts=0)).is_set


def test_a_unit_property_takes_precedence() -> None:
    words = {"StartLimitBurst": ("2",), "StartLimitIntervalSec": ("infinity",), "RestartSec": ("7s",)}
    assert derive_start_limit(replace(WEB, unit=words)) == StartLimit(2, math.inf)
    assert (derive_delay(WEB), derive_delay(replace(WEB, unit=words))) == (5.0, 7.0)
    assert derive_delay(replace(WEB, restart_backoff_max=60.0)) is None


def test_the_next_attempt_comes_with_the_delay() -> None:
    between = RestartFacts(Restart.ALWAYS, LIMIT, 0, between=True, ended=(ended(1),), delay=5.0)
    status = derive_restart_status(between, 16.0)
    assert status is not None
    assert status.next_attempt_at == 20.0
    unknown = derive_restart_status(replace(between, delay=None), 16.0)
    assert unknown is not None
    assert unknown.next_attempt_at is None


def test_a_stop_before_the_restart_is_due_blocks_it() -> None:
    facts = RestartFacts(Restart.ALWAYS, LIMIT, 0, exit=ended(1), ended=(ended(1),))
    for stopped in (replace(facts, failed=True), replace(facts, stopped=True)):
        status = derive_restart_status(stopped, 40.0)
        assert status is not None
        assert (status.blocked_reason, status.text) == (RestartBlock.MANUAL, "")
    # as after a reboot of the host: nobody has stopped it
    other = derive_restart_status(facts, 40.0)
    assert other is not None
    assert other.blocked_reason is None


def test_the_interval_begins_anew_with_the_first_start_after_it() -> None:
    assert LIMIT.count([0, 10, 60]) == 3
    assert LIMIT.count([0, 10, 61]) == 1
    assert LIMIT.count([0, 61, 62]) == 2


def test_ordinals() -> None:
    assert [format_ordinal(n) for n in (1, 2, 3, 4, 11, 12, 13, 21, 111)] == [
        "1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "111th"
    ]  # fmt: skip
