# SPDX-License-Identifier: Apache-2.0
"""The guest's real agent, over a unix socket in place of the virtio port."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from hypemand.agent.channel import AgentChannel
from tests.programs import build_program
from tests.unit.agent.support import BOOT

GUEST = Path(__file__).parents[3] / "guest"


def build_agent(target: Path) -> None:
    """The agent's sources with a main of our own."""
    sources = [Path(__file__).with_name("agent_on_fd.c"), *sorted((GUEST / "shared").glob("*.c"))]
    sources += sorted((GUEST / "probe").glob("*.c"))
    sources += [source for source in sorted((GUEST / "agent").glob("*.c")) if source.name != "main.c"]
    folders = [f"-Iguest/{folder}" for folder in ("agent", "probe", "shared")]
    build_program(target, ["gcc", "-std=c17", "-D_GNU_SOURCE", "-O1", *folders], sources)


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
            process.communicate(timeout=60)


@asynccontextmanager
async def serving(agent: Path, folder: Path) -> AsyncIterator[AgentChannel]:
    """A channel to an agent that has answered."""
    async with running(agent, folder) as channel:
        await channel.ready()
        yield channel
