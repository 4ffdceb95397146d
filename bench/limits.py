# SPDX-License-Identifier: Apache-2.0
"""`make bench-limits`: do limits of disk IO and CPU hold, and does a guest's freed memory return to the host?

Each figure is what was measured over what was allowed: 1.00 is exact. The clock is the guest's.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator, Mapping

from tests.host.lab import start_host
from tests.host.recipe import Suite
from tests.host.vms import Vms, vms_of

_MB, _MIB = 10**6, 1024 * 1024
_SECONDS = 8
_FILL_MIB = 160
_NAME, _PLAIN = "limited", "plain"
_STAYS = "exec sleep infinity"


def run_timed(vms: Vms, command: str) -> float:
    """Seconds that a command of the guest's shell takes."""
    script = f"read a b </proc/uptime; {command} || exit 1; read c d </proc/uptime; echo $a $c"
    started, ended = vms.ctl("exec", _NAME, "--", "sh", "-c", script, timeout=300).stdout.split()
    return float(ended) - float(started)


def write(vms: Vms, amount: int) -> float:
    """Bytes per second."""
    return (
        amount
        * _MIB
        / run_timed(vms, f"dd if=/dev/zero of=/data bs=1M count={amount} conv=fsync 2>/dev/null")
    )


def read(vms: Vms, amount: int) -> float:
    """Bytes per second, of what `write` has written, from the disk."""
    vms.ctl("exec", _NAME, "--", "sh", "-c", "sync; echo 3 >/proc/sys/vm/drop_caches")
    return amount * _MIB / run_timed(vms, f"dd if=/data of=/dev/null bs=1M count={amount} 2>/dev/null")


def measure_disks(vms: Vms) -> Iterator[tuple[str, float]]:
    """By the definition, and after a change of the running VM."""
    rates: tuple[tuple[Mapping[str, str], int, Callable[[Vms, int], float], str], ...] = (
        ({}, 20, write, "write, by the definition"),
        ({}, 20, read, "read, by the definition"),
        ({"write": "40MB/s", "read": "5MB/s"}, 40, write, "write, changed"),
        ({}, 5, read, "read, changed"),
        ({"write": "", "read": "", "total": "10MB/s"}, 10, write, "write, of a total"),
        ({}, 10, read, "read, of a total"),
    )
    for changes, rate, work, name in rates:
        if changes:
            vms.ctl("set", _NAME, *(f"disk_io.{key}={value}" for key, value in changes.items()))
        yield f"disk {name} {rate} MB/s", work(vms, rate * _SECONDS) / (rate * _MB)


def measure_operations(vms: Vms) -> Iterator[tuple[str, float]]:
    """Reads of 4 KiB each, past the page cache of the guest."""
    vms.ctl("set", _NAME, "disk_io.total=", "disk_io.iops=200")
    count = 200 * _SECONDS
    no_read_ahead = "for disk in /sys/block/vd*/queue/read_ahead_kb; do echo 0 >$disk; done"
    vms.ctl("exec", _NAME, "--", "sh", "-c", f"sync; echo 3 >/proc/sys/vm/drop_caches; {no_read_ahead}")
    took = run_timed(vms, f"dd if=/data of=/dev/null bs=4k count={count} 2>/dev/null")
    yield "disk operations 200 a second", count / took / 200
    vms.ctl("set", _NAME, "disk_io=")


def measure_cpu(vms: Vms) -> Iterator[tuple[str, float]]:
    """Of the VMM, while its guest has as much to do as it can."""
    vms.ctl("set", _NAME, "cpu_limit=0.3")
    vms.ctl("exec", _NAME, "--", "sh", "-c", "(while :; do :; done) >/dev/null 2>&1 & echo $! >/tmp/busy")
    before, began = cpu_seconds(vms), time.monotonic()
    time.sleep(_SECONDS)
    used, took = cpu_seconds(vms) - before, time.monotonic() - began
    vms.ctl("exec", _NAME, "--", "sh", "-c", "kill $(cat /tmp/busy)")
    vms.ctl("set", _NAME, "cpu_limit=")
    yield "CPU time 0.3", used / took / 0.3


def cpu_seconds(vms: Vms) -> float:
    """What the VMM has used."""
    pid = vms.unit(_NAME, "MainPID")["MainPID"]
    fields = vms.host.run(["cat", f"/proc/{pid}/stat"]).stdout.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure_memory(vms: Vms) -> Iterator[tuple[str, float]]:
    """Of what a guest had filled and has freed, how much the VMM gives back."""
    for name, what in ((_NAME, "with"), (_PLAIN, "without")):
        vms.ctl("stop", name)
        vms.start(name)
        fill = f"mkdir -p /m; mount -t tmpfs m /m; dd if=/dev/zero of=/m/f bs=1M count={_FILL_MIB} 2>&1"
        vms.ctl("exec", name, "--", "sh", "-c", fill)
        full = resident(vms, name)
        vms.ctl("exec", name, "--", "rm", "/m/f")
        time.sleep(5)
        yield f"freed memory returned {what} a balloon", (full - resident(vms, name)) / (_FILL_MIB * _MIB)


def resident(vms: Vms, name: str) -> int:
    """Anonymous memory of the VMM."""
    pid = vms.unit(name, "MainPID")["MainPID"]
    status = vms.host.run(["cat", f"/proc/{pid}/status"]).stdout
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench-limits ARGS=…", description=__doc__)
    parser.add_argument("--suite", type=Suite, choices=list(Suite), default=Suite.BOOKWORM)
    options = parser.parse_args()
    keys = {"memory": "512M", "vcpus": 1, "disk": "2G", "kernel_headers": False}
    with start_host(options.suite) as host, vms_of(host) as vms:
        vms.run(_PLAIN, _STAYS, **keys)
        vms.run(_NAME, _STAYS, **keys, balloon=True, disk_io={"read": "20MB/s", "write": "20MB/s"})
        for measure in (measure_disks, measure_operations, measure_cpu, measure_memory):
            for name, ratio in measure(vms):
                print(f"{name:45}{ratio:6.2f}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
