# SPDX-License-Identifier: Apache-2.0
"""Specifiers (%n, %H, ...) in the unit properties of a definition, see "SPECIFIERS" in systemd.unit(5).

systemd expands them when it reads a unit file. The unit of a VM is created over D-Bus, where a property is
taken as it is: so they are expanded before. %i and %I of an instance of a template are expanded when its file
is read, in all of its texts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

_MACHINE_ID = Path("/etc/machine-id")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# A sign before anything else is itself, for systemd too: "100% of it".
_SPECIFIER = re.compile(r"%([A-Za-z0-9%])")
_LITERAL = ", or %% for a percent sign"


@dataclass(frozen=True, slots=True)
class SpecifierHost:
    """What specifiers say of the host. `machine_id` and `boot_id`: 32 hex digits, "" where not known."""

    name: str
    release: str
    architecture: str
    machine_id: str
    boot_id: str


def read_specifier_host() -> SpecifierHost:
    """The host as it is now. Blocks: reads files."""
    system = os.uname()
    return SpecifierHost(
        name=system.nodename,
        release=system.release,
        architecture=system.machine.replace("_", "-"),
        machine_id=_read(_MACHINE_ID),
        boot_id=_read(_BOOT_ID).replace("-", ""),
    )


def _read(path: Path) -> str:
    try:
        return path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _stem(unit: str) -> str:
    return unit.rpartition(".")[0]


# What may be part of a unit's name. The unit of a VM is no instance: its instance is empty, and its prefix is
# all of its name but the suffix.
_IN_NAMES: Mapping[str, Callable[[str, SpecifierHost], str]] = {
    "n": lambda unit, _: unit,
    "N": lambda unit, _: _stem(unit),
    "p": lambda unit, _: _stem(unit),
    "i": lambda _, __: "",
    "j": lambda unit, _: _stem(unit).rpartition("-")[2],
    "H": lambda _, host: host.name,
    "l": lambda _, host: host.name.partition(".")[0],
    "v": lambda _, host: host.release,
    "a": lambda _, host: host.architecture,
    "m": lambda _, host: host.machine_id,
    "b": lambda _, host: host.boot_id,
}
# Directories of the system's manager, and names without escapes.
_ELSEWHERE: Mapping[str, Callable[[str, SpecifierHost], str]] = {
    **_IN_NAMES,
    "%": lambda _, __: "%",
    "P": lambda unit, _: _stem(unit).replace("-", "/"),
    "I": lambda _, __: "",
    "J": lambda unit, _: _stem(unit).rpartition("-")[2],
    "f": lambda unit, _: "/" + _stem(unit).replace("-", "/"),
    "t": lambda _, __: "/run",
    "S": lambda _, __: "/var/lib",
    "C": lambda _, __: "/var/cache",
    "L": lambda _, __: "/var/log",
    "E": lambda _, __: "/etc",
    "T": lambda _, __: "/tmp",
    "V": lambda _, __: "/var/tmp",
}


# What an instance of a template has in all of its texts: its name, and that without escapes.
_OF_INSTANCE: Mapping[str, Callable[[str], str]] = {
    "i": lambda instance: instance,
    "I": lambda instance: instance.replace("-", "/"),
}


def check_specifiers(text: str, *, in_name: bool) -> None:
    """Raise ValueError: what is wrong; the cure, for a specifier that has no value. `in_name`: the text is
    the name of a unit, where systemd knows fewer."""
    known = _IN_NAMES if in_name else _ELSEWHERE
    for letter in _SPECIFIER.findall(text):
        if letter not in known:
            raise _not_known(letter, text, known, "" if in_name else _LITERAL)


def _not_known(letter: str, text: str, known: Iterable[str], literal: str) -> ValueError:
    names = ", ".join(f"%{name}" for name in known if name != "%")
    return ValueError(
        f"%{letter} in {text[:80]!r} is not a specifier that can be used here; use one of {names}{literal}"
    )


def expand_instance_specifiers(text: str, instance: str, *, in_unit: bool) -> str:
    """A text of a template as it is for an instance. Raises ValueError: what is wrong; the cure, for another
    specifier. `in_unit`: a unit property, whose others are expanded when the VM is started."""

    def expand(found: re.Match[str]) -> str:
        value = _OF_INSTANCE.get(found[1])
        if value is not None:
            return value(instance)
        if in_unit:
            return found[0]
        if found[1] != "%":
            raise _not_known(found[1], text, _OF_INSTANCE, _LITERAL)
        return "%"

    return _SPECIFIER.sub(expand, text)


def without_specifiers(text: str) -> str:
    """`text` with a letter for each specifier, to check the rest of a name."""
    return _SPECIFIER.sub("x", text)


def expand_specifiers(text: str, unit: str, host: SpecifierHost) -> str:
    """`text` as it is for the unit `unit` of a VM. What is no specifier stays, as it does for systemd."""

    def expand(found: re.Match[str]) -> str:
        value = _ELSEWHERE.get(found[1])
        return found[0] if value is None else value(unit, host)

    return _SPECIFIER.sub(expand, text)
