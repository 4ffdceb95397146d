# SPDX-License-Identifier: Apache-2.0
"""A VM's life: from its file to Running, its program's end as its unit's result, and every way to stop it."""

import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import dropwhile, groupby, takewhile
from typing import Any

import pytest

from hypemand.systemd.bus import unit_path
from tests.host.machine import TestHost
from tests.host.vms import (
    BOOT_DEADLINE,
    END_DEADLINE,
    HAS_LAST_WORDS,
    IS_DEAF,
    STATE_CHANGED,
    STAYS,
    Vms,
    hold_deadline,
    stuck_guests,
    vms_of,
)

# argv: unit. A line for each different answer of systemd, until the unit is ready.
OBSERVE = """
old=
while :; do
    now=$(systemctl show --property=ActiveState --property=SubState --property=StatusText --value "$1" |
        tr '\\n' '|')
    [ "$now" = "$old" ] || echo "$now"
    old=$now
    case $now in *active*running*'Running: ready'* | *'Running: ready'*active*running*) exit 0 ;; esac
    case $now in *failed*) exit 1 ;; esac
done
"""


@dataclass(frozen=True)
class FirstBoot:
    """A boot that was looked at while it went on, and when it was over (`shown`)."""

    vms: Vms
    name: str
    answer: dict[str, str]
    observed: tuple[str, ...]
    shown: dict[str, Any]


@pytest.fixture(scope="module")
def first_boot(host: TestHost) -> Iterator[FirstBoot]:
    with vms_of(host) as vms:
        name = vms.define("from-file", HAS_LAST_WORDS)
        (answer,) = json.loads(vms.ctl("start", "--json", name).stdout)
        unit = f"hypeman-vm-{name}.service"
        observed = host.run(["sh", "-euc", OBSERVE, "observe", unit], timeout=BOOT_DEADLINE).stdout
        yield FirstBoot(vms, name, answer, tuple(observed.splitlines()), vms.wait(name, "Running"))


def test_start_answers_initializing_at_once(first_boot: FirstBoot) -> None:
    assert first_boot.answer["state"] == "Initializing"
    assert first_boot.answer["status_text"].startswith("Initializing: ")


def test_the_unit_is_activating_until_the_vm_is_running(first_boot: FirstBoot) -> None:
    *before, last = first_boot.observed
    # systemd has loaded the unit before it executes the start job
    before = list(dropwhile(lambda line: "|inactive|dead|" in f"|{line}", before))
    starting = [line for line in before if "activating" in line]
    assert starting, first_boot.observed
    assert before[: len(starting)] == starting, "it went back to activating"
    for line in starting:
        assert set(line.strip("|").split("|")) >= {"activating", "start"}
    told = ["Initializing: " in line for line in starting]
    told = told[told.index(True) :]  # systemd may have been asked before the daemon had said anything
    assert all(told), first_boot.observed
    assert set(last.strip("|").split("|")) >= {"active", "running"}
    assert re.search(r"Running: ready in [0-9]+ ms", last)


def test_running_is_told_when_systemd_says_active_and_not_before(first_boot: FirstBoot) -> None:
    vms, name = first_boot.vms, first_boot.name
    unit = unit_path(f"hypeman-vm-{name}.service")
    asked = ["org.freedesktop.systemd1", unit, "org.freedesktop.systemd1.Unit", "ActiveEnterTimestamp"]
    active = int(vms.host.run(["busctl", "get-property", *asked]).stdout.split()[1])
    (running,) = [change.at for change in vms.changes(name) if change.new == "Running"]
    assert active <= running
    # when the marker was seen: by the VM's own port, which may be some ms before journald has it
    spans = {span["name"]: span for span in json.loads(vms.ctl("analyze", "--json", name).stdout)["spans"]}
    assert spans["program"]["end_ms"] <= spans["tell systemd"]["end_ms"]
    assert len([line for line in vms.console(name) if "HYPEMAN-PROGRAM-START" in line]) == 1


