# SPDX-License-Identifier: Apache-2.0
"""`make bench-standby`: standby, restore and forks beside the same by hand, and beside cold starts."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.measure import derive_words, push_inside, report, run_inside
from bench.standbyreport import render
from tests.host import cgroups
from tests.host.cache import CACHE
from tests.host.lab import start_host
from tests.host.recipe import Suite

# written by both sides
_FOLDERS = ("/var/lib/hypemand", "/var/lib/bench")
# MiB
_LEAST = 512
_WORDS = ("rounds", "large", "pauses", "forks", "fork_rounds")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench-standby ARGS=…", description=__doc__)
    parser.add_argument("--suite", type=Suite, choices=list(Suite), default=Suite.BOOKWORM)
    parser.add_argument("--rounds", type=int, default=10, metavar="N", help="of standby and restore (10)")
    parser.add_argument("--large", type=int, default=4096, metavar="MIB", help="memory of a large VM (4096)")
    parser.add_argument("--pauses", type=int, default=10, metavar="N", help="forks, one at a time (10)")
    parser.add_argument("--forks", type=int, default=25, metavar="N", help="forks at once (25)")
    parser.add_argument("--fork-rounds", type=int, default=3, metavar="N", help="how often (3)")
    parser.add_argument("--json", metavar="FILE", help="write all figures")
    options = parser.parse_args()
    if options.large < _LEAST:
        parser.error(f"--large: expected at least {_LEAST}, of which half has room for what is touched")
    return options


@contextmanager
def _own_file_system() -> Iterator[list[str]]:
    """Bind mounts of folders of the machine's own file system. The root of a test host is an overlay, which
    does nothing on sync_file_range(2), by which a save has what it has written on the disk sooner."""
    with tempfile.TemporaryDirectory(prefix="bench-standby.", dir=CACHE) as top:
        binds = []
        for folder in _FOLDERS:
            (own := Path(top, Path(folder).name)).mkdir(mode=0o755)
            binds.append(f"{own}:{folder}")
        yield binds


def main() -> int:
    """Exit 1 when a goal is missed, or a fork is not a VM of its own."""
    options = parse_options()
    with _own_file_system() as binds, start_host(options.suite, binds=binds) as host:
        cgroups.prefer(host.name)
        push_inside(host)
        figures = run_inside(host, "bench.inside.standby", derive_words(options, _WORDS))
    return report(figures, render, options.json)


if __name__ == "__main__":
    sys.exit(main())
