# SPDX-License-Identifier: Apache-2.0
"""The faces of the program take the words of a closed set from its enumeration, and do not type them again.

A state's word must not be a literal at all. The words of other sets are common ones (`never`, `ready`): of
those a literal is refused where it is used as a member: in a comparison, after `or`, or listed with others.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path

import pytest

from hypemand.config.imagepull import ImagePull
from hypemand.model.files import FileKind
from hypemand.model.images import PullStatus
from hypemand.model.logs import LogSource
from hypemand.model.state import HeadersState, Operation, Origin, State
from hypemand.model.tokens import Scope
from tests.lint.sources import TOP

FACES = ("hypemand/cli", "hypemand/api")
OTHERS: tuple[type[StrEnum], ...] = (
    FileKind, HeadersState, ImagePull, LogSource, Operation, Origin, PullStatus, Scope
)  # fmt: skip
_STATES = frozenset(map(str, State))
_SETS = [frozenset(map(str, kind)) for kind in OTHERS]
_WORDS = frozenset().union(*_SETS)


def find_words(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and word of each literal that is a member of an enumeration."""
    for node in ast.walk(tree):
        if (word := _word(node)) in _STATES:
            yield node.lineno, word  # type: ignore[attr-defined]
        elif isinstance(node, ast.Compare):
            yield from _members([node.left, *node.comparators])
        elif isinstance(node, ast.BoolOp):
            yield from _members(node.values)
        elif isinstance(node, ast.MatchValue):
            yield from _members([node.value])
        elif isinstance(node, ast.Tuple | ast.List | ast.Set):
            words = {_word(item) for item in node.elts}
            if len(words) > 1 and any(words <= known for known in _SETS):
                yield from _members(node.elts)


def _members(nodes: list[ast.expr]) -> Iterator[tuple[int, str]]:
    yield from ((node.lineno, word) for node in nodes if (word := _word(node)) in _WORDS)


def _word(node: ast.AST) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def test_no_word_of_an_enumeration_is_typed_again() -> None:
    found = [
        f"{path.relative_to(TOP)}:{line}: {word}"
        for face in FACES
        for path in sorted((TOP / face).rglob("*.py"))
        for line, word in find_words(ast.parse(path.read_text()))
    ]
    assert found == [], "use the member of the enumeration"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ('state == "Running"', ["Running"]),
        ('states = {"Stopped": 1}', ["Stopped"]),
        ('say(f"{name} is", "Paused")', ["Paused"]),
        ('if when != "always": pass', ["always"]),
        ('scope = args.scope or "admin"', ["admin"]),
        ('PULLS = ("missing", "always")', ["missing", "always"]),
        ('kind in ("file", "directory")', ["file", "directory"]),
        ('match kind:\n case "file": pass', ["file"]),
        ('say("wait until it is Running")', []),
        ('"""Running"""', ["Running"]),
        ('path = ("start",)', []),
        ('body = {"kind": "never"}', []),
        ('names = ("ready", "rosy")', []),
    ],
)
def test_a_word_that_is_typed_again_is_found(code: str, words: list[str]) -> None:
    assert [word for _, word in find_words(ast.parse(code))] == words


def test_the_faces_are_there() -> None:
    assert all(list(Path(TOP / face).glob("*.py")) for face in FACES)