def test_a_start_has_systemd_load_its_units_once(vms: Vms) -> None:
    """Who asks for a property of a unit that is not loaded has it loaded, and forgotten, for that answer."""
    name = vms.define("loaded")
    rule = "type='signal',sender='org.freedesktop.systemd1',member='UnitNew'"
    monitor = ["timeout", f"{BOOT_DEADLINE:.0f}", "busctl", "monitor", f"--match={rule}"]
    with vms.host.popen(monitor) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        assert b"Monitoring" in process.stderr.readline()
        vms.start(name)
        active = f"systemctl list-units --state=active hypeman@{name}.service"
        vms.host.shell(f"until {active} | grep {name}; do sleep 0.1; done")
        vms.properties("hypeman@nobody.service", "LoadState")
        lines = takewhile(lambda line: b"@nobody" not in line, process.stdout)
        loaded = [line.split(b'"')[1] for line in lines if b'"hypeman' in line]
    assert sorted(loaded) == [
        b"hypeman-again@loaded.service",
        b"hypeman-vm-loaded.service",
        b"hypeman@loaded.service",
    ]


def test_every_change_is_a_structured_entry_with_a_text_in_the_catalog(first_boot: FirstBoot) -> None:
    vms, name = first_boot.vms, first_boot.name
    assert vms.states(name) == ["Stopped", "Initializing", "Running"]
    vm_id = vms.show(name)["id"]
    told = vms.host.run(
        ["journalctl", "--no-pager", "-x", f"MESSAGE_ID={STATE_CHANGED}", f"HYPEMAN_VM_ID={vm_id}"]
    ).stdout
    assert f"Subject: VM {name} is now Initializing" in told
    assert f"Subject: VM {name} is now Running" in told
    assert f"The previous state of the micro VM {name} (id {vm_id}) was Initializing." in told
    assert "@" not in told, "a field that the catalog names is not in the entry"


def test_the_journal_finds_console_and_daemon_by_vm_and_by_unit(first_boot: FirstBoot) -> None:
    vms, name = first_boot.vms, first_boot.name
    vms.wait_console(name, "up")
    wanted = {"up", f"VM {name}: Stopped -> Initializing: starting the VMM"}
    by_vm = {entry.get("MESSAGE") for entry in vms.host.journal(f"HYPEMAN_VM={name}")}
    by_id = {entry.get("MESSAGE") for entry in vms.host.journal(f"HYPEMAN_VM_ID={vms.show(name)['id']}")}
    by_unit = {entry.get("MESSAGE") for entry in vms.host.journal(f"--unit=hypeman-vm-{name}")}
    assert wanted <= by_vm
    assert wanted <= by_id
    assert wanted | {f"Started hypeman-vm-{name}.service - Micro VM {name}."} <= by_unit


def test_starting_a_running_vm_changes_nothing(first_boot: FirstBoot) -> None:
    vms, name = first_boot.vms, first_boot.name
    before = vms.unit(name, "InvocationID", "MainPID")
    vms.ctl("start", name)
    assert vms.unit(name, "InvocationID", "MainPID") == before


def test_the_boot_can_be_taken_apart(first_boot: FirstBoot) -> None:
    timeline = json.loads(first_boot.vms.ctl("analyze", "--json", first_boot.name).stdout)
    lanes = {span["lane"] for span in timeline["spans"]}
    assert {"host", "unit", "kernel", "init"} <= lanes
    assert timeline["running_ms"] == pytest.approx(first_boot.vms.show(first_boot.name)["ready_ms"], abs=1)
    assert "<svg" in first_boot.vms.ctl("analyze", "plot", first_boot.name).stdout


@pytest.mark.one_release
def test_start_wait_is_back_when_all_are_running(vms: Vms) -> None:
    names = ["wait-1", "wait-2", "wait-3"]
    for name in names:
        vms.write(name)
    vms.reload()
    vms.start(*names)
    listed = json.loads(vms.ctl("list", "--json", *names).stdout)
    assert [vm["state"] for vm in listed] == ["Running"] * 3
    for name in names:
        assert vms.execute(name, "hostname") == f"{name}\n"


