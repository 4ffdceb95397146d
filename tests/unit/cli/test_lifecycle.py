# SPDX-License-Identifier: Apache-2.0
"""start, stop, restart, kill, rm, wait: what becomes of VMs, and the exit status."""

from __future__ import annotations

import json

import pytest

from hypemand.model.state import State
from tests.fakes.process import Exit
from tests.unit.cli.canned import Canned, Each, Failure, make_instance
from tests.unit.cli.conftest import Cli
from tests.unit.cli.live import Live


def test_start_comes_back_at_once(live: Live, cli: Cli) -> None:
    live.host.guest("web").boots = False
    live.put("web")
    done = cli.run("start", "web", "--json")
    assert done.returncode == 0
    assert [vm["state"] for vm in json.loads(done.stdout)] == ["Initializing"]


def test_start_can_wait_until_running(live: Live, cli: Cli) -> None:
    live.put("web")
    live.put("db")
    done = cli.run("start", "--wait", "web", "db", "--json")
    assert done.returncode == 0
    assert [vm["state"] for vm in json.loads(done.stdout)] == ["Running", "Running"]


def test_a_restore_that_fails_says_that_nothing_is_lost(live: Live, cli: Cli) -> None:
    """The run that has ended as one was asked to, by which it was saved, is no success of a restore."""
    live.put("web", State.RUNNING, boot_timeout="40s")
    assert cli.run("standby", "web").returncode == 0
    live.host.guest("web").thaw_refusal = "not today"
    done = cli.run("restore", "--wait", "web")
    assert done.returncode == 1
    assert "web did not start, and is in Standby: boot timed out" in done.stderr
    assert "hypemanctl start --cold web" in done.stderr


def test_a_start_that_fails_says_why(live: Live, cli: Cli) -> None:
    live.host.guest("web").boots = False
    live.put("web", boot_timeout="1s")
    done = cli.run("start", "--wait", "web")
    assert done.returncode == 1
    assert "web did not start: boot timed out: HYPEMAN-PROGRAM-START and" in done.stderr
    assert "see: hypemanctl status web" in done.stderr


def test_a_program_that_has_ended_well_before_we_look_has_started(live: Live, cli: Cli) -> None:
    live.host.guest("job").ends = 0
    live.put("job")
    assert cli.run("start", "--wait", "job").returncode == 0


def test_a_start_that_takes_too_long_is_timed_out(live: Live, cli: Cli) -> None:
    live.host.guest("web").boots = False
    live.put("web")
    done = cli.run("start", "--wait", "--timeout", "200ms", "web")
    assert done.returncode == 12
    assert "web was not Running within 0.2 s; it is Initializing: " in done.stderr


def test_one_that_is_not_there_does_not_keep_the_others_from_starting(live: Live, cli: Cli) -> None:
    live.put("web")
    done = cli.run("start", "nope", "web")
    assert done.returncode == 10
    live.until(State.RUNNING)


def test_a_refusal_for_lack_of_memory_is_9(daemon: Canned, cli: Cli) -> None:
    body = {"code": "insufficient_resources", "message": "2G wanted, 1G free", "hint": "stop another"}
    daemon.answers["POST /instances/web/start"] = Failure(409, body)
    done = cli.run("start", "web")
    assert done.returncode == 9
    assert done.stderr == "hypemanctl: 2G wanted, 1G free; stop another\n"


def test_stop_waits_and_passes_its_time_on(live: Live, cli: Cli) -> None:
    live.put("web", State.RUNNING)
    vmm = live.host.vmm()
    assert cli.run("stop", "web", "--timeout", "1min").returncode == 0
    assert (vmm.graces, live.host.vm().state) == ([60], State.STOPPED)


def test_an_endless_stop_is_refused_before_anything_is_asked(daemon: Canned, cli: Cli) -> None:
    daemon.add("web")
    done = cli.run("stop", "web", "--timeout", "infinity")
    assert done.returncode == 8
    assert "stop_timeout" in done.stderr
    assert daemon.requests == []


@pytest.mark.parametrize(
    ("end", "status"), [("0", 0), ("143", 0), ("3", 1), ("killed", 1), ("never started", 0)]
)
def test_stop_tells_the_result_if_asked(live: Live, cli: Cli, end: str, status: int) -> None:
    live.put("web", State.STOPPED if end == "never started" else State.RUNNING)
    if end.isdigit():
        live.host.guest().code = int(end)
    if end == "killed":
        live.call(live.host.vmm().process.kill, 9)
        live.until(State.STOPPED)
    assert cli.run("stop", "web").returncode == 0
    done = cli.run("stop", "--result", "web")
    assert done.returncode == status
    assert ("web failed" in done.stderr) == bool(status)


def test_restart_stops_and_starts(live: Live, cli: Cli) -> None:
    live.put("web", State.RUNNING)
    first = live.host.vmm()
    assert cli.run("restart", "--wait", "web").returncode == 0
    assert (first.heard_stop, live.host.vmm() is first, live.host.vm().state) == (True, False, State.RUNNING)


