# SPDX-License-Identifier: Apache-2.0
"""Standard streams that cannot be written, or are closed, and arguments that are no text: one line each."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.unit.cli.canned import Canned
from tests.unit.cli.conftest import DEADLINE, Cli


def run_in_shell(cli: Cli, redirection: str, *words: str | bytes) -> subprocess.CompletedProcess[str]:
    """hypemanctl with what a shell does to its streams."""
    argv = [*cli.argv(), *words]
    return subprocess.run(
        ["sh", "-c", f'"$@" {redirection}', "sh", *argv],
        env=cli.environ,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )


@pytest.mark.parametrize("words", [("list",), ("list", "--json"), ("--help",), ("completely-wrong",)])
def test_output_that_cannot_be_written_is_one_line_and_a_failure(
    daemon: Canned, cli: Cli, words: tuple[str, ...]
) -> None:
    daemon.add("web")
    for redirection, reason in ((">/dev/full", "No space left on device"), (">&-", "Bad file descriptor")):
        done = run_in_shell(cli, redirection, *words)
        if words == ("completely-wrong",):
            assert done.returncode == 2
            continue
        assert done.returncode == 1
        assert done.stderr == f"hypemanctl: cannot write to standard output: {reason}\n"


def test_more_than_a_buffer_is_one_line_too(daemon: Canned, cli: Cli) -> None:
    daemon.add("web", env={f"V{n}": "x" * 100 for n in range(1000)})
    done = run_in_shell(cli, ">/dev/full", "show", "web")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr


def test_a_command_that_passes_the_programs_status_on_has_its_own_failure(daemon: Canned, cli: Cli) -> None:
    done = run_in_shell(cli, ">/dev/full", "run", "--help")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), "no program was run"


def test_what_writes_nothing_does_without_streams(daemon: Canned, cli: Cli) -> None:
    daemon.add("web")
    daemon.answers["POST /instances/web/start"] = daemon.vms["web"].instance
    done = run_in_shell(cli, "<&- >&- 2>&-", "start", "web")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-"])
def test_errors_that_cannot_be_written_keep_their_status(daemon: Canned, cli: Cli, redirection: str) -> None:
    assert run_in_shell(cli, redirection, "show", "nobody").returncode == 10
    assert run_in_shell(cli, redirection, "list", "--frob").returncode == 2


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        ((b"start", b"a\xff"), 2, r"hypemanctl start: NAME: not valid UTF-8: 'a\xff'"),
        ((b"list", b"web", b"\xc3"), 2, r"hypemanctl list: NAME: not valid UTF-8: '\xc3'"),
        ((b"run", b"--name", b"\xff", b"box"), 125, r"hypemanctl run: --name: not valid UTF-8: '\xff'"),
        ((b"exec", b"web", b"--", b"ls", b"\xff"), 125, r"hypemanctl exec: COMMAND: not valid UTF-8: '\xff'"),
    ],
)
def test_an_argument_that_is_no_text_is_named(
    daemon: Canned, cli: Cli, words: tuple[bytes, ...], status: int, told: str
) -> None:
    done = run_in_shell(cli, "", *words)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", f"{told}\n")
    assert daemon.requests == []


def test_a_local_file_may_have_any_name(daemon: Canned, cli: Cli) -> None:
    name = os.fsdecode(b"/nowhere/\xff.tar")
    done = run_in_shell(cli, "", "image", "export", "app", name)
    assert "not valid UTF-8" not in done.stderr
    assert "Traceback" not in done.stderr
