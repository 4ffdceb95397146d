# SPDX-License-Identifier: Apache-2.0
"""A guest that does its worst on its console, its ports and its network: all others have the daemon as ever.

How long the answers take is told at the end; a client of ours may not have given up on one. How fast they
are is for a benchmark (make bench-hostile), since here the machine is busy with other things too. What counts
is that no turn of the event loop needs much of the CPU, whatever the guest sends, and that the daemon goes
on, knows the others' states, and keeps to its memory, its log and its disk.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hypemand.cli.client import QUERY_SECONDS
from tests.host.faults import Vm, compile_static, ctl, define_vm, other_guest
from tests.host.machine import TestHost
from tests.host.test_daemon_faults import daemon_pid
from tests.host.vms import Vms

SOURCE = Path(__file__).with_name("hostile_init.c")
# make bench-hostile does it for longer
SECONDS = 8
BOOT_SECONDS = 4
MOST_GROWTH_KIB = 24 * 1024
# seconds of CPU in one turn of the event loop, which is what the daemon itself takes of the time of others
MOST_CPU = 0.5
# Of the daemon's own lines of that VM: its budget's burst of changes, and some each second, where it is one.
BURST_LINES, SECOND_LINES = 80, 2


@pytest.fixture(scope="module")
def hostile_init(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The program that the guest runs as PID 1."""
    output = tmp_path_factory.mktemp("hostile") / "init"
    return compile_static(SOURCE.read_text(), output, "-Wextra", f"-DBOOT_SECONDS={BOOT_SECONDS}")


@contextmanager
def hostile_guest(host: TestHost, init: bytes) -> Iterator[Vm]:
    """A VM with it that boots; others that are started in the block boot as ever."""
    with define_vm(host, "hostile", network="default", boot_timeout="300s") as vm:
        with other_guest(host, init=init):
            ctl(host, "start", vm.name)
            host.wait_until(lambda: bool(vm.show()["main_pid"]), "its VMM is there")
        yield vm


def read_rss(vms: Vms) -> int:
    """KiB of the daemon."""
    status = vms.host.run(["cat", f"/proc/{daemon_pid(vms)}/status"]).stdout
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))


def count_lines(vms: Vms, name: str, since: float) -> int:
    """Lines of the daemon about a VM."""
    argv = [
        "journalctl",
        "-o",
        "cat",
        f"--since=@{since:.0f}",
        "-u",
        "hypemand.service",
        "--grep",
        f"VM {name}",
    ]
    return len(vms.host.run(argv, check=False).stdout.splitlines())


def read_turns(vms: Vms, since: float) -> list[tuple[float, float]]:
    """The slow turns of the daemon's event loop that it has told of: how long, and how long on the CPU."""
    entries = vms.host.journal("--unit=hypemand.service", since=since)
    found = (
        re.search(r"the event loop was blocked for ([0-9.]+) s, ([0-9.]+) of them", entry["MESSAGE"])
        for entry in entries
    )
    return [(float(turn[1]), float(turn[2])) for turn in found if turn]


def use_others(vms: Vms, neighbour: str, seconds: float) -> list[float]:
    """List and execute for so long; how long each took."""
    took = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        began = time.monotonic()
        listed = {shown["name"]: shown["state"] for shown in vms.list_all()}
        assert listed[neighbour] == "Running"
        took.append(time.monotonic() - began)
        assert vms.execute(neighbour, "echo", "here") == "here\n"
    return took


@pytest.mark.one_release
def test_others_are_listed_started_and_executed_in_while_a_guest_does_its_worst(
    vms: Vms, hostile_init: bytes
) -> None:
    neighbour = vms.run("neighbour")
    pid, before, since = daemon_pid(vms), read_rss(vms), time.time()
    restarts = vms.properties("hypemand.service", "NRestarts")
    with hostile_guest(vms.host, hostile_init) as hostile:
        took = use_others(vms, neighbour, BOOT_SECONDS / 2)
        hostile.wait("Running", 300)
        took += use_others(vms, neighbour, SECONDS / 2)
        other = vms.run("newcomer")
        assert vms.execute(other, "hostname") == f"{other}\n"
        # each try connects to the agent's port anew
        for _ in range(3):
            assert not hostile.exec("true", check=False).ok
        took += use_others(vms, neighbour, SECONDS / 2)
        assert hostile.show()["state"] == "Running"
        assert daemon_pid(vms) == pid, "the daemon was ended"
        assert vms.properties("hypemand.service", "NRestarts") == restarts
        assert read_rss(vms) - before < MOST_GROWTH_KIB
        most = BURST_LINES + SECOND_LINES * (time.time() - since)
        assert count_lines(vms, hostile.name, since) < most
        turns = read_turns(vms, since)
        print(
            f"slow turns: {turns}; list: {len(took)} times, "
            f"median {sorted(took)[len(took) // 2]:.3f} s, at most {max(took):.3f} s"
        )
        assert max((cpu for _long, cpu in turns), default=0.0) <= MOST_CPU, turns
        assert max(took) < QUERY_SECONDS, "a client would have given up"
    assert vms.states(neighbour).count("Running") == 1
