# SPDX-License-Identifier: Apache-2.0
"""The host's channel and the guest's real agent, over a unix socket in place of the virtio port."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from hypemand.agent.channel import AgentChannel
from hypemand.agent.health import HealthReport, encode_order, read_reports
from hypemand.agent.session import Session
from hypemand.config.health import Health
from hypemand.config.ready import Check, Ready
from hypemand.errors import GuestError, InvalidRequest, TimedOut
from hypemand.model.exec import ExecRequest, ExecStream
from hypemand.model.health import HealthState
from hypemand.model.vm import ExitReport
from hypemand.protocol.thaw import Thaw
from tests.unit.agent.real import running, serving, spawn
from tests.unit.agent.support import BOOT, in_loop


async def collect(session: Session) -> tuple[bytes, bytes, ExitReport]:
    got = {ExecStream.STDOUT: b"", ExecStream.STDERR: b""}
    async for stream, data in session.output():
        got[stream] += data
    return got[ExecStream.STDOUT], got[ExecStream.STDERR], await session.wait()


def shell(script: str, **env: str) -> ExecRequest:
    return ExecRequest(("sh", "-c", script), env, "/", None, None)


@in_loop
async def test_greets_and_answers_pings(agent: Path, tmp_path: Path) -> None:
    async with running(agent, tmp_path) as channel:
        assert (await channel.ready()).version
        assert await channel.ping() < 5


@in_loop
async def test_another_boot_is_refused(agent: Path, tmp_path: Path) -> None:
    async with running(agent, tmp_path, boot="f" * 32) as channel:
        with pytest.raises(GuestError, match="boot"):
            await channel.ready()


@in_loop
async def test_output_error_output_environment_and_code(agent: Path, tmp_path: Path) -> None:
    async with running(agent, tmp_path) as channel:
        await channel.ready()
        session = await channel.exec(shell("echo out; echo err $X >&2; exit 7", X="y z"))
        out, err, report = await collect(session)
        assert (out, err, report.code) == (b"out\n", b"err y z\n", 7)


@in_loop
async def test_a_program_that_is_not_there_has_code_127(agent: Path, tmp_path: Path) -> None:
    async with running(agent, tmp_path) as channel:
        await channel.ready()
        session = await channel.exec(ExecRequest(("no-such-program",), {}, None, None, None))
        _, _, report = await collect(session)
        assert report.code == 127
        assert "no-such-program" in report.message


@in_loop
async def test_megabytes_go_through_both_ways_unharmed(agent: Path, tmp_path: Path) -> None:
    async with running(agent, tmp_path) as channel:
        await channel.ready()
        data = os.urandom(3 * 1024 * 1024)
        session = await channel.exec(ExecRequest(("cat",), {}, None, None, None))

        async def feed() -> None:
            await session.write(data)
            await session.write_eof()

        feeding = asyncio.create_task(feed())
        out, err, report = await collect(session)
        await feeding
        assert hashlib.sha256(out).digest() == hashlib.sha256(data).digest()
        assert (err, report.code) == (b"", 0)


@in_loop
async def test_many_at_once_while_one_is_not_read(agent: Path, tmp_path: Path) -> None:
    async with running(agent, tmp_path) as channel:
        await channel.ready()
        stuck = await channel.exec(shell("exec cat /dev/zero"))

        async def one(number: int) -> None:
            script = f"head -c 400000 /dev/zero; echo {number} >&2; exit {number}"
            out, err, report = await collect(await channel.exec(shell(script)))
            assert (len(out), err, report.code) == (400000, b"%d\n" % number, number)

        await asyncio.gather(*(one(number) for number in range(20)))
        await stuck.close()


@in_loop
async def test_signal_reaches_the_group(agent: Path, tmp_path: Path) -> None:
    async with running(agent, tmp_path) as channel:
        await channel.ready()
        session = await channel.exec(
            shell("trap 'echo got; exit 5' TERM; echo up; while :; do sleep 0.05; done")
        )
        output = session.output()
        assert await anext(output) == (ExecStream.STDOUT, b"up\n")
        await session.signal(signal.SIGTERM)
        rest = [data async for stream, data in output if stream is ExecStream.STDOUT]
        assert b"".join(rest) == b"got\n"
        assert (await session.wait()).code == 5


@in_loop
async def test_a_command_over_its_time_is_killed_with_its_children(agent: Path, tmp_path: Path) -> None:
    async with running(agent, tmp_path) as channel:
        await channel.ready()
        marker = tmp_path / "alive"
        os.mkfifo(marker)
        reader = os.open(marker, os.O_RDONLY | os.O_NONBLOCK)
        script = f"exec 3>{marker}; sleep 1000 & echo up; wait"
        session = await channel.exec(ExecRequest(("sh", "-c", script), {}, None, None, 0.5))
        with pytest.raises(TimedOut):
            await collect(session)
        gone = asyncio.Event()
        # End of file: no process of the group holds the other end any more.
        asyncio.get_running_loop().add_reader(reader, gone.set)
        await gone.wait()
        assert os.read(reader, 1) == b""
        asyncio.get_running_loop().remove_reader(reader)
        os.close(reader)
        assert await channel.ping() < 5


@in_loop
async def test_shutdown_tells_init_the_grace(agent: Path, tmp_path: Path) -> None:
    number = signal.SIGRTMIN + 4
    script = (
        "import signal, subprocess, sys\n"
        f"signal.pthread_sigmask(signal.SIG_BLOCK, [{number}])\n"
        "agent = subprocess.Popen(sys.argv[1:], pass_fds=[int(sys.argv[2])])\n"
        f"signal.sigtimedwait([{number}], 15) or sys.exit('no signal')\n"
        "agent.kill(); agent.wait(); print('asked')\n"
    )
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        init = spawn([sys.executable, "-c", script, agent], listener, BOOT)
        channel = await AgentChannel.connect(path, BOOT)
        await channel.ready()
        await channel.shutdown(5)
        out, _ = await asyncio.to_thread(init.communicate, timeout=60)
        assert out == b"asked\n"
        await channel.close()


# --- umask, terminals, the clock ---


def terminal(script: str, rows: int = 24, cols: int = 80, **env: str) -> ExecRequest:
    return ExecRequest(("sh", "-c", script), env, "/", None, None, tty=True, rows=rows, cols=cols)


@in_loop
async def test_umask_is_the_commands(agent: Path, tmp_path: Path) -> None:
    async with serving(agent, tmp_path) as channel:
        request = ExecRequest(("sh", "-c", "umask"), {}, None, None, None, umask=0o027)
        assert (await collect(await channel.exec(request)))[0] == b"0027\n"


@in_loop
async def test_a_terminal_is_the_commands_own(agent: Path, tmp_path: Path) -> None:
    async with serving(agent, tmp_path) as channel:
        script = (
            "stty size; tty; test -t 0 && test -t 1 && test -t 2 && echo all >/dev/tty; echo $TERM; exit 3"
        )
        out, err, report = await collect(await channel.exec(terminal(script, 33, 120)))
        lines = out.decode().split("\r\n")
        assert (lines[0], lines[2:], err, report.code) == ("33 120", ["all", "xterm", ""], b"", 3)
        assert lines[1].startswith("/dev/pts/")
        out, _, _ = await collect(await channel.exec(terminal("echo $TERM", TERM="vt100")))
        assert out == b"vt100\r\n"


@in_loop
async def test_a_terminal_belongs_to_its_user(agent: Path, tmp_path: Path) -> None:
    async with serving(agent, tmp_path) as channel:
        request = ExecRequest(("sh", "-c", 'stat -c %u "$(tty)"'), {}, "/", "65534", None, tty=True)
        assert (await collect(await channel.exec(request)))[0] == b"65534\r\n"


class Reader:
    """Output, up to some words."""

    def __init__(self, session: Session) -> None:
        self._output = session.output()
        self.text = b""

    async def until(self, words: bytes) -> None:
        while words not in self.text:
            self.text += (await anext(self._output))[1]
        self.text = self.text.partition(words)[2]


@in_loop
async def test_a_new_size_reaches_the_command(agent: Path, tmp_path: Path) -> None:
    async with serving(agent, tmp_path) as channel:
        script = "trap 'stty size; exit' WINCH; echo up; while :; do sleep 0.05; done"
        session = await channel.exec(terminal(script))
        reader = Reader(session)
        await reader.until(b"up")
        await session.resize(50, 132)
        await reader.until(b"50 132")
        assert (await session.wait()).code == 0
        await session.resize(1, 1)
        with pytest.raises(InvalidRequest):
            await session.resize(-1, 70000)


@in_loop
async def test_keys_mean_what_they_do_on_a_terminal(agent: Path, tmp_path: Path) -> None:
    async with serving(agent, tmp_path) as channel:
        session = await channel.exec(terminal("trap 'echo caught; exit 9' INT; echo up; cat; sleep 20"))
        reader = Reader(session)
        await reader.until(b"up")
        await session.write(b"typed\n")
        await reader.until(b"typed\r\ntyped")
        await session.write(b"\x03")
        await reader.until(b"caught")
        assert (await session.wait()).code == 9


@pytest.mark.parametrize("text", [b"", b"line\n", b"half a line"])
@in_loop
async def test_the_end_of_input_is_typed(agent: Path, tmp_path: Path, text: bytes) -> None:
    async with serving(agent, tmp_path) as channel:
        session = await channel.exec(terminal("stty -echo; echo up; cat; echo end"))
        reader = Reader(session)
        await reader.until(b"up\r\n")
        if text:
            await session.write(text)
        await session.write_eof()
        await reader.until(text.replace(b"\n", b"\r\n") + b"end")
        assert (await session.wait()).code == 0


@in_loop
async def test_all_output_of_a_terminal_comes_before_its_end(agent: Path, tmp_path: Path) -> None:
    async with serving(agent, tmp_path) as channel:
        for _ in range(5):
            script = "stty -opost; head -c 1000000 /dev/zero; printf last"
            out, _, report = await collect(await channel.exec(terminal(script)))
            assert (len(out), out[-4:], report.code) == (1_000_004, b"last", 0)


@in_loop
async def test_who_goes_away_hangs_up(agent: Path, tmp_path: Path) -> None:
    """And leaves time to end. What does not hear it is killed with its control group (agent_channel.py)."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(reader, "rb") as file:
        async with serving(agent, tmp_path) as channel:
            script = (
                f"exec 3>{pipe}; trap 'echo hung up >&3; exit' HUP; echo up; while :; do sleep 0.05; done"
            )
            session = await channel.exec(terminal(script))
            await Reader(session).until(b"up")
            await session.close()
            gone = asyncio.Event()
            got = b""

            def read() -> None:
                nonlocal got
                more = file.read(100)
                got += more or b""
                if more == b"":
                    gone.set()

            asyncio.get_running_loop().add_reader(reader, read)
            await gone.wait()
            asyncio.get_running_loop().remove_reader(reader)
            assert got == b"hung up\n"
            assert await channel.ping() < 5


