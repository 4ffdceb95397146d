# SPDX-License-Identifier: Apache-2.0
"""Measure, and print all figures as JSON."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

from bench.inside import daemon
from bench.inside.api import start_and_watch
from bench.inside.rounds import measure_many, measure_one, run, take_recipes

_FOLDER = Path("/var/lib/bench")
_VM_DIR = Path("/etc/hypemand/vms.d")
_DEFINITION = """\
image: builtin:busybox
memory: 128M
vcpus: 1
disk: 1G
cmd: [sleep, infinity]
"""


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, required=True, help="of single starts")
    parser.add_argument("--many-rounds", type=int, required=True, help="of starts of many at once")
    parser.add_argument("--many", type=int, required=True, help="how many at once")
    parser.add_argument("--defined", type=int, required=True, help="VMs that are defined")
    parser.add_argument("--idle", type=float, required=True, help="seconds that the idle daemon is traced")
    return parser.parse_args()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    names = [f"bench{number}" for number in range(1, options.defined + 1)]
    for name in names:
        (_VM_DIR / f"{name}.yaml").write_text(_DEFINITION)
    run("systemctl", "reload", "hypemand.service")
    figures: dict[str, Any] = {"conditions": daemon.read_conditions()}
    many = names[: options.many]
    load = [os.getloadavg()[0]]
    recipes = take_recipes(many, _FOLDER)
    figures["one"] = measure_one(recipes[0], names[0], options.rounds)
    figures["many"] = measure_many(recipes, many, options.many_rounds)
    load.append(os.getloadavg()[0])
    figures["conditions"]["load"] = load
    for command in (("list",), ("--version",)):
        figures["hypemanctl " + command[0]] = daemon.measure_command(
            "hypemanctl", *command, runs=options.rounds
        )
    for name in many:
        start_and_watch(name)
    run("hypemanctl", "list")
    pid = daemon.find_daemon()
    figures["memory"] = daemon.read_memory(pid)
    if options.idle:
        figures["idle"] = daemon.count_wakeups(pid, options.idle)
    run("systemctl", "stop", "hypeman-vm-*.service")
    return figures


def main() -> None:
    shutil.rmtree(_FOLDER, ignore_errors=True)
    Path("/run/bench").mkdir(exist_ok=True)
    print(json.dumps(measure(parse_options())))


if __name__ == "__main__":
    main()
