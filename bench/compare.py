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

from tests.host.lab import DIST, start_host
from tests.host.recipe import Suite
from tests.host.vms import Vms, vms_of

_TOP = Path(__file__).parent.parent
_BUILD_DEADLINE = 3600.0
_WARM_UP = 2
_SERIES = ("", ", hypemanctl start")
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


def start_once(vms: Vms, kind: str) -> tuple[float, float]:
    """Milliseconds to Running, as the API reports it, and of `hypemanctl start --wait`."""
    began = time.monotonic()
    vms.start(kind)
    command = (time.monotonic() - began) * 1000
    ready: float = vms.show(kind)["ready_ms"]
    vms.ctl("stop", kind)
    return ready, command


def measure(sides: Sequence[Vms], rounds: int) -> dict[str, list[list[float]]]:
    """Milliseconds of each start, by what was measured, one list for each side."""
    for vms in sides:
        for kind, keys in _KINDS.items():
            vms.define(kind, "exec sleep infinity", **keys)
            for _ in range(_WARM_UP):
                start_once(vms, kind)
    names = [f"{kind}{what}" for kind in _KINDS for what in _SERIES]
    took: dict[str, list[list[float]]] = {name: [[] for _ in sides] for name in names}
    for number in range(rounds):
        for kind in _KINDS:
            for position in range(len(sides)):
                side = (number + position) % len(sides)
                for what, value in zip(_SERIES, start_once(sides[side], kind), strict=True):
                    took[f"{kind}{what}"][side].append(value)
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return took


def render(took: Mapping[str, Sequence[Sequence[float]]]) -> str:
    """A table; the pairs of one round tell how often the later was the faster."""
    lines = [f"{'start to Running, ms':24}{'before':>10}{'after':>10}{'ratio':>8}{'minima':>18}  faster"]
    for kind, (before, after) in took.items():
        old, new = median(before), median(after)
        faster = sum(b > a for b, a in zip(before, after, strict=True))
        minima = f"{min(before):.0f} {min(after):.0f}"
        lines.append(
            f"{kind:24}{old:10.1f}{new:10.1f}{new / old:8.3f}{minima:>18}  {faster} of {len(before)}"
        )
    return "\n".join(lines)


def main() -> int:
    options = parse_options()
    with build_commit(options.before) as dist, ExitStack() as stack:
        hosts = [stack.enter_context(start_host(options.suite, dist=place)) for place in (dist, DIST)]
        took = measure([stack.enter_context(vms_of(host)) for host in hosts], options.rounds)
    print(render(took))
    return 0


if __name__ == "__main__":
    sys.exit(main())
