# SPDX-License-Identifier: Apache-2.0
"""start, stop, restart, kill, rm, wait: what is asked of the daemon, and the exit status."""

from __future__ import annotations

import json

import pytest

from tests.unit.cli.conftest import Cli
from tests.unit.cli.daemon import FakeDaemon

FAILED_BOOT = {
    "state": "Stopped",
    "ready_ms": None,
    "exit_code": 125,
    "exit_message": "the agent was not ready within 10 s",
}


def test_start_comes_back_at_once(daemon: FakeDaemon, cli: Cli) -> None:
    daemon.add("web", "Stopped").boots_to = []
    done = cli.run("start", "web", "--json")
    assert done.returncode == 0
    assert [vm["state"] for vm in json.loads(done.stdout)] == ["Initializing"]


def test_start_can_wait_until_running(daemon: FakeDaemon, cli: Cli) -> None:
    daemon.add("web", "Stopped")
    daemon.add("db", "Stopped")
    done = cli.run("start", "--wait", "web", "db", "--json")
    assert done.returncode == 0
    assert [vm["state"] for vm in json.loads(done.stdout)] == ["Running", "Running"]


def test_a_start_that_fails_says_why(daemon: FakeDaemon, cli: Cli) -> None:
    daemon.add("web", "Stopped").boots_to = [FAILED_BOOT]
    done = cli.run("start", "--wait", "web")
    assert done.returncode == 1
    assert "web did not start: exited with 125: the agent was not ready within 10 s" in done.stderr
    assert "see: hypemanctl status web" in done.stderr


def test_a_program_that_has_ended_well_before_we_look_has_started(daemon: FakeDaemon, cli: Cli) -> None:
    daemon.add("job", "Stopped").boots_to = [{"state": "Stopped", "exit_code": 0}]
    assert cli.run("start", "--wait", "job").returncode == 0


def test_a_start_that_takes_too_long_is_timed_out(daemon: FakeDaemon, cli: Cli) -> None:
    daemon.add("web", "Stopped").boots_to = []
    done = cli.run("start", "--wait", "--timeout", "200ms", "web")
    assert done.returncode == 6
    assert "web was not Running within 0.2 s; it is Initializing: kernel up" in done.stderr


def test_one_that_is_not_there_does_not_keep_the_others_from_starting(daemon: FakeDaemon, cli: Cli) -> None:
    daemon.add("web", "Stopped")
    done = cli.run("start", "nope", "web")
    assert done.returncode == 4
    assert daemon.vms["web"].instance["state"] == "Running"


def test_a_refusal_for_lack_of_memory_is_9(daemon: FakeDaemon, cli: Cli) -> None:
    daemon.add("web", "Stopped")
    body = {"code": "insufficient_resources", "message": "2G wanted, 1G free", "hint": "stop another"}
    daemon.failures["POST /instances/web/start"] = (409, body)
    done = cli.run("start", "web")
    assert done.returncode == 9
    assert done.stderr == "hypemanctl: 2G wanted, 1G free; stop another\n"


def test_stop_waits_and_passes_its_time_on(daemon: FakeDaemon, cli: Cli) -> None:
    daemon.add("web")
    assert cli.run("stop", "web", "--timeout", "1min").returncode == 0
    assert daemon.requests[-1] == ("POST", "/instances/web/stop", {}, {"timeout": 60.0})
    assert daemon.vms["web"].instance["state"] == "Stopped"


def test_an_endless_stop_is_refused_before_anything_is_asked(daemon: FakeDaemon, cli: Cli) -> None:
    daemon.add("web")
    done = cli.run("stop", "web", "--timeout", "infinity")
    assert done.returncode == 8
    assert "stop_timeout" in done.stderr
    assert daemon.requests == []


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ({"exit_code": 0, "exit_success": True}, 0),
        ({"exit_code": 143, "exit_message": "stopped on request", "exit_success": True}, 0),
        ({"exit_code": 3, "exit_message": "exited", "exit_success": False}, 1),
        ({"exit_code": None, "exit_message": "the VMM was killed", "exit_success": False}, 1),
        ({"exit_code": None, "exit_message": None, "exit_success": None}, 0),
    ],
)
def test_stop_tells_the_result_if_asked(
    daemon: FakeDaemon, cli: Cli, end: dict[str, object], status: int
) -> None:
    daemon.add("web").stops_with = {"state": "Stopped"} | end
    assert cli.run("stop", "web").returncode == 0
    done = cli.run("stop", "--result", "web")
    assert done.returncode == status
    assert ("web failed" in done.stderr) == bool(status)


