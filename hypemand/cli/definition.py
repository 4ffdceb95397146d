# SPDX-License-Identifier: Apache-2.0
"""Definitions as files: show --definition and diff."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields
from difflib import unified_diff
from pathlib import Path
from typing import Any

from hypemand.cli.check import load_config
from hypemand.cli.context import Context
from hypemand.cli.exitcode import ExitCode
from hypemand.cli.instance import find_effective, get_instance
from hypemand.cli.terminal import GREEN, RED, paint
from hypemand.config.definition import LIVE_KEYS, DefinitionDefaults
from hypemand.config.schemafile import load_schema
from hypemand.config.source import format_yaml
from hypemand.config.vmdef import definition_to_json
from hypemand.config.vmfile import load_vm_file
from hypemand.model.answers.instance import Instance

# their defaults are those of hypemand.yaml, which may be others on the next host
_OF_HOST = frozenset(key.name for key in fields(DefinitionDefaults))
_COLOURS = {"+": GREEN, "-": RED}


def format_definition(definition: Mapping[str, Any]) -> str:
    """A definition of the API as the text of a definition file: without what is the default of every host,
    and without the name, which is that of the file."""
    rules = load_schema("vm")["properties"]

    def is_default(key: str) -> bool:
        rule = rules.get(key, {})
        return key not in _OF_HOST and "default" in rule and definition[key] == rule["default"]

    return format_yaml({key: definition[key] for key in definition if key != "name" and not is_default(key)})


def diff(context: Context) -> int:
    """What differs between what a VM runs with and its definition, as diff -u. The exit status is that of
    diff(1): 1 if anything differs."""
    instance = get_instance(context.client, context.args.name)
    before, after, name = _find_running(instance), instance.definition, "definition"
    if instance.definition_file is not None and instance.needs_reload:
        name = instance.definition_file
        after = _load_file(Path(name), instance)
    if context.wants_document:
        changes = dict(_list_changes(before, after))
        context.print_document(changes)
        return ExitCode.FAILURE if changes else ExitCode.OK
    old, new = (format_definition(each).splitlines() for each in (before, after))
    running = "running" if instance.main_pid is not None else "loaded"
    labels = (f"{instance.name} ({running})", f"{instance.name} ({name})")
    lines = list(unified_diff(old, new, *labels, lineterm=""))
    for number, line in enumerate(lines):
        print(paint(line, _COLOURS.get(line[:1]) if number > 1 else None, sys.stdout))
    return ExitCode.FAILURE if lines else ExitCode.OK


def _find_running(instance: Instance) -> Mapping[str, Any]:
    """What it runs with: also what it has taken since its start. The order is that of its definition."""
    defined = instance.definition
    live = {key: defined.get(key) for key in LIVE_KEYS}
    values = {key: value for key, value in {**find_effective(instance), **live}.items() if value is not None}
    order = {key: place for place, key in enumerate(load_schema("vm")["properties"])}
    keys = sorted(values, key=lambda key: order.get(key, len(order)))
    return {key: _order_like(values[key], defined.get(key)) for key in keys}


def _order_like(value: Any, other: Any) -> Any:
    """The value with the keys that another has in the same order: that makes no difference."""
    if not isinstance(value, Mapping) or not isinstance(other, Mapping):
        return value
    keys = [key for key in {**other, **value} if key in value]
    return {key: _order_like(value[key], other.get(key)) for key in keys}


def _load_file(file: Path, instance: Instance) -> Mapping[str, Any]:
    """What its file defines by now. Raises InvalidDefinition."""
    config, networks = load_config()
    return definition_to_json(load_vm_file(file, config.defaults, networks))


def _list_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Each key that differs, with both values; null: it is not set."""
    for key in {**after, **before}:
        if before.get(key) != after.get(key):
            yield key, {"running": before.get(key), "defined": after.get(key)}
