# SPDX-License-Identifier: Apache-2.0
"""Environment files in the syntax of EnvironmentFile= (systemd.exec(5)).

What systemd passes over without a word is an error here: a line without `=`, a name that is none, a quote
that is not closed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from hypemand.config.sizes import format_size
from hypemand.errors import InvalidDefinition, Problem

MAX_BYTES = 1024 * 1024
MAX_VALUE_BYTES = 128 * 1024 - 1
"""Of NAME=VALUE: the kernel's limit for one string of execve(2)."""
_MAX_PROBLEMS = 20
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_BLANKS = " \t\r"
_ESCAPED = '"\\`$'


@dataclass(slots=True)
class _Text:
    """A text that is read from its start to its end, and the line that comes next."""

    text: str
    at: int = 0
    line: int = 1
    problems: list[Problem] = field(default_factory=list)

    def peek(self) -> str:
        """The next character; "" at the end."""
        return self.text[self.at : self.at + 1]

    def take(self) -> str:
        """The next character, which is passed."""
        found = self.peek()
        self.at += 1
        self.line += found == "\n"
        return found


def parse_env_file(data: bytes, file: str) -> dict[str, str]:
    """The variables of a file of that name; of those that are there twice the last one. InvalidDefinition
    with all problems, by line."""
    if len(data) > MAX_BYTES:
        raise InvalidDefinition(
            [Problem(file, 0, 0, "", f"is larger than {format_size(MAX_BYTES)}", "make it smaller")]
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        what, hint = "is not valid UTF-8", "save the file in UTF-8"
        raise InvalidDefinition([Problem(file, line, 1, "", what, hint)]) from error
    source = _Text(text)
    found: dict[str, str] = {}
    for line, name, value in _read_assignments(source, file):
        problem = _find_problem(file, line, name, value)
        if problem is not None:
            source.problems.append(problem)
        else:
            found[name] = value
    if source.problems:
        raise InvalidDefinition(source.problems[:_MAX_PROBLEMS])
    return found


def _read_assignments(source: _Text, file: str) -> Iterator[tuple[int, str, str]]:
    """Line, name and value of each; what is none is a problem."""
    while source.peek():
        char = source.peek()
        if char in "\n" + _BLANKS:
            source.take()
        elif char in "#;":
            _skip_line(source)
        else:
            line, name = source.line, _read_name(source)
            if source.peek() != "=":
                what = f"has no '=' after {name[:40]!r}"
                source.problems.append(
                    Problem(file, line, 1, "", what, "write NAME=VALUE, or # before a comment")
                )
                continue
            source.take()
            value = _read_value(source)
            if value is None:
                hint = "close it, or write a backslash before a quote that is meant"
                source.problems.append(
                    Problem(file, line, 1, name[:40], "has a quote that is not closed", hint)
                )
                return
            yield line, name, value


def _skip_line(source: _Text) -> None:
    while source.peek() not in ("", "\n"):
        source.take()


def _read_name(source: _Text) -> str:
    start = source.at
    while source.peek() not in ("", "\n", "="):
        source.take()
    return source.text[start : source.at].rstrip(_BLANKS)


def _read_value(source: _Text) -> str | None:
    """Up to the end of its line: quoted parts, which may go over several lines, and then what is unquoted.
    None: a quote has no end."""
    value = ""
    while (char := source.peek()) not in ("", "\n"):
        if char in _BLANKS:
            source.take()
        elif char in "\"'":
            part = _read_quoted(source)
            if part is None:
                return None
            value += part
        else:
            value += _read_unquoted(source)
    return value


def _read_quoted(source: _Text) -> str | None:
    quote = source.take()
    parts: list[str] = []
    while char := source.take():
        if char == quote:
            return "".join(parts)
        if char == "\\" and quote == '"':
            char = source.take()
            if char == "\n":
                continue
            parts.append(char if char in _ESCAPED else f"\\{char}")
        else:
            parts.append(char)
    return None


def _read_unquoted(source: _Text) -> str:
    """Blanks at its end are no part of it, unless a backslash is before them."""
    parts: list[str] = []
    kept = 0
    while source.peek() not in ("", "\n"):
        char = source.take()
        if char == "\\":
            char = source.take()
            parts += [] if char in ("", "\n") else [char]
            kept = len(parts)
        else:
            parts.append(char)
            kept = kept if char in _BLANKS else len(parts)
    return "".join(parts[:kept])


def _find_problem(file: str, line: int, name: str, value: str) -> Problem | None:
    if _NAME.fullmatch(name) is None:
        bare = name.removeprefix("export").strip()
        if name != bare and _NAME.fullmatch(bare):
            return Problem(file, line, 1, "", f"{name!r} is not a name", f"write {bare}=, without export")
        hint = "use letters, digits and '_', and no digit at the start"
        return Problem(file, line, 1, "", f"{name[:40]!r} is not the name of a variable", hint)
    if _CONTROL.search(value):
        return Problem(file, line, 1, name, "has a control character", "remove it, or use a file")
    if len(name.encode()) + len(value.encode()) + 1 > MAX_VALUE_BYTES:
        hint = f"use at most {MAX_VALUE_BYTES} bytes for NAME=VALUE, or a file"
        return Problem(file, line, 1, name[:40], "is too long", hint)
    return None
