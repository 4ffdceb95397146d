# SPDX-License-Identifier: Apache-2.0
"""What a member of the group, and so a token, does not get of the host."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.host.command import Result
from tests.host.machine import TestHost
from tests.host.vms import SMALL, Vms

pytestmark = pytest.mark.one_release

CREATE = """
import json, sys
from hypemand.cli.client import Client
client = Client("/run/hypemand/api.sock")
name, keys = sys.argv[1], json.loads(sys.argv[2])
client.post("instances", body={"name": name, "definition": keys})
"""


@pytest.fixture
def member(host: TestHost) -> Iterator[str]:
    """A user in the group."""
    host.run(["useradd", "--groups=hypemand", "member"])
    yield "member"
    host.run(["userdel", "member"])


def create(host: TestHost, user: str, name: str, **keys: object) -> Result:
    """As hypemanctl run -d does, with any definition."""
    definition = {**SMALL, "network": "default", "cmd": ["sleep", "infinity"], **keys}
    argv = ["runuser", "-u", user, "--", "python3", "-c", CREATE, name, json.dumps(definition)]
    return host.run(argv, check=False)


def test_units_and_ports_of_the_host_are_roots(host: TestHost, vms: Vms, member: str) -> None:
    before = host.run(["systemctl", "is-active", "dbus.service"]).stdout
    for keys in (
        {"unit": {"Conflicts": "dbus.service"}},
        {"unit": {"OnFailure": "poweroff.target"}},
        {"unit": {"OOMScoreAdjust": -1000}},
        {"network": {"publish": ["53:53/udp"]}},
    ):
        refused = create(host, member, "reacher", **keys)
        assert "this affects the host beyond the VM" in refused.stderr, keys
    assert vms.ctl("list", "-q").stdout == ""
    assert host.run(["systemctl", "is-active", "dbus.service"]).stdout == before
    refused = host.run(["runuser", "-u", member, "--", "hypemanctl", "token", "create", "mine"], check=False)
    assert "only root may create a token" in refused.stderr
    assert vms.ctl("token", "list").stdout == ""


def test_a_short_name_is_for_vms_of_root(host: TestHost, vms: Vms, member: str) -> None:
    for user, name in ((member, "wpad"), ("root", "proxy")):
        made = create(host, user, name)
        assert made.ok, made.describe()
        vms.ctl("wait", name)
    hosts = "/run/hypemand/hosts"
    host.wait_until(lambda: "proxy.hypeman" in host.run(["cat", hosts]).stdout)
    names = {word for line in host.run(["cat", hosts]).stdout.splitlines() for word in line.split()[1:]}
    assert {"proxy", "proxy.hypeman", "wpad.hypeman"} <= names
    assert "wpad" not in names
    # over a restart of the daemon too
    vms.restart_daemon()
    assert " wpad " not in host.run(["cat", hosts]).stdout
    vms.ctl("rm", "-f", "wpad", "proxy")
