# SPDX-License-Identifier: Apache-2.0
"""A VM has so much of the daemon's work, and what follows from what it sends comes before more of it."""

import pytest

from hypemand.budget import BURST, PER_SECOND, Budget, Price, Reserve


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_it_is_full_at_first_and_fills_no_further() -> None:
    clock = Clock()
    budget = Budget(clock)
    clock.now += 1000
    budget.spend(BURST)
    assert budget.wait_time(Reserve.CHANGES) == 0
    budget.spend(PER_SECOND)
    assert budget.wait_time(Reserve.CHANGES) == pytest.approx(1)
    clock.now += 1
    assert budget.wait_time(Reserve.CHANGES) == 0


def test_a_flood_of_lines_stops_while_enough_is_left_for_the_rest() -> None:
    budget = Budget(Clock())
    lines = 0
    while budget.wait_time(Reserve.LINES) == 0:
        budget.spend(Price.LINE)
        lines += 1
    assert 1000 <= lines < 10_000
    for other in (Reserve.FRAMES, Reserve.EVENTS, Reserve.CHANGES):
        assert budget.wait_time(other) == 0


def test_whoever_changes_its_mind_all_the_time_causes_one_change_a_second_in_the_end() -> None:
    clock = Clock()
    budget = Budget(clock)
    changes = []
    while clock.now < 1000:
        clock.now += 0.01
        if budget.wait_time(Reserve.CHANGES) == 0:
            budget.spend(Price.CHANGE)
            changes.append(clock.now)
    assert 0.8 <= len([at for at in changes if at > 900]) / 100 <= 1.1


def test_what_the_daemon_orders_is_not_the_vms_to_pay_nor_to_save_up() -> None:
    budget = Budget(Clock())
    budget.grant(BURST)
    budget.spend(BURST + Price.CHANGE)
    assert budget.wait_time(Reserve.CHANGES) > 0
    budget.grant(Price.CHANGE)
    budget.spend(Price.CHANGE)
    budget.grant(Price.CHANGE)
    assert budget.wait_time(Reserve.CHANGES) == 0
