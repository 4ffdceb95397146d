# SPDX-License-Identifier: Apache-2.0
"""A VM that is put away and restored again and again: its memory and its disk stay what they were, and no
process and no folder grows."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from tests.host.machine import TestHost
from tests.host.vms import Vms

# Says each time that it has read all of its memory, a file of tmpfs, and its disk; and what is not as it was.
CHECKS = """
cd /run; head -c 24000000 /dev/urandom >blob; sha256sum blob >sum
mkdir -p /data; cd /data; head -c 8000000 /dev/urandom >blob; sha256sum blob >sum; sync
n=0
while :; do
    for place in /run /data; do cd $place; sha256sum -c sum >/dev/null || echo "DAMAGED $place"; done
    n=$((n+1)); echo "round $n"
    echo $n >/data/n; echo 1 >/proc/sys/vm/drop_caches 2>/dev/null
done
"""
NAME = "rounds"
MIB = 1024 * 1024
# of the daemon, from the first rounds on
GROWTH = 4 * MIB
WARM_UP = 3


@dataclass(frozen=True)
class Size:
    """What the daemon has of a host, and a VM of its disk."""

    memory: int
    descriptors: int
    files: tuple[str, ...]


def measure(host: TestHost) -> Size:
    """Asked of the kernel."""
    pid = host.run(["systemctl", "show", "--value", "--property=MainPID", "hypemand.service"]).stdout.strip()
    status = host.run(["cat", f"/proc/{pid}/status"]).stdout
    resident = next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon:"))
    descriptors = host.run(["ls", f"/proc/{pid}/fd"]).stdout.split()
    files = host.run(["find", f"/var/lib/hypemand/vms/{NAME}", "/var/lib/hypemand/snapshots"]).stdout.split()
    return Size(int(resident) * 1024, len(descriptors), tuple(sorted(files)))


def play_rounds(vms: Vms, count: int, seed: int = 0) -> tuple[Size, Size]:
    """`count` times. What there was of it after the first of them, and at the end."""
    dice = Random(seed)
    vms.run(NAME, CHECKS, network="default")
    vms.wait_console(NAME, "round 1")
    boot = vms.show(NAME)["boot_id"]
    first = measure(vms.host)
    for number in range(count):
        before = _last(vms)
        vms.ctl("standby", NAME)
        assert vms.state(NAME) == "Standby"
        vms.ctl("restore", NAME)
        assert vms.wait(NAME, "Running")["boot_id"] == boot
        # it has read all of it again, or is somewhere in that
        more = dice.randint(0, 2)
        vms.host.wait_until(lambda least=before + more: _last(vms) >= least)  # type: ignore[misc]
        if number < WARM_UP:
            first = measure(vms.host)
    at = _last(vms)
    vms.host.wait_until(lambda: _last(vms) > at + 1)
    console = vms.console(NAME)
    assert not [line for line in console if "DAMAGED" in line]
    rounds = [int(line.split()[1]) for line in console if line.startswith("round ")]
    assert rounds == list(range(1, len(rounds) + 1))
    vms.host.wait_until(lambda: measure(vms.host).files == first.files)
    last = measure(vms.host)
    assert last.memory < first.memory + GROWTH, (first, last)
    assert last.descriptors <= first.descriptors, (first, last)
    vms.remove(NAME)
    return first, last


def _last(vms: Vms) -> int:
    return next(int(line.split()[1]) for line in reversed(vms.console(NAME)) if line.startswith("round "))
