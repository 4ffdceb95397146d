# SPDX-License-Identifier: Apache-2.0
"""Whatever stands still, the end of a VM's unit has its bounds, and a start finds nothing in its way."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from tests.host.test_daemon_faults import HOLD, ON_DEMAND
from tests.host.vms import IS_DEAF, KNOCKED, Vms

# argv: uid, SIGNAL. All processes of a unit that have its uid: VMM, leader, console.
SIGNAL_ALL = 'ps -o pid= -u "$1" | xargs kill -s "$2"'
# argv: unit. A process that is none of the unit's service, in its control group; prints its pid.
INTRUDE = """
sleep infinity >/dev/null 2>&1 </dev/null & pid=$!
for place in /sys/fs/cgroup /sys/fs/cgroup/systemd /sys/fs/cgroup/unified; do
    file=$place$(systemctl show -P ControlGroup "$1")/cgroup.procs
    [ ! -e "$file" ] || echo $pid >"$file"
done
echo $pid
"""
DIES_AT_ONCE = """[Service]
ExecStart=
ExecStart=/usr/bin/python3 -I -c "import hypemand.daemon, os; os.abort()"
"""
ADDRESS = "10.83.112.79"
# It ends as soon as its check has succeeded, which does so when somebody has knocked.
ENDS_WHEN_READY = f"{KNOCKED}; touch /tmp/open; until [ -e /tmp/checked ]; do sleep 0.1; done"
CHECK = "test -e /tmp/open && touch /tmp/checked"


@contextmanager
def dropin(vms: Vms, unit: str, text: str) -> Iterator[None]:
    """Settings of a unit in this block."""
    folder = f"/run/systemd/system/{unit}.d"
    vms.host.push(f"{folder}/test.conf", text)
    vms.host.run(["systemctl", "daemon-reload"])
    try:
        yield
    finally:
        vms.host.run(["rm", "-r", folder])
        vms.host.run(["systemctl", "daemon-reload"])


@contextmanager
def journald_stands_still(vms: Vms) -> Iterator[None]:
    """It takes and answers nothing in this block."""
    pid = vms.properties("systemd-journald.service", "MainPID")["MainPID"]
    vms.host.run(["kill", "-STOP", pid])
    try:
        yield
    finally:
        vms.host.run(["kill", "-CONT", pid])


def hold_exit_helper(vms: Vms, name: str) -> str:
    """Kill the VMM, and stop what looks for the reason. Gives that process."""
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(vms.host.run, ["sh", "-c", HOLD, "sh", name], timeout=120)
        vms.host.run(["kill", "-KILL", str(vms.show(name)["main_pid"])])
        return held.result().stdout.strip()


def is_there(vms: Vms, pid: str) -> bool:
    return vms.host.run(["test", "-e", f"/proc/{pid}"], check=False).ok


def test_a_stop_timeout_of_infinity_is_the_guests_and_no_other_step_has_it(vms: Vms) -> None:
    """systemd's TimeoutStopSec= is of each step of an end."""
    deaf = vms.run("takes-its-time", IS_DEAF, stop_timeout="infinity")
    name = vms.run("hangs-for-ever", stop_timeout="infinity")
    vms.host.run(["systemctl", "stop", "--no-block", f"hypeman-vm-{deaf}"])
    vms.wait_unit(deaf, "deactivating")
    asked = time.monotonic()
    pid = hold_exit_helper(vms, name)
    vms.wait(name, "Stopped")
    assert time.monotonic() - asked > 85, "systemd did not wait for it"
    assert not is_there(vms, pid)
    vms.start(name)
    assert vms.execute(name, "echo", "here") == "here\n"
    # it has had more than a step's time since
    assert vms.unit(deaf, "ActiveState", "SubState") == {"ActiveState": "deactivating", "SubState": "stop"}
    vms.ctl("kill", deaf)
    vms.wait(deaf, "Stopped")


@pytest.mark.parametrize("stop_timeout", ["1s", "infinity"])
def test_processes_that_stand_still_are_ended_with_the_vmm(vms: Vms, stop_timeout: str) -> None:
    """systemd.kill(5): SIGCONT follows SIGTERM."""
    name = vms.run("stands-still", stop_timeout=stop_timeout)
    uid = str(vms.show(name)["uid"])
    vms.host.run(["sh", "-c", SIGNAL_ALL, "sh", uid, "STOP"])
    vms.host.run(["kill", "-KILL", str(vms.show(name)["main_pid"])])
    shown = vms.wait(name, "Stopped")
    assert shown["exit_message"] == "the VMM was killed by SIGKILL"
    assert vms.host.run(["ps", "-o", "pid=,args=", "-u", uid], check=False).stdout == ""


