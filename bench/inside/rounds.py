# SPDX-License-Identifier: Apache-2.0
"""Starts of VMs, bare and managed in turns, so that whatever else the machine does meets both alike."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.inside.api import execute, start_and_watch
from bench.inside.bare import Recipe, boot_all
from hypemand.protocol.sentinels import HeadersReady, ProgramStart, parse_sentinel

# series of a measurement by its name; milliseconds
Series = dict[str, list[float]]
_COMMAND_DEADLINE = 90.0
_EXECS = 5


def run(*argv: str) -> str:
    """Output of a command that must succeed."""
    done = subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        timeout=_COMMAND_DEADLINE,
        check=True,
    )
    return done.stdout


def time_command(*argv: str) -> float:
    """Milliseconds that a command takes."""
    start = time.monotonic()
    run(*argv)
    return (time.monotonic() - start) * 1000


def read_active_since(unit: str) -> float:
    """When the unit became active, CLOCK_MONOTONIC seconds."""
    return int(run("systemctl", "show", "--value", "--property=ActiveEnterTimestampMonotonic", unit)) / 1e6


def take_recipes(names: list[str], folder: Path) -> list[Recipe]:
    """Boot each VM once, for its command line, and so that its disk, like the bare one's, is not new."""
    recipes = []
    for name in names:
        start_and_watch(name)
        recipes.append(Recipe.take(f"hypeman-vm-{name}.service", folder / name))
        run("systemctl", "stop", f"hypeman-vm-{name}.service")
        recipes[-1].copy_disk()
    return recipes


def read_headers_delay(boot: str) -> float:
    """Milliseconds of the guest's clock from its program's start until its kernel headers were ready."""
    begun = time.monotonic()
    while time.monotonic() - begun < _COMMAND_DEADLINE:
        lines = run("journalctl", "--output=cat", f"_SYSTEMD_INVOCATION_ID={boot}").splitlines()
        sentinels = [parse_sentinel(line) for line in lines]
        start = [sentinel.ts_ns for sentinel in sentinels if isinstance(sentinel, ProgramStart)]
        ready = [sentinel.ts_ns for sentinel in sentinels if isinstance(sentinel, HeadersReady)]
        if start and ready:
            return (ready[0] - start[0]) / 1e6
        time.sleep(0.1)
    raise TimeoutError(f"the kernel headers of boot {boot} were not ready in {_COMMAND_DEADLINE:g} s")


def start_and_stop(name: str) -> float:
    """Milliseconds to Running, as the API reports it."""
    _asked, _seen, instance = start_and_watch(name)
    run("systemctl", "stop", f"hypeman-vm-{name}.service")
    ready_ms: float = instance["ready_ms"]
    return ready_ms


def measure_one(recipe: Recipe, name: str, plain: str, agentless: str, rounds: int) -> Series:
    """Bare, by the API, by the API without kernel headers (`plain`) and without an agent, by the handle; the
    order turns with every round."""
    series: Series = {}

    def note(key: str, milliseconds: float) -> None:
        series.setdefault(key, []).append(milliseconds)

    def bare() -> None:
        note("bare", boot_all([recipe])[0] * 1000)

    def by_api() -> None:
        asked, seen, instance = start_and_watch(name)
        unit = f"hypeman-vm-{name}.service"
        note("ready_ms", instance["ready_ms"])
        note("client", (seen - asked) * 1000)
        note("active", (read_active_since(unit) - asked) * 1000)
        note("headers", instance["ready_ms"] + read_headers_delay(instance["invocation_id"]))
        for _ in range(_EXECS):
            note("exec", execute(name, ["/bin/true"]) * 1000)
        note("exec_command", time_command("hypemanctl", "exec", name, "/bin/true"))
        note("stop", time_command("systemctl", "stop", unit))

    def without_headers() -> None:
        note("plain", start_and_stop(plain))

    def without_agent() -> None:
        note("agentless", start_and_stop(agentless))

    def by_handle() -> None:
        note("handle", time_command("systemctl", "start", f"hypeman@{name}.service"))
        note("handle_stop", time_command("systemctl", "stop", f"hypeman@{name}.service"))

    kinds = [bare, by_api, without_headers, without_agent, by_handle]
    for number in range(rounds):
        for position in range(len(kinds)):
            kinds[(number + position) % len(kinds)]()
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return series


def measure_many(recipes: list[Recipe], names: list[str], rounds: int) -> Series:
    """All at once, until the last one."""
    series: Series = {"bare": [], "client": []}
    with ThreadPoolExecutor(len(names)) as pool:
        for number in range(rounds):
            for kind in ("bare", "client") if number % 2 == 0 else ("client", "bare"):
                if kind == "bare":
                    series[kind].append(boot_all(recipes)[-1] * 1000)
                    continue
                times = list(pool.map(start_and_watch, names))
                first, last = min(asked for asked, _, _ in times), max(seen for _, seen, _ in times)
                series[kind].append((last - first) * 1000)
                run("systemctl", "stop", *(f"hypeman-vm-{name}.service" for name in names))
            print(f"round {number + 1} of {rounds}, {len(names)} at once", file=sys.stderr, flush=True)
    return series
