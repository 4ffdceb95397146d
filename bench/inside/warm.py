# SPDX-License-Identifier: Apache-2.0
"""Measure warm starts beside bare QEMU and beside boots, and print all figures as JSON."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.inside import daemon
from bench.inside.api import execute, request, start_and_watch
from bench.inside.bare import Recipe, boot_all
from bench.inside.rounds import Series, measure_many, run, start_and_stop, take_recipes, time_command

_FOLDER = Path("/var/lib/bench")
_VM_DIR = Path("/etc/hypemand/vms.d")
_DROPIN = Path("/etc/hypemand/hypemand.yaml.d/warm.yaml")
_DEFINITION = {
    "image": "builtin:busybox",
    "memory": "128M",
    "vcpus": 1,
    "disk": "128M",
    "network": "none",
    "cmd": ["sh", "-c", "exec sleep infinity"],
}
_COLD, _WARM = "cold", "warm"
_PLAIN = Path("/run/systemd/system/bench-plain.service")
_PLAIN_UNIT = "[Service]\nType=exec\nExecStart=/bin/sleep infinity\n"
# work in the guest after the start: of the CPU, and of the disk
_WORKS = {
    "cpu": "i=0; while [ $i -lt 60000 ]; do i=$((i + 1)); done",
    "io": "dd if=/dev/zero of=/work bs=64k count=512 conv=fsync 2>/dev/null; rm /work",
}


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, required=True, help="of single starts")
    parser.add_argument("--many-rounds", type=int, required=True, help="of starts of many at once")
    parser.add_argument("--many", type=int, required=True, help="how many at once")
    parser.add_argument("--idle", type=int, required=True, help="VMs whose memory is measured")
    parser.add_argument("--works", type=int, required=True, help="rounds of work in a guest")
    return parser.parse_args()


def define(names: Sequence[str], **keys: object) -> None:
    """Define VMs; `keys` of their definitions."""
    for name in names:
        (_VM_DIR / f"{name}.yaml").write_text(json.dumps(_DEFINITION | keys))
    run("systemctl", "reload", "hypemand.service")


def list_steps(name: str) -> dict[str, float]:
    """Milliseconds of each step of its start, by its name."""
    spans = request("GET", f"/instances/{name}/timeline")["spans"]
    return {span["name"]: span["end_ms"] - span["start_ms"] for span in spans}


def check_kind(name: str, *, warm: bool) -> None:
    """RuntimeError unless its last start was of that kind."""
    if ("thaw" in list_steps(name)) is not warm:
        raise RuntimeError(f"{name} has {'not ' if warm else ''}started warm")


def measure_one(recipe: Recipe, rounds: int) -> Series:
    """Bare QEMU, a boot and a warm start, these two by the handle, and any unit at all, which is what the
    handle's part in them is to be compared with; the order turns with every round."""
    series: Series = {}

    def note(key: str, milliseconds: float) -> None:
        series.setdefault(key, []).append(milliseconds)

    def start(name: str) -> None:
        asked, seen, instance = start_and_watch(name)
        note(f"{name}: ready_ms", instance["ready_ms"])
        note(f"{name}: client", (seen - asked) * 1000)
        check_kind(name, warm=name == _WARM)
        for step, took in list_steps(name).items():
            note(f"{name}: step {step}", took)
        # and its handle, which the daemon has started: a start that meets its end is canceled with it
        run("systemctl", "stop", f"hypeman@{name}.service", f"hypeman-vm-{name}.service")

    def start_handle(name: str) -> None:
        note(f"{name}: handle", time_command("systemctl", "start", f"hypeman@{name}.service"))
        run("systemctl", "stop", f"hypeman@{name}.service")

    def start_plain() -> None:
        note("plain", time_command("systemctl", "start", _PLAIN.name))
        run("systemctl", "stop", _PLAIN.name)

    _PLAIN.write_text(_PLAIN_UNIT)
    run("systemctl", "daemon-reload")
    kinds = [
        lambda: note("bare", boot_all([recipe])[0] * 1000),
        lambda: start(_COLD),
        lambda: start(_WARM),
        lambda: start_handle(_COLD),
        lambda: start_handle(_WARM),
        start_plain,
    ]
    for number in range(rounds):
        for position in range(len(kinds)):
            kinds[(number + position) % len(kinds)]()
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return series


def measure_memory(count: int) -> Series:
    """MiB of so many VMs that idle, a VMM each: what it has for itself alone, and its share of all."""
    series: Series = {}
    for kind in (_COLD, _WARM):
        names = [f"{kind}{number}" for number in range(1, count + 1)]
        for name in names:
            start_and_watch(name)
            check_kind(name, warm=kind == _WARM)
        time.sleep(2)
        for name in names:
            pid = int(run("systemctl", "show", "--value", "--property=MainPID", f"hypeman-vm-{name}"))
            for what, size in daemon.read_memory(pid).items():
                series.setdefault(f"{kind}: {what}", []).append(size)
        run("systemctl", "stop", *(f"hypeman-vm-{name}.service" for name in names))
    return series


def measure_works(rounds: int) -> Series:
    """Milliseconds of work in a VM that has booted, and in one that has started warm, in turns."""
    series: Series = {}
    for name in (_COLD, _WARM):
        start_and_watch(name)
        check_kind(name, warm=name == _WARM)
    for number in range(rounds):
        for name in (_COLD, _WARM) if number % 2 == 0 else (_WARM, _COLD):
            for work, script in _WORKS.items():
                took = execute(name, ["sh", "-c", script]) * 1000
                series.setdefault(f"{name}: {work}", []).append(took)
    run("systemctl", "stop", f"hypeman-vm-{_COLD}.service", f"hypeman-vm-{_WARM}.service")
    return series


def measure(options: argparse.Namespace) -> dict[str, Any]:
    figures: dict[str, Any] = {"conditions": daemon.read_conditions(), "many": options.many}
    load = [os.getloadavg()[0]]
    count = max(options.many, options.idle)
    colds = [_COLD, *(f"{_COLD}{number}" for number in range(1, count + 1))]
    warms = [_WARM, *(f"{_WARM}{number}" for number in range(1, count + 1))]
    define(colds, warm_start="off")
    define(warms)
    recipes = take_recipes(colds[: options.many + 1], _FOLDER)
    # so that no disk is new
    for name in (*colds[options.many + 1 :], *warms):
        start_and_stop(name)
    _DROPIN.parent.mkdir(parents=True, exist_ok=True)
    _DROPIN.write_text("warm_start: {mode: auto}\n")
    run("systemctl", "reload", "hypemand.service")
    began = time.monotonic()
    run("hypemanctl", "template", "create", _WARM)
    figures["template_seconds"] = time.monotonic() - began
    figures["one"] = measure_one(recipes[0], options.rounds)
    figures["at_once"] = measure_many(recipes[1:], warms[1 : options.many + 1], options.many_rounds)
    figures["memory"] = measure_memory(options.idle)
    figures["works"] = measure_works(options.works)
    figures["conditions"]["load"] = [*load, os.getloadavg()[0]]
    return figures


def main() -> None:
    shutil.rmtree(_FOLDER, ignore_errors=True)
    print(json.dumps(measure(parse_options())))


if __name__ == "__main__":
    main()
