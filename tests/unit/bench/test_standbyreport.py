# SPDX-License-Identifier: Apache-2.0
"""The verdict of the bench of standby: goals are judged by medians."""

from typing import Any

import pytest

from bench.standbyreport import derive_goals, render

SMALL = {
    "hand: written": [190.0], "hand: durable": [195.0], "hand: ended": [200.0, 200.0, 900.0],
    "standby: committed": [205.0], "standby: client": [210.0], "standby: MiB": [42.0],
    "hand: loaded": [45.0], "hand: hello": [50.0], "hand: thawed": [52.0],
    "restore: client": [80.0, 85.0, 500.0],
    "hand_again: ended": [200.0], "again: committed": [205.0], "again: client": [210.0],
}  # fmt: skip


def make_figures(**changes: Any) -> dict[str, Any]:
    """A run in which all goals are met, but for `changes` to the small VM."""
    known = {"qemu": "QEMU", "systemd": "systemd", "cores": 2, "cpu": "CPU", "load": [0.1, 1.0]}
    forks = {"count": 25, "forks_seconds": [4.0], "colds_seconds": [9.0], "forks_pss": [500.0]}
    return {
        "conditions": known,
        "sizes": {"small": SMALL | changes, "medium": SMALL, "large": SMALL},
        "pause": {"running": [700.0], "programs": [300.0], "cpus": [200.0]},
        "forks": {**forks, "colds_pss": [2000.0]},
    }


def test_a_run_that_reaches_all_goals_is_met() -> None:
    text, met = render(make_figures())
    assert met
    assert "MISSED" not in text
    assert "small, 42 MiB saved, ms" in text


@pytest.mark.parametrize(
    ("changes", "goal"),
    [
        ({"standby: client": [221.0]}, "standby / migrate by hand, small"),
        ({"restore: client": [91.0]}, "restore - -incoming by hand"),
        ({"restore: client": [60.0]}, "restore, large / small"),
    ],
)
def test_a_goal_that_is_missed_is_named(changes: dict[str, list[float]], goal: str) -> None:
    figures = make_figures(**changes)
    assert [each.what for each in derive_goals(figures) if not each.met] == [goal]
    assert not render(figures)[1]


def test_a_part_that_was_left_out_has_no_goal() -> None:
    figures = make_figures()
    del figures["sizes"], figures["pause"]
    assert [goal.what for goal in derive_goals(figures)] == [
        "forks / cold starts, seconds",
        "forks / cold starts, pss",
    ]
