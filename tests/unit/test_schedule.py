# SPDX-License-Identifier: Apache-2.0
"""Which process runs which tests, and when: tests/schedule.py."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from pathlib import Path, PurePath
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.host.recipe import Suite
from tests.schedule import (
    CHECKOUT,
    RECORD,
    Recorder,
    Scheduling,
    choose_group,
    choose_releases,
    derive_group,
    estimate,
    find_release,
    read_durations,
    write_durations,
)

GROUPS = st.dictionaries(
    st.builds(
        lambda release, name: f"{release}:{name}" if release else name,
        st.sampled_from(["", *map(str, Suite)]),
        st.text("abc", min_size=1),
    ),
    st.floats(0.1, 500),
    min_size=1,
)


@pytest.mark.parametrize(
    ("path", "release", "case", "group"),
    [
        ("host/test_cli.py", "trixie", "trixie", "trixie:test_cli"),
        ("host/test_machine.py", None, "SIGINT", "host"),
        ("unit/api/test_exec.py", None, "", "unit/api"),
        ("unit/test_tar.py", None, "", "unit"),
        ("unit/network/test_taps.py", None, "", CHECKOUT),
        ("lint/test_check.py", None, "guest", CHECKOUT),
        ("lint/test_lint.py", None, "guest", "lint"),
        ("guest/test_boots.py", None, "boot_setup", "test_boots-boot_setup"),
    ],
)
def test_a_group_is_what_runs_in_one_process(path: str, release: str | None, case: str, group: str) -> None:
    assert derive_group(PurePath(path), release, case) == group
    assert find_release(group) == release


def test_a_test_for_one_release_runs_on_one_of_those_that_are_chosen() -> None:
    both = list(Suite)
    modules = [f"test_{number}" for number in range(40)]
    assert choose_releases("test_x", both, None) == both
    one = [choose_releases(module, both, pytest.mark.one_release.mark) for module in modules]
    assert {len(releases) for releases in one} == {1}
    assert {releases[0] for releases in one} == set(both), "each has a part of them"
    named = pytest.mark.one_release(Suite.BOOKWORM).mark
    assert {tuple(choose_releases(module, both, named)) for module in modules} == {(Suite.BOOKWORM,)}
    assert choose_releases("test_x", [Suite.TRIXIE], named) == [Suite.TRIXIE], "the other was not chosen"


def test_what_needs_no_host_is_first_and_the_longest_of_that() -> None:
    seconds = {"trixie:test_many": 90.0, "unit/api": 5.0, CHECKOUT: 40.0}
    assert choose_group(seconds, "trixie", []) == CHECKOUT


def test_a_process_keeps_to_its_release_until_nothing_is_left_of_that() -> None:
    seconds = {"trixie:test_a": 1.0, "bookworm:test_b": 90.0, "trixie:test_c": 2.0}
    assert choose_group(seconds, "trixie", ["trixie", "trixie"]) == "trixie:test_c"
    del seconds["trixie:test_a"], seconds["trixie:test_c"]
    assert choose_group(seconds, "trixie", ["bookworm"]) == "bookworm:test_b"


def test_a_new_process_goes_where_most_is_left_for_each_that_is_there() -> None:
    seconds = {"trixie:test_a": 50.0, "bookworm:test_b": 60.0}
    assert choose_group(seconds, None, [None]) == "bookworm:test_b"
    assert choose_group(seconds, None, ["bookworm"]) == "trixie:test_a"


def test_what_has_no_record_is_taken_to_be_as_long_as_the_mean() -> None:
    assert estimate(["a", "new"], {"a": 2.0, "gone": 4.0}) == {"a": 2.0, "new": 3.0}
    assert estimate(["new"], {}) == {"new": 1.0}


@given(GROUPS, st.integers(1, 6))
def test_each_group_runs_once_and_no_process_is_idle_while_something_is_left(
    seconds: dict[str, float], count: int
) -> None:
    left, taken = dict(seconds), []
    releases: dict[int, str | None] = {}
    free = [(0.0, process) for process in range(count)]
    while left:
        now, process = heapq.heappop(free)
        others = [release for other, release in releases.items() if other != process]
        group = choose_group(left, releases.get(process), others)
        releases[process] = find_release(group) or releases.get(process)
        taken.append(group)
        heapq.heappush(free, (now + left.pop(group), process))
    assert sorted(taken) == sorted(seconds)
    # what any list of jobs takes at most if no process is ever idle (Graham's bound)
    most = sum(seconds.values()) / count + max(seconds.values())
    assert max(free)[0] <= most + 1e-6


def test_xdist_hands_out_the_groups_in_that_order() -> None:
    """Over xdist's own class: it takes the first of its queue."""
    sent: list[tuple[str, list[int]]] = []

    class Node:
        shutting_down = False

        def __init__(self, name: str) -> None:
            self.name = name

        def send_runtest_some(self, tests: list[int]) -> None:
            sent.append((self.name, tests))

    option = SimpleNamespace(tx=["2*popen"], loadscopereorder=True, numprocesses=2)
    config: Any = SimpleNamespace(option=option, getvalue=lambda name: getattr(option, name))
    scheduling = Scheduling(config)
    scheduling._durations = {"trixie:a": 5.0, "bookworm:b": 9.0, "unit": 1.0, "lint": 2.0}
    tests = ["t1@trixie:a", "t2@unit", "t3@bookworm:b", "t4@lint"]
    first, second = Node("first"), Node("second")
    for each in (first, second):
        scheduling.add_node(each)
        scheduling.add_node_collection(each, tests)
    scheduling.workqueue = OrderedDict(
        (scheduling._split_scope(test), {test: False}) for test in scheduling.registered_collections[first]
    )
    for each in (first, second, first, second):
        scheduling._assign_work_unit(each)
    assert sent == [("first", [3]), ("second", [1]), ("first", [2]), ("second", [0])]
    assert scheduling.workqueue == {}


def test_recorded_durations_are_merged_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "durations.json"
    assert read_durations(path) == {}
    write_durations({"a": 1.26, "b": 2.0}, path)
    write_durations({"b": 3.0}, path)
    assert read_durations(path) == {"a": 1.3, "b": 3.0}
    recorder = Recorder(path)
    for seconds in (1.0, 2.5):
        report: Any = SimpleNamespace(nodeid="tests/x.py::test_y[a@b]@trixie:x", duration=seconds)
        recorder.pytest_runtest_logreport(report)
    recorder.pytest_sessionfinish()
    assert read_durations(path) == {"a": 1.3, "b": 3.0, "trixie:x": 3.5}


def test_what_is_recorded_is_positive_and_of_both_releases() -> None:
    recorded = read_durations(RECORD)
    assert all(seconds >= 0 for seconds in recorded.values())
    assert {find_release(group) for group in recorded} == {None, *map(str, Suite)}
