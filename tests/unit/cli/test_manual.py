# SPDX-License-Identifier: Apache-2.0
"""The man pages and the completion files say what the program does, all of it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from hypemand.cli.commands import COMMANDS
from hypemand.cli.completion import format_bash, format_zsh
from hypemand.cli.completion import main as print_completion
from hypemand.cli.exitcode import ExitCode
from hypemand.cli.options import GLOBAL_OPTIONS
from hypemand.cli.spec import Command
from hypemand.manual import main, render_page
from tests.unit.cli.conftest import DEADLINE, REPOSITORY

SOURCES = REPOSITORY / "debian/man"
PAGES = sorted(page.name for page in SOURCES.iterdir())
LONGEST_LINE = 80
SCHEMAS = REPOSITORY / "hypemand/config"


@cache
def render(page: str) -> str:
    """A page as it is installed."""
    return render_page((SOURCES / page).read_text())


def read_plain(page: str) -> str:
    """A page without fonts and escapes."""
    text = re.sub(r"\\f[BRIP]", "", render(page))
    return text.replace("\\-", "-").replace("\\&", "")


@cache
def read_sections() -> Mapping[str, str]:
    """The sections on the commands in hypemanctl.1, by the command's words."""
    parts = re.split(r"^\.SS ", read_plain("hypemanctl.1"), flags=re.MULTILINE)[1:]
    words = {tuple(part.split()): part for part in parts}
    names = sorted((c.path for c in COMMANDS), key=len, reverse=True)
    return {" ".join(n): next(p for w, p in words.items() if w[: len(n)] == n) for n in names}


def find_flags(text: str) -> set[str]:
    """The options that have a paragraph of their own."""
    heads = re.findall(r"^\.TP\n\.B\w* (.*)$", text, flags=re.MULTILINE)
    return {flag for head in heads for flag in re.findall(r"(?<![\w-])--?[a-zA-Z][a-z-]*", head)}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c.name)
def test_the_manual_explains_every_option_of_a_command_and_no_other(command: Command) -> None:
    flags = {flag for option in command.all_options for flag in option.flags}
    section = read_sections()[command.name].split("\n.SH ")[0]
    assert find_flags(section) == flags
    for argument in command.arguments:
        assert argument.metavar in section.splitlines()[0]


def test_the_manual_explains_the_global_options_and_the_exit_codes() -> None:
    text = read_plain("hypemanctl.1")
    options = text.split("\n.SH OPTIONS")[1].split("\n.SH ")[0]
    assert {flag for o in GLOBAL_OPTIONS for flag in o.flags} <= find_flags(options)
    codes = text.split("\n.SH EXIT STATUS")[1].split("\n.SH ")[0]
    assert re.findall(r"^\.TP\n\.B (\d+)$", codes, flags=re.MULTILINE) == [str(int(c)) for c in ExitCode]


