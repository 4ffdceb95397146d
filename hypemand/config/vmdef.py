# SPDX-License-Identifier: Apache-2.0
"""Plain values to a Definition and back, whatever text they came from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from enum import StrEnum
from functools import cache
from types import MappingProxyType
from typing import Any, get_type_hints

from hypemand.config.capabilities import derive_mask
from hypemand.config.definition import Definition, DefinitionDefaults
from hypemand.config.guestfiles import (
    find_guest_file_problems,
    guest_files_to_json,
    make_files,
    make_secrets,
    make_volumes,
)
from hypemand.config.healthdef import find_health_problems, health_to_json, make_health
from hypemand.config.kinds import find_kind
from hypemand.config.mode import Mode
from hypemand.config.names import NAME_RULE, is_name
from hypemand.config.netdef import (
    Networks,
    find_network_problems,
    find_publish_problems,
    make_network_use,
    network_use_to_json,
)
from hypemand.config.netparse import NONE
from hypemand.config.readydef import find_ready_problems, make_ready, ready_to_json
from hypemand.config.schema import find_problems, sort_problems
from hypemand.config.schemafile import Schema, load_schema
from hypemand.config.source import KeyPath, Source
from hypemand.config.specifiers import SpecifierHost
from hypemand.config.unitprops import check_unit_value, expand_unit_value, parse_unit_value
from hypemand.errors import InvalidDefinition, Problem

# What the config disk carries, less what the image's own environment may take.
MAX_PROGRAM_BYTES = 960 * 1024
# The kernel's limit for one string of execve(2), with its NUL.
MAX_STRING_BYTES = 128 * 1024

# Where init mounts what the kernel gives, after the volumes.
_COVERED = frozenset({"/dev", "/proc", "/run", "/sys"})

_EXEC_ONLY = ("has no effect in systemd mode", "remove it, or configure the image's systemd instead")

# Whose values are made by functions of their own.
_APART = ("network", "ready", "health")

_NO_DEFAULTS = DefinitionDefaults()


def parse_definition(
    name: str,
    data: Mapping[str, object],
    defaults: DefinitionDefaults = _NO_DEFAULTS,
    networks: Networks | None = None,
) -> Definition:
    """A definition that came by the API. Raises InvalidDefinition; its problems have key paths, no places.

    `networks`: those of the host, which the definition must fit; None: they are not checked, nor is what only
    a new definition must fit.
    """
    return parse_source_definition(name, Source("", dict(data)), defaults, networks)


def parse_source_definition(
    name: str,
    source: Source,
    defaults: DefinitionDefaults = _NO_DEFAULTS,
    networks: Networks | None = None,
) -> Definition:
    """The definition in `source`. Raises InvalidDefinition with all problems, by place.

    `networks` as for parse_definition.
    """
    problems = find_problems("vm", source)
    problems += _find_name_problems(name, source)
    if isinstance(source.data, Mapping):
        taken = {p.key for p in problems}
        problems += (p for p in _find_program_problems(source, source.data) if p.key not in taken)
        problems += (p for p in _find_volume_problems(source, source.data) if p.key not in taken)
        problems += (p for p in _find_tmpfs_problems(source, source.data) if p.key not in taken)
        problems += (p for p in _find_disk_io_problems(source, source.data) if p.key not in taken)
        problems += (p for p in find_guest_file_problems(source, source.data) if p.key not in taken)
        problems += (p for p in _find_attach_problems(source, source.data) if p.key not in taken)
        if source.data.get("mode") == Mode.SYSTEMD:
            problems += (p for p in _find_mode_problems(source, source.data) if p.key not in taken)
        problems += (p for p in find_publish_problems(source, source.data) if p.key not in taken)
        if not any(key.partition(".")[0] == "ready" for key in taken):
            problems += find_ready_problems(source, source.data)
        if not any(key.partition(".")[0] == "health" for key in taken):
            problems += find_health_problems(source, source.data)
        if not any(key.partition(".")[0] == "network" for key in taken):
            wish = source.data.get("network", defaults.network or NONE)
            problems += find_network_problems(source, wish, defaults.network, networks)
        # not where networks are not known: what is on disk as the record of a VM may be older than these
        # rules
        if networks is not None and not any(key.partition(".")[0] == "unit" for key in taken):
            problems += _find_unit_problems(source, source.data)
    if problems:
        raise InvalidDefinition(sort_problems(problems))
    data: dict[str, Any] = source.data  # type: ignore[assignment]
    return _build(name, source, data, defaults)


def replace_program(
    definition: Definition, entrypoint: tuple[str, ...] | None, cmd: tuple[str, ...] | None
) -> Definition:
    """The definition with another entrypoint or cmd; None: the one that it has. Raises InvalidDefinition."""
    data = definition_to_json(definition)
    data |= {
        key: list(words) for key, words in (("entrypoint", entrypoint), ("cmd", cmd)) if words is not None
    }
    return parse_definition(definition.name, data)


def _find_name_problems(name: str, source: Source) -> Iterator[Problem]:
    if not is_name(name):
        yield source.problem((), f"{name[:80]!r} cannot be the name of a VM", f"use {NAME_RULE}")
    said = source.data.get("name") if isinstance(source.data, Mapping) else None
    if isinstance(said, str) and is_name(said) and said != name:
        yield source.problem(
            ("name",), f"is {said}, but the name of the VM is {name}", "write the same name, or remove it"
        )


def _find_program_problems(source: Source, data: Mapping[str, object]) -> Iterator[Problem]:
    """What the schema cannot say of argv and environment; passes over what has a wrong type."""
    total = 0
    for path, text in _program_strings(data):
        try:
            size = len(text.encode("utf-8")) + 1
        except UnicodeEncodeError:
            yield source.problem(path, "has an unpaired surrogate, which is not a character", "remove it")
            continue
        total += size
        if size > MAX_STRING_BYTES:
            yield source.problem(path, f"has {size} bytes", f"use at most {MAX_STRING_BYTES - 1}, or a file")
    if total > MAX_PROGRAM_BYTES:
        hint = f"use at most {MAX_PROGRAM_BYTES} for entrypoint, cmd and env together, or a file"
        yield source.problem((), f"entrypoint, cmd and env have a total of {total} bytes", hint)
    entrypoint, cmd = data.get("entrypoint"), data.get("cmd")
    if entrypoint == [] and cmd == []:
        yield source.problem(
            ("cmd",), "is empty, and so is entrypoint: there is nothing to run", "set one of them"
        )
    for key in ("entrypoint",) if entrypoint else ("cmd",) if entrypoint == [] else ():
        argv = data.get(key)
        if isinstance(argv, list) and argv and argv[0] == "":
            yield source.problem((key, 0), "is an empty program name", "write its name or path")


def _find_unit_problems(source: Source, data: Mapping[str, object]) -> Iterator[Problem]:
    """Unit properties that systemd takes and cannot use. They can be read."""
    unit = data.get("unit")
    rules = load_schema("vm")["properties"]["unit"]["properties"]
    for key, value in unit.items() if isinstance(unit, Mapping) else ():
        rule = rules[key]["x-unit"]
        try:
            check_unit_value(rule, parse_unit_value(rule, value))
        except ValueError as error:
            message, _, hint = str(error).partition("; ")
            yield source.problem(("unit", key), message, hint)


def expand_unit(definition: Definition, unit: str, host: SpecifierHost) -> Definition:
    """The definition with the specifiers of its unit properties expanded for the VM's unit."""
    rules = load_schema("vm")["properties"]["unit"]["properties"]
    values = {
        key: expand_unit_value(rules[key]["x-unit"], words, unit, host)
        for key, words in definition.unit.items()
    }
    return replace(definition, unit=MappingProxyType(values))


