# SPDX-License-Identifier: Apache-2.0
"""Background tasks of a VM."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine

_log = logging.getLogger(__name__)


class Tasks:
    """Tasks that belong to the VM of that name. One that fails is logged."""

    def __init__(self, vm: str) -> None:
        self._vm = vm
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, what: str, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Have work done, which is called `what`."""
        task = asyncio.create_task(work, name=f"{what} of {self._vm}")
        self._tasks.add(task)
        task.add_done_callback(self._finish)
        return task

    def _finish(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("VM %s: task %s failed", self._vm, task.get_name(), exc_info=error)

    async def cancel(self) -> None:
        """End all that goes on."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
