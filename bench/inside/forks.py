# SPDX-License-Identifier: Apache-2.0
"""Forks: how long their source stands still, and many of one snapshot at once beside as many cold starts."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from bench.inside.api import request, start_and_watch, wait_running
from bench.inside.daemon import read_memory
from bench.inside.rounds import Series, run
from bench.inside.touched import define, read_console, wait_touched

_SOURCE, _MEMORY, _TOUCHED = "source", "128M", 32
_DEADLINE = 30.0
# writes how long it stood still, by the time of day and by the clock that stands still with the guest, if
# that was over 50 ms
_TICKS = """\
[ -p /never ] || mkfifo /never
exec 3<>/never
last=${EPOCHREALTIME/./}; read -r up rest </proc/uptime
while :; do
    read -t 0.01 never <&3 || true
    now=${EPOCHREALTIME/./}; read -r after rest </proc/uptime
    [ $((now - last)) -le 50000 ] || echo "gap $((now - last)) $up $after"
    last=$now; up=$after
done
"""
# lines: boot id, machine id, addresses, random bytes
_WHO = """\
cat /proc/sys/kernel/random/boot_id /etc/machine-id
ip -4 -o addr show scope global | sed 's/.*inet //; s/ .*//'
head -c 16 /dev/urandom | od -An -tx1
"""


def measure_pause(rounds: int) -> Series:
    """Milliseconds of a fork of a VM that runs: until it is Running; for which programs of the source stand
    still; and of that, for which the source's CPUs do."""
    series: Series = {"running": [], "programs": [], "cpus": []}
    define("paused", _MEMORY, _TOUCHED, _TICKS, "default")
    instance = start_and_watch("paused")[2]
    wait_touched(instance)
    for number in range(rounds):
        seen = len(_read_gaps(instance))
        began = time.monotonic()
        request("POST", "/instances/paused/fork", {"name": "fork-of-paused", "from_running": True})
        running, _ = wait_running("fork-of-paused")
        series["running"].append((running - began) * 1000)
        gap, moved = max(_wait_gaps(instance, seen))
        series["programs"].append(gap)
        series["cpus"].append(max(gap - moved, 0.0))
        run("hypemanctl", "rm", "-f", "fork-of-paused")
        print(f"round {number + 1} of {rounds}, pause", file=sys.stderr, flush=True)
    run("hypemanctl", "stop", "paused")
    return series


def _read_gaps(instance: dict[str, Any]) -> list[tuple[float, float]]:
    """Milliseconds by the time of day, and of these, those of the guest's own clock."""
    lines = [line.split() for line in read_console(instance) if line.startswith("gap ")]
    return [(int(gap) / 1000, (float(after) - float(up)) * 1000) for _, gap, up, after in lines]


def _wait_gaps(instance: dict[str, Any], seen: int) -> list[tuple[float, float]]:
    """Those that came after so many."""
    end = time.monotonic() + _DEADLINE
    while True:
        gaps = _read_gaps(instance)[seen:]
        if gaps:
            return gaps
        if time.monotonic() > end:
            raise TimeoutError("the source of a fork has not noticed that it stood still")
        time.sleep(0.1)


def measure_forks(count: int, rounds: int) -> dict[str, Any]:
    """Seconds until the last of so many is Running, and MiB of all VMMs: forks of one snapshot, and cold
    starts of the same VM. RuntimeError unless each fork is a VM of its own."""
    define(_SOURCE, _MEMORY, _TOUCHED, network="default")
    wait_touched(start_and_watch(_SOURCE)[2])
    snapshot = request("POST", f"/instances/{_SOURCE}/snapshots", {})["id"]
    run("hypemanctl", "stop", _SOURCE)
    forks = [f"fork-{number}" for number in range(1, count + 1)]
    colds = [f"cold-{number}" for number in range(1, count + 1)]
    for name in colds:
        define(name, _MEMORY, _TOUCHED, network="default")
        # so that its disk is not new
        start_and_watch(name)
        run("systemctl", "stop", f"hypeman-vm-{name}.service")
    figures: dict[str, Any] = {"count": count}

    def start_forks() -> None:
        _measure_at_once(figures, "forks", forks, partial(_fork, snapshot))
        check_distinct({name: _read_identity(name) for name in forks})
        run("hypemanctl", "rm", "-f", *forks)

    def start_colds() -> None:
        _measure_at_once(figures, "colds", colds, _start_cold)
        run("systemctl", "stop", *(f"hypeman-vm-{name}.service" for name in colds))

    for number in range(rounds):
        works = (start_forks, start_colds)
        for work in works if number % 2 == 0 else works[::-1]:
            work()
        print(f"round {number + 1} of {rounds}, {count} at once", file=sys.stderr, flush=True)
    run("hypemanctl", "snapshot", "rm", snapshot)
    return figures


def _measure_at_once(
    figures: dict[str, Any], what: str, names: Sequence[str], start: Callable[[str], dict[str, Any]]
) -> None:
    began = time.monotonic()
    with ThreadPoolExecutor(len(names)) as pool:
        instances = list(pool.map(start, names))
    figures.setdefault(f"{what}_seconds", []).append(time.monotonic() - began)
    if what == "colds":
        # the forks have done that before they were forks
        for instance in instances:
            wait_touched(instance)
    pids = run("systemctl", "show", "--value", "--property=MainPID", *(f"hypeman-vm-{n}" for n in names))
    memory = [read_memory(int(pid)) for pid in pids.split()]
    figures.setdefault(f"{what}_pss", []).append(sum(one["pss"] for one in memory))


def _fork(snapshot: str, name: str) -> dict[str, Any]:
    request("POST", f"/snapshots/{snapshot}/fork", {"name": name})
    return wait_running(name)[1]


def _start_cold(name: str) -> dict[str, Any]:
    return start_and_watch(name)[2]


def _read_identity(name: str) -> tuple[str, ...]:
    return tuple(run("hypemanctl", "exec", name, "--", "sh", "-c", _WHO).split("\n", 3))


def check_distinct(identities: dict[str, tuple[str, ...]]) -> None:
    """RuntimeError if two have one of these, or one has none."""
    for number, what in enumerate(("boot id", "machine id", "address", "random bytes")):
        found = [who[number].strip() if len(who) > number else "" for who in identities.values()]
        if len(set(found)) != len(found) or "" in found:
            raise RuntimeError(f"forks are not VMs of their own: {what} {sorted(found)}")
