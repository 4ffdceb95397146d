# SPDX-License-Identifier: Apache-2.0
"""What the daemon and the command line take when nothing happens."""

from __future__ import annotations

import os
import resource
import subprocess
import time
from collections import Counter
from pathlib import Path

from bench.inside.rounds import Series, run

_MIB = 1024


def measure_command(*argv: str, runs: int) -> Series:
    """A whole process: milliseconds of time and of CPU."""
    series: Series = {"time": [], "cpu": []}
    for _ in range(runs):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        start = time.monotonic()
        run(*argv)
        series["time"].append((time.monotonic() - start) * 1000)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        series["cpu"].append(used * 1000)
    return series


def find_daemon() -> int:
    """The daemon's pid."""
    return int(run("systemctl", "show", "--value", "--property=MainPID", "hypemand.service"))


def read_memory(pid: int) -> dict[str, float]:
    """MiB of a process: resident, with shared pages divided among those who share them, and without them."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    sizes = {line.split(":")[0]: int(line.split()[1]) / _MIB for line in lines if line.endswith("kB")}
    private = sizes["Private_Clean"] + sizes["Private_Dirty"]
    return {"rss": sizes["Rss"], "pss": sizes["Pss"], "private": private}


def count_wakeups(pid: int, seconds: float) -> dict[str, object]:
    """System calls of a process over a while, and how often it was woken: returns of its event loop's wait.
    None of it may come from the one who counts."""
    trace = Path("/run/bench/strace")
    argv = ["strace", "--follow-forks", "--quiet=all", "--timestamps=unix,us", f"--output={trace}"]
    with subprocess.Popen([*argv, f"--attach={pid}"], stdin=subprocess.DEVNULL) as tracer:
        try:
            tracer.wait(seconds)
        except subprocess.TimeoutExpired:
            tracer.terminate()
    lines = [line for line in trace.read_text().splitlines() if "(" in line]
    calls = Counter(line.split("(")[0].split()[-1] for line in lines if "resumed>" not in line)
    waits = [line for line in lines if "epoll_wait" in line]
    # the first wait was on already when the tracer came, the last one is not over
    return {"seconds": seconds, "wakeups": max(len(waits) - 1, 0), "calls": dict(calls)}


def read_conditions() -> dict[str, object]:
    """What the figures depend on."""
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(line for line in cpuinfo if line.startswith("model name"))
    return {
        "cpu": model.partition(":")[2].strip(),
        "cores": len(os.sched_getaffinity(0)),
        "host_kernel": os.uname().release,
        "qemu": run("qemu-system-x86_64", "--version").splitlines()[0],
        "systemd": run("systemctl", "--version").splitlines()[0],
        "python": run("/usr/bin/python3", "--version").strip(),
    }
