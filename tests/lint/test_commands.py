# SPDX-License-Identifier: Apache-2.0
"""Every command of hypemanctl that a text names is one that there is, with options that it has."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from hypemand.cli.commands import COMMANDS, find_command
from hypemand.cli.options import COMMON_OPTIONS
from hypemand.cli.spec import Command
from tests.lint.sources import TOP, list_sources

FOLDERS = ("hypemand", "docs", "debian", "units", "config", "README.md", "SECURITY.md", "bench/demo.py")
# What stands behind the program's name in a sentence.
PROSE = frozenset(
    {"and", "calls", "can", "does", "for", "has", "in", "is", "itself", "manages", "may"}
    | {"needs", "of", "on", "or", "over", "prints", "reads", "shows", "that", "to", "uses", "waits", "with"}
)
_FIRST = {command.path[0] for command in COMMANDS}
_GROUPS = {command.path[0] for command in COMMANDS if len(command.path) > 1}
_CALL = re.compile(r"\bhypemanctl ((?:[^\s`'\";|()&<>{}\\$]+ ?)+)")


def find_wrong(text: str) -> Iterator[str]:
    """What is wrong with each command that the text names. A line may be broken between its words."""
    for line in _join(text).splitlines():
        for found in _CALL.finditer(line):
            # a sentence may go on behind it
            words = re.split(r"[.,:] |[.,:]$", found[1])[0].split()
            if problem := _judge(words):
                yield f"hypemanctl {' '.join(words)}: {problem}"


def _join(text: str) -> str:
    """Lines that end in the middle of a command, with what follows. Without the marks of man pages."""
    plain = re.sub(r"\\f[BRIP]|\\&", "", re.sub(r'^\.[A-Z]{1,2} ?"?', "", text, flags=re.MULTILINE))
    return re.sub(r"\bhypemanctl( [a-z]+)?\n[ #]*(?=[a-z])", r"hypemanctl\1 ", plain.replace("\\-", "-"))


def _judge(words: list[str]) -> str:
    if not words or not re.fullmatch(r"[a-z][a-z-]*", words[0]) or words[0] in PROSE:
        return ""
    if words[0] not in _FIRST:
        return "there is no such command"
    command = find_command(words)
    if command is None:
        # "hypemanctl volume" alone stands for its group
        has_word = words[1:] and re.fullmatch(r"[a-z-]+", words[1]) and words[1] not in PROSE
        return "there is no such command" if has_word else ""
    return _judge_options(command, words[len(command.path) :])


def _judge_options(command: Command, words: list[str]) -> str:
    """Options of a program in a VM are its own."""
    options = {flag: one for one in (*command.all_options, *COMMON_OPTIONS) for flag in one.flags}
    ends_early = any(argument.count == "..." for argument in command.arguments)
    is_value = False
    for word in words:
        if is_value:
            is_value = False
        elif word == "--" or (ends_early and not word.startswith("-")):
            return ""
        elif word.startswith("-") and word != "-":
            flag = word.partition("=")[0]
            flags = [flag] if flag.startswith("--") else [f"-{letter}" for letter in flag[1:]]
            if unknown := [one for one in flags if one not in options]:
                return f"it has no option {unknown[0]}"
            is_value = options[flags[-1]].metavar is not None and "=" not in word
    return ""


def test_every_command_that_a_text_names_is_there() -> None:
    texts = [
        path
        for path in list_sources()
        if str(path.relative_to(TOP)).startswith(FOLDERS) and path.suffix not in (".png", ".svg")
    ]
    assert len(texts) > 200
    found = [
        f"{path.relative_to(TOP)}: {problem}" for path in texts for problem in find_wrong(path.read_text())
    ]
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "see hypemanctl detach web",
        "`hypemanctl volume detatch web data`",
        "hypemanctl image ls",
        "hypemanctl list --all",
        ".B hypemanctl list \\-\\-all",
        "hypemanctl logs --tail=5 web",
        "hypemanctl exec -itz web sh",
        "first: hypemanctl\n  frobnicate",
    ],
)
def test_a_wrong_command_is_found(text: str) -> None:
    assert len(list(find_wrong(text))) == 1


@pytest.mark.parametrize(
    "text",
    [
        "hypemanctl and hypemand",
        "`hypemanctl run -d --name web builtin:busybox ls --all`",
        "hypemanctl exec -it web sh -c x",
        "hypemanctl exec -u root web -- ls --all",
        "hypemanctl COMMAND --help",
        "the commands of hypemanctl",
        "hypemanctl volume, hypemanctl image",
        'f"hypemanctl rm {name}"',
        "hypemanctl analyze plot web",
    ],
)
def test_a_right_one_is_not(text: str) -> None:
    assert list(find_wrong(text)) == []
