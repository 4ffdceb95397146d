# SPDX-License-Identifier: Apache-2.0
"""`make bench-standby`: standby, restore and forks beside the same by hand, and beside cold starts."""

from __future__ import annotations

import argparse
import sys

from bench.measure import derive_words, push_inside, report, run_inside
from bench.standbyreport import render
from tests.host import cgroups
from tests.host.lab import start_host
from tests.host.recipe import Suite

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


def main() -> int:
    """Exit 1 when a goal is missed, or a fork is not a VM of its own."""
    options = parse_options()
    with start_host(options.suite) as host:
        cgroups.prefer(host.name)
        push_inside(host)
        figures = run_inside(host, "bench.inside.standby", derive_words(options, _WORDS))
    return report(figures, render, options.json)


if __name__ == "__main__":
    sys.exit(main())
