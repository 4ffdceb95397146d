# SPDX-License-Identifier: Apache-2.0
"""Templates of definitions, as systemd has them of units.

PREFIX@.yaml is a template and defines no VM. PREFIX@INSTANCE.yaml, mostly a symbolic link to it, defines VM
PREFIX-INSTANCE; %i in its texts is the name of the instance.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hypemand.config.names import NAME_RULE, is_name
from hypemand.config.sizes import format_size
from hypemand.config.source import MAX_BYTES, KeyPath, Source
from hypemand.config.specifiers import expand_instance_specifiers
from hypemand.errors import Problem


@dataclass(frozen=True, slots=True)
class FileName:
    """The name of a definition file, without its suffix. `instance`: "" for a template, None without one."""

    prefix: str
    instance: str | None

    @property
    def is_template(self) -> bool:
        """Does it define no VM?"""
        return self.instance == ""

    @property
    def vm(self) -> str:
        """The name of the VM that the file defines, if it is valid."""
        return self.prefix if self.instance is None else f"{self.prefix}-{self.instance}"


def parse_file_name(stem: str) -> FileName:
    """What is before the first @ is the prefix, as it is for systemd."""
    prefix, at, instance = stem.partition("@")
    return FileName(prefix, instance if at else None)


def find_file_name_problem(name: FileName) -> tuple[str, str] | None:
    """What is wrong with the name of an instance or a template, and the cure. That of another file is checked
    with its definition."""
    if name.instance is None:
        return None
    for text, what in ((name.prefix, "a template"), (name.instance or "1", "an instance of a template")):
        if not is_name(text):
            return f"{text[:80]!r} cannot be the name of {what}", f"use {NAME_RULE}"
    if not name.is_template and not is_name(name.vm):
        return f"{name.vm[:80]!r} cannot be the name of a VM", f"use {NAME_RULE}"
    return None


def expand_instance(source: Source, instance: str) -> Source:
    """The text of an instance with its name for %i. What is wrong is among the problems of the result."""
    expansion = _Expansion(source, instance)
    data = expansion.expand(source.data, ())
    problems = (*source.problems, *expansion.problems)
    return replace(source, data=data, problems=problems, expanded=frozenset(expansion.paths))


@dataclass(slots=True)
class _Expansion:
    """Each text is expanded once, however many aliases lead to it, and all of them to no more than a file
    may have."""

    source: Source
    instance: str
    problems: list[Problem] = field(default_factory=list)
    paths: set[KeyPath] = field(default_factory=set)
    done: dict[tuple[str, bool], str | ValueError] = field(default_factory=dict)
    size: int = 0

    def expand(self, value: object, path: KeyPath) -> object:
        """The value with its texts expanded. Keys of mappings have no specifiers."""
        match value:
            case dict():
                return {key: self.expand(one, (*path, key)) for key, one in value.items()}
            case list():
                return [self.expand(one, (*path, i)) for i, one in enumerate(value)]
            case str() if "%" in value:
                return self._expand_text(value, path)
            case _:
                return value

    def _expand_text(self, text: str, path: KeyPath) -> str:
        in_unit = path[:1] == ("unit",)
        found = self.done.get((text, in_unit))
        if found is None:
            found = self.done[text, in_unit] = self._expand_once(text, in_unit=in_unit)
        if isinstance(found, ValueError):
            message, _, hint = str(found).rpartition("; ")
            self.problems.append(self.source.problem(path, message, hint))
            return text
        if found != text:
            self.paths.add(path)
        return found

    def _expand_once(self, text: str, *, in_unit: bool) -> str | ValueError:
        if self.size > MAX_BYTES:
            return text
        try:
            found = expand_instance_specifiers(text, self.instance, in_unit=in_unit)
        except ValueError as error:
            return error
        self.size += len(found)
        if self.size > MAX_BYTES:
            what = f"is larger than {format_size(MAX_BYTES)} with its specifiers expanded"
            self.problems.append(self.source.problem((), what, "make it smaller"))
            return text
        return found
