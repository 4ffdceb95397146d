# SPDX-License-Identifier: Apache-2.0
"""The bench's verdict: goals are judged by medians, and a goal that is missed is said and counted."""

from typing import Any

import pytest

from bench.report import IO_KINDS, Kernel, derive_goals, parse_kernel, render

KERNEL = "kernel booted\nours 9/9 400\ncloud 9/9 1000\nratio 0.40, goal 0.50\n"


def make_figures(**changes: Any) -> dict[str, Any]:
    """A run in which all goals are met, but for `changes` to the single starts."""
    times = [500.0, 510.0, 520.0]
    single = dict.fromkeys(
        (
            *(
                "bare",
                "ready_ms",
                "client",
                "active",
                "handle",
                "stop",
                "handle_stop",
                "exec",
                "exec_command",
            ),
            *("plain", "headers", "agentless"),
        ),
        times,
    )
    command = {"time": [80.0], "cpu": [60.0]}
    return {
        "conditions": {
            "date": "2026-01-01T00:00:00Z", "suite": "bookworm", "qemu": "QEMU", "systemd": "systemd",
            "python": "Python", "cores": 2, "cpu": "CPU", "host_kernel": "6", "machine_load": [0.1, 1.0],
        },
        "one": single | changes,
        "many": {"bare": [4000.0], "client": [4100.0]},
        "hypemanctl list": command,
        "hypemanctl --version": command,
        "agent": {
            "exec": [5.0], "raw_in": [4000.0], "copy_in": [4400.0], "raw_out": [3000.0],
            "copy_out": [3100.0],
        },
        "disks": {
            "unladen": times, "laden": times, "create_first": [90.0], "create": [85.0], "command": [80.0],
            **{f"{who}_{kind}": [100.0] for who in ("bare", "managed") for kind in IO_KINDS},
        },
        "network": {
            "unwired": times, "wired": times, "unwired_host": [60.0], "wired_host": [64.0],
            "attach_first": [8.0], "attach_200th": [9.0], "bare_send": [100.0], "managed_send": [99.0],
        },
        "systemd": {"ready_ms": [4000.0]},
        "image": {"tools": [2000.0], "import": [2100.0]},
        "shared": {
            "shared_cache": [9.0], "shared_disk": [10.0], "copies_cache": [180.0], "copies_disk": [200.0],
        },
        "memory": {"rss": 45.0, "pss": 30.0},
        "idle": {"seconds": 60.0, "wakeups": 4, "calls": {"epoll_wait": 5}},
    }  # fmt: skip


def test_all_met() -> None:
    text, met = render(make_figures(), parse_kernel(KERNEL))
    assert met
    assert "MISSED" not in text
    assert "woken 4 times" in text


@pytest.mark.parametrize(
    ("bare", "client", "missed"),
    [
        # the median counts: one slow start is no miss
        (510.0, [500.0, 510.0, 9000.0], set()),
        # 1.08 times as long, and yet more than 60 ms more
        (2000.0, [2160.0], {"client - bare"}),
        (510.0, [565.0], {"client / bare"}),
    ],
)
def test_start_is_judged_by_difference_and_ratio(bare: float, client: list[float], missed: set[str]) -> None:
    figures = make_figures(bare=[bare], ready_ms=[bare], plain=[bare], active=[bare], client=client)
    assert {goal.what for goal in derive_goals(figures, None) if not goal.met} == missed


def test_headers_that_hold_up_a_start_are_a_miss() -> None:
    figures = make_figures(plain=[498.0])
    assert [goal.what for goal in derive_goals(figures, None) if not goal.met] == [
        "with / without kernel headers"
    ]


def test_missed_goal_is_said() -> None:
    text, met = render(make_figures(active=[900.0]), None)
    assert not met
    assert [line.split("  ")[0] for line in text.splitlines() if "MISSED" in line] == [
        "active - bare",
        "active / bare",
    ]


def test_kernel_without_ratio_is_a_miss() -> None:
    kernel = parse_kernel("bench-boot: apt knows no 6.1 cloud kernel")
    assert kernel == Kernel("bench-boot: apt knows no 6.1 cloud kernel", None, 0.5)
    assert not render(make_figures(), kernel)[1]


def test_copies_are_judged_by_what_carries_them() -> None:
    figures = make_figures()
    figures["agent"] |= {"copy_in": [5100.0]}
    assert [goal.what for goal in derive_goals(figures, None) if not goal.met] == ["copy in / raw"]


def test_slow_volumes_and_slow_io_are_missed_goals() -> None:
    figures = make_figures()
    figures["disks"] |= {"laden": [600.0], "managed_rand_read": [90.0]}
    missed = {goal.what for goal in derive_goals(figures, None) if not goal.met}
    assert missed == {"with / without 8 volumes", "IO bare / managed, rand_read"}
