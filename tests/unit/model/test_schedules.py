# SPDX-License-Identifier: Apache-2.0
"""Slots of snapshot schedules, and what is kept of what they make."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hypemand.errors import InvalidRequest
from hypemand.model.schedules import Retention, ScheduleWanted, SnapshotSchedule, begin_schedule

HOUR, DAY = 3600.0, 86400.0
VM = "80000000" + "0" * 24
WANTED = ScheduleWanted(HOUR, Retention(max_count=3))


def begin(vm_id: str = VM, now: float = 1000.0) -> SnapshotSchedule:
    return begin_schedule(WANTED, vm_id, now)


def test_the_first_slot_is_after_an_interval_and_a_part_that_is_the_vms_own() -> None:
    assert begin().next_run_at == 1000 + HOUR + 180
    assert begin("0" * 32).next_run_at == 1000 + HOUR
    assert begin("f" * 32).next_run_at == pytest.approx(1000 + HOUR + 360, abs=1)
    daily = begin_schedule(replace(WANTED, interval=DAY), VM, 0.0)
    assert daily.next_run_at == DAY + 300


def test_slots_that_are_over_are_left_out_and_their_times_stay() -> None:
    schedule = begin()
    first = schedule.next_run_at
    assert not schedule.is_due(first - 1)
    assert schedule.is_due(first)
    for now, slot in ((first, 1), (first + HOUR - 1, 1), (first + HOUR, 2), (first + 10.5 * HOUR, 11)):
        assert schedule.derive_next_slot(VM, now) == first + slot * HOUR
    assert schedule.derive_next_slot(VM, first - 1) == first


def test_a_clock_that_was_set_back_does_not_put_off_a_slot_for_longer_than_a_new_schedule_has() -> None:
    assert begin(now=100 * DAY).derive_next_slot(VM, 1000.0) == begin().next_run_at


def test_only_another_interval_gives_other_slots() -> None:
    schedule = replace(begin(), last_snapshot_id="a", last_error="x")
    kept = schedule.change(replace(WANTED, retention=Retention(max_age=DAY), tags={"a": "b"}), VM, 2000.0)
    assert (kept.next_run_at, kept.created_at, kept.updated_at) == (schedule.next_run_at, 1000.0, 2000.0)
    assert (kept.last_snapshot_id, kept.wanted.tags) == ("a", {"a": "b"})
    other = schedule.change(replace(WANTED, interval=2 * HOUR), VM, 2000.0)
    assert other.next_run_at == 2000 + 2 * HOUR + 300


@pytest.mark.parametrize(
    ("retention", "surplus"),
    [
        (Retention(max_count=2), "ab"),
        (Retention(max_count=9), ""),
        (Retention(max_age=25.0), "ab"),
        (Retention(max_age=15.0, max_count=3), "abc"),
        (Retention(max_age=1.0), "abc"),
        (Retention(max_count=1), "abc"),
    ],
)
def test_what_is_beyond_either_limit_is_surplus_and_never_the_last_one(
    retention: Retention, surplus: str
) -> None:
    made = [("a", 0.0), ("b", 10.0), ("c", 20.0), ("d", 30.0)]
    assert "".join(retention.find_surplus(made, 36.0)) == surplus


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (replace(WANTED, interval=59.0), "interval: must be at least 1m"),
        (replace(WANTED, interval=float("nan")), "interval"),
        (replace(WANTED, retention=Retention()), "retention: sets no limit"),
    ],
)
def test_what_is_too_often_or_without_an_end_is_refused(wanted: ScheduleWanted, words: str) -> None:
    WANTED.check()
    with pytest.raises(InvalidRequest, match=words):
        wanted.check()


def test_a_name_has_at_most_63_characters() -> None:
    long = replace(begin(), wanted=replace(WANTED, name_prefix="a" * 47))
    assert long.derive_name(0.0) == "a" * 47 + "-19700101-000000"
    assert len(long.derive_name(0.0)) == 63
    assert begin().derive_name(90061.0) == "scheduled-19700102-010101"
