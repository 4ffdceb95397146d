# SPDX-License-Identifier: Apache-2.0
"""The two JSON Schemas: loading them, and validating against them with errors that name place and cure.

The schemas are the one source on what a key may hold: parser, error texts and reference are made from them.
Beside draft 7 they use, with editors passing them over:

    x-size      {minimum, maximum, multiple}: a size as hypemand.config.sizes reads it
    x-duration  {minimum, infinity}: a time span as hypemand.config.durations reads it, minimum in seconds
    x-unit      {kind, …}: a unit property as hypemand.config.unitprops reads it
    x-rate      {minimum, maximum}: a rate as hypemand.config.rates reads it
    x-network   a text of this kind as hypemand.config.netparse reads it
    x-want      what would be right, in words
    x-unknown   what to say of a key that is not among the properties
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from hypemand.config.durations import parse_duration
from hypemand.config.netparse import parse_network_text
from hypemand.config.rates import format_rate, parse_rate
from hypemand.config.sizes import format_size, parse_size
from hypemand.config.source import KeyPath, Source
from hypemand.config.unitprops import parse_unit_value
from hypemand.errors import Problem

Schema = Mapping[str, Any]

_SHOWN = 60
_TYPE_WORDS = {
    "string": "a string",
    "integer": "an integer",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "a mapping",
}


@cache
def load_schema(name: str) -> Schema:
    """`vm` or `host`."""
    path = Path(__file__).with_name(f"{name}.schema.json")
    schema: Schema = json.loads(path.read_text("utf-8"))
    return schema


def find_problems(name: str, source: Source) -> list[Problem]:
    """All that is wrong with `source.data` by the schema `name`, sorted by place."""
    found: dict[tuple[KeyPath, bool], Problem] = {}
    for error in _validator(name).iter_errors(source.data):
        for path, at_key, message, hint in _explain(error):
            # One problem for one place: the first is the most telling, since `type` stands first in a key.
            found.setdefault((path, at_key), source.problem(path, message, hint, at_key=at_key))
    return sort_problems(found.values())


def sort_problems(problems: Iterable[Problem]) -> list[Problem]:
    """By file and place; those without a place by key."""
    return sorted(problems, key=lambda p: (p.file, p.line, p.column, p.key))


@cache
def _validator(name: str) -> Any:
    # Here and not above: it takes longer to import than hypemanctl may take to start.
    from jsonschema import Draft7Validator, validators

    keywords = {
        "x-size": _keyword(_check_size),
        "x-duration": _keyword(_check_duration),
        "x-unit": _keyword(parse_unit_value),
        "x-rate": _keyword(_check_rate),
        "x-network": _keyword(parse_network_text),
    }
    extend: Any = validators.extend
    return extend(Draft7Validator, keywords)(load_schema(name))


def _keyword(check: Callable[[Any, Any], object]) -> Callable[..., Iterator[Exception]]:
    """A schema keyword from a function that raises ValueError. Silent where the type is wrong already."""

    def validate(validator: Any, rule: Any, value: Any, schema: Schema) -> Iterator[Exception]:
        from jsonschema import ValidationError

        if not _has_type(validator, value, schema["type"]):
            return
        try:
            check(rule, value)
        except ValueError as error:
            yield ValidationError(str(error))

    return validate


def _has_type(validator: Any, value: object, types: str | list[str]) -> bool:
    return any(validator.is_type(value, t) for t in ([types] if isinstance(types, str) else types))


def _check_size(rule: Schema, value: Any) -> None:
    size = parse_size(int(value) if isinstance(value, float) else value)
    low, high, multiple = (parse_size(rule[key]) for key in ("minimum", "maximum", "multiple"))
    # as it was written, but nobody reads a size off ten digits
    shown = value if isinstance(value, str) else format_size(size)
    if not low <= size <= high:
        kind = "small" if size < low else "large"
        raise ValueError(f"{shown} is too {kind}; write {format_size(low)} to {format_size(high)}")
    if size % multiple:
        raise ValueError(
            f"{shown} is not a multiple of {format_size(multiple)}; write for example {rule['minimum']}"
        )


def _check_duration(rule: Schema, value: Any) -> None:
    seconds = parse_duration(value)
    if seconds is None and not rule["infinity"]:
        raise ValueError("infinity is not allowed here; write for example 90s")
    if seconds is not None and seconds < rule["minimum"]:
        raise ValueError(f"{value} is too short; write {rule['minimum']}s or more")


def _check_rate(rule: Schema, value: str) -> None:
    rate = parse_rate(value)
    low, high = parse_rate(rule["minimum"]), parse_rate(rule["maximum"])
    if not low <= rate <= high:
        kind = "slow" if rate < low else "fast"
        raise ValueError(f"{value} is too {kind}; write {format_rate(low)} to {format_rate(high)}")


_Finding = tuple[KeyPath, bool, str, str]


def _explain(error: Any) -> Iterator[_Finding]:
    """One error of jsonschema as path, is it the key that is wrong, what is wrong, what would be right."""
    path: KeyPath = tuple(error.absolute_path)
    rules: Schema = error.schema
    value: Any = error.instance
    if error.validator == "additionalProperties":
        for key in value:
            if key not in rules["properties"]:
                yield ((*path, key), True, *_unknown_key(key, rules))
    elif error.validator == "required":
        for key in rules["required"]:
            if key not in value:
                yield ((*path, key), False, "is missing", _write_example(rules["properties"][key], key))
    elif "propertyNames" in error.schema_path:
        yield ((*path, str(value)), True, f"is not a valid key: {_show(value)}", f"write {rules['x-want']}")
    elif error.validator in ("x-size", "x-duration", "x-unit", "x-rate", "x-network"):
        message, _, hint = error.message.partition("; ")
        yield path, False, message, hint
    else:
        yield path, False, _what_is_wrong(str(error.validator), value, rules), _what_is_right(rules, value)


def _unknown_key(key: str, rules: Schema) -> tuple[str, str]:
    known = sorted(rules["properties"])
    message = str(rules.get("x-unknown", "is not known"))
    lower = {k.lower(): k for k in known}
    close = get_close_matches(key.lower().replace("-", "_"), lower, n=1, cutoff=0.7)
    if close:
        return message, f"did you mean {lower[close[0]]}?"
    return message, f"allowed keys: {', '.join(known)}"


def _what_is_wrong(keyword: str, value: Any, rules: Schema) -> str:
    if value is None:
        return "has no value"
    match keyword:
        case "type":
            return f"is {_describe(value)}, not {_wanted_types(rules)}"
        case "enum":
            return f"{_show(value)} is not one of the allowed values"
        case "minimum":
            return f"{value} is too small"
        case "maximum":
            return f"{value} is too large"
        case "maxLength":
            return f"is a string of {len(value)} characters, more than {rules['maxLength']}"
        case "minItems":
            return f"has {len(value)} items, fewer than {rules['minItems']}"
        case "maxItems":
            return f"has {len(value)} items, more than {rules['maxItems']}"
        case "maxProperties":
            return f"has {len(value)} keys, more than {rules['maxProperties']}"
        case _:
            return f"{_show(value)} is not valid"


def _what_is_right(rules: Schema, value: Any) -> str:
    if "enum" in rules:
        choices: list[str] = rules["enum"]
        close = get_close_matches(value.lower(), choices, n=1) if isinstance(value, str) else []
        return f"write {_join(choices)}" + (f"; did you mean {close[0]}?" if close else "")
    if isinstance(value, str) and rules.get("type") == "array":
        return f"write a list of strings: {json.dumps(value.split()[:16], ensure_ascii=False)}"
    if isinstance(value, str) and rules.get("type") == "boolean" and value.lower() in _YES_NO:
        return f"write {_YES_NO[value.lower()]}"
    if isinstance(value, str) and rules.get("type") in ("integer", "number") and _is_number(value):
        return f"write {value.strip()} without quotes"
    if isinstance(value, bool | int | float) and rules.get("type") == "string":
        return f'quote it: "{json.dumps(value)}"'
    if "minimum" in rules and "maximum" in rules:
        return f"write {rules['minimum']} to {rules['maximum']}"
    if "x-want" in rules:
        return f"write {rules['x-want']}" + _for_example(rules)
    return f"write {_wanted_types(rules)}{_for_example(rules)}"


_YES_NO = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false"}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _wanted_types(rules: Schema) -> str:
    if "x-size" in rules:
        return "a size"
    if "x-duration" in rules:
        return "a time span"
    if "x-rate" in rules:
        return "a rate"
    types = rules["type"]
    return _join([_TYPE_WORDS[t] for t in ([types] if isinstance(types, str) else types)])


def _for_example(rules: Schema) -> str:
    examples = rules.get("examples")
    return f", for example {_flow(examples[0])}" if examples else ""


def _write_example(rules: Schema, key: str) -> str:
    return f"write for example {key}: {_flow(rules['examples'][0])}"


def _flow(value: Any) -> str:
    """As it could stand in YAML, in one line."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _join(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _describe(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return f"the string {_show(value)}"
        case int() | float():
            return f"the number {_show(value)}"
        case list():
            return "a list"
        case _:
            return "a mapping"


def _show(value: Any) -> str:
    text = json.dumps(value) if isinstance(value, bool) else repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
