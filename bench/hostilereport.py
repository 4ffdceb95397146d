# SPDX-License-Identifier: Apache-2.0
"""Figures of bench.hostile as tables. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Side:
    """What was measured on one side: `took`, milliseconds for each answer, by what was asked; `turns`,
    milliseconds of each turn of the daemon's event loop; `rss`, KiB of the daemon."""

    took: Mapping[str, Sequence[float]]
    turns: Sequence[float]
    rss: int


def percentile(values: Sequence[float], share: float) -> float:
    """The least value that at least `share` (0 to 1) of all are at most; 0 of none."""
    ordered = sorted(values)
    return ordered[math.ceil(round(len(ordered) * share, 6)) - 1] if ordered else 0.0


def render(calm: Side, hostile: Side, exposure: Mapping[str, float]) -> str:
    """Both sides in one table, and the units in another."""
    return "\n".join((*_render_sides(calm, hostile), "", *_render_exposure(exposure)))


def _render_sides(calm: Side, hostile: Side) -> Iterator[str]:
    yield f"{'milliseconds':40} {'median':>8} {'p99':>8} {'max':>8}      n"
    for name, side in (("calm", calm), ("hostile guest", hostile)):
        yield _row(f"turns of the event loop, {name}", side.turns)
        for what, values in side.took.items():
            yield _row(f"{what}, {name}", values)
    yield f"daemon, RSS: {calm.rss / 1024:.1f} MiB calm, {hostile.rss / 1024:.1f} MiB with the hostile guest"


def _row(name: str, values: Sequence[float]) -> str:
    shown = (percentile(values, 0.5), percentile(values, 0.99), max(values, default=0.0))
    return f"{name:40}{''.join(f' {value:8.1f}' for value in shown)} {len(values):6}"


def _render_exposure(exposure: Mapping[str, float]) -> Iterator[str]:
    yield f"{'unit':44} exposure (systemd-analyze security, 0 to 10)"
    for unit, level in exposure.items():
        yield f"{unit:44} {level:8.1f}"
