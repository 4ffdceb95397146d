# SPDX-License-Identifier: Apache-2.0
"""Figures of warm starts as tables, and what was to be reached beside what was. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

from bench.report import Goal, render_conditions, render_goals, render_head, render_row

_STEP = ": step "
_ROWS = (
    ("bare", "bare QEMU, boot: spawn to PROGRAM-START"),
    ("cold: ready_ms", "boot: start to Running"),
    ("cold: client", "boot: POST start to Running in /watch"),
    ("cold: handle", "boot: systemctl start hypeman@NAME"),
    ("warm: ready_ms", "warm: start to Running"),
    ("warm: client", "warm: POST start to Running in /watch"),
    ("warm: handle", "warm: systemctl start hypeman@NAME"),
    ("plain", "systemctl start of a unit that executes sleep(1)"),
)


def derive_goals(figures: dict[str, Any]) -> Iterator[Goal]:
    """Of what was measured."""
    one, at_once, memory, works = (figures[key] for key in ("one", "at_once", "memory", "works"))
    yield Goal("warm / bare QEMU, boot", _ratio(one["warm: ready_ms"], one["bare"]), 0.45, "x")
    yield Goal("warm / boot", _ratio(one["warm: ready_ms"], one["cold: ready_ms"]), 0.45, "x")
    many = figures["many"]
    yield Goal(f"{many} warm / {many} bare, at once", _ratio(at_once["client"], at_once["bare"]), 0.5, "x")
    yield Goal(
        "private memory, warm / boot", _ratio(memory["warm: private"], memory["cold: private"]), 0.5, "x"
    )
    for name in ("cold", "warm"):
        added = median(one[f"{name}: handle"]) - median(one[f"{name}: client"])
        yield Goal(f"handle - start, {name}", added, 15.0, "ms")
    for work in ("cpu", "io"):
        yield Goal(
            f"{work} work, warm / boot", _ratio(works[f"warm: {work}"], works[f"cold: {work}"]), 1.03, "x"
        )


def _ratio(one: Sequence[float], other: Sequence[float]) -> float:
    return median(one) / median(other)


def render(figures: dict[str, Any]) -> tuple[str, bool]:
    """The report, and whether all goals are met."""
    one, many = figures["one"], figures["many"]
    lines = [
        render_conditions(figures["conditions"]),
        f"the template was made in {figures['template_seconds']:.1f} s",
        "",
        render_head("milliseconds"),
        *(render_row(name, one[key]) for key, name in _ROWS),
        *(render_row(key.replace(_STEP, ": "), one[key]) for key in sorted(one) if _STEP in key),
        render_row(f"{many} bare QEMUs at once, the last", figures["at_once"]["bare"]),
        render_row(f"{many} warm at once, the last", figures["at_once"]["client"]),
        *(render_row(f"{key} work in the guest", series) for key, series in figures["works"].items()),
        "",
        render_head("MiB of a VM that idles"),
        *(render_row(key, series) for key, series in sorted(figures["memory"].items())),
    ]
    goals = list(derive_goals(figures))
    lines += ["", *render_goals(goals)]
    return "\n".join(lines), all(goal.met for goal in goals)
