# SPDX-License-Identifier: Apache-2.0
"""Following boots in the journal, whatever happens to the journal, and at no cost when nothing boots."""

import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.host.vms import STAYS, Vms

TALKS = "echo up; while :; do echo tick; sleep 0.2; done"
IDLE_SECONDS = 35
MOST_RSS_KIB = 56 * 1024
# what a start and a command leave to do ends by itself: notes that are written, connections that are closed
SETTLES = 5.0
# What a process waits in. A line of strace for one of these that ends is a wake-up.
WAITS = "epoll_wait,epoll_pwait,epoll_pwait2,poll,ppoll,select,pselect6,nanosleep,clock_nanosleep"


def daemon_pid(vms: Vms) -> str:
    """The main process of hypemand.service."""
    return vms.properties("hypemand.service", "MainPID")["MainPID"]


def start_several(vms: Vms, prefix: str, program: str = STAYS) -> list[str]:
    """Start some at once and come back while they boot."""
    names = [f"{prefix}-{number}" for number in range(3)]
    for name in names:
        vms.write(name, program)
    vms.reload()
    vms.ctl("start", *names)
    return names


def check_running(vms: Vms, names: list[str]) -> None:
    """All get to Running, once each."""
    for name in names:
        vms.wait(name, "Running")
        assert vms.states(name) == ["Stopped", "Initializing", "Running"]
        assert vms.execute(name, "hostname") == f"{name}\n"


def test_a_restart_of_journald_during_boots_loses_none(vms: Vms) -> None:
    names = start_several(vms, "journald")
    vms.host.run(["systemctl", "restart", "systemd-journald.service"])
    check_running(vms, names)
    for name in names:
        vms.wait_console(name, "up")


def test_a_journal_that_is_rotated_and_vacuumed_during_boots_loses_none(vms: Vms) -> None:
    names = start_several(vms, "rotated")
    for _ in range(3):
        vms.host.run(["journalctl", "--rotate", "--vacuum-size=1"])
    for name in names:
        assert vms.wait(name, "Running")["ready_ms"] is not None
        assert vms.unit(name, "NRestarts")["NRestarts"] == "0"
        assert vms.execute(name, "hostname") == f"{name}\n"


HOLD = """
import socket, sys, time
link = socket.socket(socket.AF_UNIX)
while link.connect_ex(sys.argv[1]) != 0:
    time.sleep(0.001)
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def hold_port(vms: Vms, path: str) -> Iterator[None]:
    """Be the one client that a port of a VMM hears, as soon as there is one."""
    with vms.host.popen(["/usr/bin/python3", "-c", HOLD, path]) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        yield


def test_the_journal_alone_is_enough_also_when_it_is_rotated_meanwhile(vms: Vms) -> None:
    name = vms.run("by-journal")
    report = f"/run/hypemand/vms/{name}/report.sock"
    with ExitStack() as stack:
        with vms.without_daemon():
            before = vms.unit(name, "MainPID")["MainPID"]
            vms.host.run(["rm", report])
            vms.host.run(["systemctl", "restart", "--no-block", f"hypeman-vm-{name}"])
            stack.enter_context(hold_port(vms, report))
            vmm = vms.unit(name, "MainPID")["MainPID"]
            vms.host.run(["kill", "-STOP", vmm])
            assert vmm not in ("0", before)
        assert vms.unit(name, "ActiveState")["ActiveState"] == "activating", "stopped before it was ready"
        vms.host.run(["journalctl", "--rotate"])
        vms.host.run(["kill", "-CONT", vmm])
        assert vms.wait(name, "Running")["ready_ms"] is not None


def test_what_a_boot_has_shown_outlives_the_journal(vms: Vms) -> None:
    name = vms.run("vacuumed", "mkfifo /tmp/go; echo up; read -r code </tmp/go; exit $code")
    vms.wait_console(name, "up")
    before = vms.show(name)
    vms.host.run(["journalctl", "--rotate", "--vacuum-size=1"])
    assert vms.console(name) == []
    vms.restart_daemon()
    shown = vms.show(name)
    assert (shown["state"], shown["ready_ms"]) == ("Running", before["ready_ms"])
    vms.ctl("exec", name, "--", "sh", "-c", "echo 4 >/tmp/go", check=False)
    assert vms.wait(name, "Stopped")["exit_code"] == 4


@pytest.mark.one_release
def test_a_daemon_with_nothing_to_follow_sleeps_and_is_small(vms: Vms) -> None:
    for number in range(20):
        vms.write(f"idle-{number}", TALKS if number == 0 else STAYS)
    vms.reload()
    running = [f"idle-{number}" for number in range(4)]
    vms.start(*running)
    vms.host.wait_until(lambda: len(vms.list_all()) >= 20)
    vms.wait_console(running[0], "tick", times=5)
    vms.execute(running[1], "true")
    time.sleep(SETTLES)

    trace = ["strace", "-f", "-qq", "-e", f"trace={WAITS}", "-e", "signal=none", "-p", daemon_pid(vms)]
    traced = vms.host.run(["timeout", str(IDLE_SECONDS), *trace], check=False, timeout=IDLE_SECONDS + 30)
    assert traced.code in (0, 124), traced.describe()
    ended = re.findall(r"^.*\) += .*$|^.*resumed.*$", traced.stderr, re.MULTILINE)
    woken = [line for line in ended if ", 0) " not in line]  # a look at what is there does not sleep
    watchdog = vms.properties("hypemand.service", "WatchdogUSec")["WatchdogUSec"]
    assert watchdog == "30s", "it is fed every 15 s"
    # each time, and when a thread has looked at the file systems
    assert 2 <= len(woken) <= 2 * (IDLE_SECONDS // 15 + 2), traced.stderr

    status = vms.host.pull(f"/proc/{daemon_pid(vms)}/status").decode()
    rss = re.search(r"^VmRSS:\s+([0-9]+) kB$", status, re.MULTILINE)
    assert rss is not None
    assert int(rss[1]) < MOST_RSS_KIB


def test_a_boot_is_followed_after_long_idleness_and_rotation(vms: Vms) -> None:
    vms.host.run(["journalctl", "--rotate"])
    name = vms.run("after-rotation")
    assert vms.states(name) == ["Stopped", "Initializing", "Running"]
    vms.host.run(["systemctl", "kill", "--signal=KILL", f"hypeman-vm-{name}"])
    vms.host.wait_until(lambda: vms.states(name)[-1] == "Stopped")
