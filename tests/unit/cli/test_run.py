# SPDX-License-Identifier: Apache-2.0
"""run: as if the program ran here."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from hypemand.errors import GuestError
from hypemand.model.state import State
from tests.fakes.process import Exit
from tests.unit.cli.canned import BREAK, Canned, Each, Events, Failure, make_instance
from tests.unit.cli.conftest import Cli
from tests.unit.cli.live import Live

BOX = "builtin:app"
REFUSED = Failure(400, {"code": "invalid_definition", "message": "no"})


def test_run_shows_the_console_raw_and_exits_as_the_program(live: Live, cli: Cli) -> None:
    guest = live.host.guest("job")
    guest.prints, guest.ends = (b"one", b"\x1b[1mtwo\x1b[0m \xff \xc3\xbc"), 3
    done = cli.run("run", "--name", "job", BOX, "sh", "-c", "exit 3")
    assert done.returncode == 3
    assert done.stdout == "one\n\x1b[1mtwo\x1b[0m \\xff ü\n"
    assert done.stderr == ""


def follow(daemon: Canned, *logs: Events, **end: Any) -> None:
    """A run of `job` that is over, with these streams of its log."""
    daemon.answers["GET /images/box"] = {"name": "box", "status": "ready"}
    daemon.answers["POST /instances"] = make_instance("job", "Initializing", origin="api")
    daemon.answers["GET /instances/job/logs"] = Each(list(logs))
    daemon.add("job", "Stopped", **end)


def created(daemon: Canned) -> dict[str, Any]:
    """The definition that was sent."""
    bodies = (body for method, path, _, body in daemon.requests if (method, path) == ("POST", "/instances"))
    sent: dict[str, Any] = next(bodies)["definition"]
    return sent


def test_variables_of_files_come_before_those_of_options(daemon: Canned, cli: Cli, tmp_path: Path) -> None:
    daemon.answers["GET /images/box"] = {"name": "box", "status": "ready"}
    daemon.answers["POST /instances"] = REFUSED
    (tmp_path / "a").write_text("A=file\nB='of a'\nC=a # b\n")
    (tmp_path / "b").write_text("B=of b\n")
    files = ("--env-file", str(tmp_path / "a"), "--env-file", str(tmp_path / "b"))
    cli.run("run", "-d", "-e", "A=option", *files, "box")
    assert created(daemon)["env"] == {"A": "option", "B": "of b", "C": "a # b"}
    (tmp_path / "a").write_text("A=1\nB\n")
    wrong = cli.run("run", "-d", *files, "box")
    assert f"{tmp_path}/a:2:1: has no '=' after 'B'" in wrong.stderr
    missing = cli.run("run", "-d", "--env-file", str(tmp_path / "none"), "box")
    assert f"--env-file {tmp_path}/none: No such file or directory" in missing.stderr


def test_volumes_are_named_and_directories_are_paths(daemon: Canned, cli: Cli) -> None:
    daemon.answers["GET /images/box"] = {"name": "box", "status": "ready"}
    daemon.answers["POST /instances"] = REFUSED
    cli.run(
        "run", "-d", "-v", "data:/data", "-v", "more:/more:ro", "--volume", "/srv/../srv/www:/www:ro", "box"
    )
    assert created(daemon)["volumes"] == [
        {"volume": "data", "mount_path": "/data"},
        {"volume": "more", "mount_path": "/more", "readonly": True},
        {"source": "/srv/www", "mount_path": "/www"},
    ]
    for word, words in (
        ("data", "write NAME:PATH"),
        ("data:rel", "write NAME:PATH"),
        ("data:/data:exec", "write NAME:PATH"),
        ("/srv:/srv:rw", "a directory of the host is always read-only"),
    ):
        assert words in cli.run("run", "-d", "-v", word, "box").stderr


def test_run_sends_what_was_said_and_nothing_else(daemon: Canned, cli: Cli) -> None:
    daemon.answers["GET /images/box"] = {"name": "box", "status": "ready"}
    daemon.answers["POST /instances"] = REFUSED
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
        ("--group shop", {"group": "shop"}),
        ("--address 10.83.112.20", {"address": "10.83.112.20"}),
        (
            "--network lab --address fd00::20 --group shop --address 10.9.0.20",
            {"name": "lab", "address": "10.9.0.20", "address6": "fd00::20", "group": "shop"},
        ),
    ],
)
def test_run_says_where_in_the_network(daemon: Canned, cli: Cli, words: str, network: object) -> None:
    daemon.answers["GET /images/box"] = {"name": "box", "status": "ready"}
    daemon.answers["POST /instances"] = REFUSED
    cli.run("run", "-d", *words.split(), "box")
    (create,) = (
        body for method, path, _, body in daemon.requests if (method, path) == ("POST", "/instances")
    )
    assert create["definition"]["network"] == network


@pytest.mark.parametrize("words", ["-p 80:80", "--address fd00::9", "--group shop"])
def test_without_a_network_there_is_nothing_of_one(daemon: Canned, cli: Cli, words: str) -> None:
    refused = cli.run("run", "-d", "--network", "none", *words.split(), "box")
    option = words.split(maxsplit=1)[0].replace("-p", "--publish")
    assert (refused.returncode, f"{option} requires a network" in refused.stderr) == (125, True)
    assert daemon.requests == []


def test_a_vm_has_one_address_of_each_family(daemon: Canned, cli: Cli) -> None:
    refused = cli.run("run", "-d", "--address", "fd00::9", "--address", "fd00::a", "box")
    assert (refused.returncode, "--address 'fd00::a' is the second of its family" in refused.stderr) == (
        125,
        True,
    )
    assert daemon.requests == []


def test_an_address_and_a_group_are_the_vm_s(live: Live, cli: Cli) -> None:
    words = "run -d --name shop --network default --address 10.7.0.20 --group shop"
    assert cli.run(*words.split(), BOX).returncode == 0
    shown = json.loads(cli.run("show", "--json", "shop").stdout)
    assert shown["network"]["ip"] == "10.7.0.20"
    wrong = cli.run("run", "-d", "--address", "10.7.0.300", BOX)
    assert (wrong.returncode, "network.address: '10.7.0.300' is not an IPv4 address" in wrong.stderr) == (
        125,
        True,
    )


def test_run_says_why_a_program_could_not_run(live: Live, cli: Cli) -> None:
    guest = live.host.guest("job")
    guest.ends, guest.message = 127, "not found: /bin/nope"
    done = cli.run("run", "--name", "job", BOX, "/bin/nope")
    assert done.returncode == 127
    assert "job: not found: /bin/nope" in done.stderr


def test_run_without_an_exit_status_is_our_own_failure(live: Live, cli: Cli) -> None:
    run = Interrupted(live, cli)
    live.call(live.host.vmm("job").process.kill, 9)
    _, errors = run.process.communicate(timeout=60)
    assert run.process.returncode == 125
    assert b"job stopped without an exit status: the VMM was killed by SIGKILL" in errors


def test_run_goes_on_when_the_daemon_is_restarted(daemon: Canned, cli: Cli) -> None:
    first, second = Events(("one", BREAK)), Events(("one", "two", "three", BREAK))
    follow(daemon, first, second, Events(("one", "two", "three", "four")), exit_code=0)
    done = cli.run("run", "--name", "job", "box")
    assert done.returncode == 0
    assert done.stdout == "one\ntwo\nthree\nfour\n"


def test_run_writes_what_the_program_wrote_and_tells_apart_what_is_missing(daemon: Canned, cli: Cli) -> None:
    known = {"time": None, "invocation_id": None, "base64": None, "partial": False, "missing": 0}
    words = "hypemand: 5 lines were not kept: journald has dropped them"
    events = Events(
        (
            "one ",
            "",
            known | {"text": words, "missing": 5},
            known | {"text": "\ufffd", "base64": "/w=="},
            known | {"text": "no end", "partial": True},
        )
    )
    follow(daemon, events, exit_code=0)
    done = cli.run("run", "--name", "job", "box")
    assert (done.returncode, done.stdout) == (0, "one \n\n\\xff\nno end")
    assert done.stderr == f"hypemanctl: {words}\n"


def test_run_gives_up_a_daemon_that_breaks_off_for_ever(daemon: Canned, cli: Cli) -> None:
    follow(daemon, Events(("one", BREAK)), exit_code=0)
    done = cli.run("run", "--name", "job", "box")
    assert done.returncode == 125
    assert "was lost" in done.stderr


def test_run_rm_leaves_nothing(live: Live, cli: Cli) -> None:
    live.host.guest("job").ends = 4
    assert cli.run("run", "--rm", "--name", "job", BOX).returncode == 4
    assert live.names() == []


def test_run_rm_leaves_nothing_when_following_fails(live: Live, cli: Cli) -> None:
    live.host.guest("job").prints = ("up",)
    live.host.journal.failure = GuestError("the journal is gone")
    done = cli.run("run", "--rm", "--name", "job", BOX)
    assert (done.returncode, "the journal is gone" in done.stderr) == (125, True)
    assert live.names() == []


def test_run_detached_prints_the_name(live: Live, cli: Cli) -> None:
    done = cli.run("run", "-d", BOX)
    assert done.returncode == 0
    assert live.names() == [done.stdout.strip()]
    assert json.loads(cli.run("run", "-d", "--name", "b", "--json", BOX).stdout)["name"] == "b"


def test_run_makes_another_name_up_when_one_is_taken(daemon: Canned, cli: Cli) -> None:
    daemon.answers["GET /images/box"] = {"name": "box", "status": "ready"}
    body = {"code": "already_exists", "message": "there is a VM of that name"}
    daemon.answers["POST /instances"] = Failure(409, body)
    assert cli.run("run", "-d", "box").returncode == 125
    names = [body["definition"]["name"] for method, _, _, body in daemon.requests if method == "POST"]
    assert len(names) == 5
    assert len(set(names)) > 1


def test_run_does_not_replace_a_vm_of_the_name_that_was_asked_for(live: Live, cli: Cli) -> None:
    live.put("web")
    vm = live.host.vm()
    done = cli.run("run", "--rm", "--name", "web", BOX)
    assert done.returncode == 125
    assert "a VM web already exists" in done.stderr
    assert live.host.vm() is vm


def test_run_shows_every_problem_of_a_definition(daemon: Canned, cli: Cli) -> None:
    problems = [
        {"file": "", "line": 0, "column": 0, "key": "memory", "message": "is no size", "hint": "write 512M"},
        {"file": "", "line": 0, "column": 0, "key": "vcpus", "message": "is too many", "hint": ""},
    ]
    daemon.answers["GET /images/box"] = {"name": "box", "status": "ready"}
    refusal = {"code": "invalid_definition", "message": "x", "problems": problems}
    daemon.answers["POST /instances"] = Failure(400, refusal)
    done = cli.run("run", "box")
    assert done.returncode == 125
    assert done.stderr == "hypemanctl: memory: is no size; write 512M\nvcpus: is too many\n"


def test_run_refuses_what_does_not_go_together(daemon: Canned, cli: Cli) -> None:
    assert "--rm cannot be combined with -d" in cli.run("run", "--rm", "-d", "box").stderr
    assert "--json requires -d" in cli.run("run", "--json", "box").stderr
    assert daemon.requests == []


class Interrupted:
    """A run of `job` whose console has said one line."""

    def __init__(self, live: Live, cli: Cli) -> None:
        live.host.guest("job").prints = ("up",)
        live.host.guest("job").heeds = False
        self.process = cli.start("run", "--name", "job", BOX)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"up\n"
        live.until(State.RUNNING, "job")
        self.vmm = live.host.vmm("job")


def test_an_interrupt_stops_the_vm_and_its_last_words_are_seen(live: Live, cli: Cli) -> None:
    run = Interrupted(live, cli)
    run.process.send_signal(signal.SIGINT)
    live.until_true(lambda: run.vmm.heard_stop)
    live.call(run.vmm.print, "last words")
    live.call(run.vmm.exit, 143, "stopped on request")
    output, _ = run.process.communicate(timeout=60)
    assert output == b"last words\n"
    assert run.process.returncode == 143
    assert run.vmm.process.exit == Exit("exited", 0)


def test_a_second_interrupt_kills_the_vm(live: Live, cli: Cli) -> None:
    run = Interrupted(live, cli)
    run.process.send_signal(signal.SIGINT)
    live.until_true(lambda: run.vmm.heard_stop)
    run.process.send_signal(signal.SIGINT)
    run.process.communicate(timeout=60)
    assert run.process.returncode == 125
    assert run.vmm.process.exit == Exit("killed", 9)
    assert live.host.vm("job").state is State.STOPPED


def test_an_interrupt_while_the_vm_is_made_leaves_none_behind(live: Live, cli: Cli) -> None:
    live.host.guest("job").boots = False
    live.call(live.host.systemd.takes.clear)
    process = cli.start("run", "--rm", "--name", "job", BOX)
    live.until_true(lambda: live.names() == ["job"])
    process.send_signal(signal.SIGTERM)
    live.call(live.host.systemd.takes.set)
    process.communicate(timeout=60)
    assert process.returncode == 125, "no program has run that has a status"
    assert live.names() == []
