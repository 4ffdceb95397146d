# SPDX-License-Identifier: Apache-2.0
"""cluster show and cluster diff."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hypemand.cli.cluster import Node, derive_resource, list_crm, list_pcs
from hypemand.cli.clusterdiff import compare
from hypemand.config.definition import MIB
from hypemand.config.vmdef import parse_definition
from hypemand.version import VERSION
from tests.unit.cli.canned import Canned
from tests.unit.cli.conftest import Cli

NODE = Node("host1", 3000, 4)
START_STOP = (
    "op start interval=0 timeout=180s op stop interval=0 timeout=90s op monitor interval=10s timeout=20s"
)
DEEP = " op monitor interval=60s timeout=30s OCF_CHECK_LEVEL=10"
STOPPED = " op monitor role=Stopped interval=45s timeout=20s"
# argv of ssh: options, "--", the host, the script. Answers for the host `b`.
SSH = """\
#!/bin/sh
while [ "$1" != -- ]; do shift; done
[ "$2" = b ] || { echo "ssh: connect to host $2 port 22: No route to host" >&2; exit 255; }
case $3 in *"hypemanctl list --json"*) exec cat "${0%/*}/answer" ;; esac
exit 1
"""


def test_a_resource_has_the_memory_of_its_vmm_and_timeouts_that_fit_it() -> None:
    small = derive_resource(
        parse_definition("web", {"image": "x", "memory": "128M", "vcpus": 3}), 100 * MIB + 1
    )
    assert (small.memory, small.cpu, small.agent) == (229, 3, True)
    slow = {"image": "x", "boot_timeout": "10min", "stop_timeout": "infinity", "guest_agent": False}
    resource = derive_resource(parse_definition("db", slow), 0)
    assert (resource.start_timeout, resource.stop_timeout, resource.agent) == (690, 3600, False)


def test_commands_are_those_of_the_tool() -> None:
    web = derive_resource(parse_definition("web", {"image": "x", "memory": "128M", "vcpus": 1}), 0)
    params = "params name=web utilization memory=128 cpu=1"
    assert list(list_crm([web], NODE)) == [
        f"crm configure primitive web ocf:hypemand:vm {params} {START_STOP}{DEEP}{STOPPED}",
        "crm node utilization host1 set memory 3000",
        "crm node utilization host1 set cpu 4",
    ]
    quiet = derive_resource(parse_definition("web", {"image": "x", "guest_agent": False}), 0)
    assert list(list_pcs([quiet], NODE)) == [
        f"pcs resource create web ocf:hypemand:vm name=web {START_STOP}{STOPPED}",
        "pcs resource utilization web memory=1024 cpu=2",
        "pcs node utilization host1 memory=3000 cpu=4",
    ]


def test_a_vm_without_a_definition_file_is_no_resource(cli: Cli) -> None:
    done = cli.run("cluster", "show", "nope")
    assert (done.returncode, done.stdout) == (10, "")
    assert (
        "VM nope has no valid definition in /etc/hypemand/vms.d; a cluster needs one on each host"
        in done.stderr
    )


def test_what_one_host_has_not_is_one_row() -> None:
    a = {"vm/web": "defined", "vm/web/memory": "1G", "vm/web2": "defined", "volume/data": "5"}
    b = {"vm/web2": "defined", "volume/data": "6"}
    assert list(compare([a, b, a])) == [
        ("vm/web", ["defined", None, "defined"]),
        ("volume/data", ["5", "6", "5"]),
    ]


def answer(daemon: Canned, tmp_path: Path, **changes: Any) -> None:
    """Have the host `b` answer as this one does, but for `changes`."""
    documents = {
        "version": {"hypemanctl": VERSION, "hypemand": "9.9"},
        "check": json.loads(json.dumps({"host": []})),
        "list": list(daemon.answers["GET /instances"]),
        "images": daemon.answers["GET /images"],
        "volumes": daemon.answers["GET /volumes"],
        "networks": daemon.answers["GET /networks"],
    } | changes
    (tmp_path / "answer").write_bytes(
        b"".join(json.dumps(one).encode() + b"\0" for one in documents.values())
    )
    (tmp_path / "ssh").write_text(SSH)
    (tmp_path / "ssh").chmod(0o755)


@pytest.fixture
def pair(daemon: Canned, cli: Cli, tmp_path: Path) -> Cli:
    """This host and `b`, which is the same but for its components, of which it says nothing."""
    cli.environment["PATH"] = f"{tmp_path}:/usr/bin:/bin"
    daemon.answers["GET /health"] = {"status": "ok", "version": "9.9", "loop": None}
    daemon.answers["GET /images"] = [{"name": "app", "digest": "sha256:1", "status": "ready"}]
    daemon.answers["GET /volumes"] = [{"id": "v", "name": "data", "size_bytes": 5}]
    daemon.answers["GET /networks"] = [{"name": "default", "ipv4": "10.0.0.1/24"}]
    daemon.add("web", definition={"memory": "1G"}, definition_file="/etc/hypemand/vms.d/web.yaml")
    daemon.add("local", definition={"memory": "1G"})
    daemon.answers["GET /instances"] = [shown.instance for shown in daemon.vms.values()]
    answer(daemon, tmp_path)
    return cli


def read_rows(cli: Cli, *hosts: str) -> dict[str, list[str]]:
    """The rows of cluster diff by what differs, but for components."""
    done = cli.run("cluster", "diff", *hosts)
    assert (done.returncode, done.stderr) == (1, "")
    rows = [line.split() for line in done.stdout.splitlines()[1:]]
    return {row[0]: row[1:] for row in rows if not row[0].startswith("version/")}


def test_diff_shows_what_is_not_the_same_on_all_hosts(pair: Cli, daemon: Canned, tmp_path: Path) -> None:
    assert read_rows(pair, "b") == {}
    web, _ = daemon.answers["GET /instances"]
    answer(
        daemon,
        tmp_path,
        list=[web | {"definition": {"memory": "2G", "cmd": ["a", "b c"]}}],
        images=[],
        networks=[{"name": "default", "ipv4": "10.9.0.1/24"}],
    )
    assert read_rows(pair, "b", "b") == {
        "image/app": ["sha256:1", "-", "-"],
        "network/default/ipv4": ["10.0.0.1/24", "10.9.0.1/24", "10.9.0.1/24"],
        "vm/web/cmd": ["-", '["a","b_c"]', '["a","b_c"]'],
        "vm/web/memory": ["1G", "2G", "2G"],
    }
    document = json.loads(pair.run("cluster", "diff", "b", "--json").stdout)
    assert document["vm/web/memory"]["b"] == "2G"
    assert document["image/app"]["b"] is None


def test_a_host_that_gives_no_answer_is_named(pair: Cli, tmp_path: Path) -> None:
    done = pair.run("cluster", "diff", "b", "gone")
    assert (done.returncode, done.stdout) == (125, "")
    assert "gone cannot be reached: ssh: connect to host gone port 22: No route to host" in done.stderr
    (tmp_path / "answer").write_bytes(b"[]\0" * 6)
    assert "b has answered what is not understood" in pair.run("cluster", "diff", "b").stderr
