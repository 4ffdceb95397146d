# SPDX-License-Identifier: Apache-2.0
"""The verdict of the bench of warm starts: goals are judged by medians."""

from typing import Any

import pytest

from bench.warmreport import derive_goals, render

ONE = {
    "bare": [400.0, 410.0, 900.0],
    "cold: ready_ms": [430.0], "cold: client": [432.0], "cold: handle": [440.0],
    "warm: ready_ms": [180.0, 182.0, 600.0], "warm: client": [183.0], "warm: handle": [190.0],
    "plain": [7.0], "cold: step kernel": [150.0], "warm: step thaw": [20.0],
}  # fmt: skip
AT_ONCE = {"bare": [2000.0], "client": [900.0]}
MEMORY = {
    f"{kind}: {what}": [size]
    for kind, size in (("cold", 70.0), ("warm", 30.0))
    for what in ("private", "pss")
}
WORKS = {"cold: cpu": [100.0], "warm: cpu": [101.0], "cold: io": [50.0], "warm: io": [50.0]}


def make_figures(group: str = "one", **changes: Any) -> dict[str, Any]:
    """A run in which all goals are met, but for `changes` to a group of figures."""
    known = {"qemu": "QEMU", "systemd": "systemd", "cores": 2, "cpu": "CPU", "load": [0.1, 1.0]}
    figures: dict[str, Any] = {"one": ONE, "at_once": AT_ONCE, "memory": MEMORY, "works": WORKS}
    figures[group] = figures[group] | changes
    return {"conditions": known, "many": 8, "template_seconds": 3.0, **figures}


def test_a_run_that_reaches_all_goals_is_met() -> None:
    text, met = render(make_figures())
    assert met
    assert "MISSED" not in text
    assert "warm: thaw" in text
    assert "a unit that executes sleep(1)" in text


@pytest.mark.parametrize(
    ("group", "changes", "goals"),
    [
        ("one", {"warm: ready_ms": [190.0]}, ["warm / bare QEMU, boot"]),
        ("one", {"cold: ready_ms": [390.0]}, ["warm / boot"]),
        ("one", {"warm: handle": [199.0]}, ["handle - start, warm"]),
        ("at_once", {"client": [1001.0]}, ["8 warm / 8 bare, at once"]),
        ("memory", {"warm: private": [36.0]}, ["private memory, warm / boot"]),
        ("works", {"warm: io": [52.0]}, ["io work, warm / boot"]),
    ],
)
def test_a_goal_that_is_missed_is_named(
    group: str, changes: dict[str, list[float]], goals: list[str]
) -> None:
    figures = make_figures(group, **changes)
    assert [each.what for each in derive_goals(figures) if not each.met] == goals
    assert not render(figures)[1]
