# SPDX-License-Identifier: Apache-2.0
"""The bench of forks fails where two of them are the same VM in anything."""

import pytest

from bench.inside.forks import check_distinct

ONE = ("b1", "m1", "10.0.0.2/24", " 01 02\n")
OTHER = ("b2", "m2", "10.0.0.3/24", " 03 04\n")


def test_forks_that_differ_in_all_are_vms_of_their_own() -> None:
    check_distinct({"one": ONE, "other": OTHER})


@pytest.mark.parametrize("place", range(4))
def test_what_two_have_in_common_is_named(place: int) -> None:
    same = tuple(ONE[place] if number == place else word for number, word in enumerate(OTHER))
    what = ("boot id", "machine id", "address", "random bytes")[place]
    with pytest.raises(RuntimeError, match=what):
        check_distinct({"one": ONE, "other": same})


def test_one_that_has_none_is_none_of_its_own() -> None:
    with pytest.raises(RuntimeError, match="machine id"):
        check_distinct({"one": ("b1", "", *ONE[2:])})
