# SPDX-License-Identifier: Apache-2.0
"""`python3 -m bench.scrape`: GET /metrics where a thousand VMs are defined and forty of them run.

Over the fakes of the unit tests: the API, the manager and what is read for metrics are the daemon's own, and
systemd and the VMMs are not there, which cost the machine what forty real VMs do. `make bench-many` measures
scrapes of a real host. How late a timer of the event loop is meanwhile says how much later anything else, as
a start, can be served.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import time
from pathlib import Path
from statistics import median

from tests.fakes.api import serving
from tests.fakes.host import FakeHost, define, folder_in_memory, running

_BEAT = 0.001
# a process of its own: what is measured is the server
_SCRAPE = """
import socket, sys, time
for _ in range(int(sys.argv[2])):
    began = time.monotonic()
    client = socket.socket(socket.AF_UNIX)
    client.connect(sys.argv[1])
    client.sendall(b"GET /metrics HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n")
    while client.recv(1 << 20):
        pass
    print((time.monotonic() - began) * 1000)
    time.sleep(0.05)
"""


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 -m bench.scrape", description=__doc__)
    parser.add_argument("--defined", type=int, default=1000, metavar="N", help="VMs that are defined (1000)")
    parser.add_argument("--running", type=int, default=40, metavar="N", help="VMs that run (40)")
    parser.add_argument("--rounds", type=int, default=50, metavar="N", help="scrapes (50)")
    return parser.parse_args()


async def beat(late: list[float]) -> None:
    """Note by how many milliseconds this is called later than asked for, each time; of these what this
    process itself was on the CPU for, and no more: the rest is the machine's, as where others work."""
    while True:
        due, cpu = time.monotonic() + _BEAT, time.process_time()
        await asyncio.sleep(_BEAT)
        late.append(min(max(time.monotonic() - due, 0.0), time.process_time() - cpu) * 1000)


async def fill(host: FakeHost, defined: int, started: int) -> None:
    for number in range(defined):
        await host.manager.create_vm(define(f"vm-{number}", network="default"), start=False)
    for number in range(started):
        await host.start(f"vm-{number}")


async def scrape(path: Path, rounds: int) -> list[float]:
    """Milliseconds of each."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _SCRAPE, str(path), str(rounds), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    return [float(line) for line in output.split()]


def show(what: str, took: list[float]) -> None:
    highest = sorted(took)[int(len(took) * 0.99)]
    print(f"{what:44}{median(took):10.2f}{highest:10.2f}{max(took):10.2f}{len(took):8}", flush=True)


async def measure(folder: Path, options: argparse.Namespace) -> None:
    async with running(folder / "host") as host:
        await fill(host, options.defined, options.running)
        async with serving(host, folder / "api.sock"):
            await scrape(folder / "api.sock", 2)  # the first one loads what it needs
            print(f"{'milliseconds':44}{'median':>10}{'99 %':>10}{'max':>10}{'n':>8}")
            quiet: list[float] = []
            beating = asyncio.create_task(beat(quiet))
            await asyncio.sleep(options.rounds * 0.06)
            beating.cancel()
            busy: list[float] = []
            beating = asyncio.create_task(beat(busy))
            took = await scrape(folder / "api.sock", options.rounds)
            beating.cancel()
            show(f"GET /metrics, {options.defined} defined, {options.running} run", took)
            show("a timer of 1 ms is late, nothing else", quiet)
            show("a timer of 1 ms is late, scraped 20 times/s", busy)


def main() -> int:
    options = parse_options()
    logging.disable()  # of processes that are not there
    with folder_in_memory() as folder:
        asyncio.run(measure(folder, options))
    return 0


if __name__ == "__main__":
    sys.exit(main())