def test_an_end_is_told_while_journald_stands_still(vms: Vms) -> None:
    """What the guest said last does not fit where it waits for journald."""
    name = vms.run("unheard", ON_DEMAND.replace("exit", "head -c 600000 /dev/zero | tr '\\0' x; exit"))
    with journald_stands_still(vms):
        vms.ctl("exec", name, "--", "sh", "-c", "echo 5 >/tmp/go", check=False)
        shown = vms.wait(name, "Stopped")
    assert (shown["exit_code"], shown["exit_message"]) == (5, "exited with code 5")
    assert vms.unit(name, "Result")["Result"] == "exit-code"


@pytest.mark.parametrize("ends", ["failed", "inactive"])
def test_a_start_ends_what_is_left_of_an_earlier_run(vms: Vms, ends: str) -> None:
    """A process that has outlived its unit: systemd keeps that, and takes no other of its name."""
    name = vms.run("is-left")
    unit = f"hypeman-vm-{name}.service"
    with dropin(vms, unit, "[Service]\nKillMode=process\n"):
        pid = vms.host.run(["sh", "-c", INTRUDE, "sh", unit]).stdout.strip()
        if ends == "failed":
            vms.host.run(["kill", "-KILL", str(vms.show(name)["main_pid"])])
        else:
            vms.ctl("stop", name)
        vms.wait(name, "Stopped")
        assert vms.unit(name, "ActiveState")["ActiveState"] == ends
    assert is_there(vms, pid)
    vms.start(name)
    assert vms.execute(name, "echo", "here") == "here\n"
    assert not is_there(vms, pid)
    warnings = [e["MESSAGE"] for e in vms.host.journal("--unit=hypemand", "--priority=warning")]
    assert any(f"systemd still has the unit {unit} of an earlier run" in text for text in warnings)


def test_a_daemon_that_dies_at_once_is_tried_less_and_less_often(vms: Vms) -> None:
    def count() -> int:
        words = vms.host.run(["cat", "/run/hypemand/hypemand.failures"], check=False).stdout.split()
        return int(words[1]) if len(words) == 2 else 0

    with dropin(vms, "hypemand.service", DIES_AT_ONCE):
        vms.host.run(["systemctl", "restart", "hypemand.service"], check=False)
        vms.host.wait_until(lambda: count() >= 7, "it has failed 7 times")
        assert vms.properties("hypemand.service", "SubState") == {"SubState": "stop-post"}
        assert vms.properties("hypemand.socket", "ActiveState") == {"ActiveState": "active"}
    vms.restart_daemon()
    vms.restart_daemon()
    assert count() == 0, "a stop of one that runs is no failure"
    name = vms.run("after-it-all")
    vms.ctl("stop", name)


def test_a_program_that_succeeds_before_the_daemon_has_seen_it_ready_is_a_success(vms: Vms) -> None:
    """systemd would call the unit failed, and restart it, if the VMM ended before READY=1."""
    vms.define(
        "job",
        ENDS_WHEN_READY,
        network={"name": "default", "address": ADDRESS},
        ready={"exec": ["sh", "-c", CHECK], "interval": "100ms"},
        restart="on-failure",
        boot_timeout="10min",
    )
    vms.ctl("start", "job")
    vms.host.wait_until(lambda: "waiting for exec" in vms.unit("job", "StatusText")["StatusText"])
    daemon = vms.properties("hypemand.service", "MainPID")["MainPID"]
    # on a busy machine that takes longer than the daemon's watchdog lets it stand still
    vms.host.run(["systemctl", "service-watchdogs", "no"])
    vms.host.run(["kill", "-STOP", daemon])
    try:
        vms.knock(ADDRESS)
        vms.host.wait_until(lambda: any(line.startswith("HYPEMAN-EXIT") for line in vms.console("job")))
        assert vms.unit("job", "ActiveState")["ActiveState"] == "activating"
    finally:
        vms.host.run(["kill", "-CONT", daemon])
        vms.host.run(["systemctl", "service-watchdogs", "yes"])
    shown = vms.wait("job", "Stopped")
    assert (shown["exit_code"], shown["exit_success"]) == (0, True)
    assert vms.unit("job", "ActiveState")["ActiveState"] == "inactive"
    starts = [line for line in vms.console("job") if line.startswith("HYPEMAN-PROGRAM-START")]
    assert len(starts) == 1, "it was restarted"
