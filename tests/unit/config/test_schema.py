# SPDX-License-Identifier: Apache-2.0
"""Schema, dataclasses, shipped files and documents say the same."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypemand.config.definition import Definition, DefinitionDefaults
from hypemand.config.durations import parse_duration
from hypemand.config.host import HostConfig, load_host_config
from hypemand.config.listen import ListenConfig
from hypemand.config.nethost import make_networks
from hypemand.config.network import NetworkConfig, NetworkUse
from hypemand.config.reference import BEGIN, END, render_reference
from hypemand.config.schemafile import load_schema
from hypemand.config.sizes import parse_size
from hypemand.config.source import parse_source
from hypemand.config.vmdef import parse_definition

# There is no such file: the network `default` has no IPv6 then, as that of HostConfig() has not.
NO_ID = Path("/nowhere/machine-id")


def leaves(schema: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for key, rule in schema["properties"].items():
        yield key, rule
        for below in (rule, rule.get("additionalProperties") or {}):
            if "properties" in below:
                yield from leaves(below)


@pytest.mark.parametrize("name", ["vm", "host"])
def test_the_schema_is_one_and_says_enough_of_every_key(name: str) -> None:
    schema = load_schema(name)
    jsonschema.Draft7Validator.check_schema(schema)
    for key, rule in leaves(schema):
        assert rule["description"].endswith("."), key
        assert rule["examples"], key
        assert "type" in rule or "enum" in rule, key


def test_the_schema_has_the_keys_of_the_definition() -> None:
    # those with a source are in the list of volumes
    assert set(load_schema("vm")["properties"]) | {"directories"} == {f.name for f in fields(Definition)}
    host = load_schema("host")["properties"]
    # those with devices are in the mapping of pools
    assert set(host) | {"pools_of_devices"} == {f.name for f in fields(HostConfig)}
    assert set(load_schema("vm")["properties"]["network"]["properties"]) == {
        f.name for f in fields(NetworkUse)
    }
    network = host["networks"]["additionalProperties"]["properties"]
    assert {"name", *network} == {f.name for f in fields(NetworkConfig)}
    stated = {key: rule["default"] for key, rule in network.items() if "default" in rule}
    plain = {"bridge": "lan0", "ipv4": "10.1.1.1/24"}
    assert make_networks({"lan": plain | stated}, "") == make_networks({"lan": plain}, "")


def test_defaults_of_schema_and_definition_agree() -> None:
    rules = load_schema("vm")["properties"]
    stated = {key: rule["default"] for key, rule in rules.items() if "default" in rule}
    assert parse_definition("a", {"image": "x", **stated}) == Definition("a", "x")
    optional = {f.name for f in fields(Definition) if f.default is not None and f.default is not MISSING}
    assert optional - {"directories"} <= set(stated)
    for field in fields(DefinitionDefaults):
        value = getattr(Definition("a", "x"), field.name)
        assert field.default == (value.name if isinstance(value, NetworkUse) else value)


def test_defaults_of_schema_and_host_config_agree(tmp_path: Path) -> None:
    def stated(schema: Mapping[str, Any]) -> dict[str, Any]:
        return {
            key: stated(rule) if "properties" in rule else rule["default"]
            for key, rule in schema["properties"].items()
            if "properties" in rule or "default" in rule
        }

    path = tmp_path / "h.yaml"
    path.write_text(str(stated(load_schema("host"))))
    assert load_host_config(path, [], NO_ID) == HostConfig()


def test_examples_of_the_schema_are_valid(tmp_path: Path) -> None:
    vm = load_schema("vm")["properties"]
    for key, rule in vm.items():
        for example in rule["examples"]:
            parse_definition("web-1", {"image": "x", key: example})
    for key, rule in vm["network"]["properties"].items():
        for example in rule["examples"]:
            parse_definition("web", {"image": "x", "network": {key: example}})
    for below in ("unit", "ulimits"):
        for key, rule in vm[below]["properties"].items():
            for example in rule["examples"]:
                parse_definition("web", {"image": "x", below: {key: example}})
    for key, rule in load_schema("host")["properties"].items():
        path = tmp_path / "h.yaml"
        path.write_text(str({key: rule["examples"][0]}))
        load_host_config(path, [], NO_ID)
    for key, rule in load_schema("host")["properties"]["networks"]["additionalProperties"][
        "properties"
    ].items():
        is_lan = key in ("managed", "dhcp")
        lan = {"bridge": "br0", "managed": False, "dhcp": True} if is_lan else {}
        path.write_text(str({"networks": {"default": {**lan, key: rule["examples"][0]}}}))
        load_host_config(path, [], NO_ID)


@given(st.text(alphabet="0123456789.KMGTPibB \tsminhfyudw", max_size=12))
def test_what_editors_refuse_the_parser_refuses_too(text: str) -> None:
    rules = load_schema("vm")["properties"]
    for parse, key in ((parse_size, "memory"), (parse_duration, "boot_timeout")):
        if re.search(rules[key]["pattern"], text) is None:
            with pytest.raises(ValueError, match="write"):
                parse(text)


def test_example_files_are_valid_for_editors_too(examples: list[Path]) -> None:
    for path in examples:
        if path.stem.endswith("@"):  # editors do not know specifiers
            continue
        text = path.read_text("utf-8")
        assert text.startswith("# yaml-language-server: $schema=/usr/share/hypemand/vm.schema.json\n")
        jsonschema.Draft7Validator(load_schema("vm")).validate(parse_source(text, str(path)).data)


def test_the_shipped_host_config_shows_every_default(source_root: Path, tmp_path: Path) -> None:
    path = source_root / "config" / "hypemand.yaml"
    assert load_host_config(path, [], NO_ID) == HostConfig()
    shown = tmp_path / "shown.yaml"
    # "#key:" and "#  key:" are settings, "# " begins prose.
    shown.write_text("\n".join(re.findall(r"^#((?:  )?[a-z_]+:.*)", path.read_text("utf-8"), re.MULTILINE)))
    data = parse_source(shown.read_text("utf-8"), str(shown)).data
    assert isinstance(data, dict)
    assert set(data) == set(load_schema("host")["properties"])
    assert set(data["defaults"]) == {f.name for f in fields(DefinitionDefaults)}
    listen = ListenConfig(
        "127.0.0.1", 7420, Path("/etc/hypemand/tls/cert.pem"), Path("/etc/hypemand/tls/key.pem")
    )
    metrics = ListenConfig("127.0.0.1", 9442)
    assert load_host_config(shown, [], NO_ID) == HostConfig(listen=listen, metrics=metrics, cluster="prod")


@pytest.mark.parametrize(("name", "document"), [("vm", "vm-definition.md"), ("host", "host-config.md")])
def test_the_document_has_the_reference_of_the_schema(name: str, document: str, source_root: Path) -> None:
    text = (source_root / "docs" / document).read_text("utf-8")
    shown = text.partition(BEGIN)[2].partition(END)[0]
    assert shown.strip() == render_reference(name)
