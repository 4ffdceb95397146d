# SPDX-License-Identifier: Apache-2.0
"""Figures of standby, restore and forks as tables, and what was to be reached beside what was. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

from bench.report import Goal, render_conditions, render_goals, render_head, render_row

_ROWS = (
    ("hand: written", "migrate by hand: written"),
    ("hand: durable", "migrate by hand: on the disk"),
    ("hand: ended", "migrate by hand: VMM ended"),
    ("standby: committed", "standby: saved"),
    ("standby: client", "standby: to its answer"),
    ("hand: loaded", "-incoming by hand: loaded"),
    ("hand: hello", "-incoming by hand: agent speaks"),
    ("hand: thawed", "-incoming by hand: programs go on"),
    ("restore: client", "restore: to Running"),
    ("hand_again: ended", "migrate by hand, of a restored VM"),
    ("again: committed", "standby of a restored VM: saved"),
    ("again: client", "standby of a restored VM"),
)
_SIZES = ("small", "medium", "large")
_MIB = "standby: MiB"


def derive_goals(figures: dict[str, Any]) -> Iterator[Goal]:
    """Of what was measured."""
    sizes = figures.get("sizes", {})
    if sizes:
        for size in ("small", "medium"):
            ratio = _ratio(sizes[size]["standby: client"], sizes[size]["hand: ended"])
            yield Goal(f"standby / migrate by hand, {size}", ratio, 1.10, "x")
        small, large = sizes["small"], sizes["large"]
        added = median(small["restore: client"]) - median(small["hand: hello"])
        yield Goal("restore - -incoming by hand", added, 40.0, "ms")
        yield Goal(
            "restore, large / small", _ratio(large["restore: client"], small["restore: client"]), 1.3, "x"
        )
    if "forks" in figures:
        forks = figures["forks"]
        for what in ("seconds", "pss"):
            yield Goal(
                f"forks / cold starts, {what}",
                _ratio(forks[f"forks_{what}"], forks[f"colds_{what}"]),
                1.0,
                "x",
            )


def _ratio(one: Sequence[float], other: Sequence[float]) -> float:
    return median(one) / median(other)


def render(figures: dict[str, Any]) -> tuple[str, bool]:
    """The report, and whether all goals are met."""
    lines = [render_conditions(figures["conditions"])]
    for size in _SIZES if "sizes" in figures else ():
        series = figures["sizes"][size]
        lines += ["", render_head(f"{size}, {median(series[_MIB]):.0f} MiB saved, ms")]
        lines += [render_row(name, series[key]) for key, name in _ROWS]
        lines += [render_row(key, series[key]) for key in sorted(series) if _is_step(key, series[key])]
    if "pause" in figures:
        pause = figures["pause"]
        lines += ["", render_head("fork of a VM that runs, ms")]
        lines.append(render_row("fork: to Running", pause["running"]))
        lines.append(render_row("its source's programs stand still", pause["programs"]))
        lines.append(render_row("its source's CPUs stand still", pause["cpus"]))
    if "forks" in figures:
        forks = figures["forks"]
        lines += ["", render_head(f"{forks['count']} at once")]
        for what, unit in (("seconds", "s to the last Running"), ("pss", "MiB of all VMMs (Pss)")):
            lines += [
                render_row(f"{name}: {unit}", forks[f"{key}_{what}"])
                for key, name in (("forks", "forks"), ("colds", "cold starts"))
            ]
    goals = list(derive_goals(figures))
    lines += ["", *render_goals(goals)]
    return "\n".join(lines), all(goal.met for goal in goals)


def _is_step(key: str, series: Sequence[float]) -> bool:
    """Of those of a boot, a restore has some only."""
    return key.startswith("restore: step") and median(series) > 0
