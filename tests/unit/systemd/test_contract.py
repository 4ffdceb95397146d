# SPDX-License-Identifier: Apache-2.0
"""FakeSystemd does what systemd does: what tests/host/test_contract.py plays on the real one."""

from __future__ import annotations

import asyncio

import pytest

from hypemand.systemd.port import Bus
from tests.fakes.contract import SCENARIOS, play
from tests.fakes.process import Process
from tests.fakes.stage import Script
from tests.fakes.systemd import FakeSystemd


class FakeWorld:
    """Scripts are coroutines, and their marks lists."""

    def __init__(self) -> None:
        self.systemd = FakeSystemd(self._run, speed=10)
        self.bus: Bus = self.systemd
        self._scripts: dict[str, Script] = {}
        self._marks: dict[str, list[str]] = {}
        self._released: dict[str, asyncio.Event] = {}

    async def _run(self, process: Process) -> int:
        script = self._scripts[process.argv[1]]
        ended = asyncio.Event()
        status = script.status

        def take_term() -> None:
            nonlocal status
            status = script.on_term or 0
            ended.set()

        if script.on_term is not None:
            process.handlers[15] = None if script.on_term == -1 else take_term
        env = (process.env.get(name, "") for name in ("SERVICE_RESULT", "EXIT_CODE", "EXIT_STATUS"))
        self._marks.setdefault(script.mark, []).append(" ".join(env))
        if script.waits:
            released = self._released.setdefault(script.mark, asyncio.Event())
            waits = [asyncio.create_task(event.wait()) for event in (released, ended)]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()
            released.clear()
        return status

    def command(self, script: Script) -> tuple[str, list[str], bool]:
        key = f"{len(self._scripts)}"
        self._scripts[key] = script
        return ("script", ["script", key], False)

    def marks(self, mark: str) -> list[str]:
        return self._marks.get(mark, [])

    def release(self, mark: str) -> None:
        self._released.setdefault(mark, asyncio.Event()).set()

    def notify(self, pid: int, *assignments: str) -> None:
        self.systemd.notify(pid, *assignments)

    async def reexecute(self) -> None:
        await self.systemd.reexecute()

    async def clean(self) -> None:
        self._marks.clear()
        self._released.clear()


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_fake_does_what_systemd_does(name: str) -> None:
    async def main() -> None:
        world = FakeWorld()
        try:
            await play(world, SCENARIOS[name])
        finally:
            await world.bus.close()

    asyncio.run(main())
