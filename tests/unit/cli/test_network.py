# SPDX-License-Identifier: Apache-2.0
"""network list and inspect, by the program's own output."""

from __future__ import annotations

import json

from tests.unit.cli.canned import Canned, Failure
from tests.unit.cli.conftest import Cli

LAB = {
    "name": "lab",
    "bridge": "lab0",
    "ipv4": "10.7.0.1/24",
    "ipv6": None,
    "problem": None,
    "warnings": [],
    "pending": False,
    "free_addresses": 251,
    "members": [{"attached": True}, {"attached": False}],
}


def test_networks_are_a_table_that_tells_what_is_wrong(daemon: Canned, cli: Cli) -> None:
    networks = daemon.answers["GET /networks"] = [
        LAB,
        LAB | {"name": "dmz", "problem": "dmz0 is not ours\x1b[2J", "members": []},
        LAB | {"name": "old", "pending": True, "warnings": ["ufw is there"], "free_addresses": 2**64 - 2},
    ]
    done = cli.run("network", "list")
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        "NAME  STATE    BRIDGE  IPV4         IPV6  VMS  FREE  NOTE",
        "lab   ready    lab0    10.7.0.1/24  -     1/2  251",
        "dmz   problem  lab0    10.7.0.1/24  -     0/0  251   dmz0 is not ours\\x1b[2J",
        (
            "old   pending  lab0    10.7.0.1/24  -     1/2  many"
            "  ufw is there; change pending until no VM is attached"
        ),
    ]
    assert cli.run("network", "list", "-q").stdout == "lab\ndmz\nold\n"
    assert json.loads(cli.run("network", "list", "--json").stdout) == networks


def test_a_network_is_shown_whole(daemon: Canned, cli: Cli) -> None:
    daemon.answers["GET /networks/lab"] = LAB
    refusal = {"code": "not_found", "message": "there is no network 'other'"}
    daemon.answers["GET /networks/other"] = Failure(404, refusal)
    assert json.loads(cli.run("network", "inspect", "lab").stdout) == LAB
    missing = cli.run("network", "inspect", "other")
    assert (missing.returncode, "there is no network 'other'" in missing.stderr) == (10, True)
