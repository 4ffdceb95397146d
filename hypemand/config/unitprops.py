# SPDX-License-Identifier: Apache-2.0
"""Extra unit properties: the kinds of value that the schema's `x-unit` names, and how each is read.

A value becomes a tuple of words that systemd's unit files take as they are: numbers in decimal, sizes in
bytes, time spans as systemd spells them. Specifiers stay as they are until the VM is started
(`expand_unit_value`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from hypemand.config.durations import format_duration, parse_duration
from hypemand.config.sizes import parse_size
from hypemand.config.specifiers import (
    SpecifierHost,
    check_specifiers,
    expand_specifiers,
    without_specifiers,
)
from hypemand.unitnames import handle_name, vm_of_unit

MAX_WORDS = 256
MAX_TEXT = 1024
MAX_CPU = 8191
MAX_UNIT_NAME = 255

_UNIT_NAME = re.compile(
    r"[A-Za-z0-9:_.\\-]+(@[A-Za-z0-9:_.\\-]*)?"
    r"\.(service|socket|target|mount|automount|swap|timer|path|slice|scope|device)"
)
_URI = re.compile(r"(https?://|file:/|info:|man:)[!-~]+")
_PATH = re.compile(r"/[^\s\x00-\x1f\x7f\"'\\]*")
_CPUS = re.compile(r"([0-9]{1,4})(?:-([0-9]{1,4}))?")
_PERCENT = re.compile(r"([0-9]{1,3})%")
_NUMBER = re.compile(r"-?[0-9]{1,10}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class UnitKind(StrEnum):
    """What a property holds. The first four are lists: each word of the tuple is one item."""

    UNITS = "units"
    PATHS = "paths"
    URIS = "uris"
    CPUS = "cpus"
    INTEGER = "integer"
    WEIGHT = "weight"
    LIMIT = "limit"
    DURATION = "duration"
    TEXT = "text"

    @property
    def is_list(self) -> bool:
        """May it have more than one word?"""
        return self in (UnitKind.UNITS, UnitKind.PATHS, UnitKind.URIS, UnitKind.CPUS)

    @property
    def has_specifiers(self) -> bool:
        """Does systemd expand specifiers in it?"""
        return self in (UnitKind.UNITS, UnitKind.PATHS, UnitKind.URIS, UnitKind.TEXT)


def parse_unit_value(rule: Mapping[str, Any], value: object) -> tuple[str, ...]:
    """The words of a property whose schema has `x-unit: rule`. Raises ValueError: what is wrong; the cure.

    `value` has a JSON type that the schema allows.
    """
    kind = UnitKind(rule["kind"])
    if kind.is_list:
        return _parse_list(kind, value)
    match kind:
        case UnitKind.INTEGER | UnitKind.WEIGHT:
            return (_parse_number(rule, value),)
        case UnitKind.LIMIT:
            return (_parse_limit(value),)
        case UnitKind.DURATION:
            seconds = parse_duration(value if isinstance(value, int | float) else str(value))
            return (format_duration(seconds),)
        case _:
            return (_parse_text(str(value)),)


def _parse_list(kind: UnitKind, value: object) -> tuple[str, ...]:
    items = value if isinstance(value, list | tuple) else [value]
    words = [
        word
        for item in items
        for word in re.split(r"[\s,]+" if kind is UnitKind.CPUS else r"\s+", str(item))
        if word
    ]
    if not words:
        raise ValueError("is empty; write at least one word, or remove the line")
    if len(words) > MAX_WORDS:
        raise ValueError(f"has {len(words)} words; use at most {MAX_WORDS}")
    for word in words:
        _check_word(kind, word)
    return tuple(words)


def expand_unit_value(
    rule: Mapping[str, Any], words: tuple[str, ...], unit: str, host: SpecifierHost
) -> tuple[str, ...]:
    """The words of a property with their specifiers expanded for a VM's unit."""
    if not UnitKind(rule["kind"]).has_specifiers:
        return words
    return tuple(expand_specifiers(word, unit, host) for word in words)


def check_unit_value(rule: Mapping[str, Any], words: tuple[str, ...]) -> None:
    """Raise ValueError: what is wrong; the cure, for what systemd takes and cannot use: specifiers without a
    value, and, where the rule says that a unit must exist, the unit of a VM, which systemd knows only while
    that runs."""
    kind = UnitKind(rule["kind"])
    for word in words:
        if kind.has_specifiers:
            check_specifiers(word, in_name=kind is UnitKind.UNITS)
        vm = vm_of_unit(word) if rule.get("exists") else None
        if vm is not None:
            raise ValueError(f"{word[:80]!r} exists only while VM {vm} runs; write {handle_name(vm)}")


def _check_word(kind: UnitKind, word: str) -> None:
    shown = repr(word[:80])
    if kind is UnitKind.UNITS and (
        _UNIT_NAME.fullmatch(without_specifiers(word)) is None or len(word) > MAX_UNIT_NAME
    ):
        raise ValueError(
            f"{shown} is not the name of a unit; write it with its suffix, for example nginx.service"
        )
    if kind is UnitKind.PATHS and _PATH.fullmatch(word) is None:
        raise ValueError(f"{shown} is not an absolute path; write for example /srv/data")
    if kind is UnitKind.URIS and _URI.fullmatch(word) is None:
        raise ValueError(
            f"{shown} is not a reference; start it with https://, http://, file:/, info: or man:"
        )
    if kind is UnitKind.CPUS:
        found = _CPUS.fullmatch(word)
        if found is None or not int(found[1]) <= int(found[2] or found[1]) <= MAX_CPU:
            raise ValueError(f"{shown} is not a range of CPUs; write for example 0-3 or 5")


def _parse_number(rule: Mapping[str, Any], value: object) -> str:
    words: list[str] = rule.get("words", [])
    text = str(int(value)) if isinstance(value, float) else str(value)
    if text in words:
        return text
    low, high = rule["minimum"], rule["maximum"]
    wanted = " or ".join([f"an integer from {low} to {high}", *words])
    if _NUMBER.fullmatch(text) is None:
        raise ValueError(f"{text[:40]!r} is not a number; write {wanted}")
    if not low <= int(text) <= high:
        raise ValueError(f"{text} is out of range; write {wanted}")
    return str(int(text))


def _parse_limit(value: object) -> str:
    text = str(value).strip()
    if text == "infinity":
        return text
    percent = _PERCENT.fullmatch(text)
    if percent is not None and int(percent[1]) <= 100:
        return f"{int(percent[1])}%"
    try:
        return str(parse_size(text))
    except ValueError:
        raise ValueError(
            f"{text[:40]!r} is not a limit; write a size such as 512M, a percentage such as 80%, or infinity"
        ) from None


def _parse_text(text: str) -> str:
    if not text.strip() or len(text) > MAX_TEXT or _CONTROL.search(text):
        raise ValueError(f"is not one line of 1 to {MAX_TEXT} characters; write a short text")
    return text.strip()
