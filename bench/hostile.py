# SPDX-License-Identifier: Apache-2.0
"""`make bench-hostile`: what others have of the daemon while a guest does its worst, and units' exposure.

The guest is that of tests/host/test_hostile_guest.py: as PID 1 it floods the console from the start, and once
it has said that it is ready the report port, the agent's port and the network. Meanwhile VMs are listed, a
neighbour is executed in and another started, as fast as the answers come, and every turn of the daemon's
event loop is measured: while one goes on, no client is answered. The same without that guest stands beside.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.hostilereport import Side, render
from tests.host.faults import compile_static
from tests.host.lab import start_host
from tests.host.machine import TestHost
from tests.host.recipe import Suite
from tests.host.test_hostile_guest import SOURCE, hostile_guest, read_rss
from tests.host.vms import Vms, vms_of

BOOT_SECONDS = 10
_HERE = Path(__file__).parent
_PUSHED = "/opt/bench/watched.py"
_TURNS = "/run/hypemand/turns.json"
_DROPIN = "/run/systemd/system/hypemand.service.d/bench.conf"
_RUN = f"[Service]\nExecStart=\nExecStart=/usr/bin/python3 -I {_PUSHED}\n"
# argv: build or fetch. A unit as those that make images, for as long as it is looked at.
_IMAGE_UNIT = """
import sys
from pathlib import Path
from hypemand.storage.tools import UnitTools
folder = Path("/var/lib/hypemand/bench-units", sys.argv[1])
folder.mkdir(parents=True, exist_ok=True)
getattr(UnitTools(f"bench{sys.argv[1]}", Path("/var/lib/hypemand")), sys.argv[1])(
    ["sleep", "300"], folder=folder, timeout=400
)
"""


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench-hostile ARGS=…", description=__doc__.splitlines()[0])
    parser.add_argument("--suite", type=Suite, choices=list(Suite), default=Suite.BOOKWORM)
    parser.add_argument("--seconds", type=float, default=60.0, metavar="S", help="of each side (60)")
    return parser.parse_args()


# the event loop


@contextmanager
def watched_daemon(vms: Vms) -> Iterator[None]:
    """The daemon measures its turns in this block."""
    vms.host.push(_PUSHED, (_HERE / "watched.py").read_bytes())
    vms.host.push(_DROPIN, _RUN)
    vms.host.run(["systemctl", "daemon-reload"])
    try:
        yield
    finally:
        vms.host.run(["rm", _DROPIN])
        vms.host.run(["systemctl", "daemon-reload"])
        vms.restart_daemon()


def measure_side(vms: Vms, neighbour: str, seconds: float) -> dict[str, list[float]]:
    """Milliseconds that a client waits for each answer."""
    took: dict[str, list[float]] = {"list": [], "exec": [], "start": []}

    def ask(what: str, work: Callable[[], object]) -> None:
        began = time.monotonic()
        work()
        took[what].append((time.monotonic() - began) * 1000)

    end = time.monotonic() + seconds
    next_start = 0.0
    while time.monotonic() < end:
        ask("list", vms.list_all)
        ask("exec", lambda: vms.execute(neighbour, "true"))
        if time.monotonic() >= next_start:
            ask("start", lambda: vms.start("newcomer"))
            vms.ctl("stop", "newcomer")
            next_start = time.monotonic() + seconds / 6
    return took


def read_turns(vms: Vms) -> list[float]:
    """Milliseconds of each turn since the daemon was started; it is started anew."""
    vms.restart_daemon()
    turns: list[float] = json.loads(vms.host.run(["cat", _TURNS]).stdout)
    return turns


def list_slow(vms: Vms, since: float) -> list[str]:
    """What the daemon has said of turns of over 100 ms, with what held them up."""
    argv = ["journalctl", "-o", "cat", f"--since=@{since:.0f}", "-u", "hypemand.service"]
    lines = vms.host.run(argv).stdout.splitlines()
    return [line for line in lines if line.startswith("the event loop was blocked")]


def measure_hostile(vms: Vms, seconds: float) -> tuple[Side, Side]:
    """The calm side and the hostile one."""
    neighbour = vms.run("neighbour")
    vms.define("newcomer")
    with tempfile.TemporaryDirectory(prefix="bench-hostile.") as folder, watched_daemon(vms):
        options = ("-Wextra", f"-DBOOT_SECONDS={BOOT_SECONDS}")
        init = compile_static(SOURCE.read_text(), Path(folder, "init"), *options)
        vms.restart_daemon()
        took = measure_side(vms, neighbour, seconds)
        rss = read_rss(vms)
        calm = Side(took, read_turns(vms), rss)
        with hostile_guest(vms.host, init) as hostile:
            took = measure_side(vms, neighbour, BOOT_SECONDS)
            hostile.wait("Running", 300)
            later = measure_side(vms, neighbour, seconds)
            rss = read_rss(vms)
            turns = read_turns(vms)
        return calm, Side({what: took[what] + later[what] for what in took}, turns, rss)


# exposure


def read_exposure(host: TestHost, unit: str) -> float:
    """What `systemd-analyze security` calls a unit's overall exposure level: 0 to 10."""
    analysis = host.run(["systemd-analyze", "security", "--no-pager", unit]).stdout
    (verdict,) = (line for line in analysis.splitlines() if "Overall exposure level" in line)
    return float(verdict.rpartition(": ")[2].split()[0])


def measure_exposure(vms: Vms) -> dict[str, float]:
    """All units that hypemand has, by name."""
    host = vms.host
    vms.run("wired", network={"name": "default"})
    vms.run("unwired")
    units = ["hypemand.service", "hypemand-network.service"]
    units += ["hypeman-vm-wired.service", "hypeman-vm-unwired.service", "hypeman@wired.service"]
    found = {unit: read_exposure(host, unit) for unit in units}
    for kind in ("fetch", "build"):
        unit = f"hypeman-image-bench{kind}.service"
        with host.popen(["/usr/bin/python3", "-c", _IMAGE_UNIT, kind]):
            host.wait_until_succeeds(["systemctl", "--quiet", "is-active", unit])
            found[unit] = read_exposure(host, unit)
            host.run(["systemctl", "stop", unit])
    host.run(["rm", "-rf", "/var/lib/hypemand/bench-units"])
    return found


def main() -> int:
    options = parse_options()
    with start_host(options.suite) as host, vms_of(host) as vms:
        exposure = measure_exposure(vms)
        began = time.time()
        calm, hostile = measure_hostile(vms, options.seconds)
        slow = list_slow(vms, began)
        known: dict[str, Any] = {"suite": options.suite, "seconds": options.seconds}
    results = _HERE / "results"
    results.mkdir(exist_ok=True)
    stamp = time.strftime("%Y-%m-%dT%H%M%SZ", time.gmtime())
    path = results / f"{stamp}-{options.suite}-hostile.json"
    figures = known | {"exposure": exposure, "calm": calm.took, "hostile": hostile.took, "slow": slow}
    path.write_text(json.dumps(figures, indent=1) + "\n")
    print("\n".join([render(calm, hostile, exposure), "", *slow]))
    print(f"all figures: {path.relative_to(_HERE.parent)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