def flatten(schema: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every key of a schema with its rules; nested ones joined by dots."""
    for key, rules in schema["properties"].items():
        yield prefix + key, rules
        if "properties" in rules:
            yield from flatten(rules, f"{prefix}{key}.")
        if "properties" in (below := rules.get("additionalProperties") or {}):
            yield from flatten(below, f"{prefix}{key}.NAME.")


def find_paragraph(page: str, key: str) -> str | None:
    """The paragraph whose head is the key."""
    match = re.search(
        rf"^\.TP\n\.BI? {re.escape(key)}:?(?: .*)?\n((?:(?!\.TP|\.SH).*\n)+)", read_plain(page), re.MULTILINE
    )
    return match[1] if match else None


@pytest.mark.parametrize(
    ("page", "schema"),
    [("hypemand.vm.5", "vm.schema.json"), ("hypemand.yaml.5", "host.schema.json")],
)
def test_the_manual_explains_every_key_with_its_default(page: str, schema: str) -> None:
    for key, rules in flatten(json.loads((SCHEMAS / schema).read_text())):
        paragraph = find_paragraph(page, key.removeprefix("unit."))
        assert paragraph is not None, key
        default = rules.get("default")
        if default is None or isinstance(default, dict):
            continue
        shown = f"[{', '.join(map(str, default))}]" if isinstance(default, list) else str(default)
        shown = shown.lower() if isinstance(default, bool) else shown
        assert re.search(rf'^Default:\n\.BR "?{re.escape(shown)}"? \.$', paragraph, re.MULTILINE), key


def test_a_page_is_completed_where_it_says_so_and_only_by_what_it_has_not() -> None:
    source = (SOURCES / "hypemand.vm.5").read_text()
    assert ".B CPUWeight\n" not in source
    assert ".B CPUWeight\nRelative share of CPU time under contention; " in render("hypemand.vm.5")
    assert render_page(render("hypemand.vm.5")) == render("hypemand.vm.5")
    heads = re.findall(r"^\.TP\n\.BI? (\S+)", render("hypemand.vm.5"), re.MULTILINE)
    assert len(heads) == len(set(heads))
    assert render("hypemand.8") == (SOURCES / "hypemand.8").read_text()


@pytest.mark.parametrize("page", PAGES)
def test_the_manuals_are_clean(page: str, tmp_path: Path) -> None:
    assert main([str(SOURCES), str(tmp_path)]) == 0
    assert (tmp_path / page).read_text() == render(page)
    # of which mandoc of Debian 12 does not complain
    text = re.sub(r"^\.EX\n.*?^\.EE\n", "", render(page), flags=re.MULTILINE | re.DOTALL)
    lines = [line for line in text.splitlines() if not line.startswith(".")]
    assert [line for line in lines if len(line.encode()) > LONGEST_LINE] == []
    assert render(page).startswith('.\\" SPDX-License-Identifier: Apache-2.0\n.TH ')
    mandoc = shutil.which("mandoc")
    assert mandoc, "install the package mandoc"
    done = subprocess.run(
        [mandoc, "-Tlint", str(tmp_path / page)],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.stdout + done.stderr == ""


@pytest.mark.parametrize("page", PAGES)
def test_what_the_manuals_refer_to_is_there(page: str) -> None:
    ours = {f"{name} ({section})" for name, _, section in (p.rpartition(".") for p in PAGES)}
    named = set(re.findall(r"^\.BR (hypeman\S* \(\d\))", read_plain(page), flags=re.MULTILINE))
    assert named <= ours


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_build_writes_the_completion_file_of_a_shell(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert print_completion([shell]) == 0
    assert capsys.readouterr().out == {"bash": format_bash, "zsh": format_zsh}[shell]()


@pytest.mark.parametrize("text", [format_bash(), format_zsh()], ids=["bash", "zsh"])
def test_completion_knows_every_command_and_option(text: str) -> None:
    words = set(re.findall(r"[\w-]+", text))
    for command in COMMANDS:
        assert set(command.path) <= words
        assert {flag for option in command.all_options for flag in option.flags} <= words


# What bash-completion does for the words that are typed here, and a hypemanctl with two VMs.
SCRIPT = r"""
set -u
_get_comp_words_by_ref() {
    words=("${COMP_WORDS[@]}") cword=$((${#COMP_WORDS[@]} - 1))
    cur=${words[cword]} prev=${words[cword - 1]}
}
__ltrim_colon_completions() { :; }
hypemanctl() {
    if [[ $* == *"image list -q" ]]; then echo builtin:busybox; else printf '%s\n' web wiki; fi
}
source "$1"; shift
COMP_WORDS=("$@")
_hypemanctl
printf '%s\n' "${COMPREPLY[@]-}"
"""


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["st"], ["status", "start", "stop", "standby"]),
        (["start", "w"], ["web", "wiki"]),
        (["start", "--w"], ["--wait"]),
        (["start", "web", "wi"], ["wiki"]),
        (["image", "i"], ["inspect", "import"]),
        (["image", "rm", "b"], ["builtin:busybox"]),
        (["run", "--rm", "b"], ["builtin:busybox"]),
        (["run", "--memory", ""], [""]),
        (["run", "--mode", "s"], ["systemd"]),
        (["run", "--pull", ""], ["missing", "always", "never"]),
        (["wait", "web", "--for", "S"], ["Stopped", "Shutdown", "Standby"]),
        (["analyze", ""], ["plot", "web", "wiki"]),
        (["analyze", "plot", "we"], ["web"]),
        (["--socket", "/x", "kill", "-s", "T"], ["TERM"]),
        (["snapshot", "s"], ["show", "schedule"]),
        (["snapshot", "schedule", ""], ["set", "show", "rm"]),
        (["snapshot", "schedule", "set", "--max-a"], ["--max-age"]),
        (["snapshot", "schedule", "show", "we"], ["web"]),
        (["snapshot", "rm", "schedule", "w"], ["web", "wiki"]),
    ],
)
def test_bash_offers_what_fits(words: list[str], offered: list[str], tmp_path: Path) -> None:
    completion = tmp_path / "hypemanctl.bash"
    completion.write_text(format_bash())
    argv = ["bash", "-c", SCRIPT, "test", str(completion), "hypemanctl", *words]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=DEADLINE, check=True)
    assert done.stdout.splitlines() == offered
