# SPDX-License-Identifier: Apache-2.0
"""A word of another program in a definition is answered with the key that does the same, which there is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from hypemand.config.hints import TABLES, KeyHint, find_key_hint
from hypemand.config.nethost import make_networks
from hypemand.config.schemafile import load_schema
from hypemand.config.source import parse_source
from hypemand.config.vmdef import parse_source_definition
from hypemand.errors import InvalidDefinition

PROPERTIES: dict[str, Any] = load_schema("vm")["properties"]
NETWORKS = make_networks({}, "")
PLACES = {"": PROPERTIES, **{key: PROPERTIES[key].get("properties", {}) for key in ("unit", "network")}} | {
    "volumes": PROPERTIES["volumes"]["items"]["properties"]
}


def list_hints() -> Iterator[tuple[str, str, KeyHint]]:
    for place, table in TABLES.items():
        for word, hint in table.items():
            yield place, word, hint


@pytest.mark.parametrize(
    ("place", "hint"),
    dict.fromkeys((place, hint) for place, _, hint in list_hints()),
    ids=lambda value: str(value) or "top",
)
def test_a_hint_names_a_key_that_there_is_with_a_line_that_is_right(place: str, hint: KeyHint) -> None:
    rules: Any = PROPERTIES
    for part in hint.key.replace("[]", ".items").split("."):
        rules = rules[part] if part in rules else rules["properties"][part]
    assert rules
    assert hint.key.rpartition(".")[2] in hint.example
    lines = f"image: x\n{hint.example}\n"
    if place == "volumes":
        what = [] if hint.key.endswith(".source") else ["volume: data"]
        item = [*what, "mount_path: /data", hint.example]
        lines = f"image: x\nvolumes: [{{{', '.join(dict.fromkeys(item))}}}]\n"
    # networks are not checked for an address: the host's are not known here
    parse_source_definition("web", parse_source(lines, "web.yaml"))


@pytest.mark.parametrize("place", TABLES)
def test_no_row_is_a_key_of_its_place_or_written_so_that_it_is_never_found(place: str) -> None:
    keys = {key.lower().replace("_", "") for key in PLACES[place]}
    tables = TABLES[place]
    shown = {word for word in tables if find_key_hint(place, word) is tables[word]}
    assert shown == set(tables)
    if place in ("", "volumes"):
        assert keys & set(tables) == set()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "ports: ['8080:80']",
            'ports: is not known; use network.publish, for example network: {publish: ["8080:80"]}',
        ),
        (
            "environment_file: /etc/x.env",
            "environment_file: is not known; use env_file, for example env_file: [/etc/shop/web.env]",
        ),
        ("environment: {A: b}", "environment: is not known; use env, for example"),
        (
            "depends_on: [db]",
            "depends_on: is not known; use unit.After, for example unit: {Requires: hypeman@db",
        ),
        ("healthcheck: {}", "healthcheck: is not known; use health, for example"),
        ("MemoryMax: 1G", "MemoryMax: is not known; use memory, for example memory: 512M"),
        ("unit: {MemoryMax: 1G}", "unit.MemoryMax: cannot be set here; use memory, for example memory: 512M"),
        ("unit: {CPUQuota: 150%}", "unit.CPUQuota: cannot be set here; use cpu_limit, for example"),
        ("unit: {ExecStart: x}", "unit.ExecStart: cannot be set here; use cmd, for example cmd: [httpd, -f]"),
        ("network: {ports: ['8080:80']}", "network.ports: is not known; use network.publish"),
        ("After: db.service", "After: is not known; write it under unit"),
        (
            "volumes: [{source: data, mount_path: /data}]",
            "volumes[0].source: 'data' is not valid; write an absolute path of the host, or volume: NAME",
        ),
        ("memori: 1G", "memori: is not known; did you mean memory?"),
        ("nothing_like_it: 1", "nothing_like_it: is not known; allowed keys: autostart, "),
    ],
)
def test_each_word_is_answered_with_the_right_one(text: str, problem: str) -> None:
    with pytest.raises(InvalidDefinition) as caught:
        parse_source_definition("web", parse_source(f"image: x\n{text}\n", ""), networks=NETWORKS)
    assert any(problem in str(one) for one in caught.value.problems), str(caught.value)
