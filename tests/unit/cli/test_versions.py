# SPDX-License-Identifier: Apache-2.0
"""hypemanctl with a daemon of another version: what it does not know it shows, or passes on."""

from __future__ import annotations

import json
import threading

import pytest

from tests.unit.cli.canned import Canned, Events
from tests.unit.cli.conftest import Cli


@pytest.fixture
def newer(daemon: Canned) -> Canned:
    """Of a version with a state, an origin, a word and keys that we do not know."""
    daemon.add(
        "web",
        "Migrating",
        origin="cluster",
        status_text=None,
        mood={"is": "good"},
        kernel_headers={"state": "waiting", "error": None},
        network={"enabled": True, "ip": "10.7.0.2", "vlan": 7, "counters": {"sent_bytes": 1}},
    )
    daemon.answers["GET /images"] = [{"name": "app", "status": "verifying", "signed": True}]
    return daemon


def test_list_and_status_show_words_that_we_do_not_know(newer: Canned, cli: Cli) -> None:
    listed = cli.run("list", "--no-legend")
    assert (listed.returncode, listed.stdout.split()[1]) == (0, "Migrating")
    status = cli.run("status", "web")
    assert (status.returncode, status.stderr) == (3, "")
    assert "State: Migrating" in status.stdout
    assert "Headers: waiting" in status.stdout
    assert cli.run("image", "list", "--no-legend").stdout.split()[:2] == ["app", "verifying"]


def test_json_and_show_have_keys_that_we_do_not_know(newer: Canned, cli: Cli) -> None:
    (instance,) = json.loads(cli.run("list", "--json").stdout)
    assert instance == newer.vms["web"].instance
    assert "mood.is=good" in cli.run("show", "web").stdout.splitlines()
    (image,) = json.loads(cli.run("image", "list", "--json").stdout)
    assert image == newer.answers["GET /images"][0]


def test_a_state_that_we_do_not_know_is_one_to_wait_in(newer: Canned, cli: Cli) -> None:
    gate = threading.Event()
    newer.answers["GET /instances/web/watch"] = Events((newer.vms["web"].instance, gate.wait))
    done = cli.run("wait", "web", "--timeout", "200ms")
    gate.set()
    assert done.returncode == 12
    assert "it is Migrating" in done.stderr


def test_a_daemon_without_keys_that_came_later_is_understood(daemon: Canned, cli: Cli) -> None:
    daemon.add("web").instance = {"id": "web-id", "name": "web", "state": "Running"}
    assert cli.run("status", "web").returncode == 0
    assert cli.run("list", "--no-legend").stdout.split()[:2] == ["web", "Running"]


def test_what_makes_no_sense_is_named_with_its_place(daemon: Canned, cli: Cli) -> None:
    daemon.add("web", vcpus="many")
    done = cli.run("list")
    assert done.returncode == 13
    assert done.stderr == (
        "hypemanctl: hypemand's answer cannot be understood: [0].vcpus: str where int belongs;"
        " is the daemon of another version? hypemanctl version\n"
    )