def _find_volume_problems(source: Source, data: Mapping[str, object]) -> Iterator[Problem]:
    """What the schema cannot say of volumes; passes over what has a wrong type."""
    volumes = data.get("volumes")
    for key in ("volume", "device", "mount_path"):
        seen: dict[str, int] = {}
        for i, mount in enumerate(volumes if isinstance(volumes, list) else []):
            value = mount.get(key) if isinstance(mount, Mapping) else None
            if not isinstance(value, str):
                continue
            first = seen.setdefault(value, i)
            if first != i:
                what = f"{value} is already used in volumes[{first}]"
                yield source.problem(("volumes", i, key), what, "write each once")
            if key == "mount_path" and "/".join(value.split("/")[:2]) in _COVERED:
                what = f"{value} is hidden by a file system of the guest"
                hint = f"use a path that is not in {', '.join(sorted(_COVERED))}"
                yield source.problem(("volumes", i, key), what, hint)


def _find_tmpfs_problems(source: Source, data: Mapping[str, object]) -> Iterator[Problem]:
    """What the schema cannot say of tmpfs; passes over what has a wrong type."""
    volumes, tmpfs = data.get("volumes"), data.get("tmpfs")
    seen = {
        str(mount["mount_path"]): f"volumes[{i}]"
        for i, mount in enumerate(volumes if isinstance(volumes, list) else [])
        if isinstance(mount, Mapping) and "mount_path" in mount
    }
    for i, text in enumerate(tmpfs if isinstance(tmpfs, list) else []):
        if not isinstance(text, str):
            continue
        path = text.partition(":")[0]
        first = seen.setdefault(path, f"tmpfs[{i}]")
        if first != f"tmpfs[{i}]":
            yield source.problem(("tmpfs", i), f"{path} is already used in {first}", "write each once")
        if "/".join(path.split("/")[:2]) in _COVERED - {"/run"}:
            what = f"{path} is hidden by a file system of the guest"
            hint = f"use a path that is not in {', '.join(sorted(_COVERED - {'/run'}))}"
            yield source.problem(("tmpfs", i), what, hint)


