# SPDX-License-Identifier: Apache-2.0
"""run: as if the program ran here."""

from __future__ import annotations

import json
import signal
import threading
from typing import Any

import pytest

from tests.unit.cli.conftest import Cli
from tests.unit.cli.daemon import FakeDaemon


def end(daemon: FakeDaemon, name: str, **how: Any) -> None:
    """The VM's program ends."""
    daemon.update(daemon.vms[name], {"state": "Stopped"} | how)


def say_and_end(daemon: FakeDaemon, name: str, *lines: str, **how: Any) -> None:
    """What the next VM does: it says this and ends like that."""

    def last() -> str:
        end(daemon, name, **how)
        return lines[-1]

    daemon.run_script.lines = [*lines[:-1], last]


def test_run_shows_the_console_raw_and_exits_as_the_program(daemon: FakeDaemon, cli: Cli) -> None:
    say_and_end(daemon, "job", "one", "\x1b[1mtwo\x1b[0m \ud800 ü", exit_code=3, exit_message="exited")
    done = cli.run("run", "--name", "job", "builtin:busybox", "sh", "-c", "exit 3")
    assert done.returncode == 3
    assert done.stdout == "one\n\x1b[1mtwo\x1b[0m ? ü\n"
    assert done.stderr == ""


def test_run_sends_what_was_said_and_nothing_else(daemon: FakeDaemon, cli: Cli) -> None:
    say_and_end(daemon, "job", "x", exit_code=0)
    cli.environment["FROM_HERE"] = "yes"
    words = "run --name job -e A=1=2 -e FROM_HERE -e NOT_HERE -m 256M --vcpus 1 -w /srv -u www --tag a=b"
    cli.run(*words.split(), "--no-agent", "--entrypoint", "/bin/ls", "--boot-timeout", "5s", "box", "-l")
    create = next(
        body for method, path, _, body in daemon.requests if (method, path) == ("POST", "/instances")
    )
    assert create == {
        "start": True,
        "definition": {
            "name": "job",
            "image": "box",
            "memory": "256M",
            "vcpus": 1,
            "entrypoint": ["/bin/ls"],
            "cmd": ["-l"],
            "env": {"A": "1=2", "FROM_HERE": "yes"},
            "workdir": "/srv",
            "user": "www",
            "guest_agent": False,
            "boot_timeout": "5s",
            "tags": {"a": "b"},
        },
    }


@pytest.mark.parametrize(
    ("words", "network"),
    [
        ("--network none", "none"),
        ("--network lab", "lab"),
        ("-p 8080:80 --publish 53:53/udp", {"publish": ["8080:80", "53:53/udp"]}),
        ("--network lab -p 8080:80", {"name": "lab", "publish": ["8080:80"]}),
    ],
)
def test_run_says_where_in_the_network(daemon: FakeDaemon, cli: Cli, words: str, network: object) -> None:
    cli.run("run", "-d", *words.split(), "box")
    (create,) = (
        body for method, path, _, body in daemon.requests if (method, path) == ("POST", "/instances")
    )
    assert create["definition"]["network"] == network


def test_nothing_is_published_without_a_network(daemon: FakeDaemon, cli: Cli) -> None:
    refused = cli.run("run", "-d", "--network", "none", "-p", "80:80", "box")
    assert (refused.returncode, "--publish requires a network" in refused.stderr) == (125, True)
    assert daemon.requests == []


def test_run_says_why_a_program_could_not_run(daemon: FakeDaemon, cli: Cli) -> None:
    say_and_end(daemon, "job", "", exit_code=127, exit_message="not found: /bin/nope")
    done = cli.run("run", "--name", "job", "box", "/bin/nope")
    assert done.returncode == 127
    assert "job: not found: /bin/nope" in done.stderr


def test_run_without_an_exit_status_is_our_own_failure(daemon: FakeDaemon, cli: Cli) -> None:
    say_and_end(daemon, "job", "", exit_code=None, exit_message="the VMM was killed")
    done = cli.run("run", "--name", "job", "box")
    assert done.returncode == 125
    assert "job stopped without an exit status: the VMM was killed" in done.stderr


def test_run_goes_on_when_the_daemon_is_restarted(daemon: FakeDaemon, cli: Cli) -> None:
    say_and_end(daemon, "job", "one", "two", "three", "four", exit_code=0)
    daemon.breaks_after = [1, 3]
    done = cli.run("run", "--name", "job", "box")
    assert done.returncode == 0
    assert done.stdout == "one\ntwo\nthree\nfour\n"


def test_run_gives_up_a_daemon_that_breaks_off_for_ever(daemon: FakeDaemon, cli: Cli) -> None:
    daemon.run_script.lines = ["one", "two"]
    daemon.breaks_after = [1] * 100
    done = cli.run("run", "--name", "job", "box")
    assert done.returncode == 125
    assert "was lost" in done.stderr


