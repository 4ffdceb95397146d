# SPDX-License-Identifier: Apache-2.0
"""Figures as tables, and what was to be reached beside what was. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

_ROWS = (
    ("one", "bare", "(a) bare QEMU: spawn to PROGRAM-START"),
    ("one", "ready_ms", "(b) start to Running, as the API reports it"),
    ("one", "client", "(b) POST start to Running in /watch"),
    ("one", "active", "(b) POST start to unit active"),
    ("one", "handle", "(b) systemctl start hypeman@NAME"),
    ("many", "bare", "(c) 8 bare QEMUs at once, the last"),
    ("many", "client", "(c) 8 VMs at once, the last Running"),
    ("one", "stop", "(d) systemctl stop of the VM's unit"),
    ("one", "handle_stop", "(d) systemctl stop hypeman@NAME"),
    ("hypemanctl list", "time", "(d) hypemanctl list, 20 VMs: time"),
    ("hypemanctl list", "cpu", "(d) hypemanctl list, 20 VMs: CPU"),
    ("hypemanctl --version", "time", "(d) hypemanctl --version: time"),
    ("hypemanctl --version", "cpu", "(d) hypemanctl --version: CPU"),
    ("agent", "exec", "(f) exec of /bin/true on the agent's channel"),
    ("agent", "raw_in", "(i) 256 MiB into cat >/dev/null"),
    ("agent", "copy_in", "(i) 256 MiB copied in"),
    ("agent", "raw_out", "(i) 256 MiB out of cat"),
    ("agent", "copy_out", "(i) 256 MiB copied out"),
    ("one", "exec", "(f) exec of /bin/true over the API"),
    ("one", "exec_command", "(f) hypemanctl exec NAME /bin/true"),
    ("one", "plain", "(h) start to Running without kernel headers"),
    ("one", "headers", "(h) start to kernel headers ready"),
    ("one", "agentless", "(h) start to Running without agent"),
    ("image", "tools", "(k) skopeo, umoci, mkfs.erofs: 300 MiB"),
    ("image", "import", "(k) hypemanctl image import of the same"),
    ("disks", "unladen", "(k) start to Running without volumes"),
    ("disks", "laden", "(k) start to Running with 8 volumes"),
    ("disks", "create_first", "(k) hypemanctl volume create 100G, the first"),
    ("disks", "create", "(k) hypemanctl volume create 100G"),
    ("disks", "command", "(k) hypemanctl volume list, for comparison"),
    ("network", "unwired", "(n) start to Running without a network"),
    ("network", "wired", "(n) start to Running with one"),
    ("network", "unwired_host", "(n) of that until the VMM, without"),
    ("network", "wired_host", "(n) of that until the VMM, with one"),
    ("network", "attach_first", "(n) lease, TAP, rules: the first VM"),
    ("network", "attach_200th", "(n) lease, TAP, rules: the 200th VM"),
    ("systemd", "ready_ms", "(j) start to Running, Debian 13 with systemd"),
)

IO_KINDS = ("seq_write", "seq_read", "rand_read", "rand_write")


@dataclass(frozen=True)
class Kernel:
    """What guest/kernel/bench-boot printed, and its ratio; None: it did not get so far."""

    text: str
    ratio: float | None
    goal: float


@dataclass(frozen=True)
class Goal:
    """Something to be reached: `value` at most `limit`."""

    what: str
    value: float
    limit: float
    unit: str

    @property
    def met(self) -> bool:
        return self.value <= self.limit


def parse_kernel(text: str) -> Kernel:
    """The output of guest/kernel/bench-boot."""
    found = re.search(r"^ratio ([0-9.]+), goal ([0-9.]+)", text, re.MULTILINE)
    return Kernel(text, float(found[1]) if found else None, float(found[2]) if found else 0.5)


def derive_goals(figures: dict[str, Any], kernel: Kernel | None) -> Iterator[Goal]:
    """The goals. Of (b) what the API reports, the client sees and systemd says each have to reach them."""
    one, many = figures["one"], figures["many"]
    bare = median(one["bare"])
    for key in ("ready_ms", "client", "active"):
        yield Goal(f"{key} - bare", median(one[key]) - bare, 60.0, "ms")
        yield Goal(f"{key} / bare", median(one[key]) / bare, 1.10, "x")
    with_headers, without = median(one["ready_ms"]), median(one["plain"])
    yield Goal("with / without kernel headers", with_headers / without, 1.02, "x")
    yield Goal("8 at once / 8 bare", median(many["client"]) / median(many["bare"]), 1.10, "x")
    yield Goal("daemon, RSS", figures["memory"]["rss"], 54.0, "MiB")
    for command in ("list", "--version"):
        yield Goal(f"hypemanctl {command}, CPU", median(figures[f"hypemanctl {command}"]["cpu"]), 80.0, "ms")
    agent = figures["agent"]
    for way in ("in", "out"):
        yield Goal(f"copy {way} / raw", median(agent[f"copy_{way}"]) / median(agent[f"raw_{way}"]), 1.25, "x")
    image = figures["image"]
    yield Goal("image import / its tools", median(image["import"]) / median(image["tools"]), 1.15, "x")
    disks = figures["disks"]
    yield Goal("with / without 8 volumes", median(disks["laden"]) / median(disks["unladen"]), 1.10, "x")
    made = median(disks["create"]) - median(disks["command"])
    yield Goal("100 GiB made, less the command", made, 50.0, "ms")
    for kind in IO_KINDS:
        # turned round, so that less is better: at least 0.98 of the bare one's speed; each turn with the one
        # beside it, since all that a machine does comes and goes
        turns = zip(disks[f"bare_{kind}"], disks[f"managed_{kind}"], strict=True)
        ratio = median(bare / managed for bare, managed in turns)
        yield Goal(f"IO bare / managed, {kind}", ratio, 1 / 0.98, "x")
    network = {key: median(series) for key, series in figures["network"].items()}
    added = network["wired_host"] - network["unwired_host"]
    yield Goal("with - without a network, host's part", added, 15.0, "ms")
    yield Goal("the same / start without", (network["unwired"] + added) / network["unwired"], 1.03, "x")
    yield Goal(
        "attach, the 200th VM / the first", network["attach_200th"] / network["attach_first"], 1.5, "x"
    )
    # turned round, as for IO
    yield Goal("TCP bare / managed", network["bare_send"] / network["managed_send"], 1 / 0.97, "x")
    if kernel is not None:
        yield Goal("kernel / Debian's cloud kernel", kernel.ratio or float("inf"), kernel.goal, "x")


def render(figures: dict[str, Any], kernel: Kernel | None) -> tuple[str, bool]:
    """The report, and whether all goals are met."""
    lines = [*_conditions(figures), ""]
    lines.append(render_head("milliseconds"))
    lines += [render_row(name, figures[group][key]) for group, key, name in _ROWS]
    for kind in IO_KINDS:
        what = "MiB/s" if kind.startswith("seq") else "4 KiB operations/s"
        bare, managed = (median(figures["disks"][f"{who}_{kind}"]) for who in ("bare", "managed"))
        rounds = len(figures["disks"][f"bare_{kind}"])
        lines.append(f"(k) {kind}, {what}: {bare:.0f} bare, {managed:.0f} in a unit, n={rounds}")
    bare, managed = (median(figures["network"][f"{who}_send"]) for who in ("bare", "managed"))
    lines.append(f"(n) TCP guest to host, MiB/s: {bare:.0f} on a TAP made by hand, {managed:.0f} on ours")
    memory = figures["memory"]
    sizes = f"RSS {memory['rss']:.1f} MiB, PSS {memory['pss']:.1f} MiB"
    lines += ["", f"(e) daemon, 20 VMs defined, 8 Running: {sizes}"]
    shared = figures["shared"]
    for key, what in (("cache", "page cache"), ("disk", "disk")):
        one, copies = shared[f"shared_{key}"][0], shared[f"copies_{key}"][0]
        lines.append(f"(l) {what} of 20 VMs' images: {one:.1f} MiB shared, {copies:.1f} MiB as copies")
    if idle := figures.get("idle"):
        calls = ", ".join(f"{count} {call}" for call, count in sorted(idle["calls"].items()))
        lines.append(f"(e) daemon idle for {idle['seconds']:.0f} s: woken {idle['wakeups']} times ({calls})")
    if kernel is not None:
        lines += ["", f"(g) {kernel.text.strip()}"]
    goals = list(derive_goals(figures, kernel))
    lines += ["", *render_goals(goals)]
    return "\n".join(lines), all(goal.met for goal in goals)


def render_head(what: str) -> str:
    """The line above those of `render_row`."""
    return f"{what:44} {'min':>8} {'median':>8} {'max':>8}    n"


def render_row(name: str, series: Sequence[float]) -> str:
    """The figures of a series."""
    values = "".join(f" {value:8.1f}" for value in (min(series), median(series), max(series)))
    return f"{name:44}{values} {len(series):4}"


def render_goals(goals: Sequence[Goal]) -> Iterator[str]:
    """What was to be reached beside what was."""
    yield f"{'goal':36} {'reached':>10} {'at most':>10}"
    for goal in goals:
        word = "" if goal.met else "  MISSED"
        yield f"{goal.what:36} {goal.value:7.2f} {goal.unit:3} {goal.limit:6.2f} {goal.unit:3}{word}"


def render_conditions(known: Mapping[str, Any]) -> str:
    """What figures depend on, with the load inside the host before and after."""
    before, after = known["load"]
    machine = f"{known['qemu']}; {known['systemd']}; {known['cores']} cores, {known['cpu']}"
    return f"{machine}; load {before:.1f} before, {after:.1f} after"


def _conditions(figures: dict[str, Any]) -> Iterator[str]:
    known = figures["conditions"]
    yield f"{known['date']}, {known['suite']}: {known['qemu']}; {known['systemd']}; {known['python']}"
    yield f"{known['cores']} cores, {known['cpu']}, Linux {known['host_kernel']}"
    before, after = known["machine_load"]
    yield f"load of the machine {before:.1f} before, {after:.1f} after (the VMs themselves make about 1)"
