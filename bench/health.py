# SPDX-License-Identifier: Apache-2.0
"""`make bench-health`: what health checks of many VMs, each second, cost the daemon."""

from __future__ import annotations

import argparse
import os
import sys
import time

from tests.host.lab import start_host
from tests.host.machine import TestHost
from tests.host.recipe import Suite
from tests.host.test_daemon_faults import daemon_pid
from tests.host.vms import Vms, vms_of

_DEADLINE = 1200.0
_SERVES = "mkdir /www; echo ok >/www/health; exec httpd -f -p 8080 -h /www"
_CHECK = {"http": {"port": 8080, "path": "/health"}, "interval": "1s", "timeout": "30s", "start_period": "0s"}


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench-health ARGS=…", description=__doc__)
    parser.add_argument("--suite", type=Suite, choices=list(Suite), default=Suite.BOOKWORM)
    parser.add_argument("--vms", type=int, default=40, metavar="N", help="(40)")
    parser.add_argument("--seconds", type=int, default=60, metavar="N", help="of each measurement (60)")
    return parser.parse_args()


def read_cpu(host: TestHost, pid: int) -> float:
    """Seconds of processor time that the daemon has taken."""
    fields = host.run(["cat", f"/proc/{pid}/stat"]).stdout.rpartition(")")[2].split()
    ticks = os.sysconf("SC_CLK_TCK")
    return (int(fields[11]) + int(fields[12])) / ticks


def measure(host: TestHost, pid: int, seconds: int) -> float:
    """Percent of one processor."""
    before, began = read_cpu(host, pid), time.monotonic()
    time.sleep(seconds)
    return 100 * (read_cpu(host, pid) - before) / (time.monotonic() - began)


def define(vms: Vms, names: list[str], **keys: object) -> None:
    for name in names:
        vms.write(name, _SERVES, kernel_headers=False, **keys)
    vms.reload()


def main() -> int:
    options = parse_options()
    with start_host(options.suite) as host, vms_of(host) as vms:
        names = [f"healthy-{number}" for number in range(options.vms)]
        define(vms, names)
        vms.ctl("start", "--wait", *names, timeout=_DEADLINE)
        pid = daemon_pid(vms)
        time.sleep(10)
        taken = measure(host, pid, options.seconds)
        print(f"{options.vms} VMs, no checks: {taken:.2f} % of a CPU", flush=True)
        define(vms, names, health=_CHECK)

        def count() -> int:
            return sum(vms.show(name)["health_status"]["status"] == "healthy" for name in names)

        host.wait_until(lambda: count() == len(names), "all are healthy", deadline=_DEADLINE)
        time.sleep(10)
        taken = measure(host, pid, options.seconds)
        print(f"{options.vms} VMs, each checked each second: {taken:.2f} % of a CPU", flush=True)
        print(f"of them healthy at the end: {count()}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