# how a program ends: unit's result, status of ExecStopPost=, exit code
@pytest.mark.parametrize(
    ("name", "program", "active", "result", "code", "message"),
    [
        ("ends-well", "exit 0", "inactive", "success", 0, "exited with code 0"),
        ("ends-with-3", "exit 3", "failed", "exit-code", 3, "exited with code 3"),
        ("is-killed", "kill -SEGV $$", "failed", "exit-code", 139, "killed by signal 11 (SEGV)"),
    ],
)
def test_the_units_result_is_the_programs(
    vms: Vms, name: str, program: str, active: str, result: str, code: int, message: str
) -> None:
    vms.define(name, program)
    vms.ctl("start", "--wait", name, check=False)
    shown = vms.wait(name, "Stopped")
    assert (shown["exit_code"], shown["exit_message"]) == (code, message)
    assert vms.unit(name, "ActiveState", "Result") == {"ActiveState": active, "Result": result}
    status = vms.host.run(["systemctl", "status", "--no-pager", f"hypeman-vm-{name}"], check=False).stdout
    assert (f"status={code}" in status) == (code != 0)
    if code != 0:
        assert message in status
        own = vms.ctl("status", name, check=False)
        assert (own.code, message in own.stdout) == (3, True)
    failed = vms.host.run(["systemctl", "is-failed", f"hypeman-vm-{name}"], check=False)
    assert failed.ok == (code != 0)


def list_states(vms: Vms, name: str) -> list[str]:
    """As the journal tells, without Created, which with --warm a VM is while its guest is loaded."""
    return [state for state, _ in groupby(state for state in vms.states(name) if state != "Created")]


def test_stop_lets_the_program_end_in_order(vms: Vms) -> None:
    name = vms.run("stops", HAS_LAST_WORDS)
    vms.ctl("stop", "--result", name)
    assert vms.console(name).count("last words") == 1
    shown = vms.show(name)
    assert (shown["state"], shown["exit_code"]) == ("Stopped", 0)
    assert shown["exit_message"].startswith("stopped on request")
    assert list_states(vms, name) == ["Stopped", "Initializing", "Running", "Shutdown", "Stopped"]
    vms.start(name)
    assert vms.show(name)["exit_code"] is None


HANDLED = "handled"


@pytest.fixture(scope="module")
def handled_vms(host: TestHost) -> Iterator[Vms]:
    """A VM that tests of its handle share; how they leave it is how the next one finds it."""
    with vms_of(host) as vms:
        vms.define(HANDLED, HAS_LAST_WORDS)
        yield vms


@pytest.fixture
def handled(handled_vms: Vms) -> Vms:
    """That VM, Running with its handle."""
    handled_vms.host.run(["systemctl", "start", f"hypeman@{HANDLED}"])
    assert handled_vms.state(HANDLED) == "Running"
    return handled_vms


@pytest.fixture
def ended(handled_vms: Vms) -> Vms:
    """That VM, Stopped in order after a run."""
    if not handled_vms.states(HANDLED):
        handled_vms.start(HANDLED)
    if handled_vms.state(HANDLED) != "Stopped":
        handled_vms.ctl("stop", HANDLED)
    return handled_vms


def test_a_start_right_after_a_stop_is_not_undone_by_the_end_of_the_handle(handled: Vms) -> None:
    vms, handle = handled, f"hypeman@{HANDLED}"
    vms.host.run(["sh", "-euc", f"hypemanctl stop {HANDLED}; hypemanctl start --wait {HANDLED}"])
    vms.host.wait_until(lambda: vms.is_active(handle), "its handle is active")
    assert list_states(vms, HANDLED)[-4:] == ["Shutdown", "Stopped", "Initializing", "Running"]


def test_a_handle_that_is_started_while_it_ends_starts_the_vm_as_soon_as_it_has(handled: Vms) -> None:
    vms, name, handle = handled, HANDLED, f"hypeman@{HANDLED}"
    drop_in = f"/run/systemd/system/{handle}.service.d/slow.conf"
    vms.host.run(["mkdir", "-p", os.path.dirname(drop_in)])
    vms.host.push(drop_in, "[Service]\nExecStopPost=/bin/sleep 1\n")
    vms.host.run(["systemctl", "daemon-reload"])
    try:
        vms.host.run(["systemctl", "stop", f"hypeman-vm-{name}"])
        vms.host.wait_until(lambda: vms.properties(handle, "ActiveState")["ActiveState"] == "deactivating")
        vms.host.run(["systemctl", "start", handle])
        assert vms.state(name) == "Running"
        assert vms.properties(handle, "ActiveState")["ActiveState"] == "active"
    finally:
        vms.host.run(["rm", "-r", os.path.dirname(drop_in)])
        vms.host.run(["systemctl", "daemon-reload"])
    warnings = vms.host.run(["journalctl", "--unit=hypemand", "--priority=warning"]).stdout
    assert f"{handle}.service has not ended" not in warnings


