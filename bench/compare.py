# SPDX-License-Identifier: Apache-2.0
"""`make bench-compare`: starts of one VM by the packages of an earlier commit and by those of this tree.

Each has a test host; both are up at once and start their VM in turns, and the order turns with every round,
so that whatever else the machine does meets both alike.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

from hypemand.cli.client import parse
from hypemand.model.timeline import Timeline
from tests.host import cgroups
from tests.host.lab import DIST, start_host
from tests.host.recipe import Suite
from tests.host.vms import Vms, vms_of

_TOP = Path(__file__).parent.parent
_BUILD_DEADLINE = 3600.0
_WARM_UP = 2
# Definitions to start, by name.
_KINDS: Mapping[str, Mapping[str, object]] = {
    "unwired": {"kernel_headers": True, "disk": "1G"},
    "wired": {"kernel_headers": True, "disk": "1G", "network": {"name": "default"}},
}


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench-compare ARGS=…", description=__doc__.splitlines()[0])
    parser.add_argument("before", metavar="COMMIT", help="the one to compare with")
    parser.add_argument("--suite", type=Suite, choices=list(Suite), default=Suite.BOOKWORM)
    parser.add_argument("--rounds", type=int, default=30, metavar="N", help="starts of each (30)")
    return parser.parse_args()


@contextmanager
def build_commit(commit: str) -> Iterator[Path]:
    """Its packages' folder, as its own Makefile builds them."""
    with tempfile.TemporaryDirectory(prefix="bench-compare.") as folder:
        tree = Path(folder, "hypemand")
        git = ["git", "-c", "safe.directory=*", "-C", str(_TOP), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), commit], timeout=60, check=True)
        try:
            subprocess.run(["make", "-C", str(tree), "deb"], timeout=_BUILD_DEADLINE, check=True)
            yield tree / "dist"
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], timeout=60, check=True)


def start_once(vms: Vms, kind: str) -> Mapping[str, float]:
    """Milliseconds by what was measured: to Running, as the API reports it, of `hypemanctl start --wait`, and
    of each step of the start, as `hypemanctl analyze` shows it."""
    began = time.monotonic()
    vms.ctl("start", "--wait", kind)
    command = (time.monotonic() - began) * 1000
    timeline = parse(Timeline, vms.api.get("instances", kind, "timeline"))
    assert timeline.running_ms is not None
    took = {kind: timeline.running_ms, f"{kind}, hypemanctl start": command}
    took |= {f"{kind}: {span.name}": span.end_ms - span.start_ms for span in timeline.spans}
    vms.ctl("stop", kind)
    return took


def measure(sides: Sequence[Vms], rounds: int) -> dict[str, list[list[float]]]:
    """Milliseconds of each start, by what was measured, one list for each side."""
    for vms in sides:
        for kind, keys in _KINDS.items():
            vms.define(kind, "exec sleep infinity", **keys)
            for _ in range(_WARM_UP):
                start_once(vms, kind)
    took: dict[str, list[list[float]]] = {}
    for number in range(rounds):
        for kind in _KINDS:
            for position in range(len(sides)):
                side = (number + position) % len(sides)
                for name, value in start_once(sides[side], kind).items():
                    took.setdefault(name, [[] for _ in sides])[side].append(value)
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return took


def render(took: Mapping[str, Sequence[Sequence[float]]]) -> str:
    """A table; the pairs of one round tell how often the later was the faster."""
    lines = [f"{'start to Running, ms':28}{'before':>10}{'after':>10}{'ratio':>8}{'minima':>18}  faster"]
    for kind, (before, after) in sorted(took.items()):
        if not before or not after:
            continue  # a step that the other has not
        old, new = median(before), median(after)
        faster = sum(b > a for b, a in zip(before, after, strict=False))
        minima = f"{min(before):.1f} {min(after):.1f}"
        lines.append(
            f"{kind:28}{old:10.1f}{new:10.1f}{new / max(old, 0.001):8.3f}{minima:>18}  "
            f"{faster} of {len(before)}"
        )
    return "\n".join(lines)


def main() -> int:
    options = parse_options()
    with build_commit(options.before) as dist, ExitStack() as stack:
        hosts = [stack.enter_context(start_host(options.suite, dist=place)) for place in (dist, DIST)]
        for host in hosts:
            cgroups.prefer(host.name)
        took = measure([stack.enter_context(vms_of(host)) for host in hosts], options.rounds)
    print(render(took))
    return 0


if __name__ == "__main__":
    sys.exit(main())
