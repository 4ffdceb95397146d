# SPDX-License-Identifier: Apache-2.0
"""attach, and run -i and -t: over the API and the manager, with a program that is a coroutine."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

import pytest

from hypemand.cli.attach import DetachKeys
from hypemand.model.state import State
from tests.fakes.guest import Command
from tests.unit.cli.conftest import DEADLINE, Cli
from tests.unit.cli.live import Live
from tests.unit.cli.test_terminals import Terminal, on_terminal

BOX = "builtin:app"


async def shell(command: Command) -> int:
    """Answers each line; q ends it with 7."""
    stream = command.stream
    await stream.write(b"$ ")
    while data := await stream.read():
        if data == b"q":
            return 7
        await stream.write(b"<" + data.hex().encode() + b">")
    await stream.write(b"end", 1 if command.tty else 2)
    return 3


def test_run_with_i_passes_input_and_its_end(live: Live, cli: Cli) -> None:
    live.host.guest("job").program = shell
    done = cli.run("run", "-i", "--rm", "--name", "job", BOX, "sh", input=b"hi")
    assert (done.stdout, done.stderr, done.returncode) == ("$ <6869>", "end", 3)
    assert live.names() == []


def test_run_with_it_has_a_terminal(live: Live, cli: Cli) -> None:
    guest = live.host.guest("job")
    guest.program, guest.tty = shell, True
    with on_terminal(cli, "run", "-it", "--rm", "--name", "job", BOX, "sh") as terminal:
        before = terminal.modes()
        terminal.expect(b"$ ")
        assert terminal.modes() != before
        terminal.type(b"\x03\x04")
        terminal.expect(b"<0304>")
        terminal.type(b"q")
        assert terminal.process.wait(DEADLINE) == 7
        assert terminal.modes() == before
    assert live.names() == []


def test_the_size_of_the_terminal_is_passed_on(live: Live, cli: Cli) -> None:
    guest = live.host.guest("job")
    guest.tty = True
    with on_terminal(cli, "run", "-it", "--name", "job", BOX, "cat") as terminal:
        terminal.expect(b"30x100")
        terminal.resize(50, 132)
        terminal.expect(b"50x132")
    definition = live.host.vm("job").record.definition
    assert (definition.stdin, definition.tty) == (True, True)


def test_the_detach_keys_leave_the_program_running(live: Live, cli: Cli) -> None:
    guest = live.host.guest("job")
    guest.program, guest.tty = shell, True
    with on_terminal(cli, "run", "-it", "--rm", "--name", "job", BOX, "sh") as terminal:
        before = terminal.modes()
        terminal.expect(b"$ ")
        terminal.type(b"\x10")
        terminal.type(b"x")
        terminal.expect(b"<1078>")
        terminal.type(b"z\x10\x11")
        terminal.expect(b"detached from job, which is kept; attach again: hypemanctl attach job")
        assert terminal.process.wait(DEADLINE) == 0
        assert terminal.modes() == before
    live.until(State.RUNNING, "job")
    with on_terminal(cli, "attach", "job") as terminal:
        terminal.expect(b"$ ")
        terminal.type(b"q")
        assert terminal.process.wait(DEADLINE) == 7


def hang_up(terminal: Terminal) -> None:
    """Close its other end, as a window or a broken ssh does."""
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, terminal.fd)
    os.close(null)


@pytest.mark.parametrize("lose", [hang_up, lambda terminal: terminal.process.send_signal(signal.SIGHUP)])
@pytest.mark.parametrize("words", [["run", "-it", "--rm", "--name", "job", BOX, "sh"], ["attach", "job"]])
def test_a_terminal_that_goes_leaves_the_program_running(
    live: Live, cli: Cli, words: list[str], lose: Callable[[Terminal], None]
) -> None:
    ended = []

    async def watched(command: Command) -> int:
        await command.stream.write(b"$ ")
        while await command.stream.read():
            pass
        ended.append("its input")
        return 0

    guest = live.host.guest("job")
    guest.program, guest.tty = watched, True
    if words[0] == "attach":
        live.put("job", State.RUNNING, stdin=True, tty=True)
    with on_terminal(cli, *words) as terminal:
        terminal.expect(b"$ ")
        lose(terminal)
        # it sees the end of its input, the signal, or that it cannot write (125) first
        assert terminal.process.wait(DEADLINE) in (0, 125, -signal.SIGHUP, 128 + signal.SIGHUP)
    live.until(State.RUNNING, "job")
    assert ended == []


def test_attach_waits_for_a_vm_that_boots(live: Live, cli: Cli) -> None:
    live.host.guest("job").program = shell
    live.put("job", State.INITIALIZING, stdin=True)
    process = cli.start("attach", "job")
    live.until_true(lambda: bool(live.host.vm("job").changes._watchers))
    live.call(live.host.vmm("job").come_up)
    out, error = process.communicate(b"hi", timeout=DEADLINE)
    assert (out, process.returncode) == (b"$ <6869>", 3), error


def test_attach_needs_a_terminal_for_one_or_shows_output_only(live: Live, cli: Cli) -> None:
    guest = live.host.guest()
    seen: list[Command] = []

    async def says_one(command: Command) -> int:
        seen.append(command)
        await command.stream.write(b"one")
        await asyncio.sleep(0.1)
        return 0

    guest.program, guest.tty = says_one, True
    live.put("web", State.RUNNING, stdin=True, tty=True)
    refused = cli.run("attach", "web", input=b"x")
    assert refused.returncode == 125
    assert "which requires one as standard input; attach with --no-stdin" in refused.stderr
    done = cli.run("attach", "--no-stdin", "web", input=b"x")
    assert (done.stdout, done.returncode) == ("one", 0), done.stderr
    assert [command.values["stdin"] for command in seen] == ["1", "0"]


def test_attach_needs_stdin_or_tty(live: Live, cli: Cli) -> None:
    live.put("web", State.RUNNING)
    refused = cli.run("attach", "web")
    assert refused.returncode == 125
    assert "was started with neither stdin nor tty; show its output: hypemanctl logs -f web" in refused.stderr


def test_run_with_it_needs_a_terminal(cli: Cli) -> None:
    done = cli.run("run", "-it", BOX, "sh", input=b"x")
    assert (done.returncode, "-t with -i requires a terminal" in done.stderr) == (125, True)


def test_of_a_program_that_has_ended_the_console_is_shown(live: Live, cli: Cli) -> None:
    guest = live.host.guest("job")
    guest.prints, guest.ends = (b"one", b"two"), 3
    done = cli.run("run", "-i", "--name", "job", BOX, "sh", input=b"")
    assert (done.stdout, done.returncode) == ("one\ntwo\n", 3), done.stderr


def test_of_a_guest_that_has_gone_the_end_of_its_run_is_told_and_nothing_twice(live: Live, cli: Cli) -> None:
    async def gone(command: Command) -> int:
        await command.stream.write(b"$ ")
        await command.stream.read()
        live.host.vmm("job").exit(137, "out of memory")
        await asyncio.Event().wait()
        return 0

    guest = live.host.guest("job")
    guest.program, guest.prints = gone, (b"$ ",)
    done = cli.run("run", "-i", "--name", "job", BOX, "sh", input=b"x")
    assert (done.stdout, done.stderr, done.returncode) == ("$ ", "hypemanctl: job: out of memory\n", 137)
    live.do(live.host.manager.start_vm("job"))
    live.until(State.RUNNING, "job")
    done = cli.run("attach", "job", input=b"x")
    assert (done.stdout, done.stderr, done.returncode) == ("$ ", "hypemanctl: job: out of memory\n", 137)


def test_who_is_detached_for_being_slow_leaves_the_program_running(live: Live, cli: Cli) -> None:
    async def detaches(command: Command) -> int:
        command.stream.detach("too slow")
        await asyncio.Event().wait()
        return 0

    live.host.guest("job").program = detaches
    done = cli.run("run", "-i", "--rm", "--name", "job", BOX, "sh", input=b"x")
    assert (done.stderr, done.returncode) == ("hypemanctl: too slow\n", 125)
    live.until(State.RUNNING, "job")


@pytest.mark.parametrize(
    ("typed", "passed", "seen"),
    [
        ([b"abc"], [b"abc"], False),
        ([b"a\x10", b"\x11b"], [b"a", b""], True),
        ([b"a\x10", b"b"], [b"a", b"\x10b"], False),
        ([b"\x10", b"\x10", b"\x11"], [b"", b"\x10", b""], True),
        ([b"\x10\x10\x11"], [b"\x10"], True),
        ([b"\x11\x10"], [b"\x11"], False),
    ],
)
def test_a_first_key_waits_for_the_second(typed: list[bytes], passed: list[bytes], seen: bool) -> None:
    keys = DetachKeys()
    assert [keys.take(block) for block in typed] == passed
    assert keys.seen is seen