@pytest.mark.parametrize("verb", ["stop", "kill"])
def test_a_handle_can_be_started_as_soon_as_its_vm_is_stopped(handled: Vms, verb: str) -> None:
    vms, handle = handled, f"hypeman@{HANDLED}"
    vms.host.run(["sh", "-euc", f"hypemanctl {verb} {HANDLED}; systemctl start {handle}"])
    assert vms.state(HANDLED) == "Running"
    assert vms.properties(handle, "ActiveState")["ActiveState"] == "active"


@pytest.mark.one_release
def test_a_program_that_dies_of_the_stop_signal_has_not_failed(vms: Vms) -> None:
    name = vms.run("dies-of-term", STAYS)
    vms.ctl("stop", "--result", name)
    assert vms.show(name)["exit_code"] == 143
    assert vms.unit(name, "ActiveState")["ActiveState"] == "inactive"


def test_stop_works_without_the_daemon(handled: Vms) -> None:
    vms, name = handled, HANDLED
    run = f"_SYSTEMD_INVOCATION_ID={vms.show(name)['invocation_id']}"
    vms.host.wait_until(lambda: any(e.get("MESSAGE") == "up" for e in vms.host.journal(run)), what="it is up")
    before = vms.console(name).count("last words")
    with vms.without_daemon():
        vms.host.run(["systemctl", "stop", f"hypeman@{name}"])
        for unit in (f"hypeman-vm-{name}", f"hypeman@{name}"):
            ended = vms.properties(unit, "ActiveState", "Result")
            assert ended == {"ActiveState": "inactive", "Result": "success"}, unit
        assert vms.console(name).count("last words") == before + 1
    shown = vms.show(name)
    assert (shown["state"], shown["exit_code"]) == ("Stopped", 0)
    assert shown["exit_message"].startswith("stopped on request")


@pytest.mark.one_release
def test_a_program_that_does_not_stop_is_killed_in_the_guest(vms: Vms) -> None:
    name = vms.run("is-deaf", IS_DEAF, stop_timeout="3s")
    stopped = vms.ctl("stop", "--result", name, check=False)
    assert stopped.code == 1
    assert "killed, since TERM did not end it within 3 s" in stopped.stderr
    shown = vms.show(name)
    assert shown["exit_code"] == 137
    assert shown["exit_message"].startswith("stopped on request: killed, since TERM did not end it")
    assert vms.unit(name, "ActiveState", "Result") == {"ActiveState": "failed", "Result": "exit-code"}


def test_kill_ends_the_vmm_at_once_and_is_a_failure(vms: Vms) -> None:
    name = vms.run("killed", IS_DEAF)
    vms.ctl("kill", name)
    shown = vms.show(name)
    assert (shown["state"], shown["exit_code"]) == ("Stopped", None)
    assert shown["exit_message"] == "the VMM was killed by SIGKILL"
    assert vms.unit(name, "ActiveState", "Result") == {"ActiveState": "failed", "Result": "signal"}


@pytest.mark.one_release
def test_vms_that_boot_can_be_stopped_and_removed(vms: Vms) -> None:
    names = [f"early-{number}" for number in range(4)]
    for name in names:
        vms.write(name)
    vms.reload()
    started = json.loads(vms.ctl("start", "--json", *names).stdout)
    assert [vm["state"] for vm in started] == ["Initializing"] * 4
    vms.ctl("stop", *names[:2])
    for name in names[:2]:
        assert vms.state(name) == "Stopped"
        assert vms.unit(name, "ActiveState")["ActiveState"] == "inactive"
        assert "Running" not in vms.states(name), "it was too quick for this test"
    for name in names[2:]:
        vms.remove(name)


def test_a_handle_that_is_stopped_while_it_starts_stops_the_vm(vms: Vms) -> None:
    name, handle = vms.define("early-handle"), "hypeman@early-handle.service"
    vms.host.run(["systemctl", "start", "--no-block", handle])
    vms.wait(name, "Initializing")
    vms.host.run(["systemctl", "stop", handle])
    assert "Running" not in vms.states(name), "it was too quick for this test"
    assert vms.state(name) == "Stopped"
    assert vms.properties(handle, "ActiveState")["ActiveState"] == "inactive"


