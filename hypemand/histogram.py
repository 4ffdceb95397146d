# SPDX-License-Identifier: Apache-2.0
"""Counts of durations by size, as Prometheus has them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence


class Histogram:
    """Seconds that were observed. `bounds`: the largest of each bucket, ascending; one without a bound comes
    after them. `counts`: of each bucket alone; `total`: the sum of all that was observed."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """One more."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds

    def list_buckets(self) -> list[tuple[str, float]]:
        """The bound of each bucket as text, and how many were not larger than that."""
        words = [*(repr(float(bound)) for bound in self.bounds), "+Inf"]
        found, count = [], 0
        for word, number in zip(words, self.counts, strict=True):
            count += number
            found.append((word, float(count)))
        return found