def _find_disk_io_problems(source: Source, data: Mapping[str, object]) -> Iterator[Problem]:
    disk_io = data.get("disk_io")
    if isinstance(disk_io, Mapping) and "total" in disk_io and disk_io.keys() & {"read", "write"}:
        what = "cannot be combined with read or write"
        yield source.problem(("disk_io", "total"), what, "write total, or read and write", at_key=True)


def _find_mode_problems(source: Source, data: Mapping[str, object]) -> Iterator[Problem]:
    """Keys that have no effect in systemd mode."""
    rules = load_schema("vm")["properties"]
    for key, value in data.items():
        if rules.get(key, {}).get("x-exec-only") and value not in (None, False, []):
            yield source.problem((key,), *_EXEC_ONLY)


def _find_attach_problems(source: Source, data: Mapping[str, object]) -> Iterator[Problem]:
    for key in ("stdin", "tty") if data.get("guest_agent") is False else ():
        if data.get(key) is True:
            what = "needs the guest agent, which passes on input and output"
            yield source.problem((key,), what, "remove it, or guest_agent: false")


def _program_strings(data: Mapping[str, object]) -> Iterator[tuple[KeyPath, str]]:
    for key in ("entrypoint", "cmd"):
        argv = data.get(key)
        for i, arg in enumerate(argv if isinstance(argv, list) else []):
            if isinstance(arg, str):
                yield (key, i), arg
    env = data.get("env")
    for name, value in env.items() if isinstance(env, Mapping) else ():
        yield ("env", str(name)), f"{name}={value}"


def _build(name: str, source: Source, data: dict[str, Any], defaults: DefinitionDefaults) -> Definition:
    values: dict[str, Any] = {
        "memory": defaults.memory,
        "vcpus": defaults.vcpus,
        "disk": defaults.disk,
        "boot_timeout": defaults.boot_timeout,
        "stop_timeout": defaults.stop_timeout,
    }
    rules = load_schema("vm")["properties"]
    for key, value in data.items():
        if key not in _APART:
            values[key] = _convert(rules[key], value, (key,), source)
    values["name"] = name
    values["network"] = make_network_use(data.get("network"), defaults.network)
    values["ready"] = make_ready(data.get("ready"))
    values["volumes"], values["directories"] = make_volumes(data.get("volumes", []))
    values["files"] = make_files(data.get("files", []))
    values["secrets"] = make_secrets(data.get("secrets", []))
    values["health"] = make_health(data.get("health"))
    return Definition(**values)


