# SPDX-License-Identifier: Apache-2.0
"""list, status and show, by the program's own output."""

from __future__ import annotations

import json

import pytest

from tests.unit.cli.canned import Canned, Failure
from tests.unit.cli.conftest import Cli

PLACE = {
    "enabled": True,
    "name": "lab",
    "ip": "10.7.0.2",
    "ip6": "fd00:7::2",
    "group": "db",
    "publish": ["8080:80", "53:53/udp"],
    "counters": {"sent_bytes": 2048, "received_bytes": 1024 * 1024},
}
HOSTILE = "boom \x1b[2J\x07"


def test_list_shows_a_table(daemon: Canned, cli: Cli) -> None:
    daemon.add("web", network=PLACE)
    daemon.add("db", "Stopped", exit_code=3, removed_from_config=True)
    done = cli.run("list")
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        "NAME  STATE    READY  ADDRESS   IMAGE            MEMORY  VCPUS  RESTARTS  EXIT  NOTE",
        "web   Running  612ms  10.7.0.2  builtin:busybox  512M    2      0         -",
        "db    Stopped  -      -         builtin:busybox  512M    2      0         3     file removed",
    ]


RESTART = {"attempts": 1, "last_attempt_at": None, "next_attempt_at": None, "blocked_reason": None}


def test_list_says_why_a_vm_is_restarted_or_has_failed(daemon: Canned, cli: Cli) -> None:
    words = "restarting: exited with code 3, 2nd of 3"
    daemon.add("loop", "Initializing", restart_status=RESTART | {"last_reason": "x", "text": words})
    daemon.add(
        "late", "Stopped", exit_code=None, exit_message="boot timed out: no marker", exit_success=False
    )
    daemon.add("asked", "Stopped", exit_code=143, exit_message="stopped on request", exit_success=True)
    daemon.add("plain", "Stopped", exit_code=3, exit_message="exited with code 3")
    daemon.add("long", "Stopped", exit_code=None, exit_message="x" * 300, exit_success=False)
    rows = [line.split(maxsplit=9)[7:] for line in cli.run("list", "--no-legend").stdout.splitlines()]
    assert rows == [
        ["1", "-", words],
        ["0", "-", "boot timed out: no marker"],
        ["0", "143"],
        ["0", "3"],
        ["0", "-", "x" * 99 + "…"],
    ]
    assert f"Restarts: 1: {words}\n" in cli.run("status", "loop").stdout
    assert "Restarts" not in cli.run("status", "plain").stdout


def test_history_is_a_table_of_runs(daemon: Canned, cli: Cli) -> None:
    run = {"invocation_id": "a" * 32, "started_at": "2026-03-01T10:00:00.000Z", "ready_ms": 612.4}
    end = {"ended_at": "2026-03-01T10:00:07.900Z", "exit_code": 3, "exit_message": HOSTILE}
    on = {"ended_at": None, "exit_code": None, "exit_message": None, "exit_success": None}
    daemon.answers["GET /instances/web/history"] = [run | end | {"exit_success": False}, run | on]
    assert cli.run("history", "web").stdout.splitlines() == [
        "STARTED              READY  ENDED                EXIT  WHY",
        r"2026-03-01T10:00:00  612ms  2026-03-01T10:00:07  3     boom \x1b[2J\x07",
        "2026-03-01T10:00:00  612ms  -                    -",
    ]
    wide = [line.split() for line in cli.run("history", "-o", "wide", "web").stdout.splitlines()]
    assert [line[4] for line in wide] == ["RUN", "a" * 32, "a" * 32]
    assert [line[5:6] for line in wide] == [["WHY"], ["boom"], []]
    assert json.loads(cli.run("history", "--json", "web").stdout)[0]["exit_code"] == 3
    daemon.answers["GET /instances/web/history"] = []
    assert cli.run("history", "web").stdout == ""


def test_list_shows_published_ports_if_there_are_any(daemon: Canned, cli: Cli) -> None:
    many = [f"{port}:80" for port in range(1, 7)]
    daemon.add("web", network=PLACE | {"interface": "hv61200"})
    daemon.add("many", network=PLACE | {"interface": "hv61201", "publish": many})
    daemon.add("db", "Stopped", network=PLACE | {"interface": None})
    cells = [line.split() for line in cli.run("list").stdout.splitlines()]
    assert cells[0][4] == "PORTS"
    assert [row[4] for row in cells[1:3]] == ["8080:80,53:53/udp", "1:80,2:80,3:80,4:80,+2"]
    assert cells[3][4] == "-", "those of a VM that has stopped lead nowhere"
    assert "8080:80,53:53/udp" in cli.run("list", "--no-legend").stdout
    assert "PORTS" not in cli.run("list", "db").stdout


