# SPDX-License-Identifier: Apache-2.0
"""Measure standby, restore and forks, and print all figures as JSON."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.inside import daemon
from bench.inside.api import request, start_and_watch
from bench.inside.bare import Recipe
from bench.inside.forks import measure_forks, measure_pause
from bench.inside.rounds import Series, run
from bench.inside.saves import boot_and_save, restore_and_save
from bench.inside.touched import TOUCHED, define, wait_touched

_FOLDER = Path("/var/lib/bench")
_STATE = Path("/var/lib/hypemand/vms")


@dataclass(frozen=True)
class Size:
    """A VM to measure: MiB of memory, and how much of it its program has touched."""

    name: str
    memory: int
    touched: int


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, required=True, help="of standby and restore")
    parser.add_argument("--large", type=int, required=True, help="MiB of memory of the large VM")
    parser.add_argument("--pauses", type=int, required=True, help="forks of a VM that runs, one at a time")
    parser.add_argument("--forks", type=int, required=True, help="forks of one snapshot at once")
    parser.add_argument("--fork-rounds", type=int, required=True, help="how often")
    return parser.parse_args()


class Sizes:
    """VMs that are put into standby and restored, each beside the same one by hand."""

    def __init__(self, sizes: list[Size]) -> None:
        self._sizes = sizes
        self._recipes: dict[str, Recipe] = {}
        self.series: dict[str, Series] = {size.name: {} for size in sizes}

    def prepare(self) -> None:
        """Boot each once, for its command line, and so that no disk is new."""
        for size in self._sizes:
            define(size.name, f"{size.memory}M", size.touched)
            start_and_watch(size.name)
            self._recipes[size.name] = Recipe.take(f"hypeman-vm-{size.name}.service", _FOLDER / size.name)
            run("systemctl", "stop", f"hypeman-vm-{size.name}.service")

    def measure(self, rounds: int) -> None:
        """The order of hand and hypemand turns with every round."""
        for number in range(rounds):
            for size in self._sizes:
                self._measure_round(size, by_hand_first=number % 2 == 0)
            print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)

    def _measure_round(self, size: Size, *, by_hand_first: bool) -> None:
        recipe = self._recipes[size.name]

        def save_by_hand() -> None:
            recipe.copy_disk()
            self._note(size, "hand", boot_and_save(recipe, TOUCHED))

        def save() -> None:
            wait_touched(start_and_watch(size.name, body={"standby": "cold"})[2])
            self._note(size, "standby", standby(size.name))

        def restore_by_hand() -> None:
            recipe.copy_disk()
            restored, saved = restore_and_save(recipe, _STATE / size.name / "standby", f"{size.memory}M")
            self._note(size, "hand", restored)
            self._note(size, "hand_again", saved)

        def restore() -> None:
            self._note(size, "restore", restore_vm(size.name))
            self._note(size, "again", standby(size.name))

        for pair in ((save_by_hand, save), (restore_by_hand, restore)):
            for work in pair if by_hand_first else pair[::-1]:
                work()

    def _note(self, size: Size, what: str, took: Mapping[str, float]) -> None:
        for key, value in took.items():
            self.series[size.name].setdefault(f"{what}: {key}", []).append(value)


def standby(name: str) -> dict[str, float]:
    """Milliseconds of POST standby until what is saved is committed, and until its answer; and the MiB."""
    asked, began = time.time(), time.monotonic()
    request("POST", f"/instances/{name}/standby")
    took = (time.monotonic() - began) * 1000
    folder = _STATE / name / "standby"
    # a rename is the commit
    committed = (folder.stat().st_ctime - asked) * 1000
    stored = (folder / "memory").stat().st_blocks * 512 / 1024**2
    return {"committed": committed, "client": took, "MiB": stored}


def restore_vm(name: str) -> dict[str, float]:
    """Milliseconds of POST restore to Running in an open /watch; and of the steps."""
    asked, seen, _instance = start_and_watch(name, "restore")
    spans = request("GET", f"/instances/{name}/timeline")["spans"]
    steps = {f"step {span['name']}": span["end_ms"] - span["start_ms"] for span in spans}
    return {"client": (seen - asked) * 1000, **steps}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    figures: dict[str, Any] = {"conditions": daemon.read_conditions()}
    load = [os.getloadavg()[0]]
    if options.rounds:
        sizes = Sizes([Size("small", 128, 32), Size("medium", 1024, 200), Size("large", options.large, 200)])
        sizes.prepare()
        sizes.measure(options.rounds)
        figures["sizes"] = sizes.series
    if options.pauses:
        figures["pause"] = measure_pause(options.pauses)
    if options.forks:
        figures["forks"] = measure_forks(options.forks, options.fork_rounds)
    figures["conditions"]["load"] = [*load, os.getloadavg()[0]]
    return figures


def main() -> None:
    for left in _FOLDER.glob("*"):
        shutil.rmtree(left)
    print(json.dumps(measure(parse_options())))


if __name__ == "__main__":
    main()
