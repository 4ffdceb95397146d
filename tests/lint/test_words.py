# SPDX-License-Identifier: Apache-2.0
"""Text for users is plain technical English, without the phrases below, which no manual of this field has.

The list is short, and each pattern in it has no legitimate use in this text.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from hypemand.cli.commands import COMMANDS
from hypemand.cli.parser import build_parser, format_overview
from tests.lint.sources import TOP

# by pattern: what to write instead
PHRASES = {
    r"whom": "which VMs, the caller, the client",
    r"(?:can|cannot|could|is|are|be) (?:not )?be had|be had": "pulled, available",
    r"has not the|have not the|lacks a part": "not enough …, … is missing",
    r"what there is|what is there now": "list, inventory",
    r"be content": "do not fail if",
    r"good no more|no good any more": "expired, revoked",
    r"le(?:t|ts|tting) go of": "release, detach, close",
    r"takes? room|room on|has room for": "free space, space in use",
    r"nobody's|somebody's|somebody else|tells nobody": "another program, another user, not reported",
    r"be promised|promised to": "allocated, limit",
    r"mak(?:e|es|ing) (?:\w+ ){1,4}count": "apply, take effect",
    r"(?:goes|go|went|runs|run) on (?:as|with|until|by itself|meanwhile)": "continue, keep running, resume",
    r"it is wished|they are wished|wishes": "desired state, request",
    r"is told|are told|be told|was told|told of|tells|to tell": "report, show, notify, send",
    r"stands? for|stands? in|stands? behind|stands? there": "refer to, is in, is listed",
    r"made up": "generated",
    r"all about": "details",
    r"again and again|once more": "repeatedly, again",
    r"of its own kind|of ours|of yours": "name the owner",
    r"broken off|breaks off|break off": "abort",
    r"not looked at|looked at": "ignored, checked",
    r"mend(?:ed|s|ing)?": "fix, repair",
}
_PATTERN = re.compile("|".join(rf"\b(?:{phrase})\b" for phrase in PHRASES), re.IGNORECASE)


def find_phrases(text: str) -> list[str]:
    """The phrases of `PHRASES` in a text, however its lines are broken."""
    return [match[0] for match in _PATTERN.finditer(" ".join(text.split()))]


def _descriptions(data: Any) -> Iterator[str]:
    if isinstance(data, dict):
        for key, value in data.items():
            if key in ("description", "summary", "x-want", "x-unknown") and isinstance(value, str):
                yield value
            else:
                yield from _descriptions(value)
    elif isinstance(data, list):
        for item in data:
            yield from _descriptions(item)


def read_user_texts() -> dict[str, str]:
    """All text that users read, by the file or the command that it is in. Code in Markdown is not prose."""
    files = [TOP / "README.md", TOP / "SECURITY.md", *(TOP / "docs").glob("*.md")]
    texts = {
        str(path.relative_to(TOP)): re.sub(
            r"```.*?```|`[^`]*`|\]\([^)]*\)", " x ", path.read_text(), flags=re.DOTALL
        )
        for path in files
    }
    plain = [
        *(TOP / "debian/man").iterdir(),
        TOP / "debian/control",
        TOP / "units/catalog/hypemand.catalog",
        TOP / "config/hypemand.yaml",
        TOP / "hypemand/api/openapi.yaml",
    ]
    texts |= {str(path.relative_to(TOP)): _read_prose(path.read_text()) for path in plain}
    for path in sorted((TOP / "hypemand/config").glob("*.schema.json")):
        texts[str(path.relative_to(TOP))] = "\n".join(_descriptions(json.loads(path.read_text())))
    texts |= {
        f"hypemanctl {command.name} --help": build_parser(command).format_help() for command in COMMANDS
    }
    return texts | {"hypemanctl --help": format_overview()}


def _read_prose(text: str) -> str:
    """Without the marks of man pages and of comments."""
    return re.sub(r'^(?:\.[A-Z]{1,2}|#) |\\f[BRIP]|\\&|"', "", text, flags=re.MULTILINE).replace("\\-", "-")


def test_text_for_users_has_none_of_the_phrases() -> None:
    found = [f"{name}: {phrase}" for name, text in read_user_texts().items() for phrase in find_phrases(text)]
    assert found == [], "see PHRASES for what to write instead"


@pytest.mark.parametrize(
    "line",
    [
        "which other VMs it reaches, and whom it does not",
        "An image cannot\nbe had.",
        "Stop a VM, and be content if there is none.",
        "It takes room as it is written.",
        "`systemctl reload` makes all of the changes count.",
        "VMs go on until they are stopped.",
        "The start tells.",
    ],
)
def test_a_bad_line_is_found(line: str) -> None:
    assert find_phrases(line)


def read_docstrings() -> Iterator[tuple[str, str]]:
    """Place and text of each docstring of the program."""
    for path in sorted((TOP / "hypemand").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                name = getattr(node, "name", "")
                yield f"{path.relative_to(TOP)}: {name}", ast.get_docstring(node) or ""


def test_docstrings_have_none_of_the_phrases() -> None:
    found = [f"{place}: {phrase}" for place, text in read_docstrings() for phrase in find_phrases(text)]
    assert found == [], "see PHRASES for what to write instead"
