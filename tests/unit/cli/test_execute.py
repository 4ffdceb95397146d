# SPDX-License-Identifier: Apache-2.0
"""exec, over a real WebSocket."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from hypemand.api.websocket import STOPPING
from tests.unit.cli.conftest import Cli
from tests.unit.cli.guest import FakeGuest


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[FakeGuest]:
    """A VM `web` that runs, and no other."""
    with FakeGuest(tmp_path / "api.sock").serve() as fake:
        yield fake


def test_outputs_stay_apart_and_the_exit_status_is_the_programs(guest: FakeGuest, cli: Cli) -> None:
    done = cli.run("exec", "web", "--", "say", "out\n", "err\n", "3")
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 3)


def test_outputs_pass_unchanged(guest: FakeGuest, cli: Cli) -> None:
    done = cli.run("exec", "web", "say", "\xff\x1b[0m", "", "0")
    assert done.stdout == "\\xff\x1b[0m"


def test_the_request_says_what_was_asked_for(guest: FakeGuest, cli: Cli) -> None:
    cli.run(
        "exec",
        "web",
        "-e",
        "A=1",
        "-w",
        "/srv",
        "-u",
        "www:www",
        "--timeout",
        "2min",
        "--",
        "say",
        "",
        "",
        "0",
    )
    assert guest.openings == [
        {
            "command": ["say", "", "", "0"],
            "tty": False,
            "streams": True,
            "env": {"A": "1"},
            "cwd": "/srv",
            "user": "www:www",
            "timeout": 120.0,
        }
    ]


def test_input_is_passed_on_whole_with_i(guest: FakeGuest, cli: Cli) -> None:
    data = os.urandom(700_000).hex().encode()
    done = cli.run("exec", "-i", "web", "cat", input=data)
    assert hashlib.sha256(done.stdout.encode()).digest() == hashlib.sha256(data).digest()
    assert done.returncode == 0


def test_without_i_the_program_has_no_input(guest: FakeGuest, cli: Cli) -> None:
    done = cli.run("exec", "web", "cat", input=b"not for the guest")
    assert (done.stdout, done.returncode) == ("", 0)


def test_signals_go_to_the_program(guest: FakeGuest, cli: Cli) -> None:
    process = cli.start("exec", "-i", "web", "trap")
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == b"got one\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert guest.signals == [signal.SIGINT, signal.SIGTERM]
    assert process.returncode == 128 + signal.SIGTERM


def test_a_program_that_is_not_there_is_explained(guest: FakeGuest, cli: Cli) -> None:
    done = cli.run("exec", "web", "say", "", "", "127")
    assert done.returncode == 127
    assert done.stderr == "hypemanctl: not found: nope\n"


def test_a_refusal_before_the_upgrade_is_told_in_its_words(guest: FakeGuest, cli: Cli) -> None:
    done = cli.run("exec", "db", "cat")
    assert done.returncode == 125
    assert done.stderr == "hypemanctl: db is Stopped; start it first\n"


def test_the_reason_of_a_close_is_told(guest: FakeGuest, cli: Cli) -> None:
    done = cli.run("exec", "web", "vanish", "guest_error: the agent does not answer")
    assert done.returncode == 125
    assert done.stderr == "hypemanctl: the agent does not answer\n"


def test_an_upgrade_of_the_daemon_is_told_and_is_no_exit_status(guest: FakeGuest, cli: Cli) -> None:
    done = cli.run("exec", "web", "vanish", STOPPING)
    assert done.returncode == 125
    assert done.stderr == f"hypemanctl: {STOPPING.removeprefix('stopping: ')}\n"


def test_a_channel_that_breaks_is_our_own_failure(guest: FakeGuest, cli: Cli) -> None:
    done = cli.run("exec", "web", "vanish")
    assert done.returncode == 125
    assert "was lost before the command exited" in done.stderr


def test_no_command_is_refused_before_anything_is_asked(cli: Cli) -> None:
    done = cli.run("exec", "web")
    assert done.returncode == 125
    assert "hypemanctl exec NAME -- COMMAND" in done.stderr


def test_a_daemon_that_is_not_there_is_our_own_failure(cli: Cli) -> None:
    done = cli.run("exec", "web", "true")
    assert done.returncode == 125
    assert "does not listen" in done.stderr