@in_loop
async def test_the_clock_is_set_and_a_refusal_is_told(agent: Path, tmp_path: Path) -> None:
    async with serving(agent, tmp_path) as channel:
        await channel.set_clock(1_700_000_000 * 10**9)
        with pytest.raises(GuestError, match="clock cannot be set: Operation not permitted"):
            await channel.set_clock(5)
        assert await channel.ping() < 5


@in_loop
async def test_it_stands_still_and_starts_nothing_until_it_goes_on(agent: Path, tmp_path: Path) -> None:
    async with serving(agent, tmp_path) as channel:
        await channel.freeze()
        executing = asyncio.create_task(channel.exec(ExecRequest(("true",), {}, None, None, None)))
        await asyncio.sleep(0)
        # the host holds it until THAW; a host that does not is refused
        channel._release()
        session = await executing
        assert (await session.wait()).message == "the guest is frozen: nothing runs in it until THAW"
        with pytest.raises(GuestError, match="the guest cannot go on: it stays frozen"):
            await channel.thaw(Thaw(5))
        await channel.thaw(Thaw(1_700_000_000 * 10**9))
        session = await channel.exec(ExecRequest(("true",), {}, None, None, None))
        assert (await session.wait()).code == 0


@in_loop
async def test_a_health_check_is_made_by_the_agent_and_reported(agent: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    check = Ready(Check.EXEC, argv=("test", "-e", str(mark)), interval=0.05)
    health = Health(check, start_period=0.0, failure_threshold=2)
    async with serving(agent, tmp_path) as channel:
        session = await channel.check_health(encode_order(health, 0.0, None, loopback=True))
        reports = read_reports(session)
        first, second = await anext(reports), await anext(reports)
        assert first == HealthReport(HealthState.STARTING, False, 1, 0, "exec: exited with code 1")
        assert second == HealthReport(HealthState.UNHEALTHY, False, 2, 0, "exec: exited with code 1")
        mark.touch()
        third = await anext(reports)
        assert (third.state, third.passed, third.successes) == (HealthState.HEALTHY, True, 1)
        await session.close()
        with pytest.raises(GuestError):
            await anext(reports)
        assert await channel.ping() < 5


@in_loop
async def test_a_health_check_that_cannot_be_says_why(agent: Path, tmp_path: Path) -> None:
    health = Health(Ready(Check.LOG, pattern="x"))
    async with serving(agent, tmp_path) as channel:
        session = await channel.check_health(encode_order(health, 0.0, None, loopback=True))
        with pytest.raises(GuestError, match="HEALTH without a check that can be repeated"):
            await anext(read_reports(session))
