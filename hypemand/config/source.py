# SPDX-License-Identifier: Apache-2.0
"""YAML text to plain values, with the place of each, and back.

YAML is read as version 1.2's core schema has it, as editors do: `no` and `on` are texts, `1:30` is not 90.
Everything is bounded, since a definition may be a mistake or an attack: size, depth, and what aliases make.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from hypemand.config.sizes import format_size
from hypemand.errors import InvalidDefinition, Problem

MAX_BYTES = 1024 * 1024
MAX_DEPTH = 32
MAX_NODES = 100_000
MAX_NUMBER = 100
_NO_FOLDING = 1 << 20

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Line and column, from 1."""

    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Source:
    """A text that was read. `data` is plain values; the maps are keyed by path.

    `keys` and `values`: the places of a mapping's key and of a value. `texts`: numbers as written.
    `expanded`: where a specifier stood, in the text of an instance. `problems`: what is wrong in the text
    itself, by place; `data` has the rest, so that nothing hides what else is wrong.
    """

    file: str
    data: object
    keys: Mapping[KeyPath, Place] = field(default_factory=dict)
    values: Mapping[KeyPath, Place] = field(default_factory=dict)
    texts: Mapping[KeyPath, str] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    expanded: frozenset[KeyPath] = frozenset()

    def problem(self, path: KeyPath, message: str, hint: str = "", *, at_key: bool = False) -> Problem:
        """A problem with what stands at `path`. Without a place of its own, its nearest parent's."""
        key = format_path(path)
        places = (self.keys, self.values) if at_key else (self.values, self.keys)
        while True:
            place = places[0].get(path) or places[1].get(path)
            if place is not None or not path:
                break
            path = path[:-1]
        return Problem(
            self.file, place.line if place else 0, place.column if place else 0, key, message, hint
        )


def format_path(path: KeyPath) -> str:
    """`env.PATH`, `cmd[2]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2's core schema, but without .inf and .nan."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_TAG = "tag:yaml.org,2002:"


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes what is no text to readers of YAML 1.1 or 1.2."""

    def ignore_aliases(self, data: object) -> bool:
        """Write all values in full."""
        return True


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", _INT.pattern, list("-+0123456789")),
    ("float", _FLOAT.pattern, list("-+.0123456789")),
):
    for _kind in (_Loader, _Dumper):
        _kind.add_implicit_resolver(_TAG + _tag, re.compile(f"^(?:{_pattern})$"), _first)


# such as members of enumerations
_Dumper.add_multi_representer(str, lambda dumper, text: dumper.represent_str(str(text)))


