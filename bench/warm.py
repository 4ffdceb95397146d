# SPDX-License-Identifier: Apache-2.0
"""`make bench-warm`: warm starts beside bare QEMU and beside boots, in one run."""

from __future__ import annotations

import argparse
import sys

from bench.measure import derive_words, push_inside, report, run_inside
from bench.warmreport import render
from tests.host.lab import start_host
from tests.host.recipe import Suite

_WORDS = ("rounds", "many", "many_rounds", "idle", "works")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench-warm ARGS=…", description=__doc__)
    parser.add_argument("--suite", type=Suite, choices=list(Suite), default=Suite.BOOKWORM)
    parser.add_argument("--rounds", type=int, default=30, metavar="N", help="of single starts (30)")
    parser.add_argument("--many", type=int, default=8, metavar="N", help="starts at once (8)")
    parser.add_argument("--many-rounds", type=int, default=6, metavar="N", help="how often (6)")
    parser.add_argument("--idle", type=int, default=20, metavar="N", help="VMs whose memory is measured (20)")
    parser.add_argument("--works", type=int, default=10, metavar="N", help="of work in guests (10)")
    parser.add_argument("--json", metavar="FILE", help="write all figures")
    return parser.parse_args()


def main() -> int:
    """Exit 1 when a goal is missed."""
    options = parse_options()
    with start_host(options.suite) as host:
        push_inside(host)
        figures = run_inside(host, "bench.inside.warm", derive_words(options, _WORDS))
    return report(figures, render, options.json)


if __name__ == "__main__":
    sys.exit(main())
