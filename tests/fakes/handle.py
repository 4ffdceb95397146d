# SPDX-License-Identifier: Apache-2.0
"""The processes of a handle, as launcher/handle does it."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

from hypemand.unitnames import unit_name
from tests.fakes.process import Process
from tests.fakes.systemd import FakeSystemd

_PAUSE = 0.002


class Client(Protocol):
    """What it executes of hypemanctl."""

    async def start_for_handle(self, vm: str) -> int: ...
    async def stop_for_handle(self, vm: str) -> None: ...


class HandleProcess:
    """One, from its start to its exit status."""

    def __init__(
        self, vm: str, process: Process, systemd: FakeSystemd, runtime: Path, client: Client
    ) -> None:
        self._vm = vm
        self._unit = unit_name(vm)
        self._process = process
        self._systemd = systemd
        self._client = client
        self._folder = runtime / "handles"
        self._stopped = asyncio.Event()
        # the daemon has said so
        self._has_ended = asyncio.Event()
        process.handlers[signal.SIGWINCH] = self._has_ended.set

    @property
    def _note(self) -> Path:
        return self._folder / f"{self._vm}.follow"

    @property
    def _starting(self) -> Path:
        return self._folder / f"{self._vm}.starting"

    async def run(self) -> int:
        """main."""
        if "stop" in self._process.argv:
            env = self._process.env
            asked = (env.get("EXIT_CODE"), env.get("EXIT_STATUS")) == ("killed", "TERM")
            return await self._stop() if asked else 0
        if self._note.exists():
            return await self._follow(ready=False)
        self._folder.mkdir(exist_ok=True)
        self._starting.touch()
        status = await self._client.start_for_handle(self._vm)
        self._starting.unlink(missing_ok=True)
        if status != 0:
            return status
        self._systemd.notify(self._process.pid, "READY=1")
        return await self._follow(ready=True)

    def _ask(self) -> str:
        unit = self._systemd.units.get(self._unit)
        if unit is None:
            return "inactive"
        is_queued = unit.is_gone and self._systemd.jobs.find(self._unit) is not None
        return "queued" if is_queued else unit.active

    async def _follow(self, *, ready: bool) -> int:
        self._has_ended.clear()  # that was the run before
        while True:
            if self._has_ended.is_set():
                async with self._locked() as waited:
                    if not waited:
                        return await self._end(ready=ready, failed=False)
                self._has_ended.clear()
            state = self._ask()
            if state in ("inactive", "failed"):
                async with self._locked():
                    state = self._ask()
                    if state in ("inactive", "failed"):
                        return await self._end(ready=ready, failed=state == "failed")
            if state == "active" and not ready:
                self._systemd.notify(self._process.pid, "READY=1")
                ready = True
            await asyncio.sleep(_PAUSE)

    async def _end(self, *, ready: bool, failed: bool) -> int:
        self._note.unlink(missing_ok=True)
        if ready:
            return 1 if failed else 0
        self._process.handlers[signal.SIGTERM] = self._stopped.set
        self._systemd.jobs.add(self._process.unit, "stop", "replace")
        await self._stopped.wait()
        return 0

    async def _stop(self) -> int:
        starting = self._starting.exists()
        is_restarted = self._is_locked()
        self._starting.unlink(missing_ok=True)
        await self._stop_unit()
        if starting:
            await self._client.stop_for_handle(self._vm)
        async with self._locked():
            if is_restarted:
                await self._stop_unit()
            self._note.unlink(missing_ok=True)
            return 1 if self._ask() == "failed" else 0

    async def _stop_unit(self) -> None:
        if self._unit in self._systemd.units:
            job = self._systemd.jobs.add(self._unit, "stop", "replace")
            while not job.result:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(_PAUSE)

    def _is_locked(self) -> bool:
        try:
            fd = os.open(self._folder / f"{self._vm}.lock", os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    @asynccontextmanager
    async def _locked(self) -> AsyncIterator[bool]:
        """The value: was it waited for?"""
        waited = False
        self._folder.mkdir(exist_ok=True)
        fd = os.open(self._folder / f"{self._vm}.lock", os.O_RDONLY | os.O_CREAT)
        try:
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    waited = True
                    await asyncio.sleep(_PAUSE)
                else:
                    break
            yield waited
        finally:
            os.close(fd)
