# SPDX-License-Identifier: Apache-2.0
"""The table of two versions."""

from bench.compare import render


def test_medians_their_ratio_and_how_often_the_later_was_faster() -> None:
    text = render({"wired": [[100.0, 110.0, 130.0], [99.0, 121.0, 122.0]], "wired: new": [[], [1.0]]})
    assert text.splitlines()[1].split() == [
        "wired",
        "110.0",
        "121.0",
        "1.100",
        "100.0",
        "99.0",
        "2",
        "of",
        "3",
    ]
    assert len(text.splitlines()) == 2, "a step that only one of them has is no comparison"
