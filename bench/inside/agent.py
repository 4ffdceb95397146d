# SPDX-License-Identifier: Apache-2.0
"""The agent of a VM that runs, spoken to in the daemon's place."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

from bench.inside.rounds import Series, run
from hypemand.agent.channel import AgentChannel
from hypemand.agent.session import Session
from hypemand.model.exec import ExecRequest
from hypemand.model.files import FileInfo, FileKind

_SIZE = 256 * 1024 * 1024
_PIECE = 65536
_COMMANDS = 50
_DEADLINE = 300.0
_TARGET = "/dev/shm/bench"


def measure_agent(name: str, rounds: int) -> Series:
    """Milliseconds of an exec, and of 256 MiB raw and copied, both ways."""
    boot = run(
        "systemctl", "show", "--value", "--property=InvocationID", f"hypeman-vm-{name}.service"
    ).strip()
    run("systemctl", "stop", "hypemand.socket", "hypemand.service")
    try:
        return asyncio.run(_measure(Path(f"/run/hypemand/vms/{name}/agent.sock"), boot, rounds))
    finally:
        run("systemctl", "start", "hypemand.socket", "hypemand.service")


async def _measure(path: Path, boot: str, rounds: int) -> Series:
    series: Series = {key: [] for key in ("exec", "raw_in", "copy_in", "raw_out", "copy_out")}
    async with asyncio.timeout(_DEADLINE):
        channel = await AgentChannel.connect(path, boot)
        await channel.ready()
        data = os.urandom(_PIECE)
        for _ in range(_COMMANDS):
            async with _timed(series["exec"]):
                await run_in_guest(channel, "/bin/true")
        for _ in range(rounds):
            async with _timed(series["raw_in"]):
                await _send(await _start(channel, "sh", "-c", "exec cat >/dev/null"), data)
            async with _timed(series["copy_in"]):
                await _copy_in(channel, data)
            async with _timed(series["raw_out"]):
                await run_in_guest(channel, "cat", _TARGET)
            async with _timed(series["copy_out"]):
                await _copy_out(channel)
            # there is room for one: a copy takes the place of another only when it is whole
            await run_in_guest(channel, "rm", _TARGET)
        await channel.close()
    return series


@contextlib.asynccontextmanager
async def _timed(into: list[float]) -> AsyncIterator[None]:
    began = time.monotonic()
    yield
    into.append((time.monotonic() - began) * 1000)


async def _start(channel: AgentChannel, *argv: str) -> Session:
    return await channel.exec(ExecRequest(argv, {}, "/", None, None))


async def run_in_guest(channel: AgentChannel, *argv: str) -> bytes:
    """A command's output, of which no more than a piece is kept."""
    session = await _start(channel, *argv)
    kept = b""
    async for _, data in session.output():
        kept += data[: _PIECE - len(kept)]
    await session.wait()
    return kept


async def _send(session: Session, data: bytes) -> None:
    for _ in range(_SIZE // _PIECE):
        await session.write(data)
    await session.write_eof()
    await session.wait()


async def _copy_in(channel: AgentChannel, data: bytes) -> None:
    copy = await channel.copy_in(_TARGET)
    await copy.add(FileInfo("", FileKind.FILE, 0o644, -1, -1, _SIZE, time.time_ns()))
    for _ in range(_SIZE // _PIECE):
        await copy.write(data)
    await copy.finish()
    await copy.close()


async def _copy_out(channel: AgentChannel) -> None:
    copy = await channel.copy_out(_TARGET)
    size = sum([len(event) async for event in copy.events() if isinstance(event, bytes)])
    assert size == _SIZE
