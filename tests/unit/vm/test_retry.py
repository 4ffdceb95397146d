# SPDX-License-Identifier: Apache-2.0
"""What fails all the time is tried ever less often, and what flaps does not begin anew."""

import pytest

from hypemand.vm.retry import FIRST, LONGEST, STEADY, Backoff


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_each_failure_doubles_the_wait_up_to_the_longest() -> None:
    clock = Clock()
    backoff = Backoff(clock)
    assert backoff.wait_time == 0
    waits = []
    for _ in range(12):
        backoff.fail()
        waits.append(round(backoff.wait_time, 6))
        clock.now += backoff.wait_time
        assert backoff.wait_time == pytest.approx(0)
    assert waits[:3] == [FIRST, 2 * FIRST, 4 * FIRST]
    assert waits[-1] == LONGEST


def test_what_worked_for_a_moment_does_not_begin_anew_and_what_was_steady_does() -> None:
    clock = Clock()
    backoff = Backoff(clock)
    for _ in range(20):
        backoff.succeed()
        clock.now += STEADY / 2
        backoff.fail()
    assert backoff.wait_time == pytest.approx(LONGEST)
    backoff.succeed()
    clock.now += STEADY / 2
    backoff.succeed()
    clock.now += STEADY / 2
    backoff.fail()
    assert backoff.wait_time == pytest.approx(FIRST)


def test_whether_it_works_is_known() -> None:
    backoff = Backoff(Clock())
    seen = []
    for step in (backoff.succeed, backoff.fail, backoff.fail, backoff.succeed):
        step()
        seen.append(backoff.has_failed)
    assert seen == [False, True, True, False]
