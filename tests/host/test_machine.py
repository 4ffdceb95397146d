# SPDX-License-Identifier: Apache-2.0
"""The test hosts themselves: what every other host test counts on."""

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host import cgroups
from tests.host.command import CommandError, run_command
from tests.host.lab import boot_hosts, start_host
from tests.host.leftovers import HOSTS, remove_leftovers
from tests.host.machine import POWEROFF_DEADLINE, TestHost
from tests.host.recipe import Suite
from tests.host.wire import UPLINK, lay_wire

RUNS_A_HOST = """
import sys
from tests.host.lab import start_host
from tests.host.recipe import Suite
from tests.host.wire import lay_wire
with start_host(Suite.BOOKWORM, installed=False) as host, lay_wire(host) as wire:
    print(host.name, host.leader, wire.process.pid, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def bare(suite: Suite) -> Iterator[TestHost]:
    with start_host(suite, installed=False) as host:
        yield host


def find_traces(name: str) -> list[str]:
    """All that a host could leave on this machine."""
    traces = [str(path) for path in HOSTS.glob(f"{name}*")]
    traces += [line for line in Path("/proc/self/mounts").read_text().splitlines() if name in line]
    for hierarchy in cgroups.find_hierarchies():
        traces += [str(path) for path in hierarchy.mount.glob(f"{cgroups.PREFIX}{name}*")]
    return traces


def test_a_host_runs_the_release_it_is_named_after(bare: TestHost, suite: Suite) -> None:
    assert f"VERSION_CODENAME={suite}\n" in bare.pull("/etc/os-release").decode()


def test_files_come_back_as_they_were_pushed(bare: TestHost) -> None:
    content = bytes(range(256)) * 1000
    bare.push("/srv/a folder/file", content, 0o640)
    assert bare.pull("/srv/a folder/file") == content
    assert bare.run(["stat", "-c", "%a %U:%G", "/srv/a folder/file"]).stdout == "640 root:root\n"


def test_a_failing_command_is_an_error_that_shows_its_output(bare: TestHost) -> None:
    with pytest.raises(CommandError, match=r"(?s)exit code 3.*to stdout.*to stderr"):
        bare.shell("echo to stdout; echo to stderr >&2; exit 3")
    assert bare.shell("exit 3", check=False).code == 3


def test_a_command_that_is_late_is_killed(bare: TestHost) -> None:
    started = time.monotonic()
    with pytest.raises(CommandError, match=r"not done after 0\.5 s"):
        bare.run(["sleep", "4711"], timeout=0.5)
    assert time.monotonic() - started < 5
    bare.wait_until(lambda: not bare.run(["pgrep", "-f", "^sleep 4711"], check=False).ok)


def test_memory_limits_are_enforced_inside(bare: TestHost) -> None:
    hungry = ["systemd-run", "--wait", "--collect", "--quiet", "-p", "MemoryMax=30M"]
    assert bare.run([*hungry, "python3", "-c", "bytearray(5 << 20)"]).ok
    assert not bare.run([*hungry, "python3", "-c", "bytearray(90 << 20)"], check=False).ok


def test_the_journal_is_kept_and_read_with_its_fields(bare: TestHost) -> None:
    bare.run(["logger", "--journald"], input="MESSAGE=first\nHYPEMAND_TEST=journal\n")
    (entry,) = bare.journal("HYPEMAND_TEST=journal")
    assert entry["MESSAGE"] == "first"
    assert bare.run(["sh", "-c", "ls /var/log/journal/*/system.journal"]).ok


def test_a_failed_unit_is_in_the_report(bare: TestHost) -> None:
    started = time.time()
    bare.shell("systemd-run --unit=broken --wait sh -c 'echo its last words; exit 7'", check=False)
    report = bare.report(started)
    bare.run(["systemctl", "reset-failed"])
    assert re.search(r"broken.service +loaded failed", report)
    assert "its last words" in report


def test_a_reboot_keeps_the_disk_and_makes_a_new_boot(fresh_bare: TestHost) -> None:
    fresh_bare.push("/etc/kept", "kept")
    boot = fresh_bare.pull("/proc/sys/kernel/random/boot_id")
    fresh_bare.reboot()
    assert fresh_bare.pull("/etc/kept") == b"kept"
    assert fresh_bare.pull("/proc/sys/kernel/random/boot_id") != boot


@pytest.fixture
def fresh_bare(suite: Suite) -> Iterator[TestHost]:
    with start_host(suite, installed=False) as host:
        yield host


@pytest.mark.host
def test_hosts_side_by_side_are_apart_and_leave_nothing() -> None:
    with boot_hosts(list(Suite), installed=False) as hosts:
        for host in hosts:
            host.shell(f"systemd-run --unit=mine-{host.name} sleep infinity; ip link add br-mine type bridge")
        for host in hosts:
            units = host.run(["systemctl", "list-units", "--plain", "--no-legend", "mine-*"]).stdout
            assert [line.split()[0] for line in units.splitlines()] == [f"mine-{host.name}.service"]
        pids = [cgroups.find_processes(host.name) for host in hosts]
        assert all(pids)
        assert not set.intersection(*pids)
    for host in hosts:
        assert find_traces(host.name) == []
    assert not any(Path(f"/proc/{pid}").exists() for pid in set.union(*pids))


@pytest.mark.host
@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=str)
def test_a_killed_test_run_leaves_no_process_and_the_next_run_removes_the_rest(death: signal.Signals) -> None:
    runner = subprocess.Popen(
        [sys.executable, "-c", RUNS_A_HOST],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        text=True,
    )
    with runner:
        assert runner.stdout is not None
        name, *pids = runner.stdout.readline().split()
        watches = [os.pidfd_open(int(pid)) for pid in pids]
        try:
            runner.send_signal(death)
            runner.wait(POWEROFF_DEADLINE)
            for watch, what in zip(watches, ("host's systemd", "switch of its wire"), strict=True):
                assert select.select([watch], [], [], POWEROFF_DEADLINE)[0], (
                    f"the {what} outlives the test run"
                )
        finally:
            for watch in watches:
                os.close(watch)
    remove_leftovers()
    assert find_traces(name) == []


@pytest.mark.host
def test_a_wire_joins_hosts_of_all_releases_and_can_be_cut() -> None:
    links = run_command(["ip", "-brief", "link"], timeout=10).stdout
    with boot_hosts(list(Suite), installed=False) as hosts, lay_wire(*hosts) as wire:
        one, other = hosts
        ping = ["busybox", "ping", "-c1", "-W1"]
        for address in (wire.address(other), wire.address6(other)):
            one.wait_until_succeeds([*ping, address])
        with wire.cut_off(other):
            assert not one.run([*ping, wire.address(other)], check=False).ok
            assert "NO-CARRIER" in other.run(["ip", "link", "show", UPLINK]).stdout
        one.wait_until_succeeds([*ping, wire.address(other)])
        wire.unplug(other)
        assert UPLINK not in other.run(["ip", "link"]).stdout
        wire.plug(other)
        one.wait_until_succeeds([*ping, wire.address(other)])
        assert run_command(["ip", "-brief", "link"], timeout=10).stdout == links
    assert wire.process.poll() is not None
