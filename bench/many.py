# SPDX-License-Identifier: Apache-2.0
"""`make bench-many`: what the daemon needs where a thousand VMs are defined and forty of them run."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from statistics import median

from tests.host.apiget import api_get
from tests.host.lab import start_host
from tests.host.machine import TestHost
from tests.host.recipe import Suite
from tests.host.test_daemon_faults import daemon_pid
from tests.host.test_many import COUNT, DEADLINE, RUNNING, define_many, read_rss
from tests.host.vms import Vms

# In the host, so that what is measured is the daemon and not the way into the host.
_GET = """
import socket, sys, time
for _ in range(int(sys.argv[1])):
    began = time.monotonic()
    client = socket.socket(socket.AF_UNIX)
    client.connect("/run/hypemand/api.sock")
    client.sendall(f"GET {sys.argv[2]} HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n".encode())
    while client.recv(1 << 20):
        pass
    print((time.monotonic() - began) * 1000)
"""


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench-many ARGS=…", description=__doc__)
    parser.add_argument("--suite", type=Suite, choices=list(Suite), default=Suite.BOOKWORM)
    parser.add_argument("--rounds", type=int, default=30, metavar="N", help="of list, start and stop (30)")
    return parser.parse_args()


def time_it(work: Callable[[], object]) -> float:
    """Milliseconds."""
    began = time.monotonic()
    work()
    return (time.monotonic() - began) * 1000


def time_get(host: TestHost, rounds: int, path: str = "/instances") -> list[float]:
    """Milliseconds of each GET."""
    output = host.run(["/usr/bin/python3", "-c", _GET, str(rounds), path], timeout=DEADLINE).stdout
    return [float(line) for line in output.splitlines()]


def show(what: str, took: list[float]) -> None:
    print(f"{what:44}{median(took):10.1f}{max(took):10.1f}{len(took):6}", flush=True)


def restart(host: TestHost) -> None:
    """Back when the new daemon says how all VMs are."""
    host.run(["systemctl", "restart", "hypemand.service"], timeout=DEADLINE)
    assert len(api_get(host, "/instances")) >= COUNT


def main() -> int:
    options = parse_options()
    with start_host(options.suite) as host:
        vms = Vms(host)
        define_many(vms)

        def start_and_stop() -> None:
            host.run(["hypemanctl", "start", "--wait", "many-999"], timeout=DEADLINE)
            host.run(["hypemanctl", "stop", "many-999"], timeout=DEADLINE)

        def reload() -> None:
            host.run(["hypemanctl", "reload"], timeout=DEADLINE)

        print(f"{f'ms, {COUNT} VMs defined':44}{'median':>10}{'max':>10}{'n':>6}")
        show("GET /instances, none runs", time_get(host, options.rounds))
        show("reload, nothing new", [time_it(reload) for _ in range(3)])
        show("start and stop of one", [time_it(start_and_stop) for _ in range(options.rounds)])
        show("restart of the daemon", [time_it(lambda: restart(host)) for _ in range(3)])
        print(f"daemon, RSS: {read_rss(host, daemon_pid(vms)) / 1024:.1f} MiB", flush=True)
        names = [f"many-{number}" for number in range(RUNNING)]
        show(
            f"start of {RUNNING} at once",
            [time_it(lambda: vms.ctl("start", "--wait", *names, timeout=DEADLINE))],
        )
        show(f"GET /instances, {RUNNING} run", time_get(host, options.rounds))
        show(f"GET /metrics, {RUNNING} run", time_get(host, options.rounds, "/metrics"))
        show(f"restart of the daemon, {RUNNING} run", [time_it(lambda: restart(host)) for _ in range(3)])
        print(f"daemon, RSS: {read_rss(host, daemon_pid(vms)) / 1024:.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
