# SPDX-License-Identifier: Apache-2.0
"""Running commands: deadline, environment, and errors that can be pasted."""

from __future__ import annotations

import asyncio
import os
import select
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from hypemand.errors import HostNotReady, HypemandError
from hypemand.run import (
    STDOUT_BYTES,
    CommandFailed,
    CommandMissing,
    CommandTimedOut,
    Completed,
    run,
    run_async,
)

Runner = Callable[..., Completed]


def in_event_loop(*args: Any, **kwargs: Any) -> Completed:
    return asyncio.run(run_async(*args, **kwargs))


@pytest.fixture(params=[run, in_event_loop], ids=["sync", "async"])
def runner(request: pytest.FixtureRequest) -> Runner:
    """Both ways to run a command keep one contract."""
    way: Runner = request.param
    return way


def test_output_and_status(runner: Runner) -> None:
    result = runner(["sh", "-c", "echo out; echo err >&2; exit 3"], timeout=10, ok=(0, 3))
    assert (result.code, result.stdout, result.stderr) == (3, b"out\n", "err\n")


def test_standard_input_is_empty_unless_given(runner: Runner) -> None:
    assert runner(["cat"], timeout=10).stdout == b""
    assert runner(["cat"], timeout=10, input=b"x" * 200_000).stdout == b"x" * 200_000


def test_environment_is_the_stated_one(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYPEMAND_LEAK", "1")
    lines = runner(["env"], timeout=10, env={"MORE": "2"}).stdout.decode().split()
    keys = {line.partition("=")[0] for line in lines}
    assert keys == {"LC_ALL", "PATH", "MORE"}
    assert "LC_ALL=C.UTF-8" in lines


def test_failure_shows_a_command_that_can_be_pasted_and_its_last_words(runner: Runner) -> None:
    with pytest.raises(CommandFailed) as caught:
        runner(["sh", "-c", "seq 1 100 >&2; exit 4", "it's"], timeout=10)
    text = str(caught.value)
    assert "exit status 4" in text
    assert """sh -c 'seq 1 100 >&2; exit 4' 'it'"'"'s'""" in text
    assert text.endswith("  99\n  100")
    assert "\n  50\n" not in text


def test_death_by_a_signal_is_named(runner: Runner) -> None:
    with pytest.raises(CommandFailed, match="killed by signal 9"):
        runner(["sh", "-c", "kill -9 $$"], timeout=10)


def test_a_missing_program_is_named(runner: Runner) -> None:
    with pytest.raises(CommandMissing, match="no-such-program cannot be run") as caught:
        runner(["no-such-program"], timeout=10)
    assert isinstance(caught.value, HostNotReady)


def test_a_missing_folder_is_not_taken_for_a_missing_program(runner: Runner, tmp_path: Path) -> None:
    with pytest.raises(HypemandError, match="no such folder"):
        runner(["true"], timeout=10, cwd=tmp_path / "none")


def test_the_deadline_kills_the_whole_group(runner: Runner, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    alive = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    started = time.monotonic()
    with pytest.raises(CommandTimedOut, match=r"more than 0\.3 s"):
        runner(["sh", "-c", f"exec 3>{fifo}; echo hello >&2; sleep 100 & wait"], timeout=0.3)
    assert time.monotonic() - started < 50
    with select.epoll() as poll:
        poll.register(alive, select.EPOLLHUP)
        assert poll.poll(60), "the grandchild lives"
    os.close(alive)


def test_a_grandchild_that_keeps_the_output_open_does_not_hold_up(runner: Runner) -> None:
    started = time.monotonic()
    assert runner(["sh", "-c", "sleep 30 & echo done"], timeout=60).stdout == b"done\n"
    assert time.monotonic() - started < 20


def test_too_much_output_is_an_error(runner: Runner) -> None:
    with pytest.raises(HypemandError, match="wrote more than"):
        runner(["head", "-c", str(STDOUT_BYTES + 1), "/dev/zero"], timeout=30)


def test_a_cancelled_command_is_killed(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    async def cancel() -> None:
        command = asyncio.create_task(
            run_async(["sh", "-c", f"echo up >{fifo}; exec sleep 100 3>{fifo}"], timeout=60)
        )
        opened = await asyncio.to_thread(open, fifo, "rb", 0)
        assert await asyncio.to_thread(opened.read, 3) == b"up\n"
        command.cancel()
        with pytest.raises(asyncio.CancelledError):
            await command
        assert await asyncio.to_thread(opened.read, 1) == b""
        opened.close()

    asyncio.run(cancel())


def test_an_interrupted_command_is_killed(tmp_path: Path) -> None:
    script = (
        "import signal, threading, os, sys\n"
        "from hypemand.run import run\n"
        "threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "run(['sleep', '100'], timeout=100)\n"
    )
    root = Path(__file__).parents[3]
    environment: Mapping[str, str] = {"PYTHONPATH": str(root)}
    started = time.monotonic()
    result = run([sys.executable, "-c", script], timeout=80, env=environment, ok=(-2, 1, 130))
    assert "KeyboardInterrupt" in result.stderr
    assert time.monotonic() - started < 60
