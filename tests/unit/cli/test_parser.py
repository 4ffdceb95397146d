# SPDX-License-Identifier: Apache-2.0
"""The command line is understood, and what is not gets a usable answer."""

from __future__ import annotations

import math

import pytest

from hypemand.cli.commands import COMMANDS
from hypemand.cli.exitcode import ExitCode
from hypemand.cli.main import load_handler
from hypemand.cli.parser import HelpAsked, UsageError, VersionAsked, parse_command_line
from hypemand.cli.spec import Command


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c.name)
def test_every_command_has_a_handler_and_help(command: Command) -> None:
    assert callable(load_handler(command))
    with pytest.raises(HelpAsked) as asked:
        parse_command_line([*command.path, "--help"])
    for option in command.all_options:
        assert all(flag in asked.value.text for flag in option.flags)
    for argument in command.arguments:
        assert argument.metavar in asked.value.text
    assert "exit status:" in asked.value.text


def test_overview_names_every_command() -> None:
    with pytest.raises(HelpAsked) as asked:
        parse_command_line(["--help"])
    for command in COMMANDS:
        assert f"  {command.name} " in asked.value.text


def test_version_is_asked_for() -> None:
    with pytest.raises(VersionAsked):
        parse_command_line(["--version"])


def test_socket_is_taken_before_and_after_the_command() -> None:
    assert parse_command_line(["--socket", "/a", "list"])[1].socket == "/a"
    assert parse_command_line(["--socket=/a", "list"])[1].socket == "/a"
    assert parse_command_line(["list", "--socket", "/b"])[1].socket == "/b"


def test_options_may_stand_among_names() -> None:
    args = parse_command_line(["start", "web", "--wait", "db", "--timeout", "1min 30s"])[1]
    assert (args.name, args.wait, args.timeout) == (["web", "db"], True, 90.0)


def test_run_gives_all_that_follows_the_image_to_the_program() -> None:
    args = parse_command_line(["run", "--rm", "-e", "A=1", "box", "ls", "--rm", "-l", "--", "x"])[1]
    assert (args.image, args.command, args.env) == ("box", ["ls", "--rm", "-l", "--", "x"], ["A=1"])


@pytest.mark.parametrize(
    "words",
    [
        ["exec", "-i", "web", "cat", "-n"],
        ["exec", "-i", "web", "--", "cat", "-n"],
        ["exec", "web", "-i", "--", "cat", "-n"],
        ["exec", "web", "-i", "-w", "/srv", "--", "cat", "-n"],
    ],
)
def test_exec_takes_options_on_both_sides_of_the_name(words: list[str]) -> None:
    args = parse_command_line(words)[1]
    assert (args.name, args.interactive, args.command) == ("web", True, ["cat", "-n"])


def test_exec_keeps_dashes_that_belong_to_the_program() -> None:
    args = parse_command_line(["exec", "web", "git", "log", "--", "file"])[1]
    assert args.command == ["git", "log", "--", "file"]


def test_analyze_and_its_plot_are_told_apart() -> None:
    assert parse_command_line(["analyze", "web"])[0].name == "analyze"
    assert parse_command_line(["analyze", "plot", "web"])[0].name == "analyze plot"


def test_a_signal_has_a_name_or_a_number() -> None:
    for word in ("TERM", "SIGTERM", "term", "15"):
        assert parse_command_line(["kill", "-s", word, "web"])[1].signal == 15


def test_a_wait_may_be_endless_and_its_state_be_written_small() -> None:
    args = parse_command_line(["wait", "web", "--for", "stopped", "--timeout", "infinity"])[1]
    assert (args.for_, args.timeout) == ("Stopped", math.inf)


@pytest.mark.parametrize(
    ("words", "cure"),
    [
        (["list", "--nope"], "hypemanctl list: unrecognized arguments: --nope"),
        (["nope"], "unknown command 'nope'"),
        (["image"], "missing subcommand, one of: list, inspect, pull, tag, prune, export, rm, import"),
        (["snapshot", "schedule"], "hypemanctl snapshot schedule: missing subcommand, one of: set, show, rm"),
        (["snapshot", "schedule", "remove"], "one of: set, show, rm\nUse: hypemanctl snapshot schedule rm"),
        (
            ["snapshot", "nope"],
            "unknown subcommand 'nope', one of: create, list, show, restore, fork, rm, schedule",
        ),
        (["start"], "NAME"),
        (["kill", "-s", "NOPE", "web"], "use TERM, SIGTERM or 15"),
        (["wait", "web", "--for", "Happy"], "use one of: Stopped, Created, Initializing"),
        (["wait", "web", "--timeout", "soon"], "1min 30s"),
        (["logs", "web", "--source", "x"], "app"),
        (["logs", "web", "-n", "-1"], "not an integer"),
        ([], "commands:"),
    ],
)
def test_a_wrong_command_line_says_what_would_be_right(words: list[str], cure: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_command_line(words)
    assert cure in error.value.text
    assert error.value.exit_code is ExitCode.USAGE


@pytest.mark.parametrize("words", [["run"], ["run", "--nope", "x"], ["exec"]])
def test_a_wrong_run_or_exec_does_not_look_like_the_program(words: list[str]) -> None:
    with pytest.raises(UsageError) as error:
        parse_command_line(words)
    assert error.value.exit_code is ExitCode.OWN_FAILURE
