# SPDX-License-Identifier: Apache-2.0
"""Every program that our sources execute is from a package that they name: nothing is there by chance."""

import re
from collections.abc import Callable
from functools import cache

import pytest

from tests.host.recipe import DEPENDENCIES, GUEST, SYSTEM, TOOLS
from tests.lint.programs import (
    expand,
    find_in_makefile,
    find_in_python,
    find_in_shell,
    find_in_unit,
    find_packages,
    find_required,
    parse_relations,
)
from tests.lint.sources import TOP, find_scripts, list_sources

# Words at the beginning of lists, which are no programs there.
NO_PROGRAMS = {
    "tests/unit/cli/test_completion.py": {"sh"},
}


@cache
def find_named() -> frozenset[str]:
    """The packages that tools/setup and debian/control name, and those that every Debian has."""
    setup = (TOP / "tools/setup").read_text()
    lists = re.findall(r'^(?:roots|tools)="([^"]*)"', setup, re.MULTILINE)
    assert len(lists) == 2
    control = (TOP / "debian/control").read_text()
    relations = re.findall(
        r"^(?:Build-)?(?:Depends|Recommends|Suggests)(?:-Arch)?:((?:\n? .*)+)", control, re.MULTILINE
    )
    assert relations
    named = {word for words in lists for word in words.split() if not word.startswith("$")}
    for text in relations:
        named.update(parse_relations(text))
    return frozenset(expand(named) | find_required() | {"apt", "make"})


def find_used() -> dict[str, set[str]]:
    """The candidates for programs by source file."""
    used: dict[str, set[str]] = {}
    scripts = set(find_scripts())
    for path in list_sources():
        name = str(path.relative_to(TOP))
        if path in scripts:
            used[name] = find_in_shell(path.read_text())
        elif path.suffix == ".py":
            used[name] = find_in_python(path.read_text())
        elif path.name in {"Makefile", "rules"}:
            used[name] = find_in_makefile(path.read_text())
        elif path.suffix in {".service", ".socket"}:
            used[name] = find_in_unit(path.read_text())
    return used


def test_each_program_is_of_a_package_that_is_named() -> None:
    on_hosts = set(SYSTEM + DEPENDENCIES + TOOLS + GUEST)
    used = find_used()
    packages = find_packages(set().union(*used.values()))
    strays = []
    for name, programs in used.items():
        allowed = find_named() | (on_hosts if name.startswith(("tests/host/", "bench/")) else set())
        for program in sorted(programs - NO_PROGRAMS.get(name, set())):
            owners = packages.get(program, set())
            if owners and not owners & allowed:
                strays.append(f"{name}: {program} is of {', '.join(sorted(owners))}")
    assert not strays, "name the package in tools/setup or debian/control:\n" + "\n".join(strays)


def test_the_programs_that_all_hangs_on_are_found() -> None:
    used = find_used()
    everything = set().union(*used.values())
    assert {
        "nft",
        "ip",
        "git",
        "debootstrap",
        "systemd-nspawn",
        "lintian",
        "shellcheck",
        "musl-gcc",
    } <= everything
    assert {"mkfs.erofs", "dpkg-buildpackage", "apt-get", "clang-format", "unshare"} <= everything
    assert "handle" in used["units/hypeman@.service"]


@pytest.mark.parametrize(
    ("find", "source", "expected"),
    [
        (find_in_python, 'run_command(["nft", "-f", rules])\nx = ["/usr/bin/strace"]', {"nft", "strace"}),
        (find_in_shell, "nft list | socat - x # zstd", {"nft", "socat"}),
        (find_in_shell, "if ! jq .; then x=$(strace -p 1)", {"jq", "strace"}),
        (find_in_shell, "A=1 exec nft x &&\\\n nice -n 10 socat", {"nft", "nice", "socat"}),
        (find_in_makefile, "CC = musl-gcc\nx: y\n\t@nft $< ; $(CC)\n", {"musl-gcc", "nft"}),
        (find_in_makefile, "z = $(shell jq .)\n", {"jq"}),
        (find_in_unit, "ExecStartPre=-/usr/sbin/nft x\nExecStart=/usr/bin/strace\n", {"nft", "strace"}),
    ],
)
def test_programs_are_found_where_they_stand(
    find: Callable[[str], set[str]], source: str, expected: set[str]
) -> None:
    assert find(source) == expected
