# SPDX-License-Identifier: Apache-2.0
"""Which external programs our sources execute, and which Debian packages they are from.

What is found are words in the place of a program: the first of a list in Python, the first of a command in
shell and in recipes of make, the Exec lines of units. A word counts if there is a program of that name on
this machine: one that is not there makes its test fail by itself.
"""

from __future__ import annotations

import ast
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.host.command import run_command

NAME = re.compile(r"[a-z][a-z0-9._+-]*")
# What ends a command and begins another.
SEPARATORS = re.compile(r"\$\(|[|;&(){}`]")
ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\+?=\S*")
# Words that stand before a command: of the shell, and programs that execute another one.
KEYWORDS = frozenset({"if", "then", "elif", "else", "while", "until", "do", "!", "command"})
WRAPPERS = frozenset({"exec", "nice", "xargs", "quietly"})
# Builtins and words of the shell that are names of programs too.
BUILTINS = frozenset({"test", "echo", "printf", "kill", "pwd", "true", "false", "time", "exec", "quietly"})


def find_in_python(source: str) -> set[str]:
    """The first words of lists, which is how programs are called; shell in strings is not looked at."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.List) and node.elts:
            first = node.elts[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                name = first.value.removeprefix("/usr/bin/").removeprefix("/usr/sbin/")
                if NAME.fullmatch(name):
                    found.add(name)
    return found


def find_in_shell(source: str) -> set[str]:
    """The first words of commands."""
    found: set[str] = set()
    for line in source.replace("\\\n", " ").splitlines():
        code = re.sub(r"(^|\s)#.*", "", line)
        for command in SEPARATORS.split(code):
            found |= _find_in_command(command.split())
    return found - BUILTINS


def _find_in_command(words: list[str]) -> set[str]:
    found = set()
    wrapped = False
    for word in words:
        is_option = word.startswith("-") or word.isdigit()
        if word in KEYWORDS or ASSIGNMENT.fullmatch(word) or (wrapped and is_option):
            continue
        name = word.lstrip("@-")
        if NAME.fullmatch(name):
            found.add(name)
        wrapped = name in WRAPPERS
        if not wrapped:
            break
    return found


def find_in_makefile(source: str) -> set[str]:
    """The first words of the commands of recipes, and of what $(shell …) and variables for programs name."""
    found: set[str] = set()
    for line in source.replace("\\\n", " ").splitlines():
        if line.startswith("\t"):
            found |= find_in_shell(line)
        elif named := re.match(r"[A-Z_]*(?:CC|CLANG|PYTHON)\s*=\s*(\S+)", line):
            found.add(Path(named[1]).name)
        for command in re.findall(r"\$\(shell (.*)", line):
            found |= find_in_shell(command)
    return found


def find_in_unit(source: str) -> set[str]:
    """The programs of Exec lines."""
    return {Path(path).name for path in re.findall(r"^Exec\w+=[-@:+!]*(\S+)", source, re.MULTILINE)}


def find_packages(programs: Iterable[str]) -> dict[str, set[str]]:
    """The installed packages of programs, also by way of links; a program that is not here is left out."""
    paths = {program: found for program in programs if (found := _find_paths(program))}
    asked = sorted(set().union(*paths.values()))
    # it fails if one of them is unknown to it, and lists the others
    listing = run_command(["dpkg", "-S", *asked], timeout=300, check=False).stdout
    owners: dict[str, set[str]] = {}
    for line in listing.splitlines():
        packages, _, path = line.rpartition(": ")
        if not line.startswith("diversion by"):
            owners[path] = {package.split(":")[0].strip() for package in packages.split(",")}
    return {
        program: set().union(*(owners.get(path, set()) for path in found)) for program, found in paths.items()
    }


def _find_paths(program: str) -> set[str]:
    """Where a program is, link after link; with /bin a link to /usr/bin, dpkg knows either name."""
    place = shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin")
    paths = set()
    while place is not None:
        path = Path(place)
        paths |= {place, place.removeprefix("/usr")}
        place = str(path.parent / path.readlink()) if path.is_symlink() else None
    return paths


def find_required() -> set[str]:
    """The packages that every Debian has, by their Essential or their priority."""
    listing = run_command(
        ["dpkg-query", "-W", "-f", "${Package} ${Essential} ${Priority}\n"], timeout=60
    ).stdout.splitlines()
    return {line.split()[0] for line in listing if line.split()[1:2] == ["yes"] or line.endswith(" required")}


def expand(names: Iterable[str]) -> set[str]:
    """Packages by name or by what they provide, with their direct dependencies, as `build-essential` has."""
    wanted = set(names)
    listing = run_command(
        ["dpkg-query", "-W", "-f", "${Package}\t${Provides}\t${Depends}, ${Pre-Depends}\n"], timeout=60
    ).stdout.splitlines()
    expanded = set(wanted)
    for line in listing:
        package, provides, depends = line.split("\t")
        if wanted & {package, *parse_relations(provides)}:
            expanded |= {package, *parse_relations(depends)}
    return expanded


def parse_relations(text: str) -> Iterator[str]:
    """The names of packages in a field of relations, alternatives included."""
    for relation in re.split(r"[,|]", text):
        name = re.match(r"\s*([a-z0-9][a-z0-9+.-]+)", relation)
        if name is not None:
            yield name[1]