@pytest.mark.one_release
def test_times_of_phases_are_those_of_the_changes(first_boot: FirstBoot) -> None:
    shown = first_boot.shown
    began, booted = shown["started_at"], shown["current_phase_since"]
    assert booted > began
    assert shown["phase_durations_ms"]["initializing"] > 0


@pytest.mark.one_release
def test_a_daemon_that_is_new_knows_since_when_a_vm_is_stopped(ended: Vms) -> None:
    stopped = ended.show(HANDLED)["stopped_at"]
    time.sleep(1.5)
    ended.restart_daemon()
    shown = ended.show(HANDLED)
    assert (shown["stopped_at"], shown["current_phase_since"]) == (stopped, stopped)


@pytest.mark.one_release
def test_the_guest_has_the_time_of_the_host(first_boot: FirstBoot) -> None:
    vms, name = first_boot.vms, first_boot.name

    def is_right() -> bool:
        before = time.time()
        shown = re.findall(r"time\.tv_u?sec:\s+([0-9]+)", vms.execute(name, "adjtimex"))
        seen = int(shown[0]) + int(shown[1]) / 1e6
        return before - 0.1 < seen < time.time() + 0.1

    vms.host.wait_until(is_right, "the guest's clock is right")


@pytest.mark.one_release
def test_a_guest_that_is_stuck_can_be_stopped_and_removed(vms: Vms) -> None:
    with stuck_guests(vms.host):
        for name in ("stuck-1", "stuck-2"):
            vms.write(name, stop_timeout="1s")
        vms.reload()
        vms.ctl("start", "stuck-1", "stuck-2")
        vms.wait_console("stuck-1", "the guest is stuck")
        assert vms.state("stuck-1") == "Initializing"
        refused = vms.ctl("exec", "stuck-1", "--", "true", check=False)
        assert refused.code == 125
        assert "Initializing" in refused.stderr
        vms.ctl("stop", "stuck-1")
        assert vms.state("stuck-1") == "Stopped"
        vms.remove("stuck-2")


@pytest.mark.one_release
def test_a_boot_that_does_not_get_there_fails_and_names_what_was_missing(vms: Vms) -> None:
    with stuck_guests(vms.host):
        vms.define("no-marker", boot_timeout="20s", stop_timeout="1s")
        vms.ctl("start", "no-marker")
        hold_deadline(vms.host, "no-marker", lambda: "the guest is stuck" in vms.console("no-marker"), "init")
    with stuck_guests(vms.host, program_starts=True):
        vms.define("no-agent", boot_timeout="20s", stop_timeout="1s")
        with vms.host.popen(["hypemanctl", "start", "--wait", "--timeout=5m", "no-agent"]) as late:
            hold_deadline(
                vms.host,
                "no-agent",
                lambda: any("HYPEMAN-PROGRAM-START" in line for line in vms.console("no-agent")),
                "its program has started",
            )
            _, told = late.communicate(timeout=END_DEADLINE)
    nothing, half = vms.wait("no-marker", "Stopped"), vms.show("no-agent")
    assert half["exit_message"] == "boot timed out: HYPEMAN-AGENT-READY was not seen"
    assert half["exit_message"] in told.decode()
    assert late.returncode == 1
    assert nothing["exit_message"] == (
        "boot timed out: HYPEMAN-PROGRAM-START and HYPEMAN-AGENT-READY were not seen"
    )
    for name in ("no-marker", "no-agent"):
        assert vms.unit(name, "ActiveState", "Result") == {"ActiveState": "failed", "Result": "timeout"}


@pytest.mark.one_release
def test_without_an_agent_the_programs_marker_is_enough(vms: Vms) -> None:
    with stuck_guests(vms.host, program_starts=True):
        name = vms.run("agentless", guest_agent=False, stop_timeout="1s")
        assert vms.state(name) == "Running"
        refused = vms.ctl("exec", name, "--", "true", check=False)
        assert "no guest agent" in refused.stderr


def test_a_boot_timeout_of_infinity_is_no_deadline(vms: Vms) -> None:
    name = vms.run("forever", boot_timeout="infinity")
    assert vms.unit(name, "TimeoutStartUSec")["TimeoutStartUSec"] == "infinity"
    assert vms.state(name) == "Running"
