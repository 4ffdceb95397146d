# SPDX-License-Identifier: Apache-2.0
"""The two JSON Schemas: loading them, and validating against them with errors that name place and cure.

The schemas are the one source on what a key may hold: parser, error texts and reference are made from them.
Beside draft 7 they use, with editors passing them over:

    x-size, x-duration, x-unit, x-rate, x-network, …   a kind of value, see hypemand.config.kinds
    x-want      what would be right, in words
    x-unknown   what to say of a key that is not among the properties

What else a key needs is in its row too:

    x-run           the option of `hypemanctl run`, see hypemand.cli.keyoptions
    x-guest         its record in the guest's configuration and of commands, see vmdef.settings_of
    x-boot          its record in the guest's configuration alone, see vmdef.boot_settings_of
    x-exec-only     it is allowed in exec mode alone
    x-client        the field of the published client that means the same; x-client-not: the opposite
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from functools import cache
from typing import Any

from hypemand.config.hints import find_key_hint
from hypemand.config.kinds import KINDS, Kind, find_kind
from hypemand.config.schemafile import Schema, load_schema
from hypemand.config.source import KeyPath, Source
from hypemand.errors import Problem

_SHOWN = 60
# so many unknown keys of a mapping are compared with those that it may have: a client may send any number
_COMPARED = 50
_OTHER_SCALARS = ("integer", "number", "boolean")
_TYPE_WORDS = {
    "string": "a string",
    "integer": "an integer",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "a mapping",
}


def find_problems(name: str, source: Source) -> list[Problem]:
    """All that is wrong with `source` by itself and by the schema `name`, sorted by place."""
    known = {problem.key for problem in source.problems}
    found: dict[tuple[KeyPath, bool], Problem] = {}
    for error in _validator(name).iter_errors(source.data):
        for path, at_key, message, cure in _explain(name, error):
            is_text_for_other = path in source.expanded and error.schema.get("type") in _OTHER_SCALARS
            hint = "specifiers are only for texts: write the value itself" if is_text_for_other else cure
            # One problem for one place: the first is the most telling, since `type` stands first in a key.
            found.setdefault((path, at_key), source.problem(path, message, hint, at_key=at_key))
    return sort_problems((*source.problems, *(p for p in found.values() if p.key not in known)))


def sort_problems(problems: Iterable[Problem]) -> list[Problem]:
    """By file and place; those without a place by key."""
    return sorted(problems, key=lambda p: (p.file, p.line, p.column, p.key))


@cache
def _validator(name: str) -> Any:
    # Here and not above: it takes longer to import than hypemanctl may take to start.
    from jsonschema import Draft7Validator, validators

    keywords = {name: _keyword(kind) for name, kind in KINDS.items()}
    extend: Any = validators.extend
    return extend(Draft7Validator, keywords)(load_schema(name))


def _keyword(kind: Kind) -> Callable[..., Iterator[Exception]]:
    """The schema keyword of a kind of value. Silent where the type is wrong already."""

    def validate(validator: Any, rule: Any, value: Any, schema: Schema) -> Iterator[Exception]:
        from jsonschema import ValidationError

        if not _has_type(validator, value, schema["type"]):
            return
        try:
            kind.parse(rule, value)
        except ValueError as error:
            yield ValidationError(str(error))

    return validate


def _has_type(validator: Any, value: object, types: str | list[str]) -> bool:
    return any(validator.is_type(value, t) for t in ([types] if isinstance(types, str) else types))


_Finding = tuple[KeyPath, bool, str, str]


def _explain(name: str, error: Any) -> Iterator[_Finding]:
    """One error of jsonschema, by the schema `name`, as path, is it the key that is wrong, what is wrong,
    what would be right."""
    path: KeyPath = tuple(error.absolute_path)
    rules: Schema = error.schema
    value: Any = error.instance
    if error.validator == "additionalProperties":
        unknown = (key for key in value if key not in rules["properties"])
        for number, key in enumerate(unknown):
            hint = _find_hint(name, path, key)
            yield ((*path, key), True, *_unknown_key(key, rules, hint, compares=number < _COMPARED))
    elif error.validator == "required":
        for key in rules["required"]:
            if key not in value:
                yield ((*path, key), False, "is missing", _write_example(rules["properties"][key], key))
    elif "propertyNames" in error.schema_path:
        yield ((*path, str(value)), True, f"is not a valid key: {_show(value)}", f"write {rules['x-want']}")
    elif error.validator in KINDS:
        message, _, hint = error.message.partition("; ")
        yield path, False, message, hint
    else:
        yield path, False, _what_is_wrong(str(error.validator), value, rules), _what_is_right(rules, value)


def _find_hint(name: str, path: KeyPath, key: str) -> str:
    """What another program's word for a key of a definition, or a property of its unit, should be; or ""."""
    if name != "vm":
        return ""
    place = str(path[0]) if path else ""
    if (hint := find_key_hint(place, key)) is not None:
        return str(hint)
    unit = load_schema(name)["properties"]["unit"]["properties"]
    return "write it under unit" if not path and key in unit else ""


def _unknown_key(key: str, rules: Schema, hint: str, *, compares: bool) -> tuple[str, str]:
    known = sorted(rules["properties"])
    message = str(rules.get("x-unknown", "is not known"))
    if hint:
        return message, hint
    lower = {k.lower(): k for k in known}
    word = key.lower().replace("-", "_")
    close = get_close_matches(word, lower, n=1, cutoff=0.7) if compares else ()
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
    is_scalar = isinstance(value, bool | int | float)
    if is_scalar and rules.get("type") == "string" and not rules.keys() & _WITH_UNIT:
        return f'quote it: "{json.dumps(value)}"'
    if "minimum" in rules and "maximum" in rules:
        return f"write {rules['minimum']} to {rules['maximum']}"
    if "x-want" in rules:
        return f"write {rules['x-want']}" + _for_example(rules)
    return f"write {_wanted_types(rules)}{_for_example(rules)}"


# kinds of values that a number without a unit is not
_WITH_UNIT = {"x-rate", "x-io-rate"}
_YES_NO = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false"}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _wanted_types(rules: Schema) -> str:
    found = find_kind(rules)
    if found is not None and found[0].wanted:
        return found[0].wanted
    types = rules["type"]
    return _join([_TYPE_WORDS[t] for t in ([types] if isinstance(types, str) else types)])


def _for_example(rules: Schema) -> str:
    examples = rules.get("examples")
    return f", for example {_flow(examples[0])}" if examples else ""


def _write_example(rules: Schema, key: str) -> str:
    return f"write for example {key}: {_flow(rules['examples'][0])}"


def _flow(value: Any) -> str:
    """The value in YAML, in one line."""
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