def test_list_can_be_cut_down_for_scripts(daemon: Canned, cli: Cli) -> None:
    daemon.add("web")
    daemon.add("db", "Stopped")
    assert cli.run("list", "-q").stdout == "web\ndb\n"
    assert cli.run("list", "-q", "--state", "stopped").stdout == "db\n"
    assert cli.run("list", "db", "-q").stdout == "db\n"
    assert cli.run("list", "--no-legend").stdout.startswith("web ")


def test_a_stopped_vm_is_so_since_its_end_if_that_is_known(daemon: Canned, cli: Cli) -> None:
    daemon.add("ended", "Stopped", stopped_at="2026-02-28T09:30:00.000Z")
    daemon.add("fresh", "Stopped", stopped_at=None)
    assert "State: Stopped since Sat 2026-02-28 09:30:00 UTC;" in cli.run("status", "ended").stdout
    assert "State: Stopped\n" in cli.run("status", "fresh").stdout


def test_list_json_is_one_document(daemon: Canned, cli: Cli) -> None:
    daemon.add("web")
    done = cli.run("list", "--json")
    assert [vm["name"] for vm in json.loads(done.stdout)] == ["web"]
    assert done.stderr == ""


def test_list_of_nothing_is_empty(daemon: Canned, cli: Cli) -> None:
    assert cli.run("list").stdout == ""
    assert json.loads(cli.run("list", "--json").stdout) == []


def test_status_tells_the_limits_of_disks_that_hold_now(daemon: Canned, cli: Cli) -> None:
    daemon.add("web")
    limits = {"memory": None, "cpu_limit": None}
    disk = {"read": None, "write": None, "total": 20_000_000, "iops": 50}
    daemon.answers["GET /instances/web/limits"] = limits | {"disk_io": disk}
    assert "   Disk IO: 20MB/s total, 50 operations/s\n" in cli.run("status", "web").stdout
    daemon.answers["GET /instances/web/limits"] = limits | {"disk_io": dict.fromkeys(disk)}
    assert "Disk IO" not in cli.run("status", "web").stdout
    daemon.refuse("GET /instances/web/limits", 504, code="timed_out", message="late")
    assert "Disk IO" not in cli.run("status", "web").stdout


def test_status_tells_all_that_an_administrator_asks(daemon: Canned, cli: Cli) -> None:
    daemon.add("web").lines = [f"line {n}" for n in range(20)]
    done = cli.run("status", "web")
    assert done.returncode == 0
    for text in (
        "● web - builtin:busybox sleep '1 2'",
        "State: Running since Sun 2026-03-01 10:00:00 UTC;",
        "Status: Running: ready in 612 ms",
        "Unit: hypeman-vm-web.service",
        "Main PID: 4242 (user id 61184)",
        "Memory: 150M used; 512M for the guest",
        "Mar 01 10:00:00 line 10",
        "Mar 01 10:00:00 line 19",
    ):
        assert text in done.stdout
    assert "line 9\n" not in done.stdout


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({"state": "ready", "error": None}, "Headers: ready\n"),
        ({"state": "failed", "error": "no disk\x1b[2J"}, "Headers: failed: no disk\\x1b[2J\n"),
    ],
)
def test_status_tells_how_the_kernel_headers_are(
    daemon: Canned, cli: Cli, headers: dict[str, object], words: str
) -> None:
    daemon.add("web", kernel_headers=headers)
    assert words in cli.run("status", "web").stdout
    assert f"kernel_headers.state={headers['state']}\n" in cli.run("show", "web").stdout


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (
            PLACE,
            "lab, 10.7.0.2 fd00:7::2; in group db; publishes 8080:80 53:53/udp; 2K sent, 1M received\n",
        ),
        ({"enabled": True, "name": "lab", "ip": None, "ip6": None}, "lab, no address yet\n"),
        (
            {"enabled": True, "name": "lab", "ip": "10.7.0.2", "group": None, "isolated": False},
            "lab, 10.7.0.2; not isolated\n",
        ),
        ({"enabled": False, "name": None}, "none\n"),
    ],
)
def test_status_tells_where_it_is_in_the_network(
    daemon: Canned, cli: Cli, network: dict[str, object], words: str
) -> None:
    daemon.add("web", network=network)
    assert f"Network: {words}" in cli.run("status", "web").stdout


def test_a_vm_that_has_ipv6_alone_is_listed_with_it(daemon: Canned, cli: Cli) -> None:
    daemon.add("web", network=PLACE | {"ip": None})
    assert cli.run("list", "--no-legend").stdout.split()[3] == "fd00:7::2"


def test_status_takes_the_number_of_lines(daemon: Canned, cli: Cli) -> None:
    daemon.add("web").lines = ["one", "two"]
    assert " two\n" in cli.run("status", "-n", "1", "web").stdout
    assert " one\n" not in cli.run("status", "-n", "1", "web").stdout
    assert " two\n" not in cli.run("status", "-n", "0", "web").stdout


