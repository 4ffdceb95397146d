# SPDX-License-Identifier: Apache-2.0
"""Disks and volumes: what they cost a start, how long a large one takes to make, and how fast they are beside
the same VMM without systemd, sandbox and limits."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import replace
from pathlib import Path

from bench.inside.agent import run_in_guest
from bench.inside.api import start_and_watch
from bench.inside.bare import BareVm, Recipe
from bench.inside.rounds import Series, run, start_and_stop, time_command
from hypemand.agent.channel import AgentChannel

_VM_DIR = Path("/etc/hypemand/vms.d")
_NONE, _LADEN, _IO = "unladen", "laden", "io"
_VOLUMES = 8
_IO_BOOTS = 10
_DEFINITION = """\
image: {image}
memory: 128M
network: none
vcpus: 1
disk: 1G
kernel_headers: false
volumes: [{volumes}]
"""
_DEADLINE = 900.0
_KINDS = ("seq_write", "seq_read", "rand_write", "rand_read")
# What a person starts is in a control group too, the session's, which counts its memory. That alone makes
# sequential writes some percent slower. What comes into a test host from outside is in no such group.
_AS_IN_A_SESSION = ("systemd-run", "--scope", "--quiet", "--collect", "--slice=user.slice")
# what a start occupies the host with is over by then
_SETTLE = 2.0


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
    _measure_io(series, rounds, folder)
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
    """A VM in its unit and one by hand, both up, each with a volume of its own, work in turns of an eighth
    of a second. MiB/s or operations a second. Over several boots: how fast one is depends on the memory that
    it happened to get."""
    unit = f"hypeman-vm-{_IO}.service"
    start_and_watch(_IO)
    recipe = Recipe.take(unit, folder / _IO)
    run("systemctl", "stop", unit)
    recipe.copy_disk()
    recipe = _with_own_volume(recipe)
    for number in range(_IO_BOOTS):
        _measure_boot(series, max(rounds // 2, 1), recipe, unit)
        print(f"boot {number + 1} of {_IO_BOOTS}, IO", file=sys.stderr, flush=True)


def _measure_boot(series: Series, rounds: int, recipe: Recipe, unit: str) -> None:
    bare = BareVm(recipe, _AS_IN_A_SESSION)
    try:
        while not bare.has_started:
            if not bare.read():
                raise RuntimeError(f"a bare VM ended: {bare.console[-2000:]!r}")
        start_and_watch(_IO)
        boot = run("systemctl", "show", "--value", "--property=InvocationID", unit).strip()
        # its channel has room for one
        run("systemctl", "stop", "hypemand.socket", "hypemand.service")
        managed_socket = Path(f"/run/hypemand/vms/{_IO}/agent.sock")
        sockets = {"bare": (recipe.folder / "agent.sock", bare.boot), "managed": (managed_socket, boot)}
        asyncio.run(_take_turns(series, rounds, sockets))
    finally:
        bare.stop()
        run("systemctl", "start", "hypemand.socket", "hypemand.service")
        run("systemctl", "stop", unit)


def _with_own_volume(recipe: Recipe) -> Recipe:
    """With another volume, made alike: two VMs that write to one would break it."""
    drive = next(word for word in recipe.argv if word.startswith("if=none,id=volume0,"))
    file = next(field for field in drive.split(",") if field.startswith("file="))
    taken = Path(file.removeprefix("file="))
    other = json.loads(run("hypemanctl", "volume", "inspect", "--json", "bench-1"))["id"]
    own = taken.parents[1] / other / taken.name
    words = tuple(word.replace(file, f"file={own}") if word == drive else word for word in recipe.argv)
    return replace(recipe, argv=words)


async def _take_turns(series: Series, rounds: int, sockets: dict[str, tuple[Path, str]]) -> None:
    async with asyncio.timeout(_DEADLINE):
        channels = {who: await AgentChannel.connect(path, boot) for who, (path, boot) in sockets.items()}
        for channel in channels.values():
            await channel.ready()
            await run_in_guest(channel, "/iobench", "prepare")
        await asyncio.sleep(_SETTLE)
        for number in range(rounds):
            for kind in _KINDS:
                for who in ("bare", "managed") if number % 2 == 0 else ("managed", "bare"):
                    printed = await run_in_guest(channels[who], "/iobench", kind)
                    series.setdefault(f"{who}_{kind}", []).append(float(printed))
        for channel in channels.values():
            await channel.close()
