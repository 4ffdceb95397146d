# SPDX-License-Identifier: Apache-2.0
"""The one loop that polls while VMs boot, and is not there when none does.

journald tells of new entries up to 440 ms late, and a VMM makes its sockets without telling anybody: so
both are looked for every few milliseconds, which costs microseconds, and only while something boots.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

_log = logging.getLogger(__name__)
INTERVAL = 0.005


class Booting(Protocol):
    """Something that is looked at until it has booted."""

    def poll(self) -> bool:
        """Look once, without waiting. False: nothing more is to be looked for."""


class BootWatcher:
    """Polls what boots. `close` when the daemon ends."""

    def __init__(self) -> None:
        self._booting: list[Booting] = []
        self._task: asyncio.Task[None] | None = None

    def add(self, booting: Booting) -> None:
        """Poll this from now on."""
        self._booting.append(booting)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="boot watcher")

    async def _run(self) -> None:
        while self._booting:
            for booting in list(self._booting):
                if not _poll(booting):
                    self._booting.remove(booting)
            await asyncio.sleep(INTERVAL)

    async def close(self) -> None:
        """Look no more."""
        self._booting.clear()
        if self._task is not None:
            await self._task


def _poll(booting: Booting) -> bool:
    try:
        return booting.poll()
    except Exception:
        _log.exception("cannot watch a boot")
        return False