@pytest.mark.parametrize(("words", "exit"), [((), Exit("killed", 9)), (("-s", "TERM"), Exit("exited", 0))])
def test_kill_sends_sigkill_unless_told_otherwise(
    live: Live, cli: Cli, words: tuple[str, ...], exit: Exit
) -> None:
    live.put("web", State.RUNNING)
    vmm = live.host.vmm()
    assert cli.run("kill", *words, "web").returncode == 0
    live.until(State.STOPPED)
    assert vmm.process.exit == exit


def test_kill_of_what_does_not_run_is_5(live: Live, cli: Cli) -> None:
    live.put("web")
    assert cli.run("kill", "web").returncode == 11


def test_rm_removes_what_has_stopped(live: Live, cli: Cli) -> None:
    live.put("web")
    done = cli.run("rm", "web", "--json")
    assert (done.returncode, json.loads(done.stdout)) == (0, ["web"])
    assert live.names() == []


def test_rm_of_what_runs_needs_force(live: Live, cli: Cli) -> None:
    live.put("web", State.RUNNING)
    done = cli.run("rm", "web")
    assert done.returncode == 11
    assert "stop it first, or: hypemanctl rm -f web" in done.stderr
    assert live.host.vm().state is State.RUNNING
    assert cli.run("rm", "-f", "web").returncode == 0
    assert live.names() == []


def test_rm_of_a_stranger_is_4_and_with_force_content(live: Live, cli: Cli) -> None:
    assert cli.run("rm", "nope").returncode == 10
    assert cli.run("rm", "-f", "nope").returncode == 0


def test_wait_sees_the_state_come(live: Live, cli: Cli) -> None:
    live.put("web", State.INITIALIZING)
    process = cli.start("wait", "web", "--json")
    live.until_true(lambda: live.host.watchers("web") > 0)
    live.call(live.host.vmm().come_up)
    output, _ = process.communicate(timeout=60)
    assert (process.returncode, json.loads(output)["state"]) == (0, "Running")


def test_wait_is_over_at_once_when_the_state_is_there(live: Live, cli: Cli) -> None:
    live.put("web")
    assert cli.run("wait", "web", "--for", "Stopped").returncode == 0


def test_wait_tells_timed_out_wrong_state_and_not_found_apart(live: Live, cli: Cli) -> None:
    live.put("slow", State.INITIALIZING)
    live.put("odd", State.UNKNOWN)
    live.put("off", State.RUNNING)
    live.call(live.host.vmm("off").exit, 1, "bad")
    live.until(State.STOPPED, "off")
    assert cli.run("wait", "slow", "--timeout", "200ms").returncode == 12
    done = cli.run("wait", "off")
    assert done.returncode == 11
    assert "off is Stopped (exited with 1: bad) and will not become Running" in done.stderr
    assert cli.run("wait", "odd").returncode == 11
    assert cli.run("wait", "nope").returncode == 10


def test_wait_ends_when_the_vm_is_removed(daemon: Canned, cli: Cli) -> None:
    daemon.add("web", "Initializing")  # of which no more is told
    done = cli.run("wait", "web")
    assert done.returncode == 10
    assert "web was removed" in done.stderr


def test_a_daemon_that_is_not_there_is_7(cli: Cli) -> None:
    done = cli.run("start", "web", "db")
    assert done.returncode == 13
    assert done.stderr.count("\n") == 1
    assert "systemctl start hypemand.socket" in done.stderr


ENDED = Failure(503, {"code": "stopping", "message": "hypemand stops"})


@pytest.mark.parametrize(
    ("state", "invocation", "asked"),
    [
        ("Stopped", None, ["restart", "start"]),
        ("Shutdown", "old", ["restart", "restart"]),
        ("Initializing", "new", ["restart"]),
    ],
    ids=["between stop and start", "in the stop", "after the start"],
)
def test_a_restart_is_finished_by_the_next_daemon(
    daemon: Canned, cli: Cli, state: str, invocation: str | None, asked: list[str]
) -> None:
    before = make_instance("web", invocation_id="old")
    daemon.answers["GET /instances/web"] = Each(
        [before, make_instance("web", state, invocation_id=invocation)]
    )
    done = make_instance("web", "Initializing", invocation_id="new")
    daemon.answers["POST /instances/web/restart"] = Each([ENDED, done])
    daemon.answers["POST /instances/web/start"] = done
    assert cli.run("restart", "web").returncode == 0
    posted = [path.rpartition("/")[2] for method, path, _, _ in daemon.requests if method == "POST"]
    assert posted == asked


def test_a_stop_is_waited_for_at_the_next_daemon(daemon: Canned, cli: Cli) -> None:
    daemon.add("web")
    daemon.answers["POST /instances/web/stop"] = Each([ENDED, make_instance("web", "Stopped")])
    assert cli.run("stop", "web").returncode == 0
    daemon.answers["POST /instances/web/stop"] = Each([ENDED, ENDED])
    assert cli.run("stop", "web").returncode == 13


def test_a_vm_is_renamed(live: Live, cli: Cli) -> None:
    live.put("web", State.RUNNING)
    refused = cli.run("rename", "web", "shop")
    assert (refused.returncode, "stop it first" in refused.stderr) == (11, True)
    cli.run("stop", "web")
    done = cli.run("rename", "web", "shop", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["name"] == "shop"
    assert live.names() == ["shop"]
    assert cli.run("rename", "web", "shop").returncode == 10
    assert "rename: renamed from web to shop" in cli.run("events", "web").stdout
