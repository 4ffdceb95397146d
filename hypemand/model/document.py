# SPDX-License-Identifier: Apache-2.0
"""Values as JSON and back: a dataclass is an object whose keys are the names of its fields.

Both ends may be of different versions: keys that are not known are passed over, and one that is missing has
its field's default. Where a newer end may send a word that an older one does not know, the field's type says
so: `State | str`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import StrEnum
from functools import cache
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

SOURCE: Mapping[str, bool] = {"source": True}
"""Metadata of a field that is no key: it has the object that the value was decoded from."""
_PLAIN = (NoneType, bool, int, float, str)


class BadDocument(ValueError):
    """JSON that is not what it should be. Its text begins with the place, as `spans[0].lane: `."""

    def __init__(self, problem: str, place: str = "") -> None:
        super().__init__(f"{place.removeprefix('.')}: {problem}" if place else problem)
        self.problem = problem
        self.place = place


def encode(value: Any) -> Any:
    """A value as JSON has it. TypeError for what has no JSON."""
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, _PLAIN):
        return value
    if is_dataclass(value):
        return {name: encode(getattr(value, name)) for name, _, _ in _derive_keys(value.__class__)}
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, (tuple, list, frozenset)):
        return [encode(item) for item in value]
    if type(value).__module__ == "ipaddress":  # not imported for this: it takes long, and few have any
        return str(value)
    raise TypeError(f"no JSON for {type(value).__name__}")


def decode(kind: Any, data: Any) -> Any:
    """The value of type `kind` that `encode` has made `data` of. Raises BadDocument."""
    if kind is Any:
        return data
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        return _decode_union(get_args(kind), data)
    if origin in (tuple, frozenset):
        item_kind = get_args(kind)[0]
        return origin(_decode_at(f"[{i}]", item_kind, item) for i, item in enumerate(_expect(list, data)))
    if origin is not None and issubclass(origin, Mapping):
        _, item_kind = get_args(kind)
        return {key: _decode_at(f".{key}", item_kind, item) for key, item in _expect(dict, data).items()}
    if is_dataclass(kind):
        return _decode_dataclass(kind, data)
    if kind is float and type(data) is int:
        return float(data)
    if kind in _PLAIN:
        return _expect(kind, data)
    try:
        return kind(_expect(str, data))
    except ValueError as error:
        raise BadDocument(str(error)) from None


def _decode_at(place: str, kind: Any, data: Any) -> Any:
    """A part of a value; what is wrong with it is at this place."""
    try:
        return decode(kind, data)
    except BadDocument as error:
        raise BadDocument(error.problem, place + error.place) from None


def _expect(kind: type, data: Any) -> Any:
    if type(data) is not kind:
        raise BadDocument(f"{type(data).__name__} where {kind.__name__} belongs")
    return data


def _decode_union(kinds: tuple[Any, ...], data: Any) -> Any:
    if data is None and NoneType in kinds:
        return None
    problem = BadDocument("null where a value belongs")
    for kind in kinds:
        if kind is NoneType:
            continue
        try:
            return decode(kind, data)
        except BadDocument as error:
            problem = error
    raise problem


@cache
def _derive_keys(kind: Any) -> tuple[tuple[str, Any, bool], ...]:
    """Name, type and whether there is a default, of each field that is a key."""
    hints = get_type_hints(kind)
    return tuple(
        (field.name, hints[field.name], field.default is not MISSING or field.default_factory is not MISSING)
        for field in fields(kind)
        if field.metadata != SOURCE
    )


@cache
def _find_source(kind: Any) -> str | None:
    return next((field.name for field in fields(kind) if field.metadata == SOURCE), None)


def _decode_dataclass(kind: Any, data: Any) -> Any:
    _expect(dict, data)
    values = {}
    for name, field_kind, has_default in _derive_keys(kind):
        if name in data:
            values[name] = _decode_at(f".{name}", field_kind, data[name])
        elif not has_default:
            raise BadDocument(f"{kind.__name__} without {name}")
    source = _find_source(kind)
    return kind(**values) if source is None else kind(**values, **{source: data})
