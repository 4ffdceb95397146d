# SPDX-License-Identifier: Apache-2.0
"""Names of units are made and understood in one place."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

import pytest

from hypemand.unitnames import (
    VM_UNITS,
    handle_name,
    image_unit_name,
    is_of_vm,
    key_of_image_unit,
    replay_unit_name,
    unit_name,
    vm_of_unit,
)
from tests.lint.sources import TOP


def test_a_vm_is_found_by_its_unit() -> None:
    assert unit_name("my-vm") == "hypeman-vm-my-vm.service"
    assert vm_of_unit(unit_name("my-vm")) == "my-vm"
    assert fnmatchcase(unit_name("my-vm"), VM_UNITS)


@pytest.mark.parametrize(
    "unit", ["ssh.service", "hypeman-vm-a.socket", handle_name("a"), image_unit_name("a")]
)
def test_other_units_are_of_no_vm(unit: str) -> None:
    assert vm_of_unit(unit) is None


@pytest.mark.parametrize("unit", [unit_name("a"), handle_name("a"), unit_name("a" * 63)])
def test_a_unit_and_a_handle_are_of_a_vm(unit: str) -> None:
    assert is_of_vm(unit)


@pytest.mark.parametrize(
    "unit",
    [
        "hypemand.service",
        unit_name(""),
        unit_name("a@b"),
        unit_name("a" * 64),
        handle_name("%n"),
        replay_unit_name("a"),
    ],
)
def test_what_can_be_no_vm_is_none(unit: str) -> None:
    assert not is_of_vm(unit)


def test_a_tool_is_known_by_its_key() -> None:
    assert key_of_image_unit(image_unit_name("abc")) == "abc"
    assert key_of_image_unit(replay_unit_name("abc")) is None


def test_no_other_module_makes_such_a_name() -> None:
    wanted = re.compile(r"hypeman-(vm|image|replay)-|hypeman@\{")
    found = [
        f"{path.relative_to(TOP)}: {line.strip()}"
        for path in sorted((TOP / "hypemand").rglob("*.py"))
        if path.name != "unitnames.py"
        for line in path.read_text().splitlines()
        if wanted.search(line)
    ]
    assert found == []
