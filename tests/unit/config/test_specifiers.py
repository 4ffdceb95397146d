# SPDX-License-Identifier: Apache-2.0
"""Specifiers in unit properties are those of systemd.unit(5), expanded for the VM's unit."""

from __future__ import annotations

import pytest

from hypemand.config.definition import Definition
from hypemand.config.nethost import make_networks
from hypemand.config.source import parse_source
from hypemand.config.specifiers import SpecifierHost, expand_specifiers
from hypemand.config.vmdef import definition_to_json, expand_unit, parse_definition, parse_source_definition
from hypemand.errors import InvalidDefinition
from hypemand.unitnames import unit_name

HOST = SpecifierHost("h1.example.org", "6.1.0", "x86-64", "a" * 32, "b" * 32)
NETWORKS = make_networks({}, "")


def parse(unit: str) -> Definition:
    source = parse_source(f"image: x\nunit:\n  {unit}\n", "web-1.yaml")
    return parse_source_definition("web-1", source, networks=NETWORKS)


def problem_of(unit: str) -> str:
    with pytest.raises(InvalidDefinition) as caught:
        parse(unit)
    (problem,) = caught.value.problems
    return str(problem)


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("alert@%n.service", "alert@hypeman-vm-web-1.service.service"),
        ("alert@%N.service", "alert@hypeman-vm-web-1.service"),
        ("%p-done.target", "hypeman-vm-web-1-done.target"),
        ("a@%i.service", "a@.service"),
        ("a@%j.service", "a@1.service"),
        ("/srv/%H/%l/%j", "/srv/h1.example.org/h1/1"),
        ("/f%f /P/%P", "/f/hypeman/vm/web/1 /P/hypeman/vm/web/1"),
        ("%t %S %C %L %E %T %V", "/run /var/lib /var/cache /var/log /etc /tmp /var/tmp"),
        ("%m %b %v %a", f"{'a' * 32} {'b' * 32} 6.1.0 x86-64"),
        ("100%% of it, 100% and %n%", "100% of it, 100% and hypeman-vm-web-1.service%"),
        ("%%n", "%n"),
        # of a record that is older than the check
        ("%Z", "%Z"),
    ],
)
def test_a_specifier_is_expanded_as_systemd_does(text: str, expanded: str) -> None:
    assert expand_specifiers(text, unit_name("web-1"), HOST) == expanded


def test_they_are_expanded_in_all_properties_that_have_them_and_kept_in_the_definition() -> None:
    definition = parse_definition(
        "web-1",
        {
            "image": "x",
            "unit": {
                "OnFailure": "alert@%n.service a.service",
                "RequiresMountsFor": "/srv/%j",
                "Documentation": "https://wiki/%N",
                "Description": "%p on %H",
                "MemoryHigh": "80%",
            },
        },
    )
    assert dict(expand_unit(definition, unit_name("web-1"), HOST).unit) == {
        "OnFailure": ("alert@hypeman-vm-web-1.service.service", "a.service"),
        "RequiresMountsFor": ("/srv/1",),
        "Documentation": ("https://wiki/hypeman-vm-web-1",),
        "Description": ("hypeman-vm-web-1 on h1.example.org",),
        "MemoryHigh": ("80%",),
    }
    written = definition_to_json(definition)["unit"]
    assert isinstance(written, dict)
    assert written["OnFailure"] == ["alert@%n.service", "a.service"]


@pytest.mark.parametrize(
    ("unit", "problem"),
    [
        ("OnFailure: [a.service, 'alert@%Z.service']", "%Z in 'alert@%Z.service' is not a specifier"),
        ("After: a@%t.service", "%t in 'a@%t.service' is not a specifier"),
        (
            "Description: 5 %of it",
            "%o in '5 %of it' is not a specifier that can be used here; use one of %n, %N",
        ),
        ("RequiresMountsFor: /srv/%Z", "%Z in '/srv/%Z' is not a specifier"),
    ],
)
def test_an_unknown_specifier_names_its_place(unit: str, problem: str) -> None:
    said = problem_of(unit)
    assert said.startswith("web-1.yaml:3:"), said
    assert problem in said


def test_a_percent_sign_that_is_none_needs_no_cure() -> None:
    assert parse("Description: runs at 100% of it").unit["Description"] == ("runs at 100% of it",)
    assert "or %% for a percent sign" in problem_of("Description: 5%of it")
    assert "is not the name of a unit" in problem_of("After: a@%.service")


@pytest.mark.parametrize("key", ["Wants", "Requires", "Requisite", "BindsTo", "OnFailure", "OnSuccess"])
def test_the_transient_unit_of_another_vm_is_answered_with_its_control_unit(key: str) -> None:
    said = problem_of(f"{key}: [a.service, hypeman-vm-db.service]")
    assert said == (
        f"web-1.yaml:3:{5 + len(key)}: unit.{key}: 'hypeman-vm-db.service' exists only while VM db runs; "
        "write hypeman@db.service"
    )
    assert parse(f"{key}: hypeman@db.service").unit[key] == ("hypeman@db.service",)


def test_a_record_that_is_older_than_these_rules_can_be_read() -> None:
    definition = parse_definition(
        "web", {"image": "x", "unit": {"Requires": "hypeman-vm-db.service", "Description": "5 %of"}}
    )
    assert definition.unit["Requires"] == ("hypeman-vm-db.service",)