def _convert(rule: Schema, value: Any, path: KeyPath, source: Source) -> object:
    """A valid value of the file as the dataclass has it."""
    if (found := find_kind(rule)) is not None:
        kind, kind_rule = found
        return kind.parse(kind_rule, value)
    match value:
        case list():
            return tuple(value)
        case Mapping():
            known = rule.get("properties")
            if known is None:
                return MappingProxyType({k: _text(v, (*path, k), source) for k, v in value.items()})
            return MappingProxyType(
                {k: _convert(known[k], v, (*path, k), source) for k, v in value.items() if k in known}
            )
        case str() if "enum" in rule:
            return _enums()[path[0]](value)
        case float():
            return int(value)
        case _:
            return value


@cache
def _enums() -> Mapping[str | int, type[StrEnum]]:
    """The classes of the keys that have one of a few words."""
    hints = get_type_hints(Definition)
    return {key: kind for key, kind in hints.items() if isinstance(kind, type) and issubclass(kind, StrEnum)}


def _text(value: str | int | float, path: KeyPath, source: Source) -> str:
    """A text; a number as it was written: 1.10 stays 1.10."""
    return value if isinstance(value, str) else source.texts.get(path, json.dumps(value))


def definition_to_json(definition: Definition) -> dict[str, object]:
    """Every key, in the schema's order and the shortest exact spelling; what is None is left out.

    `parse_definition(d.name, definition_to_json(d))` gives `d` again.
    """
    rules = load_schema("vm")["properties"]
    result: dict[str, object] = {}
    for key, rule in rules.items():
        value = getattr(definition, key)
        if key == "network":
            result[key] = network_use_to_json(value)
        elif key == "ready" and value is not None:
            result[key] = ready_to_json(value)
        elif key in ("volumes", "files", "secrets"):
            result[key] = guest_files_to_json(definition, key)
        elif key == "health" and value is not None:
            result[key] = health_to_json(value)
        elif value is not None or "x-duration" in rule:
            result[key] = _to_json(rule, value)
    return result


def settings_of(definition: Definition) -> tuple[tuple[str, str], ...]:
    """Records on how the program and commands are started: those of each key that has `x-guest`, and what is
    left of the capabilities."""
    mask = derive_mask(definition.cap_add, definition.cap_drop)
    capabilities = () if mask is None else (("capabilities", f"{mask:x}"),)
    return (*_records_of(definition, "x-guest"), *capabilities)


def boot_settings_of(definition: Definition) -> tuple[tuple[str, str], ...]:
    """Records of the guest's configuration alone: those of each key that has `x-boot`."""
    return tuple(_records_of(definition, "x-boot"))


def _records_of(definition: Definition, row: str) -> Iterator[tuple[str, str]]:
    """A mapping has a record KEY=VALUE for each of its keys, a list one for each of its items; what is the
    schema's default, or None, is left out."""
    for key, rule in load_schema("vm")["properties"].items():
        value = getattr(definition, key)
        if row not in rule or value is None or value == rule.get("default"):
            continue
        match value:
            case Mapping():
                values = [f"{k}={v}" for k, v in value.items()]
            case tuple():
                values = list(value)
            case _:
                values = [_plain(value)]
        yield from ((rule[row], text) for text in values)


def check_systemd_mode(definition: Definition) -> None:
    """InvalidDefinition if keys are set that have no effect in systemd mode."""
    rules = load_schema("vm")["properties"]
    found = [
        Problem("", 0, 0, key, *_EXEC_ONLY)
        for key, rule in rules.items()
        if rule.get("x-exec-only") and getattr(definition, key) not in (None, False, ())
    ]
    if found:
        raise InvalidDefinition(found)


def _plain(value: object) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def _to_json(rule: Schema, value: Any) -> object:
    if (found := find_kind(rule)) is not None:
        kind, kind_rule = found
        return kind.write(kind_rule, value)
    match value:
        case Mapping():
            known = rule.get("properties")
            return {k: v if known is None else _to_json(known[k], v) for k, v in value.items()}
        case tuple():
            return list(value)
        case str():
            return str(value)
        case _:
            return value
