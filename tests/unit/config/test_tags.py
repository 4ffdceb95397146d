# SPDX-License-Identifier: Apache-2.0
"""Tags are as wide as the published client's server takes them, and the same everywhere."""

import pytest

from hypemand.config.schemafile import load_schema
from hypemand.config.tags import KEY_PATTERN, MAX_TAGS, check_tags, is_tag
from hypemand.config.vmdef import parse_definition
from hypemand.errors import InvalidDefinition, InvalidRequest

LONGEST = {"a" * 128: "é" * 256, "a b_.:/=+@-": ""}
WRONG = [{"": "x"}, {"a" * 129: "x"}, {"a!": "x"}, {"é": "x"}, {"a": "x" * 257}, {"a": "two\nlines"}]


def test_what_the_clients_server_takes_is_valid() -> None:
    check_tags(LONGEST)
    check_tags({f"k{n}": "" for n in range(50)})
    assert parse_definition("web", {"image": "a", "tags": LONGEST}).tags == LONGEST


@pytest.mark.parametrize("tags", WRONG)
def test_what_is_wrong_is_so_in_definitions_and_elsewhere(tags: dict[str, str]) -> None:
    assert not all(is_tag(key, value) for key, value in tags.items())
    with pytest.raises(InvalidRequest, match="tags: "):
        check_tags(tags)
    with pytest.raises(InvalidDefinition):
        parse_definition("web", {"image": "a", "tags": tags})


def test_the_schema_has_the_same_limits() -> None:
    schema = load_schema("vm")["properties"]["tags"]
    assert schema["propertyNames"]["pattern"] == f"^{KEY_PATTERN}$"
    assert schema["maxProperties"] == MAX_TAGS
    with pytest.raises(InvalidRequest, match="at most 64"):
        check_tags({f"k{n}": "" for n in range(MAX_TAGS + 1)})
