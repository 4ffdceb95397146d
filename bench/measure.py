# SPDX-License-Identifier: Apache-2.0
"""`make bench`: times and memory against bare QEMU, in one run, as a table and as JSON in bench/results/."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.report import Kernel, parse_kernel, render
from tests.host.command import run_command
from tests.host.faults import compile_static
from tests.host.lab import find_packages, start_host
from tests.host.machine import TestHost
from tests.host.recipe import Suite, guest_recipe
from tests.host.roots import ensure_root

_HERE = Path(__file__).parent
_TOP = _HERE.parent
_PUSHED = "/opt/bench"
_DEADLINE = 3600.0
_KERNEL_DEADLINE = 900.0


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench ARGS=…", description=__doc__)
    parser.add_argument("--suite", type=Suite, choices=list(Suite), default=Suite.BOOKWORM)
    parser.add_argument("--rounds", type=int, default=40, metavar="N", help="rounds of single starts (40)")
    parser.add_argument("--many-rounds", type=int, default=10, metavar="N", help="rounds of 8 at once (10)")
    parser.add_argument("--idle", type=float, default=60.0, metavar="S", help="seconds of tracing (60)")
    parser.add_argument("--no-kernel", action="store_true", help="leave out Debian's cloud kernel")
    options = parser.parse_args()
    options.many, options.defined = 8, 20
    return options


def push_inside(host: TestHost) -> None:
    """What runs inside."""
    for path in [_HERE / "__init__.py", *sorted((_HERE / "inside").glob("*.py"))]:
        host.push(f"{_PUSHED}/bench/{path.relative_to(_HERE)}", path.read_bytes())


def push_guest_programs(host: TestHost) -> None:
    """What runs in its guests."""
    with tempfile.TemporaryDirectory(prefix="bench-io.") as folder:
        for name in ("iobench", "netbench"):
            program = compile_static((_HERE / f"{name}.c").read_text(), Path(folder, name))
            host.push(f"{_PUSHED}/{name}/{name}", program, 0o755)


def measure_inside(host: TestHost, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of bench.inside."""
    names = ("rounds", "many_rounds", "many", "defined", "idle")
    return run_inside(host, "bench.inside", derive_words(options, names))


def derive_words(options: argparse.Namespace, names: Sequence[str]) -> list[str]:
    """Options of this side as words for the other."""
    return [f"--{name.replace('_', '-')}={getattr(options, name)}" for name in names]


def run_inside(host: TestHost, module: str, words: Sequence[str]) -> dict[str, Any]:
    """What a program that was pushed prints as JSON; its progress is shown if it fails."""
    script = f'cd {_PUSHED} && exec /usr/bin/python3 -m {module} "$@"'
    with host.popen(["sh", "-c", script, "sh", *words]) as process:
        assert process.stdin is not None
        process.stdin.close()
        process.stdin = None
        output, progress = process.communicate(timeout=_DEADLINE)
    if process.returncode != 0:
        sys.exit(f"bench: failed inside the test host:\n{progress.decode(errors='replace')}")
    figures: dict[str, Any] = json.loads(output)
    return figures


def report(
    figures: dict[str, Any], render: Callable[[dict[str, Any]], tuple[str, bool]], file: str | None
) -> int:
    """Write all figures to `file`, if there is one, and print the report; the exit status: 1 when a goal is
    missed."""
    if file is not None:
        Path(file).write_text(json.dumps(figures, indent=1))
    text, met = render(figures)
    print(text)
    return 0 if met else 1


def measure_kernel() -> Kernel:
    """Our packaged kernel beside Debian's cloud kernel, spawn to init. The machine's environment goes along,
    since apt may need its proxies."""
    package = next(path for path in find_packages() if path.name.startswith("hypemand-kernel_"))
    with tempfile.TemporaryDirectory(prefix="bench-kernel.") as folder:
        run_command(["dpkg-deb", "-x", str(package), folder], timeout=60)
        kernel = f"{folder}/usr/lib/hypemand/kernel"
        argv = [str(_TOP / "guest/kernel/bench-boot"), kernel]
        # it exits 1 for a goal that is missed: our own table says that too
        done = run_command(argv, env=os.environ, timeout=_KERNEL_DEADLINE, check=False)
    return parse_kernel(done.stdout + done.stderr)


def main() -> int:
    """Exit 1 when a goal is missed."""
    options = parse_options()
    begun = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    before = os.getloadavg()
    print("measuring in a test host: this takes some minutes …", file=sys.stderr, flush=True)
    guest = ensure_root(guest_recipe(Suite.TRIXIE))
    with start_host(options.suite, binds=[f"{guest}:/srv/guest"]) as host:
        push_inside(host)
        push_guest_programs(host)
        figures = measure_inside(host, options)
    load = [before[0], os.getloadavg()[0]]
    figures["conditions"] |= {"suite": options.suite, "date": begun, "machine_load": load}
    kernel = None if options.no_kernel else measure_kernel()
    if kernel is not None:
        figures["kernel"] = kernel.text
    results = _HERE / "results"
    results.mkdir(exist_ok=True)
    path = results / f"{begun.replace(':', '')}-{options.suite}.json"
    path.write_text(json.dumps(figures, indent=1) + "\n")
    text, met = render(figures, kernel)
    print(f"{text}\nall figures: {path.relative_to(_TOP)}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