def test_status_of_what_does_not_run_is_3_and_says_why(daemon: Canned, cli: Cli) -> None:
    daemon.add("web", "Stopped", exit_code=127, exit_message="not found: /bin/nope")
    done = cli.run("status", "web")
    assert done.returncode == 3
    assert "Exit: exited with 127: not found: /bin/nope" in done.stdout
    assert done.stdout.startswith("✗ web")


def test_status_of_a_stranger_is_4(daemon: Canned, cli: Cli) -> None:
    daemon.add("web")
    daemon.answers["GET /instances/nope"] = Failure(
        404, {"code": "not_found", "message": "there is no VM 'nope'", "hint": "see: hypemanctl list"}
    )
    done = cli.run("status", "nope", "web")
    assert done.returncode == 10
    assert "hypemanctl: there is no VM 'nope'; see: hypemanctl list" in done.stderr
    assert "web" in done.stdout


def test_status_without_a_name_shows_all_and_is_good(daemon: Canned, cli: Cli) -> None:
    daemon.add("web")
    daemon.add("db", "Stopped")
    done = cli.run("status")
    assert done.returncode == 0
    assert "web" in done.stdout
    assert "○ db" in done.stdout


def test_status_lives_with_a_log_that_breaks(daemon: Canned, cli: Cli) -> None:
    daemon.add("web").lines = ["before", RuntimeError("the journal is gone")]
    done = cli.run("status", "web")
    assert done.returncode == 0
    assert "before" in done.stdout
    assert "cannot read its log: the journal is gone" in done.stdout


def test_what_a_guest_says_does_not_reach_the_terminal_raw(daemon: Canned, cli: Cli) -> None:
    web = daemon.add("web", "Stopped", exit_code=1, exit_message=HOSTILE, status_text=HOSTILE)
    web.lines = [HOSTILE]
    daemon.answers["POST /instances/web/start"] = web.instance
    for words in (
        ["status", "web"],
        ["show", "web"],
        ["list"],
        ["list", "--json"],
        ["start", "--wait", "web"],
    ):
        done = cli.run(*words)
        assert "\x1b" not in done.stdout + done.stderr
        assert "\x07" not in done.stdout + done.stderr


def test_show_gives_a_property_a_line(daemon: Canned, cli: Cli) -> None:
    daemon.add("web", exit_message="two\nlines")
    lines = cli.run("show", "web").stdout.splitlines()
    assert "state=Running" in lines
    assert "needs_restart=no" in lines
    assert "exit_code=" in lines
    assert "env.A=1" in lines
    assert 'definition.cmd=["sleep", "1 2"]' in lines
    assert "exit_message=two\\nlines" in lines


def test_show_gives_the_properties_that_are_asked_for(daemon: Canned, cli: Cli) -> None:
    daemon.add("web")
    assert cli.run("show", "web", "-p", "state", "--value").stdout == "Running\n"
    assert cli.run("show", "web", "-p", "definition").stdout.count("definition.") == 5
    assert json.loads(cli.run("show", "web", "-p", "state", "--json").stdout) == {"state": "Running"}
    assert json.loads(cli.run("show", "web", "--json").stdout)["definition"]["memory"] == "512M"


def test_show_of_a_property_that_is_not_there_is_an_error(daemon: Canned, cli: Cli) -> None:
    daemon.add("web")
    done = cli.run("show", "web", "-p", "stat")
    assert done.returncode == 10
    assert "web has no property stat" in done.stderr


def test_status_says_when_a_vm_is_deleted(daemon: Canned, cli: Cli) -> None:
    daemon.add("web", expires_at="2999-01-31T12:00:00.000Z")
    assert "Expires: Thu 2999-01-31 12:00:00 UTC, and is deleted then" in cli.run("status", "web").stdout


def test_health_is_shown_where_there_is_a_check(daemon: Canned, cli: Cli) -> None:
    daemon.add("web", health_status={"status": "healthy", "consecutive_failures": 0})
    daemon.add("sick", health_status={
        "status": "unhealthy", "consecutive_failures": 3, "last_error": "http: status 500"
    })  # fmt: skip
    daemon.add("plain", health_status={"status": "disabled"})
    rows = cli.run("list", "--no-legend").stdout.splitlines()
    assert [row.split()[0] for row in rows if "unhealthy" in row] == ["sick"]
    assert any(row.endswith("unhealthy: http: status 500") for row in rows)
    assert "    Health: healthy\n" in cli.run("status", "web").stdout
    words = "    Health: unhealthy, 3 failures in a row: http: status 500\n"
    assert words in cli.run("status", "sick").stdout
    assert "Health:" not in cli.run("status", "plain").stdout
