# SPDX-License-Identifier: Apache-2.0
"""What is no value of a type is refused, with the place at which it is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import pytest

from hypemand.model.document import SOURCE, BadDocument, decode, encode


class Kind(StrEnum):
    NEW = "new"


@dataclass(frozen=True)
class Part:
    kind: Kind | str
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Whole:
    name: str
    parts: tuple[Part, ...] = ()
    share: float | None = None
    limits: Mapping[str, int] = field(default_factory=dict)
    strict: Kind = Kind.NEW
    came_as: Mapping[str, Any] = field(default_factory=dict, metadata=SOURCE)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ([], "list where dict belongs"),
        ({}, "Whole without name"),
        ({"name": 1}, "name: int where str belongs"),
        ({"name": "a", "parts": {}}, "parts: dict where list belongs"),
        ({"name": "a", "parts": [{"kind": "new"}, {}]}, "parts[1]: Part without kind"),
        (
            {"name": "a", "parts": [{"kind": "x", "sizes": [1, "2"]}]},
            "parts[0].sizes[1]: str where int belongs",
        ),
        ({"name": "a", "parts": [{"kind": 1}]}, "parts[0].kind: int where str belongs"),
        ({"name": "a", "limits": {"b": True}}, "limits.b: bool where int belongs"),
        ({"name": "a", "share": "1"}, "share: str where float belongs"),
        ({"name": "a", "strict": "other"}, "strict: 'other' is not a valid Kind"),
    ],
)
def test_what_is_wrong_has_its_place(data: object, problem: str) -> None:
    with pytest.raises(BadDocument) as caught:
        decode(Whole, data)
    assert str(caught.value) == problem


def test_what_a_value_was_made_of_is_kept_and_not_sent() -> None:
    data = {"name": "a", "share": 1, "news": [1]}
    whole = decode(Whole, data)
    assert (whole.share, whole.came_as) == (1.0, data)
    assert encode(whole) == {"name": "a", "parts": [], "share": 1.0, "limits": {}, "strict": "new"}


def test_a_word_of_an_open_set_stays_a_word() -> None:
    known, other = decode(tuple[Part, ...], [{"kind": "new"}, {"kind": "newer"}])
    assert known.kind is Kind.NEW
    assert other.kind == "newer"


def test_what_has_no_json_is_refused() -> None:
    with pytest.raises(TypeError, match="no JSON for object"):
        encode({"a": [object()]})
