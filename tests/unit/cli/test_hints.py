# SPDX-License-Identifier: Apache-2.0
"""A word of another program is answered with the one of hypemanctl, which there is."""

from __future__ import annotations

import re

import pytest

from hypemand.cli.commands import COMMANDS, find_command
from hypemand.cli.hints import COMMAND_HINTS, OPTION_HINTS, SUBCOMMAND_HINTS
from hypemand.cli.options import GLOBAL_OPTIONS
from hypemand.cli.parser import UsageError, parse_command_line

SYSTEMCTL = {"enable", "disable", "is-enabled", "mask", "unmask", "is-active", "is-failed"}


def flags_of(command: str) -> set[str]:
    found = find_command(command.split())
    assert found is not None
    assert found.name == command
    return {flag for option in (*found.all_options, *GLOBAL_OPTIONS) for flag in option.flags}


def usage_of(*words: str) -> str:
    with pytest.raises(UsageError) as error:
        parse_command_line(list(words))
    return error.value.text


@pytest.mark.parametrize(("word", "hint"), COMMAND_HINTS.items())
def test_a_command_of_another_program_is_answered_with_one_that_there_is(word: str, hint: str) -> None:
    assert word not in {command.path[0] for command in COMMANDS}
    said = hint.replace("{word}", word)
    assert usage_of(word) == f"hypemanctl: unknown command {word!r}\nUse: {said}"
    program, *words = said.split()
    if program == "systemctl":
        assert words[0] in SYSTEMCTL
    else:
        assert program == "hypemanctl"
        parse_command_line(words)


def test_a_subcommand_of_another_program_is_answered_in_its_group() -> None:
    groups = {command.path[0] for command in COMMANDS if len(command.path) > 1}
    for word, right in SUBCOMMAND_HINTS.items():
        having = [group for group in groups if (group, right) in {c.path for c in COMMANDS}]
        assert having, word
        for group in having:
            assert (group, word) not in {c.path for c in COMMANDS}
    assert usage_of("image", "ls") == (
        "hypemanctl image: unknown subcommand 'ls', one of: "
        "list, inspect, pull, tag, prune, export, rm, import\nUse: hypemanctl image list"
    )
    assert "Use:" not in usage_of("network", "remove")
    assert usage_of("network", "frob").startswith("hypemanctl network: unknown subcommand 'frob', one of: ")


@pytest.mark.parametrize("command", OPTION_HINTS)
def test_an_option_of_another_program_is_answered_with_what_there_is(command: str) -> None:
    known = flags_of(command)
    for flag, hint in OPTION_HINTS[command].items():
        assert flag not in known
        assert hint
        if hint.startswith("use --"):
            assert hint.split()[1].rstrip(":") in known


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (
            "run --mac-address x box",
            "unrecognized arguments: --mac-address; write network.mac in a definition, see hypemand.vm(5)\n",
        ),
        ("run -la=b box", "; use --tag KEY=VALUE\n"),
        ("run --label=a=b box", "; use --tag KEY=VALUE\n"),
        ("start -a -i box", "-a -i; use hypemanctl start NAME, then: hypemanctl attach NAME\nUsage"),
        ("run --cpus 2 box", "; use --vcpus: --cpu-limit is the limit of CPU time\n"),
        ("run --mount type=bind box", "; use --volume\n"),
        ("list -a", "; hypemanctl list shows all VMs\n"),
        ("logs --tail 5 web", "; use --lines\n"),
        ("list --nope", "unrecognized arguments: --nope\nUsage"),
    ],
)
def test_each_option_is_answered_once(words: str, hint: str) -> None:
    assert hint in usage_of(*words.split())


def test_what_belongs_to_a_program_is_not_judged() -> None:
    args = parse_command_line(["run", "box", "-v", "--cpus"])[1]
    assert args.command == ["-v", "--cpus"]
    assert not re.search("vcpus", " ".join(args.command))
