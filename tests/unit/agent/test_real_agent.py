# SPDX-License-Identifier: Apache-2.0
"""The host's channel and the guest's real agent, over a unix socket in place of the virtio port."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from hypemand.agent.channel import AgentChannel
from hypemand.agent.session import Session
from hypemand.errors import GuestError, TimedOut
from hypemand.manager.view import ExecRequest, ExecStream, ExitReport
from tests.unit.agent.support import BOOT, in_loop

GUEST = Path(__file__).parents[3] / "guest"


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The agent's sources with a main of our own."""
    target = tmp_path_factory.mktemp("agent") / "agent"
    sources = [Path(__file__).with_name("agent_on_fd.c"), *sorted((GUEST / "shared").glob("*.c"))]
    sources += [source for source in sorted((GUEST / "agent").glob("*.c")) if source.name != "main.c"]
    argv = ["gcc", "-std=c17", "-D_GNU_SOURCE", "-O1", f"-I{GUEST}/agent", f"-I{GUEST}/shared"]
    subprocess.run([*argv, "-o", target, *sources], check=True, timeout=120)
    return target


def spawn(argv: list[str | Path], listener: socket.socket, boot: str) -> subprocess.Popen[bytes]:
    """Start the agent, or what starts it, on a socket that listens."""
    fd = listener.fileno()
    return subprocess.Popen([*argv, str(fd), boot], pass_fds=[fd], stdout=subprocess.PIPE)


@asynccontextmanager
async def running(agent: Path, folder: Path, boot: str = BOOT) -> AsyncIterator[AgentChannel]:
    """A channel to an agent that runs."""
    path = folder / "agent.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        process = spawn([agent], listener, boot)
        channel = await AgentChannel.connect(path, BOOT)
        try:
            yield channel
        finally:
            await channel.close()
            process.kill()
            process.communicate(timeout=10)


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
        out, _ = await asyncio.to_thread(init.communicate, timeout=15)
        assert out == b"asked\n"
        await channel.close()
