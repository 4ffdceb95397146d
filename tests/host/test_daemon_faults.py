# SPDX-License-Identifier: Apache-2.0
"""The daemon, the VMM and systemd's parts fail or go away; VMs go on, and their states are right again."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from hypemand.cli.logs import build_log_query
from hypemand.vm.session import SILENCE_DEADLINE
from tests.host.apiget import api_get
from tests.host.vms import HAS_LAST_WORDS, KNOCKED, Vms, stuck_guests

pytestmark = pytest.mark.one_release

# argv: VM. Stops what its ExecStopPost= runs as soon as that is there, and prints its pid.
HOLD = """
until pid=$(pgrep -f "hypemand[.]unit[.]exit .*$1"); do :; done
kill -STOP $pid; echo $pid
"""
ENDS_SLOWLY = "trap 'sleep 2; echo last words; exit 0' TERM; echo up; sleep infinity & wait"
ON_DEMAND = "mkfifo /tmp/go; echo up; read -r code </tmp/go; exit $code"


def daemon_pid(vms: Vms) -> int:
    """The main process of hypemand.service; 0 if there is none."""
    return int(vms.properties("hypemand.service", "MainPID")["MainPID"])


def wait_for_another_daemon(vms: Vms, old: int) -> None:
    """Wait until systemd has brought the daemon back."""
    vms.host.wait_until(
        lambda: (
            daemon_pid(vms) not in (0, old)
            and vms.properties("hypemand.service", "ActiveState")["ActiveState"] == "active"
        ),
        "the daemon is back",
    )


@pytest.mark.both_releases
def test_a_daemon_that_is_killed_during_boots_comes_back_and_finishes_them(vms: Vms) -> None:
    names = [f"boots-{number}" for number in range(3)]
    for name in names:
        vms.write(name)
    vms.reload()
    old = daemon_pid(vms)
    vms.ctl("start", *names)
    vms.host.run(["kill", "-KILL", str(old)])
    wait_for_another_daemon(vms, old)
    for name in names:
        shown = vms.wait(name, "Running")
        assert shown["ready_ms"] is not None
        assert vms.unit(name, "ActiveState", "NRestarts") == {"ActiveState": "active", "NRestarts": "0"}
        assert vms.execute(name, "hostname") == f"{name}\n"
        assert vms.states(name).count("Running") == 1


@pytest.mark.both_releases
@pytest.mark.parametrize("verb", ["restart", "stop"])
def test_a_restart_and_a_stop_that_the_daemon_does_not_survive_are_finished(vms: Vms, verb: str) -> None:
    name = vms.run(f"cut-off-{verb}", ENDS_SLOWLY)
    vms.wait_console(name, "up")
    handle, run, old = f"hypeman@{name}", vms.unit(name, "InvocationID"), daemon_pid(vms)
    vms.host.shell(f"""
        hypemanctl {verb} {name} &
        until [ "$(systemctl show -P ActiveState hypeman-vm-{name})" = deactivating ]; do :; done
        kill -KILL {old}
        wait $!
    """)
    assert daemon_pid(vms) not in (0, old)
    if verb == "restart":
        vms.wait(name, "Running")
        assert vms.unit(name, "InvocationID") != run
        vms.host.wait_until(lambda: vms.is_active(handle), "its handle is active")
        vms.ctl("kill", name)
    assert vms.state(name) == "Stopped"
    assert vms.console(name).count("last words") == 1, "it was stopped in order, and once"
    vms.host.wait_until(lambda: not vms.is_active(handle), "its handle has ended")


def leave_log(vms: Vms, name: str, least: int) -> None:
    """Follow it, and leave after so many lines, with more under way."""
    query = build_log_query(tail=None, follow=True)
    with vms.api.events("instances", name, "logs", query=query) as events:
        for number, _ in enumerate(events):
            if number >= least:
                return


def test_readers_of_logs_who_leave_do_the_daemon_no_harm(vms: Vms) -> None:
    """They leave while a thread reads the journal for them."""
    name = vms.run("talks", "seq 1 20000; exec sleep infinity")
    vms.wait_console(name, "20000")
    old = daemon_pid(vms)
    for _ in range(15):
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda least: leave_log(vms, name, least), (1, 200, 2_000)))
    assert daemon_pid(vms) == old
    assert vms.execute(name, "echo", "here") == "here\n"


def test_a_boot_that_ends_while_the_daemon_is_away_is_ready_once_it_is_back(vms: Vms) -> None:
    name = vms.define("waits", HAS_LAST_WORDS)
    vms.ctl("start", name)
    with vms.without_daemon():
        vms.wait_console(name, "up")
        assert vms.unit(name, "ActiveState")["ActiveState"] == "activating"
    vms.wait(name, "Running")
    assert vms.execute(name, "echo", "here") == "here\n"
    # how long the parts of its boot took was told on the console as well, though journalctl does not show it
    spans = {span["name"] for span in json.loads(vms.ctl("analyze", "--json", name).stdout)["spans"]}
    assert {"mounts", "config", "root", "program"} <= spans


def test_a_restart_of_the_daemon_keeps_all_that_is_known_of_running_vms(vms: Vms) -> None:
    name = vms.run("kept", HAS_LAST_WORDS)
    keys = (
        "id",
        "state",
        "started_at",
        "ready_ms",
        "invocation_id",
        "boot_id",
        "main_pid",
        "uid",
        "status_text",
    )
    before, boot = vms.show(name), vms.ctl("analyze", "--json", name).stdout
    changes = vms.changes(name)
    vms.restart_daemon()
    after = vms.show(name)
    assert {key: after[key] for key in keys} == {key: before[key] for key in keys}
    assert before["ready_ms"] is not None
    assert vms.ctl("analyze", "--json", name).stdout == boot
    assert vms.changes(name) == changes, "a daemon that learns of a state tells of no change"
    assert vms.execute(name, "echo", "here") == "here\n"
    vms.ctl("stop", "--result", name)
    assert vms.show(name)["exit_code"] == 0


def test_a_vm_whose_record_cannot_be_read_goes_on(vms: Vms) -> None:
    """As after a step back to a version that does not know a key."""
    name = vms.run("blotted", HAS_LAST_WORDS, network="default")
    before, record = vms.show(name), f"/var/lib/hypemand/vms/{name}/vm.json"
    with vms.without_daemon():
        vms.host.run(["sed", "-i.kept", 's/"definition": {/&"no-such-key": 1,/', record])
    assert not vms.ctl("status", name, check=False).ok
    assert vms.unit(name, "ActiveState", "NRestarts") == {"ActiveState": "active", "NRestarts": "0"}
    vms.host.run(["ip", "link", "show", f"hv{before['uid']}"])
    told = vms.ctl("reload", check=False)
    assert f"a VM {name} exists, and its record cannot be read: {record}" in told.stdout + told.stderr
    with vms.without_daemon():
        vms.host.run(["mv", f"{record}.kept", record])
    after = vms.show(name)
    for key in ("id", "state", "main_pid", "uid", "invocation_id", "boot_id"):
        assert after[key] == before[key]
    assert vms.execute(name, "echo", "here") == "here\n"


def test_a_vm_that_ended_while_the_daemon_was_away_is_stopped_with_its_code(vms: Vms) -> None:
    for name in ("ended-5", "ended-0"):
        vms.write(name, ON_DEMAND, network="default")
    vms.reload()
    vms.start("ended-5", "ended-0")
    for code in (5, 0):
        vms.wait_console(f"ended-{code}", "up")
        later = f"({KNOCKED}; echo {code} >/tmp/go) >/dev/null 2>&1 </dev/null &"
        vms.execute(f"ended-{code}", "sh", "-c", later)
    addresses = [vms.show(f"ended-{code}")["network"]["ip"] for code in (5, 0)]
    with vms.without_daemon():
        for address in addresses:
            vms.knock(address)
        vms.wait_unit("ended-5", "failed")
        vms.wait_unit("ended-0", "inactive")
    for code in (5, 0):
        shown = vms.show(f"ended-{code}")
        assert (shown["state"], shown["exit_code"]) == ("Stopped", code)
        assert shown["exit_message"] == f"exited with code {code}"
    assert vms.host.run(["ls", "/run/hypemand/vms"]).stdout == ""


def test_leftovers_of_a_crash_are_cleared_when_the_daemon_starts(vms: Vms) -> None:
    name = vms.run("survives")
    host = vms.host
    with vms.without_daemon():
        host.shell("mkdir /run/hypemand/vms/ghost; touch /run/hypemand/vms/ghost/qmp.sock")
        host.run(["systemd-run", "--quiet", "--unit=hypeman-vm-orphan", "sleep", "infinity"])
    host.wait_until(
        lambda: (
            vms.properties("hypeman-vm-orphan.service", "ActiveState")["ActiveState"]
            in ("inactive", "failed")
        ),
        "the unit without a record is stopped",
    )
    assert host.run(["ls", "/run/hypemand/vms"]).stdout == f"{name}\n"
    assert any("orphan" in e["MESSAGE"] for e in host.journal("--unit=hypemand", "--priority=warning"))
    assert vms.state(name) == "Running"


@pytest.mark.both_releases
def test_a_daemon_that_hangs_is_replaced_and_harms_no_vm(vms: Vms) -> None:
    dropin = "/run/systemd/system/hypemand.service.d/watchdog.conf"
    vms.host.push(dropin, "[Service]\nWatchdogSec=6s\n")
    vms.host.run(["systemctl", "daemon-reload"])
    try:
        vms.restart_daemon()
        name = vms.run("unharmed")
        invocation, old = vms.unit(name, "InvocationID"), daemon_pid(vms)
        vms.host.run(["kill", "-STOP", str(old)])
        wait_for_another_daemon(vms, old)
        assert any("Watchdog timeout" in e["MESSAGE"] for e in vms.host.journal("--unit=hypemand"))
        assert vms.state(name) == "Running"
        assert vms.unit(name, "InvocationID") == invocation
        assert vms.execute(name, "echo", "here") == "here\n"
    finally:
        vms.host.run(["rm", "-r", "/run/systemd/system/hypemand.service.d"])
        vms.host.run(["systemctl", "daemon-reload"])
        vms.restart_daemon()


@pytest.mark.both_releases
def test_a_vmm_that_is_killed_is_a_failure_told_in_words(vms: Vms) -> None:
    name = vms.run("vmm-dies")
    vms.host.run(["kill", "-KILL", str(vms.show(name)["main_pid"])])
    shown = vms.wait(name, "Stopped")
    assert shown["exit_code"] is None
    assert shown["exit_message"] == "the VMM was killed by SIGKILL"
    assert vms.unit(name, "ActiveState", "Result") == {"ActiveState": "failed", "Result": "signal"}
    listed = vms.ctl("list", "--no-legend", name).stdout
    assert "Stopped" in listed


def test_a_vmm_that_does_not_answer_is_unknown_until_it_does(vms: Vms) -> None:
    name = vms.run("freezes")
    pid = str(vms.show(name)["main_pid"])
    vms.host.run(["kill", "-STOP", pid])
    try:
        started = time.monotonic()
        # it may only be slow
        assert vms.show(name)["state"] == "Running"
        assert time.monotonic() - started < SILENCE_DEADLINE
        shown = vms.wait(name, "Unknown")
        assert shown["state_error"] == "the VMM does not answer on its QMP socket"
        refused = vms.ctl("exec", name, "--", "true", check=False)
        assert "Unknown" in refused.stderr
    finally:
        vms.host.run(["kill", "-CONT", pid])
    assert vms.wait(name, "Running")["state_error"] is None
    assert vms.execute(name, "echo", "here") == "here\n"


def test_a_vmm_that_does_not_answer_can_be_stopped(vms: Vms) -> None:
    name = vms.run("frozen", stop_timeout="2s")
    vms.host.run(["kill", "-STOP", str(vms.show(name)["main_pid"])])
    vms.ctl("stop", name)
    shown = vms.show(name)
    assert shown["state"] == "Stopped"
    assert shown["exit_message"] == "the guest did not power off in time and was ended by force"


@pytest.mark.both_releases
def test_without_the_message_bus_states_are_unknown_and_then_right_again(vms: Vms) -> None:
    name = vms.run("busless", HAS_LAST_WORDS)
    vms.host.run(["systemctl", "stop", "dbus.socket", "dbus.service"])
    shown = vms.show(name)
    assert shown["state"] == "Unknown"
    assert shown["state_error"]
    vms.host.run(["systemctl", "start", "dbus.socket", "dbus.service"])
    vms.wait(name, "Running")
    other = vms.run("after-bus")
    assert vms.execute(other, "echo", "here") == "here\n"
    # signals of systemd arrive again: the end is seen without being asked for
    vms.ctl("stop", name)
    vms.host.run(["systemctl", "kill", "--signal=KILL", f"hypeman-vm-{other}"])
    vms.host.wait_until(lambda: vms.states(other)[-1] == "Stopped")


def test_a_daemon_that_starts_while_a_guest_is_stuck_calls_it_initializing(vms: Vms) -> None:
    with stuck_guests(vms.host):
        name = vms.define("still-stuck", stop_timeout="1s")
        vms.ctl("start", name)
        vms.wait_console(name, "the guest is stuck")
        vms.restart_daemon()
        shown = vms.show(name)
        assert shown["state"] == "Initializing"
        assert "waiting for agent and program" in shown["status_text"]


@pytest.mark.both_releases
def test_a_bus_that_does_not_answer_holds_up_nobody_who_does_not_need_it(vms: Vms) -> None:
    name = vms.run("bus-hangs")
    bus = vms.properties("dbus.service", "MainPID")["MainPID"]
    with ThreadPoolExecutor(1) as pool:
        vms.host.run(["kill", "-STOP", bus])
        try:
            asked = pool.submit(api_get, vms.host, f"/instances/{name}")
            for _ in range(20):
                api_get(vms.host, "/health")
                time.sleep(0.05)
            assert not asked.done()
        finally:
            vms.host.run(["kill", "-CONT", bus])
        assert asked.result()["state"] == "Running"
    vms.ctl("stop", name)


@pytest.mark.both_releases
def test_the_process_for_the_bus_is_replaced_when_it_dies(vms: Vms) -> None:
    name, other = vms.run("bus-dies"), vms.define("bus-died")
    vms.host.run(["pkill", "-KILL", "-f", "hypemand.systemd.busworker"])
    vms.start(other)
    # a signal of systemd's arrives: the end is seen without being asked for
    vms.host.run(["systemctl", "kill", "--signal=KILL", f"hypeman-vm-{name}"])
    vms.wait(name, "Stopped")
    assert any("restarting it" in e["MESSAGE"] for e in vms.host.journal("--unit=hypemand"))
    vms.ctl("stop", other)


@pytest.mark.both_releases
def test_a_daemon_that_dies_again_and_again_comes_back_each_time(vms: Vms) -> None:
    for _ in range(8):
        old = daemon_pid(vms)
        vms.host.run(["kill", "-KILL", str(old)])
        wait_for_another_daemon(vms, old)
    assert vms.properties("hypemand.socket", "ActiveState") == {"ActiveState": "active"}
    name = vms.run("after-all")
    vms.ctl("stop", name)


@pytest.mark.both_releases
def test_an_end_that_hangs_is_ended_and_the_vm_starts_again(vms: Vms) -> None:
    """What looks for the reason of an end stands still: nothing of the unit is left all the same."""
    name = vms.run("hangs", stop_timeout="2s")
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(vms.host.run, ["sh", "-c", HOLD, "sh", name], timeout=120)
        vms.host.run(["kill", "-KILL", str(vms.show(name)["main_pid"])])
        pid = held.result().stdout.strip()
    vms.wait(name, "Stopped")
    assert not vms.host.run(["test", "-e", f"/proc/{pid}"], check=False).ok
    vms.start(name)
    assert vms.execute(name, "echo", "here") == "here\n"
