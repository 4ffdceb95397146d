# SPDX-License-Identifier: Apache-2.0
"""What lists and shows print when they are asked for something else: formats, filters, ports."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hypemand.cli.commands import COMMANDS
from hypemand.cli.options import JSON, SHOWS, SHOWS_TABLE
from hypemand.cli.spec import Command
from hypemand.config.source import parse_source
from tests.unit.cli.canned import Canned
from tests.unit.cli.conftest import Cli
from tests.unit.cli.test_tables import check

HOSTILE = "no \x1b[2J\u202e"
LAB = {"enabled": True, "name": "lab", "interface": "hv1", "ip": "10.7.0.2", "ip6": None, "group": "db"}
VOLUME: dict[str, Any] = {
    "id": "ab" * 16,
    "name": "data",
    "size_bytes": 1024,
    "used_bytes": 0,
    "status": "ready",
    "created_at": "2026-03-01T10:00:00.000Z",
    "attachments": [],
    "tags": {"team": "a b"},
}
IMAGE: dict[str, Any] = {
    "name": "app",
    "status": "ready",
    "digest": "sha256:" + "ab" * 32,
    "in_use_by": ["db", "web"],
}
ANSWERS = {
    "GET /volumes": [VOLUME],
    "GET /volumes/data": VOLUME,
    "GET /images": [IMAGE],
    "GET /images/app": IMAGE,
    "GET /snapshots": [{"id": "2d3f", "name": HOSTILE, "kind": "Standby", "size_bytes": 1}],
    "GET /snapshots/base": {"id": "2d3f", "name": HOSTILE, "kind": "Standby"},
    "GET /networks": [{"name": "lab", "members": [], "warnings": [HOSTILE]}],
    "GET /networks/lab": {"name": "lab", "members": [], "problem": HOSTILE},
    "GET /templates": [{"id": HOSTILE, "memory_bytes": 1, "created_at": "2026-03-01T10:00:00.000Z"}],
    "GET /tokens": [{"name": "ci", "scope": "read", "vms": [], "tags": {"a": "1.10"}}],
    "GET /df": {
        "kinds": [],
        "filesystem": {"path": "/", "free_bytes": 1, "total_bytes": 2},
        "promised_bytes": 0,
        "allowed_bytes": 2,
    },
    "GET /instances/web/snapshot-schedule": {"instance_id": "1a", "interval": "1h", "last_error": HOSTILE},
    "GET /instances/web/history": [{"invocation_id": "1e5", "exit_message": HOSTILE}],
}
SUBJECTS = {
    "VOLUME": "data",
    "IMAGE": "app",
    "NETWORK": "lab",
    "SNAPSHOT": "base",
    "NAME": "web",
    "PORT": "80",
}


# what they show is another thing each time, or needs more than an answer
MEASURE = {("top",), ("check",), ("version",), ("analyze",), ("cluster", "show"), ("cluster", "diff")}


@pytest.mark.parametrize(
    "command",
    [c for c in COMMANDS if {SHOWS[0], SHOWS_TABLE[0]} & {*c.options} and c.path not in MEASURE],
    ids=lambda c: c.name,
)
def test_what_shows_something_prints_the_same_document_as_json_and_yaml(
    daemon: Canned, cli: Cli, command: Command
) -> None:
    daemon.answers |= ANSWERS
    daemon.add("web", network=LAB | {"publish": ["8080:80"]}, exit_message=HOSTILE)
    words = [*command.path, *(SUBJECTS[argument.metavar] for argument in command.arguments)]
    shown = cli.run(*words, "--json")
    assert (shown.returncode, shown.stderr) == (0, "")
    document = json.loads(shown.stdout)
    assert json.loads(cli.run(*words, "-o", "json").stdout) == document
    written = cli.run(*words, "--output", "yaml")
    assert written.returncode == 0, written.stderr
    assert parse_source(written.stdout, "").data == document
    assert not written.stdout.startswith(("{\n", "[\n"))
    assert written.stdout.isascii()
    assert "\x1b" not in written.stdout
    both = cli.run(*words, "--json", "-o", "yaml")
    assert (both.returncode, "--json cannot be combined with -o yaml" in both.stderr) == (8, True)
    wide = cli.run(*words, "-o", "wide")
    assert wide.returncode == (0 if SHOWS_TABLE[0] in command.options else 2)


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["top", "-d", "100ms"], None),
        (["check"], "host"),
        (["version"], "hypemanctl"),
        (["analyze", "web"], "marks"),
    ],
)
def test_so_does_what_measures(daemon: Canned, cli: Cli, words: list[str], key: str | None) -> None:
    daemon.add("web")
    daemon.answers["GET /instances/web/timeline"] = {"marks": [{"name": HOSTILE}], "spans": []}
    documents = []
    for output in ("json", "yaml"):
        done = cli.run(*words, "-o", output)
        assert done.stdout.startswith(("{\n", "[\n")) is (output == "json")
        documents.append(parse_source(done.stdout, "").data)
    for document in documents:
        if key is None:
            assert isinstance(document, list)
            assert document[0]["name"] == "web"
        else:
            assert isinstance(document, dict)
            assert document.keys() == documents[0].keys()  # type: ignore[attr-defined]
            assert key in document
    assert cli.run(*words, "--json", "-o", "yaml").returncode == 8


def test_all_that_lists_can_be_shown_in_every_format() -> None:
    lists = [c for c in COMMANDS if c.path[-1] in ("list", "inspect", "show", "status", "history", "df")]
    assert len(lists) >= 10
    for command in lists:
        assert {SHOWS[0], SHOWS_TABLE[0]} & {*command.options}, command.name
        assert JSON in command.options


def test_a_wide_table_has_more_columns_of_words(daemon: Canned, cli: Cli) -> None:
    daemon.answers |= ANSWERS
    note = "x" * 300
    many = [f"{port}:80" for port in range(1, 7)]
    tags = {"team": "a b", "k": "v"}
    daemon.add("web", network=LAB | {"publish": many}, tags=tags, created_at="2026-03-01T10:00:00.000Z")
    daemon.add("db", "Stopped", exit_message=note, exit_code=None, exit_success=False)
    done = cli.run("list", "-o", "wide").stdout
    check(done)
    header, web, db = (line.split() for line in done.splitlines())
    assert header[-5:] == ["ID", "GROUP", "CREATED", "TAGS", "NOTE"]
    assert web[-4:] == ["web-id", "db", "2026-03-01T10:00", r"team=a\x20b,k=v"]
    assert web[4] == "1:80,2:80,3:80,4:80,5:80,6:80"
    assert db[-5:] == ["db-id", "-", "-", "-", note]
    for kind, last in (("volume", [VOLUME["id"], r"team=a\x20b"]), ("image", [IMAGE["digest"], "db,web"])):
        table = cli.run(kind, "list", "-o", "wide").stdout
        check(table)
        assert table.splitlines()[1].split()[-2:] == last


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        (["tag=team"], ["a", "b"]),
        (["tag=team=x"], ["a"]),
        (["tag=team=x", "tag=env=prod"], []),
        (["tag=team", "tag=env=prod"], ["b"]),
        (["tag=x=y=z"], ["c"]),
        (["state=running"], ["a"]),
        (["state=stopped", "state=Paused"], ["b", "c"]),
        (["image=nginx"], ["a"]),
        (["image=nginx*"], ["a", "b"]),
        (["image=nginx*", "state=running"], ["a"]),
        (["image=nginx", "image=box"], ["a", "c"]),
        (["tag=tea"], []),
    ],
)
def test_a_filter_lists_what_fits(daemon: Canned, cli: Cli, filters: list[str], names: list[str]) -> None:
    daemon.add("a", image="nginx", tags={"team": "x"})
    daemon.add("b", "Stopped", image="nginx:1.25", tags={"team": "y", "env": "prod"})
    daemon.add("c", "Paused", image="box", tags={"x": "y=z"})
    words = [word for text in filters for word in ("--filter", text)]
    done = cli.run("list", "-q", *words)
    assert (done.returncode, done.stdout.split()) == (0, names), done.stderr


@pytest.mark.parametrize("text", ["tag", "tag=", "name=web", "state=on", "="])
def test_what_is_no_filter_is_refused(cli: Cli, text: str) -> None:
    done = cli.run("list", "--filter", text)
    assert done.returncode == 2
    assert "argument --filter: not a" in done.stderr


def test_port_says_where_the_host_leads_to_it(daemon: Canned, cli: Cli) -> None:
    ports = ["8081:80", "53:53/udp", "127.0.0.1:8080:80", "[fd00::1]:443:443"]
    daemon.add("web", network=LAB | {"publish": ports, "ip6": "fd00:7::2"})
    daemon.add("v4", network=LAB | {"publish": ["80:80"]})
    assert cli.run("port", "web").stdout.splitlines() == [
        "53/udp -> 0.0.0.0:53",
        "53/udp -> [::]:53",
        "80/tcp -> 127.0.0.1:8080",
        "80/tcp -> 0.0.0.0:8081",
        "80/tcp -> [::]:8081",
        "443/tcp -> [fd00::1]:443",
    ]
    assert cli.run("port", "web", "443/tcp").stdout == "[fd00::1]:443\n"
    assert cli.run("port", "v4", "80").stdout == "0.0.0.0:80\n"
    assert json.loads(cli.run("port", "web", "80", "--json").stdout) == [
        {"port": 80, "transport": "tcp", "address": "127.0.0.1", "host_port": 8080},
        {"port": 80, "transport": "tcp", "address": None, "host_port": 8081},
    ]
    missing = cli.run("port", "web", "53")
    assert (missing.returncode, "port 53/tcp of web is not published" in missing.stderr) == (10, True)


def test_ports_of_a_vm_that_does_not_run_lead_nowhere(daemon: Canned, cli: Cli) -> None:
    daemon.add("off", "Stopped", network=LAB | {"publish": ["80:80"], "interface": None})
    daemon.add("none", network={"enabled": False})
    for name in ("off", "none"):
        done = cli.run("port", name)
        assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("text", ["x", "80/sctp", "80/", "123456", "\u0663"])
def test_what_is_no_port_is_refused(daemon: Canned, cli: Cli, text: str) -> None:
    daemon.add("web")
    done = cli.run("port", "web", text)
    assert (done.returncode, "write 80 or 53/udp" in done.stderr) == (8, True)