def test_restart_stops_and_starts(daemon: FakeDaemon, cli: Cli) -> None:
    daemon.add("web")
    assert cli.run("restart", "--wait", "web").returncode == 0
    assert "/instances/web/restart" in daemon.asked("POST")


def test_kill_sends_sigkill_unless_told_otherwise(daemon: FakeDaemon, cli: Cli) -> None:
    daemon.add("web")
    daemon.add("db")
    cli.run("kill", "web")
    assert daemon.requests[-1][3] == {"signal": 9}
    cli.run("kill", "-s", "TERM", "db")
    assert daemon.requests[-1][3] == {"signal": 15}


def test_kill_of_what_does_not_run_is_5(daemon: FakeDaemon, cli: Cli) -> None:
    daemon.add("web", "Stopped")
    assert cli.run("kill", "web").returncode == 5


def test_rm_removes_what_has_stopped(daemon: FakeDaemon, cli: Cli) -> None:
    daemon.add("web", "Stopped")
    done = cli.run("rm", "web", "--json")
    assert (done.returncode, json.loads(done.stdout)) == (0, ["web"])
    assert "web" not in daemon.vms


def test_rm_of_what_runs_needs_force(daemon: FakeDaemon, cli: Cli) -> None:
    daemon.add("web").instance["origin"] = "api"
    done = cli.run("rm", "web")
    assert done.returncode == 5
    assert "stop it first, or: hypemanctl rm -f web" in done.stderr
    assert "web" in daemon.vms
    assert cli.run("rm", "-f", "web").returncode == 0
    assert "web" not in daemon.vms


def test_rm_of_a_stranger_is_4_and_with_force_content(daemon: FakeDaemon, cli: Cli) -> None:
    assert cli.run("rm", "nope").returncode == 4
    assert cli.run("rm", "-f", "nope").returncode == 0


def test_wait_sees_the_state_come(daemon: FakeDaemon, cli: Cli) -> None:
    script = daemon.add("web", "Initializing")
    process = cli.start("wait", "web", "--json")
    daemon.await_watcher()
    daemon.update(script, {"state": "Running"})
    output, _ = process.communicate(timeout=10)
    assert (process.returncode, json.loads(output)["state"]) == (0, "Running")


def test_wait_is_over_at_once_when_the_state_is_there(daemon: FakeDaemon, cli: Cli) -> None:
    daemon.add("web", "Stopped")
    assert cli.run("wait", "web", "--for", "Stopped").returncode == 0


def test_wait_tells_timed_out_wrong_state_and_not_found_apart(daemon: FakeDaemon, cli: Cli) -> None:
    daemon.add("slow", "Initializing")
    daemon.add("off", "Stopped", exit_code=1, exit_message="bad")
    daemon.add("odd", "Unknown", state_error="the VMM does not answer")
    assert cli.run("wait", "slow", "--timeout", "200ms").returncode == 6
    done = cli.run("wait", "off")
    assert done.returncode == 5
    assert "off is Stopped (exited with 1: bad) and will not become Running" in done.stderr
    assert cli.run("wait", "odd").returncode == 5
    assert cli.run("wait", "nope").returncode == 4


def test_wait_ends_when_the_vm_is_removed(daemon: FakeDaemon, cli: Cli) -> None:
    daemon.add("web", "Initializing")
    process = cli.start("wait", "web")
    daemon.await_watcher()
    daemon.remove("web")
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 4
    assert b"web was removed" in errors


def test_a_daemon_that_is_not_there_is_7(cli: Cli) -> None:
    done = cli.run("start", "web", "db")
    assert done.returncode == 7
    assert done.stderr.count("\n") == 1
    assert "systemctl start hypemand.socket" in done.stderr