def format_yaml(value: object) -> str:
    """A document that `parse_source` reads as `value`. ASCII only, so that no terminal is driven by it."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=False, width=_NO_FOLDING)
    return text


def read_source(path: Path) -> Source:
    """Read a YAML file, see `parse_source`. InvalidDefinition also when it cannot be read or is too large."""
    file = str(path)
    try:
        data = _read_bytes(path)
    except OSError as error:
        raise _invalid(
            file, f"cannot be read: {error.strerror}", "check its owner, mode and file type"
        ) from error
    if len(data) > MAX_BYTES:
        raise _invalid(file, f"is larger than {format_size(MAX_BYTES)}", "make it smaller")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8")
        place = Place(before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1)
        raise _invalid(file, "is not valid UTF-8", "save the file in UTF-8", place) from error
    return parse_source(text, file)


def _read_bytes(path: Path) -> bytes:
    # O_NONBLOCK: opening a FIFO must not wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as stream:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISCHR(mode):
            raise OSError(0, "it is not a regular file")
        return stream.read(MAX_BYTES + 1)


def parse_source(text: str, file: str) -> Source:
    """Read YAML text of one document. Raises InvalidDefinition, with its place, for what cannot be read at
    all; other problems are in the Source.

    An empty document gives `data` None.
    """
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(mark.line + 1, mark.column + 1) if mark else None
        raise _invalid(file, *_explain(error, text), place) from error
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        place = Place(before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1)
        message = f"has the character U+{ord(text[error.position]):04X}, which YAML does not allow"
        raise _invalid(
            file, message, "remove it, or write it as an escape in double quotes", place
        ) from error
    except RecursionError as error:
        raise _invalid(file, "is nested too deeply", f"use at most {MAX_DEPTH} levels") from error
    reader = _Reader(file)
    try:
        data = None if node is None else reader.read(node, (), 0)
    except _TooMuch as error:
        raise InvalidDefinition(_sort(reader.problems)) from error
    return Source(file, data, reader.keys, reader.values, reader.texts, tuple(_sort(reader.problems)))


def _sort(problems: list[Problem]) -> list[Problem]:
    return sorted(problems, key=lambda p: (p.line, p.column))


def _invalid(file: str, message: str, hint: str, place: Place | None = None) -> InvalidDefinition:
    line, column = (place.line, place.column) if place else (0, 0)
    return InvalidDefinition([Problem(file, line, column, "", message, hint)])


def _explain(error: yaml.MarkedYAMLError, text: str) -> tuple[str, str]:
    """What PyYAML says, in words for people who do not know its grammar."""
    said = (error.problem or error.context or "cannot be read").strip()
    mark = error.problem_mark
    if "'\\t'" in said or (mark is not None and text[mark.index : mark.index + 1] == "\t"):
        return "is indented with a tab, which YAML does not allow", "indent with blanks"
    if "expected a single document" in (error.context or ""):
        return "has a second document", "write one definition in one file, without a further '---' line"
    if mark is not None and text[mark.index : mark.index + 1] == "%":
        return f"is not YAML: {said}", "quote the text when it begins with '%'"
    if "undefined alias" in said:
        return f"is not YAML: {said}", "quote the text when it begins with '*'"
    if "mapping values are not allowed" in said:
        return f"is not YAML: {said}", "look at the indentation, and quote texts that contain ': '"
    return f"is not YAML: {said}", "look at the indentation and the quotes around here"


class _TooMuch(Exception):
    """The limits of one text are exceeded; what was read so far is not used."""


@dataclass(slots=True)
class _Reader:
    """Nodes to values. Goes on after a problem, so that all are found."""

    file: str
    keys: dict[KeyPath, Place] = field(default_factory=dict)
    values: dict[KeyPath, Place] = field(default_factory=dict)
    texts: dict[KeyPath, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    nodes: int = 0

    def read(self, node: yaml.Node, path: KeyPath, depth: int) -> object:
        """The value of a node. _TooMuch."""
        self.nodes += 1
        if self.nodes > MAX_NODES:
            self._stop(node, path, f"has more than {MAX_NODES} values", "use fewer, and fewer aliases")
        if depth > MAX_DEPTH:
            self._stop(node, path, "is nested too deeply", f"use at most {MAX_DEPTH} levels")
        self.values[path] = _place(node)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, depth)
        if isinstance(node, yaml.SequenceNode):
            if node.tag != _TAG + "seq":
                self._say(node, path, f"has the tag {node.tag}, which is not known", "remove the tag")
            return [self.read(item, (*path, i), depth + 1) for i, item in enumerate(node.value)]
        return self._scalar(node, path)

    def _mapping(self, node: yaml.MappingNode, path: KeyPath, depth: int) -> dict[str, object]:
        if node.tag != _TAG + "map":
            self._say(node, path, f"has the tag {node.tag}, which is not known", "remove the tag")
        result: dict[str, object] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._say(key_node, path, "has a key that is a list or a mapping", "write a text as key")
                continue
            key = str(key_node.value)
            below = (*path, key)
            if key_node.tag != _TAG + "str":
                self._say(key_node, below, "is a key that is not a string", f'quote it: "{key}"')
            elif key in result:
                first = self.keys[below].line
                self._say(key_node, below, f"is there twice, first in line {first}", "remove one of the two")
                continue
            self.keys[below] = _place(key_node)
            result[key] = self.read(value_node, below, depth + 1)
        return result

    def _scalar(self, node: yaml.Node, path: KeyPath) -> object:
        text = str(node.value)
        kind = node.tag.removeprefix(_TAG)
        if kind == "str":
            return text
        if kind == "null" and _is_plain(node):
            return None
        if kind == "bool" and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if kind in ("int", "float") and len(text) > MAX_NUMBER:
            self._say(node, path, f"is a number of {len(text)} digits", "quote it when it is a text")
            return None
        if kind == "int" and _INT.fullmatch(text):
            self.texts[path] = text
            return int(text, 0 if text[:2] in ("0o", "0x") else 10)
        if kind == "float" and _FLOAT.fullmatch(text):
            self.texts[path] = text
            return float(text)
        self._say(node, path, f"has the tag {node.tag}, which is not valid here", "remove the tag")
        return None

    def _say(self, node: yaml.Node, path: KeyPath, message: str, hint: str) -> None:
        place = _place(node)
        self.problems.append(Problem(self.file, place.line, place.column, format_path(path), message, hint))

    def _stop(self, node: yaml.Node, path: KeyPath, message: str, hint: str) -> None:
        self._say(node, path, message, hint)
        raise _TooMuch


def _is_plain(node: yaml.Node) -> bool:
    return str(node.value) in ("~", "null", "Null", "NULL", "")


def _place(node: yaml.Node) -> Place:
    return Place(node.start_mark.line + 1, node.start_mark.column + 1)
