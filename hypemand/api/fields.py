# SPDX-License-Identifier: Apache-2.0
"""Reads a JSON body, or a query, into a dataclass whose fields say what is valid: the kind of each value,
whether it is required, and its default. `hypemand.api.bodies` has the dataclasses.

Each kind also gives its JSON schema, which a test compares with openapi.yaml. Reading takes time linear in
the size of the body, and no message grows with it.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from functools import cache
from typing import Any, Generic, TypeVar

from hypemand.errors import InvalidRequest

T = TypeVar("T")
F = TypeVar("F")
E = TypeVar("E", bound=StrEnum)

Schema = dict[str, Any]

_SHOWN_KEYS = 8
_SHOWN = 40


class InvalidField(InvalidRequest):
    """A value that is not valid. `key` is its place, as `credentials.username`, `problem` what is wrong."""

    def __init__(self, key: str, problem: str, hint: str = "", code: str | None = None) -> None:
        super().__init__(f"{key}: {problem}", hint=hint, code=code)
        self.key = key
        self.problem = problem


class Kind(ABC, Generic[T]):
    """A kind of values. `is_map`: in a query it is written as one parameter for each key, `tags[team]=x`.
    `is_refused`: no value is taken."""

    is_map = False
    is_refused = False

    @abstractmethod
    def read(self, value: object, key: str) -> T:
        """The value of a body's field `key`; None: a required field is missing. Raises InvalidField."""

    def read_word(self, word: str, key: str) -> T:
        """The same of a parameter of a query."""
        return self.read(word, key)

    @abstractmethod
    def schema(self) -> Schema:
        """The JSON schema of the values."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What is valid for a field. `null`: a null counts as a field that was omitted. `default`: as in JSON."""

    kind: Kind[Any]
    is_required: bool = False
    null: bool = False
    default: object = None


_RULE = "rule"


def required(kind: Kind[T]) -> T:
    """A field that must be there."""
    return field(metadata={_RULE: Rule(kind, is_required=True)})  # type: ignore[no-any-return]


def optional(kind: Kind[T], *, null: bool = False) -> T | None:
    """A field that is None where it is omitted."""
    return field(metadata={_RULE: Rule(kind, null=null)})  # type: ignore[no-any-return]


def with_default(kind: Kind[T], default: object, *, null: bool = False) -> T:
    """A field that has a default, which is given as in JSON."""
    return field(metadata={_RULE: Rule(kind, null=null, default=default)})  # type: ignore[no-any-return]


def list_rules(form: Any) -> Mapping[str, Rule]:
    """The fields of a form, in order."""
    return _list_rules(form)


@cache
def _list_rules(form: Any) -> Mapping[str, Rule]:
    return {one.name: one.metadata[_RULE] for one in fields(form)}


def read_form(form: type[F], body: Mapping[str, object], place: str = "") -> F:
    """A form of the fields of `body`, an object at `place`. Raises InvalidRequest that names the field."""
    rules = list_rules(form)
    strange = [key for key in body if key not in rules]
    taken = [key for key, rule in rules.items() if not rule.kind.is_refused]
    refuse_unknown(strange, taken, f"field of {place}" if place else "field")
    prefix = f"{place}." if place else ""
    return form(**{key: _read_field(rule, body, key, prefix + key) for key, rule in rules.items()})


def _read_field(rule: Rule, body: Mapping[str, object], key: str, shown: str) -> object:
    if key not in body or (rule.null and body[key] is None):
        return _read_omitted(rule, shown)
    return rule.kind.read(body[key], shown)


def _read_omitted(rule: Rule, key: str) -> object:
    if rule.is_required:
        return rule.kind.read(None, key)
    return None if rule.default is None else rule.kind.read(rule.default, key)


def read_words(form: type[F], words: Collection[tuple[str, str]]) -> F:
    """A form of the parameters of a query. Raises InvalidRequest that names the parameter."""
    rules = list_rules(form)
    maps: dict[str, dict[str, object]] = {key: {} for key, rule in rules.items() if rule.kind.is_map}
    plain: dict[str, str] = {}
    strange = []
    for key, word in words:
        head, bracket, below = key.partition("[")
        if bracket and below.endswith("]") and head in maps:
            target, name = maps[head], below[:-1]
        elif key in rules and key not in maps:
            target, name = plain, key  # type: ignore[assignment]
        else:
            strange.append(key)
            continue
        if name in target:
            raise InvalidRequest(f"{key[:80]}: given more than once")
        target[name] = word
    refuse_unknown(strange, [f"{key}[NAME]" if key in maps else key for key in rules], "parameter")
    values: dict[str, object] = {key: rules[key].kind.read(found, key) for key, found in maps.items()}
    for key, rule in rules.items():
        if key not in maps:
            given = plain.get(key)
            values[key] = _read_omitted(rule, key) if given is None else rule.kind.read_word(given, key)
    return form(**values)


def refuse_unknown(given: Collection[str], known: Collection[str], what: str = "field") -> None:
    """Raise InvalidRequest that names the keys that nobody reads, or the first of many."""
    strange = sorted(key[:80] for key in given if key not in known)
    if strange:
        more = f" and {len(strange) - _SHOWN_KEYS} more" if len(strange) > _SHOWN_KEYS else ""
        wanted = f"allowed: {', '.join(known)}" if known else f"none is allowed here, omit the {what}"
        raise InvalidRequest(f"unknown {what}: {', '.join(strange[:_SHOWN_KEYS])}{more}", hint=wanted)


def without_nulls(body: Mapping[str, object]) -> dict[str, object]:
    """A body without the fields that are null: the published clients mean by it that they are omitted."""
    return {key: value for key, value in body.items() if value is not None}


def describe_form(form: type[Any]) -> Schema:
    """The JSON schema of a body."""
    rules = list_rules(form)
    schema: Schema = {"type": "object", "additionalProperties": False}
    if rules:
        schema["properties"] = {key: describe_rule(rule) for key, rule in rules.items()}
    if needed := [key for key, rule in rules.items() if rule.is_required]:
        schema["required"] = needed
    return schema


def describe_rule(rule: Rule) -> Schema:
    """The JSON schema of a field."""
    schema = dict(rule.kind.schema())
    if rule.default is not None and not rule.kind.is_map and not isinstance(rule.default, list):
        schema["default"] = rule.default
    return {"oneOf": [schema, {"type": "null"}]} if rule.null else schema


def show(value: object) -> str:
    """The beginning of a value, as in JSON but for the quotes of a string, which are Python's."""
    return repr(value[:_SHOWN]) if isinstance(value, str) else json.dumps(value)[:_SHOWN]


def is_whole(value: object, low: int, high: int) -> bool:
    """Is it an integer of that range? true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