def test_run_rm_leaves_nothing(daemon: FakeDaemon, cli: Cli) -> None:
    say_and_end(daemon, "job", "x", exit_code=4)
    assert cli.run("run", "--rm", "--name", "job", "box").returncode == 4
    assert daemon.vms == {}


def test_run_rm_leaves_nothing_when_following_fails(daemon: FakeDaemon, cli: Cli) -> None:
    daemon.run_script.lines = [RuntimeError("the journal is gone")]
    assert cli.run("run", "--rm", "--name", "job", "box").returncode == 125
    assert daemon.vms == {}


def test_run_detached_prints_the_name(daemon: FakeDaemon, cli: Cli) -> None:
    done = cli.run("run", "-d", "box")
    assert done.returncode == 0
    assert list(daemon.vms) == [done.stdout.strip()]
    assert json.loads(cli.run("run", "-d", "--name", "b", "--json", "box").stdout)["name"] == "b"


def test_run_makes_another_name_up_when_one_is_taken(daemon: FakeDaemon, cli: Cli) -> None:
    body = {"code": "already_exists", "message": "there is a VM of that name"}
    daemon.failures["POST /instances"] = (409, body)
    assert cli.run("run", "-d", "box").returncode == 125
    names = [body["definition"]["name"] for method, _, _, body in daemon.requests if method == "POST"]
    assert len(names) == 5
    assert len(set(names)) > 1


def test_run_does_not_replace_a_vm_of_the_name_that_was_asked_for(daemon: FakeDaemon, cli: Cli) -> None:
    daemon.add("web")
    done = cli.run("run", "--rm", "--name", "web", "box")
    assert done.returncode == 125
    assert "there is a VM 'web'" in done.stderr
    assert "web" in daemon.vms


def test_run_shows_every_problem_of_a_definition(daemon: FakeDaemon, cli: Cli) -> None:
    problems = [
        {"file": "", "line": 0, "column": 0, "key": "memory", "message": "is no size", "hint": "write 512M"},
        {"file": "", "line": 0, "column": 0, "key": "vcpus", "message": "is too many", "hint": ""},
    ]
    daemon.failures["POST /instances"] = (
        400,
        {"code": "invalid_definition", "message": "x", "problems": problems},
    )
    done = cli.run("run", "box")
    assert done.returncode == 125
    assert done.stderr == "hypemanctl: memory: is no size; write 512M\nvcpus: is too many\n"


def test_run_refuses_what_does_not_go_together(daemon: FakeDaemon, cli: Cli) -> None:
    assert "--rm cannot be combined with -d" in cli.run("run", "--rm", "-d", "box").stderr
    assert "--json requires -d" in cli.run("run", "--json", "box").stderr
    assert daemon.requests == []


class Interrupted:
    """A run whose console has said one line and goes on until the VM has ended."""

    def __init__(self, daemon: FakeDaemon, cli: Cli) -> None:
        self.ended = threading.Event()
        daemon.run_script.lines = ["up", self._last]
        self.process = cli.start("run", "--name", "job", "box")
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"up\n"

    def _last(self) -> str:
        assert self.ended.wait(10)
        return "last words"


def test_an_interrupt_stops_the_vm_and_its_last_words_are_seen(daemon: FakeDaemon, cli: Cli) -> None:
    run = Interrupted(daemon, cli)
    run.process.send_signal(signal.SIGINT)
    with daemon.changed:
        assert daemon.changed.wait_for(lambda: daemon.vms["job"].instance["state"] == "Stopped", 10)
    run.ended.set()
    output, _ = run.process.communicate(timeout=10)
    assert output == b"last words\n"
    assert run.process.returncode == 143
    assert "/instances/job/kill" not in daemon.asked("POST")


def test_a_second_interrupt_kills_the_vm(daemon: FakeDaemon, cli: Cli) -> None:
    run = Interrupted(daemon, cli)
    daemon.run_script.stops_with = {}
    with daemon.changed:
        run.process.send_signal(signal.SIGINT)
        assert daemon.changed.wait_for(lambda: "/instances/job/stop" in daemon.asked("POST"), 10)
    run.process.send_signal(signal.SIGINT)
    with daemon.changed:
        assert daemon.changed.wait_for(lambda: daemon.vms["job"].instance["state"] == "Stopped", 10)
    run.ended.set()
    run.process.communicate(timeout=10)
    assert run.process.returncode == 125
    assert daemon.requests[-1][1] == "/instances/job/watch"


def test_an_interrupt_while_the_vm_is_made_leaves_none_behind(daemon: FakeDaemon, cli: Cli) -> None:
    daemon.create_gate = threading.Event()
    daemon.run_script.lines = []
    process = cli.start("run", "--rm", "--name", "job", "box")
    with daemon.changed:
        assert daemon.changed.wait_for(lambda: "POST" in [request[0] for request in daemon.requests], 10)
    process.send_signal(signal.SIGTERM)
    daemon.create_gate.set()
    process.communicate(timeout=10)
    assert process.returncode == 143
    assert daemon.vms == {}
