# SPDX-License-Identifier: Apache-2.0
"""The main job on a test host, from package install to a Running VM: what `make demo` shows.

Every line that begins with `#` is a command that is run on the host as an administrator would type it, and
what follows is its output. The first command that fails ends the demo with its exit status.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from tests.host.command import CommandError
from tests.host.lab import find_packages, start_host
from tests.host.machine import TestHost
from tests.host.mirror import own_suite
from tests.host.recipe import Suite

DEFINITION = """\
# yaml-language-server: $schema=/usr/share/hypemand/vm.schema.json
image: builtin:busybox
memory: 128M
vcpus: 1
disk: 256M
network:
  publish: ["8080:80"]
env:
  GREETING: hello from the guest
cmd:
  - sh
  - -c
  - |
    trap 'echo asked to stop; exit 0' TERM
    echo "$GREETING, on $(uname -sr)"
    while nc -l -p 80 -e echo "$GREETING, on port 80"; do :; done &
    while :; do sleep 1; done
"""
PLOT = Path(__file__).parents[1] / "dist" / "demo-boot.svg"
WIDTH = {"COLUMNS": "110", "SYSTEMD_COLORS": "0", "SYSTEMD_PAGER": "cat", "SYSTEMD_LESS": "FRX"}


class Stage:
    """Shows what is done on a host."""

    def __init__(self, host: TestHost) -> None:
        self._host = host
        self._bold, self._dim, self._plain = (
            ("\x1b[1m", "\x1b[2m", "\x1b[0m") if sys.stdout.isatty() else ("", "", "")
        )

    def title(self, text: str) -> None:
        """A new part of the demo."""
        print(f"\n{self._bold}== {text} =={self._plain}", flush=True)

    def run(self, command: str, *, expect: int = 0, show: bool = True) -> str:
        """Run a line of shell and show it with its output."""
        print(f"\n{self._bold}# {command}{self._plain}", flush=True)
        result = self._host.run(["sh", "-c", f"{command} 2>&1"], check=False, timeout=180, env=WIDTH)
        if show or result.code != expect:
            print(result.stdout.rstrip(), flush=True)
        if result.code != expect:
            raise SystemExit(f"demo: {shlex.quote(command)} ended with {result.code}, not {expect}")
        return result.stdout

    def write(self, path: str, content: str) -> None:
        """Write a file on the host and show it."""
        print(f"\n{self._bold}# cat {path}{self._plain}\n{content.rstrip()}", flush=True)
        self._host.push(path, content)


def show(stage: Stage, host: TestHost) -> None:
    """All of the demo."""
    stage.title("Install the packages")
    host.install(find_packages(), timeout=300)
    stage.run("dpkg-query -W -f='${Package} ${Version} ${Architecture} ${db:Status-Status}\\n' '*hypemand*'")
    stage.run("systemctl status hypemand --no-pager --lines=0 | head -n 8")
    stage.run("hypemanctl check")

    stage.title("Define a VM in a file, and start it")
    stage.write("/etc/hypemand/vms.d/web.yaml", DEFINITION)
    stage.run("systemctl reload hypemand")
    stage.run("systemctl start --no-block hypeman@web && sleep 0.3 && hypemanctl list")
    stage.run("systemctl is-active hypeman-vm-web", expect=3)
    stage.run("systemctl start hypeman@web && hypemanctl list")
    stage.run("journalctl --no-hostname -o short-precise HYPEMAN_VM=web HYPEMAN_NEW_STATE=Initializing"
              " + HYPEMAN_VM=web HYPEMAN_NEW_STATE=Running")  # fmt: skip

    stage.title("It is a service")
    stage.run("systemctl status hypeman-vm-web --no-pager --lines=0 | cut -c1-110")
    stage.run("systemd-analyze security hypeman-vm-web | tail -n 1")
    stage.run("machinectl list --no-pager")
    stage.run("journalctl --no-hostname -u hypeman-vm-web -o short-precise | cut -c1-110")

    stage.title("Run something in it")
    stage.run("hypemanctl exec web -- sh -c 'hostname; id; cat /proc/1/comm; df -h / | tail -n 1'")
    stage.run("hypemanctl exec web -- sh -c 'exit 3'", expect=3)

    stage.title("It is on a network, with a port of the host")
    stage.run("hypemanctl network list")
    stage.run("getent hosts web web.hypeman")
    stage.run("bash -c 'cat </dev/tcp/127.0.0.1/8080'")

    stage.title("Where the time to Running went")
    stage.run("hypemanctl analyze web")
    print(f"\n# hypemanctl analyze plot web > {PLOT.name}")
    PLOT.write_bytes(host.run(["hypemanctl", "analyze", "plot", "web"]).raw)
    print(f"the drawing is in {PLOT.relative_to(Path.cwd()) if PLOT.is_relative_to(Path.cwd()) else PLOT}")

    stage.title("The daemon may die: the VM does not notice")
    stage.run("systemctl kill --signal=KILL hypemand && sleep 1 && hypemanctl list")

    stage.title("Stop it: the unit's result is the program's")
    stage.run("systemctl stop hypeman@web && hypemanctl list")
    stage.run("hypemanctl logs web")
    stage.run("hypemanctl run --rm builtin:busybox sh -c 'echo one shot; exit 7'", expect=7)


def main() -> int:
    """Bring up a host, show the demo, take the host down."""
    parser = argparse.ArgumentParser(prog="demo", description="Show the main job on a test host.")
    parser.add_argument(
        "--suite", choices=[str(s) for s in Suite], default=str(own_suite() or Suite.BOOKWORM)
    )
    options = parser.parse_args()
    print(f"bringing up a test host with Debian {options.suite} ...", flush=True)
    with start_host(Suite(options.suite), installed=False) as host:
        try:
            show(Stage(host), host)
        except CommandError as error:
            print(error, file=sys.stderr)
            return 1
    print("\nThe test host is gone. That was all.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
