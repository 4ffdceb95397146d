# SPDX-License-Identifier: Apache-2.0
"""What of a definition is only for root: by decision for every key, over the socket and over TCP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hypemand.api.hostreach import UNIT_RULES, find_host_reach
from hypemand.config.definition import DefinitionDefaults
from hypemand.config.schemafile import load_schema
from hypemand.config.vmdef import parse_definition
from tests.unit.api.harness import IMAGE, NOBODY, Api, ask_as, drive

VMS = ["hypeman-vm-db.service", "hypeman@db.service"]
RELATIONS = (
    "After", "Before", "Wants", "Requires", "Requisite", "BindsTo", "PartOf", "Conflicts", "OnFailure",
    "OnSuccess",
)  # fmt: skip


def reach(data: dict[str, Any], defaults: DefinitionDefaults | None = None) -> list[str]:
    defaults = defaults or DefinitionDefaults()
    return list(find_host_reach(parse_definition("x", {"image": IMAGE} | data, defaults), defaults))


def test_every_unit_property_is_roots_or_the_clients_by_decision() -> None:
    assert set(UNIT_RULES) == set(load_schema("vm")["properties"]["unit"]["properties"])


@pytest.mark.parametrize("key", RELATIONS)
def test_relations_are_to_other_vms_alone(key: str) -> None:
    assert reach({"unit": {key: VMS}}) == []
    for other in (
        "ssh.service", "poweroff.target", "hypeman-vm-.service", "hypeman-vm-a.socket", "hypemand.service",
        "hypeman-vm-a@b.service", "xhypeman-vm-a.service", "hypeman@a.b.service", "hypeman@%n.service",
    ):  # fmt: skip
        assert reach({"unit": {key: [*VMS, other]}}) == [f"unit.{key} ({other})"], other


@pytest.mark.parametrize(
    ("data", "keys"),
    [
        ({"unit": {"OOMScoreAdjust": -1000}}, ["unit.OOMScoreAdjust (-1000)"]),
        ({"unit": {"RequiresMountsFor": "/mnt"}}, ["unit.RequiresMountsFor (/mnt)"]),
        ({"unit": {"Nice": -1}}, ["unit.Nice (-1)"]),
        ({"unit": {"Nice": 5, "CPUWeight": 10, "Description": "x"}}, []),
        ({"unit": {"LogRateLimitIntervalSec": 0}}, ["unit.LogRateLimitIntervalSec (0s)"]),
        ({"unit": {"LogRateLimitBurst": 10**9}}, ["unit.LogRateLimitBurst (1000000000)"]),
        (
            {"network": {"publish": ["1023:80", "1024:80", "127.0.0.1:53:53/udp"]}},
            ["network.publish (1023:80)", "network.publish (127.0.0.1:53:53/udp)"],
        ),
        ({"network": {"publish": ["1023-1025:80-82"]}}, ["network.publish (1023:80)"]),
        ({"stop_timeout": "infinity"}, ["stop_timeout (infinity)"]),
        ({"stop_timeout": "10min 1s"}, ["stop_timeout (601s)"]),
        ({"stop_timeout": "10min", "boot_timeout": "infinity"}, []),
    ],
)
def test_what_reaches_into_the_host_is_named(data: dict[str, Any], keys: list[str]) -> None:
    assert reach(data) == keys


def test_what_the_host_has_as_its_default_is_anybodys() -> None:
    assert reach({}, DefinitionDefaults(stop_timeout=None)) == []
    assert reach({"stop_timeout": "infinity"}, DefinitionDefaults(stop_timeout=None)) == []


SMALL = {"image": IMAGE, "disk": "64M", "memory": "96M", "network": "none"}
HARMFUL = {
    "name": "new",
    "start": False,
    "definition": {**SMALL, "unit": {"Conflicts": "ssh.service", "Nice": -5}},
}


def test_a_member_of_the_group_reaches_no_further_than_its_vms_and_root_does(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        answer = await ask_as(NOBODY, api.path, "POST", "/instances", HARMFUL)
        assert answer.startswith(b"HTTP/1.0 403")
        message = json.loads(answer.partition(b"\r\n\r\n")[2])["message"]
        assert "unit.Conflicts (ssh.service); unit.Nice (-5)" in message
        assert api.host.parts.fleet.find("new") is None
        assert (await api.ask("POST", "/instances", HARMFUL)).status == 201

    drive(tmp_path, scenario)


PATHS: dict[str, Any] = {
    "env_file": ["-/etc/a.env"],
    "files": [{"path": "/a", "content": "x"}, {"path": "/b", "source": "/etc/shadow"}],
    "volumes": [{"source": "/root", "mount_path": "/r"}, {"device": "lun/a", "mount_path": "/d"}],
    "secrets": [{"name": "key"}, {"name": "other", "encrypted_content": "AAAA"}],
}


def test_nobody_but_root_gets_files_of_the_host_by_a_vm(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        for key, words in (
            ("env_file", "env_file (/etc/a.env)"),
            ("files", "files.source (/etc/shadow)"),
            ("volumes", "volumes.source (/root); volumes.device (lun/a)"),
            ("secrets", "secrets (key); secrets (other)"),
        ):
            body = {"name": "new", "start": False, "definition": {**SMALL, key: PATHS[key]}}
            answer = await ask_as(NOBODY, api.path, "POST", "/instances", body)
            assert answer.startswith(b"HTTP/1.0 403")
            error = json.loads(answer.partition(b"\r\n\r\n")[2])
            assert f"a client that is not root would read files of the host: {words}" in error["message"]
            assert api.host.parts.fleet.find("new") is None
        content = {"name": "new", "start": False, "definition": {**SMALL, "files": PATHS["files"][:1]}}
        assert (await ask_as(NOBODY, api.path, "POST", "/instances", content)).startswith(b"HTTP/1.0 201")
        body = {"name": "roots", "start": False, "definition": {**SMALL, **PATHS}}
        assert (await api.ask("POST", "/instances", body)).status == 201

    drive(tmp_path, scenario)


def test_a_vm_that_root_has_not_made_has_no_short_name_on_the_host(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        for name, uid in (("wpad", NOBODY), ("proxy", 0)):
            body = {"name": name, "definition": SMALL}
            assert (await ask_as(uid, api.path, "POST", "/instances", body)).startswith(b"HTTP/1.0 201")
        vms = {vm.name: vm.record.short_name for vm in api.host.parts.fleet}
        assert vms == {"wpad": False, "proxy": True}

    drive(tmp_path, scenario)
