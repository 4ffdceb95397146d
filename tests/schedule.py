# SPDX-License-Identifier: Apache-2.0
"""Which tests run in one process, one after the other, and which process takes which of them next.

Tests are scheduled in groups. A group is a module of tests on a host, on one release; a folder of unit tests;
or what builds in this checkout. A process that is free takes the group that took longest when durations were
recorded, of the release that it has a host of: booting one takes seconds. What needs no host comes first, so
that a mistake that a linter or a unit test finds is shown first.

`make durations` records how long each group takes (durations.json). Groups without a record are taken to be
as long as the mean, so that a new module needs none.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any
from zlib import crc32

import pytest
from xdist.scheduler.loadgroup import LoadGroupScheduling
from xdist.workermanage import WorkerController

from tests.host.recipe import Suite

TESTS = Path(__file__).parent
RECORD = TESTS / "durations.json"
# Builds in folders of this checkout, where two processes would be in each other's way.
CHECKOUT = "checkout"
BUILDS = ("lint/test_check", "unit/network/")
SEPARATOR = ":"


def choose_releases(module: str, chosen: Sequence[Suite], one: pytest.Mark | None) -> Sequence[Suite]:
    """The releases that a test of a module runs on: all that are chosen, or one where it is marked so.

    That is the one that the mark names, else one by the module's name, so that both have about half of them.
    """
    if one is None:
        return chosen
    named = [suite for suite in chosen if suite in one.args]
    return named or [chosen[crc32(module.encode()) % len(chosen)]]


def derive_group(path: PurePath, suite: str | None, case: str = "") -> str:
    """The group of a test in a file, relative to tests/; `suite` is the release of the host that it needs, if
    any, and `case` what it has as a parameter."""
    if suite:
        return f"{suite}{SEPARATOR}{path.stem}"
    folder = path.parent.as_posix()
    if path.as_posix().startswith(BUILDS):
        return CHECKOUT
    return f"{path.stem}-{case}" if folder == "guest" else folder


def find_release(group: str) -> str | None:
    """The release of the host that a group needs; None if it needs none."""
    return group.partition(SEPARATOR)[0] if SEPARATOR in group else None


def read_durations(path: Path = RECORD) -> dict[str, float]:
    """Seconds that each group has taken; {} if none are recorded."""
    try:
        found: dict[str, float] = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    return found


def write_durations(durations: Mapping[str, float], path: Path = RECORD) -> None:
    """Record them, beside those of other groups that were recorded before."""
    merged = {**read_durations(path), **{group: round(seconds, 1) for group, seconds in durations.items()}}
    path.write_text(json.dumps(merged, indent=1, sort_keys=True) + "\n")


def estimate(groups: Iterable[str], durations: Mapping[str, float]) -> dict[str, float]:
    """Seconds that each group will take: what is recorded, or the mean of that."""
    mean = sum(durations.values()) / len(durations) if durations else 1.0
    return {group: durations.get(group, mean) for group in groups}


def choose_group(seconds: Mapping[str, float], own: str | None, others: Collection[str | None]) -> str:
    """The group to take next of those that are left, with the seconds that each takes.

    `own` is the release of the host that the process has, `others` that of each other process.
    """
    groups = [group for group in seconds if find_release(group) is None]
    if not groups:
        busy = Counter(others)
        left: dict[str, float] = {}
        for group, duration in seconds.items():
            release = find_release(group) or ""
            left[release] = left.get(release, 0) + duration
        # where it is needed most, if it has no host yet or nothing is left for that
        wanted = own if own in left else max(left, key=lambda release: left[release] / (busy[release] + 1))
        groups = [group for group in seconds if find_release(group) == wanted]
    return max(groups, key=lambda group: seconds[group])


class Scheduling(LoadGroupScheduling):  # type: ignore[misc] # xdist brings no types
    """xdist's own, but for which group is next."""

    def __init__(self, config: pytest.Config, log: Any = None) -> None:
        super().__init__(config, log)
        self._durations = read_durations()
        self._releases: dict[WorkerController, str | None] = {}

    def _assign_work_unit(self, node: WorkerController) -> None:
        others = [release for other, release in self._releases.items() if other is not node]
        seconds = estimate(self.workqueue, self._durations)
        group = choose_group(seconds, self._releases.get(node), others)
        self._releases[node] = find_release(group) or self._releases.get(node)
        self.workqueue.move_to_end(group, last=False)
        super()._assign_work_unit(node)


class Recorder:
    """Measures groups: a plugin of the process that hands them out."""

    def __init__(self, path: Path = RECORD) -> None:
        self._path = path
        self._seconds: dict[str, float] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        group = report.nodeid.rpartition("@")[2]
        self._seconds[group] = self._seconds.get(group, 0) + report.duration

    def pytest_sessionfinish(self) -> None:
        write_durations(self._seconds, self._path)
