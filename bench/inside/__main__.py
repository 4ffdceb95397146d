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
from bench.inside.agent import measure_agent
from bench.inside.api import start_and_watch
from bench.inside.disks import measure_disks
from bench.inside.images import measure_import, measure_shared
from bench.inside.network import measure_network
from bench.inside.rounds import (
    Series,
    measure_many,
    measure_one,
    read_headers_delay,
    run,
    start_and_stop,
    take_recipes,
)

_FOLDER = Path("/var/lib/bench")
# The VM that has room for what is copied into its memory.
_ROOMY = "roomy"
_VM_DIR = Path("/etc/hypemand/vms.d")
_PLAIN = "plain"
_AGENTLESS = "agentless"
_WHOLE = "whole"
_DEFINITION = """\
image: builtin:busybox
memory: 128M
network: none
vcpus: 1
disk: 1G
cmd: [sleep, infinity]
"""
# a Debian 13 with systemd
_IMAGE = "/srv/guest"
# a root with bench/iobench.c
_IO_IMAGE = "/opt/bench/iobench"
# one with bench/netbench.c
_NET_IMAGE = "/opt/bench/netbench"
_WHOLE_DEFINITION = """\
image: guest
memory: 512M
vcpus: 1
disk: 2G
boot_timeout: 120s
"""


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, required=True, help="of single starts")
    parser.add_argument("--many-rounds", type=int, required=True, help="of starts of many at once")
    parser.add_argument("--many", type=int, required=True, help="how many at once")
    parser.add_argument("--defined", type=int, required=True, help="VMs that are defined")
    parser.add_argument("--systemd-rounds", type=int, default=5, help="of starts in systemd mode")
    parser.add_argument("--imports", type=int, default=3, help="rounds of imports of an image")
    parser.add_argument("--sharing", type=int, default=20, help="VMs that share an image")
    parser.add_argument("--copies", type=int, default=3, help="rounds of copies")
    parser.add_argument("--idle", type=float, required=True, help="seconds that the idle daemon is traced")
    return parser.parse_args()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    names = [f"bench{number}" for number in range(1, options.defined - 1)]
    for name in names:
        (_VM_DIR / f"{name}.yaml").write_text(_DEFINITION)
    # the last two of those that are defined
    (_VM_DIR / f"{_PLAIN}.yaml").write_text(_DEFINITION + "kernel_headers: false\n")
    (_VM_DIR / f"{_AGENTLESS}.yaml").write_text(_DEFINITION + "guest_agent: false\n")
    run("systemctl", "reload", "hypemand.service")
    figures: dict[str, Any] = {"conditions": daemon.read_conditions()}
    many = names[: options.many]
    load = [os.getloadavg()[0]]
    recipes = take_recipes(many, _FOLDER)
    # once before, so that their disks are not new either
    for name in (_PLAIN, _AGENTLESS):
        start_and_stop(name)
    figures["one"] = measure_one(recipes[0], names[0], _PLAIN, _AGENTLESS, options.rounds)
    figures["many"] = measure_many(recipes, many, options.many_rounds)
    load.append(os.getloadavg()[0])
    figures["conditions"]["load"] = load
    for command in (("list",), ("--version",)):
        figures["hypemanctl " + command[0]] = daemon.measure_command(
            "hypemanctl", *command, runs=options.rounds
        )
    for name in many:
        _asked, _seen, instance = start_and_watch(name)
        # the last that a start has to tell
        read_headers_delay(instance["invocation_id"])
    run("hypemanctl", "list")
    pid = daemon.find_daemon()
    figures["memory"] = daemon.read_memory(pid)
    if options.idle:
        figures["idle"] = daemon.count_wakeups(pid, options.idle)
    run("systemctl", "stop", "hypeman-vm-*.service")
    (_VM_DIR / f"{_ROOMY}.yaml").write_text(_DEFINITION.replace("128M", "704M"))
    run("systemctl", "reload", "hypemand.service")
    start_and_watch(_ROOMY)
    figures["agent"] = measure_agent(_ROOMY, options.copies)
    run("systemctl", "stop", "hypeman-vm-*.service")
    figures["disks"] = measure_disks(options.rounds, _IO_IMAGE, _FOLDER)
    figures["network"] = measure_network(options.rounds, _NET_IMAGE, _FOLDER)
    figures["systemd"] = measure_systemd(options.systemd_rounds)
    scratch = Path("/srv/bench-images")
    figures["image"] = measure_import(Path(_IMAGE), scratch / "import", options.imports)
    figures["shared"] = measure_shared(scratch / "shared", options.sharing)
    return figures


def measure_systemd(rounds: int) -> Series:
    """A whole Debian, to its agent: its first boot, in which it sets itself up, is not counted."""
    run("hypemanctl", "image", "import", "guest", _IMAGE)
    (_VM_DIR / f"{_WHOLE}.yaml").write_text(_WHOLE_DEFINITION)
    run("systemctl", "reload", "hypemand.service")
    start_and_stop(_WHOLE)
    return {"ready_ms": [start_and_stop(_WHOLE) for _ in range(rounds)]}


def main() -> None:
    shutil.rmtree(_FOLDER, ignore_errors=True)
    Path("/run/bench").mkdir(exist_ok=True)
    print(json.dumps(measure(parse_options())))


if __name__ == "__main__":
    main()
