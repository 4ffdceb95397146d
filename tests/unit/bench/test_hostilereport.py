# SPDX-License-Identifier: Apache-2.0
"""The tables of the bench with a hostile guest."""

import pytest

from bench.hostilereport import Side, percentile, render


@pytest.mark.parametrize(
    ("values", "share", "wanted"),
    [
        ([5.0], 0.99, 5.0),
        ([float(n) for n in range(1, 101)], 0.99, 99.0),
        ([float(n) for n in range(100, 0, -1)], 0.5, 50.0),
        ([1.0, 2.0], 0.99, 2.0),
        ([], 0.99, 0.0),
    ],
)
def test_a_percentile_is_one_of_the_values(values: list[float], share: float, wanted: float) -> None:
    assert percentile(values, share) == wanted


def test_both_sides_and_all_units_are_shown() -> None:
    calm = Side({"list": [10.0, 20.0]}, [1.0] * 99 + [7.0], 40 * 1024)
    hostile = Side({"list": [30.0]}, [2.0] * 98 + [9.0, 90.0], 45 * 1024)
    text = render(calm, hostile, {"hypemand.service": 3.1})
    lines = {line[:40].strip(): line[40:].split() for line in text.splitlines()}
    assert lines["turns of the event loop, calm"] == ["1.0", "1.0", "7.0", "100"]
    assert lines["turns of the event loop, hostile guest"] == ["2.0", "9.0", "90.0", "100"]
    assert lines["list, hostile guest"] == ["30.0", "30.0", "30.0", "1"]
    assert "40.0 MiB calm, 45.0 MiB" in text
    assert any(line.split() == ["hypemand.service", "3.1"] for line in text.splitlines())
