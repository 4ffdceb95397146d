# SPDX-License-Identifier: Apache-2.0
"""A session with a VMM that is no QEMU."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable
from pathlib import Path

from hypemand.budget import Budget
from hypemand.model.evidence import RunState
from hypemand.model.limits import DiskLimits
from hypemand.vmm.control import CONTROL
from hypemand.vmm.driver import Drive, Ending, OnEvent, RunStateChanged, VmmError
from hypemand.vmm.shutdown import Shutdown
from tests.unit.agent.support import in_loop
from tests.unit.vm.test_session import Vmm, make_session, until, watched


class OtherVmm:
    """What the driver promises, and no more."""

    def __init__(self) -> None:
        self.state = RunState.RUNNING
        self.full: tuple[Drive, ...] = ()
        self.take: OnEvent = lambda _event: None
        self.limits = DiskLimits()
        self._end = asyncio.Event()

    async def connect(self, path: str, take: OnEvent, name: str, budget: Budget) -> OtherVmm:
        assert os.stat(path).st_ino
        self.take = take
        return self

    @property
    def is_closed(self) -> bool:
        return self._end.is_set()

    async def wait_closed(self) -> None:
        await self._end.wait()

    async def query_run_state(self) -> RunState:
        return RunState.ABSENT if self.is_closed else self.state

    async def list_full_drives(self) -> tuple[Drive, ...]:
        return self.full

    def become(self, state: RunState) -> None:
        self.state = state
        self.take(RunStateChanged())

    async def pause(self) -> None:
        self.become(RunState.PAUSED)

    async def resume(self) -> None:
        self.become(RunState.RUNNING)

    async def announce(self) -> None:
        self.become(self.state)

    async def save(
        self,
        memory: int,
        state: int,
        *,
        size: int,
        user: int,
        deadline: float,
        ready: Awaitable[object] | None = None,
    ) -> None:
        raise VmmError("it cannot be saved")

    async def renew_disks(self) -> None:
        raise VmmError("it is no template")

    async def query_memory(self) -> int:
        raise VmmError("it has no balloon")

    async def set_memory(self, size: int, deadline: float) -> int:
        raise VmmError("it has no balloon")

    async def query_disk_limits(self) -> DiskLimits:
        return self.limits

    async def set_disk_limits(self, limits: DiskLimits) -> None:
        self.limits = limits

    async def hold_end(self, hold: bool) -> None:
        raise VmmError("it ends with its guest")

    async def quit(self) -> None:
        self.take(Ending(None))
        await self.close()

    async def close(self) -> None:
        self._end.set()


@in_loop
async def test_a_session_needs_of_a_vmm_what_the_driver_promises(tmp_path: Path) -> None:
    vmm = OtherVmm()
    session, _ = make_session(tmp_path, agent=False, connect=vmm.connect)
    session._locate = lambda drive: (f"its volume {drive.volume}", tmp_path)
    async with Vmm(tmp_path).serve(CONTROL), watched(session):
        await until(lambda: session.run_state is RunState.RUNNING)
        for order, state in ((session.pause, RunState.PAUSED), (session.resume, RunState.RUNNING)):
            await order()
            assert session.run_state is state
        vmm.full = (Drive(3),)
        vmm.become(RunState.IO_ERROR)
        await until(lambda: [drive.what for drive in session.full] == ["its volume 3"])
        vmm.take(Ending(Shutdown.POWER_OFF))
        assert session.run_state is RunState.SHUTDOWN
        assert session.tracker.notes.shutdown is Shutdown.POWER_OFF
        await vmm.quit()
        await until(lambda: not session._vmm_link.is_up)
        assert session.run_state is RunState.SHUTDOWN
