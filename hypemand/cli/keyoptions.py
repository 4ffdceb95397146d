# SPDX-License-Identifier: Apache-2.0
"""Options of `run` that are keys of a definition: their rows stand beside the keys, in vm.schema.json.

    "x-run": {"flags": ["-m", "--memory"], "metavar": "SIZE", "help": "memory of the guest", "form": "text"}

`form` says how the key's value follows from what was typed, `text` where it is left out. The words that an
option may have are the key's `enum`. A key with several options has a list of them.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Any

from hypemand.cli.spec import Kind, Option
from hypemand.config.schemafile import load_schema


class Form(StrEnum):
    """How an option becomes a key: TEXT as typed, COUNT a number, PAIRS a mapping of each KEY=VALUE, LIST a
    list of each, TRUE and FALSE switches that set that."""

    TEXT = "text"
    COUNT = "count"
    PAIRS = "pairs"
    LIST = "list"
    TRUE = "true"
    FALSE = "false"


_KINDS = {Form.COUNT: Kind.COUNT, Form.PAIRS: Kind.PAIR}


@dataclass(frozen=True, slots=True)
class KeyOption:
    """The option of the key `key`."""

    key: str
    form: Form
    option: Option


@cache
def find_key_options() -> tuple[KeyOption, ...]:
    """Those that there are, in the order of the keys."""
    return tuple(_read_rows(load_schema("vm")["properties"]))


def _read_rows(keys: Mapping[str, Mapping[str, Any]]) -> Iterator[KeyOption]:
    for key, rule in keys.items():
        rows = rule.get("x-run", [])
        for row in rows if isinstance(rows, list) else [rows]:
            form = Form(row.get("form", Form.TEXT))
            option = Option(
                tuple(row["flags"]),
                row["help"],
                row.get("metavar"),
                _KINDS.get(form, Kind.TEXT),
                repeat=form in (Form.PAIRS, Form.LIST),
                choices=tuple(rule.get("enum", ())),
            )
            yield KeyOption(key, form, option)


def list_key_options() -> tuple[Option, ...]:
    """The options alone."""
    return tuple(one.option for one in find_key_options())


def read_keys(args: Namespace) -> dict[str, object]:
    """The keys that were typed, with their values."""
    keys: dict[str, object] = {}
    for one in find_key_options():
        value = getattr(args, one.option.dest)
        if value is None or value is False or value == []:
            continue
        match one.form:
            case Form.TRUE | Form.FALSE:
                keys[one.key] = one.form is Form.TRUE
            case Form.PAIRS:
                keys[one.key] = dict(value)
            case _:
                keys[one.key] = value
    return keys
