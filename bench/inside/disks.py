# SPDX-License-Identifier: Apache-2.0
"""Disks and volumes: what they cost a start, how long a large one takes to make, and how fast they are beside
the same VMM without systemd, sandbox and limits."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

from bench.inside.bare import BareVm, Recipe
from bench.inside.rounds import Series, run, start_and_stop, time_command

_VM_DIR = Path("/etc/hypemand/vms.d")
_NONE, _LADEN, _IO = "unladen", "laden", "io"
_VOLUMES = 8
_DEFINITION = """\
image: {image}
memory: 128M
network: none
vcpus: 1
disk: 1G
kernel_headers: false
volumes: [{volumes}]
"""
_DEADLINE = 120.0
_DONE = b"IO done"
_FIGURE = re.compile(rb"^IO (\w+) ([0-9.]+)", re.MULTILINE)


def measure_disks(rounds: int, image: str, folder: Path) -> Series:
    """All of it. `image` is a folder with the program that measures IO in the guest."""
    series: Series = {}
    names = [f"bench-{number}" for number in range(_VOLUMES)]
    for name in names:
        run("hypemanctl", "volume", "create", "--size=1G", name)
    mounts = [f"{{volume: {name}, mount_path: /srv/{name}}}" for name in names]
    _define(_NONE, "builtin:busybox", [])
    _define(_LADEN, "builtin:busybox", mounts)
    _measure_starts(series, rounds)
    _measure_creation(series, rounds)
    run("hypemanctl", "image", "import", "iobench", image)
    _define(_IO, "iobench", ["{volume: bench-0, mount_path: /srv}"])
    _measure_io(series, max(rounds // 3, 3), folder)
    return series


def _define(name: str, image: str, mounts: list[str]) -> None:
    text = _DEFINITION.format(image=image, volumes=", ".join(mounts))
    text += "cmd: [sleep, infinity]\n" if image == "builtin:busybox" else "cmd: [/iobench]\n"
    (_VM_DIR / f"{name}.yaml").write_text(text)
    run("systemctl", "reload", "hypemand.service")


def _measure_starts(series: Series, rounds: int) -> None:
    """With no volumes and with all of them, the order turned with every round; the first of each is not
    counted: its disk is new."""
    for name in (_NONE, _LADEN):
        start_and_stop(name)
        series[name] = []
    for number in range(rounds):
        for name in (_NONE, _LADEN) if number % 2 == 0 else (_LADEN, _NONE):
            series[name].append(start_and_stop(name))
        print(f"round {number + 1} of {rounds}, volumes", file=sys.stderr, flush=True)


def _measure_creation(series: Series, rounds: int) -> None:
    """100 GiB, as a user makes it; the first, which makes the template too, by itself."""
    for number in range(rounds + 1):
        taken = time_command("hypemanctl", "volume", "create", "--size=100G", "huge")
        series.setdefault("create" if number else "create_first", []).append(taken)
        run("hypemanctl", "volume", "rm", "huge")
    series["command"] = [time_command("hypemanctl", "volume", "list") for _ in range(rounds)]


def _measure_io(series: Series, rounds: int, folder: Path) -> None:
    """Each run measures all kinds by itself, and says so on its console. MiB/s or operations a second."""
    unit = f"hypeman-vm-{_IO}.service"
    run("systemctl", "start", f"hypeman@{_IO}.service")
    recipe = Recipe.take(unit, folder / _IO)
    run("hypemanctl", "stop", _IO)
    recipe.copy_disk()
    for number in range(rounds):
        for kind in ("bare", "managed") if number % 2 == 0 else ("managed", "bare"):
            console = _run_bare(recipe) if kind == "bare" else _run_managed()
            for what, value in _FIGURE.findall(console):
                series.setdefault(f"{kind}_{what.decode()}", []).append(float(value))
        print(f"round {number + 1} of {rounds}, IO", file=sys.stderr, flush=True)


def _run_bare(recipe: Recipe) -> bytes:
    vm = BareVm(recipe)
    try:
        while _DONE not in vm.console:
            if not vm.read():
                raise RuntimeError(f"a bare VM ended: {vm.console[-2000:]!r}")
    finally:
        vm.stop()
    return vm.console.replace(b"\r", b"")


def _run_managed() -> bytes:
    run("systemctl", "start", f"hypeman@{_IO}.service")
    boot = run("hypemanctl", "show", "--value", "--property=invocation_id", _IO).strip()
    end = time.monotonic() + _DEADLINE
    console = b""
    while _DONE not in console:
        if time.monotonic() > end:
            raise TimeoutError(f"no IO figures in {_DEADLINE:g} s: {console[-2000:]!r}")
        time.sleep(0.2)
        console = run("journalctl", "--output=cat", f"_SYSTEMD_INVOCATION_ID={boot}").encode()
    run("hypemanctl", "stop", _IO)
    return console
