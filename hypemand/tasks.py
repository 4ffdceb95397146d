# SPDX-License-Identifier: Apache-2.0
"""Background tasks: each has an owner, a name, and an end.

asyncio keeps no reference to a task, and what one raises that nobody awaits is reported when it is collected,
if at all (`asyncio.shield` drops it). So no other module starts one (tests/lint/test_tasks.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, TypeVar

_log = logging.getLogger(__name__)
_DEADLINE = 10.0
T = TypeVar("T")


class Tasks:
    """The background tasks of one owner, such as "VM web". As an asynchronous context manager it has them end
    with the block, for what begins and ends in one function."""

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, what: str, work: Coroutine[Any, Any, T], *, awaited: bool = False) -> asyncio.Task[T]:
        """Have `work` done. It is called `what` of the owner, and a failure is logged by that name, unless
        the result is `awaited`: then the failure is raised there."""
        task = asyncio.create_task(work, name=f"{what} of {self._owner}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if not awaited:
            self.log_failure(task)
        return task

    def log_failure(self, task: asyncio.Task[Any]) -> None:
        """Have its failure logged: nobody awaits its result any more."""
        task.add_done_callback(_log_failure)

    async def run_shielded(self, what: str, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, which goes on when the caller is cancelled. What it raises then is logged."""
        task = self.start(what, work, awaited=True)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            self.log_failure(task)
            raise

    async def close(self, *, patience: float = 0.0, deadline: float = _DEADLINE) -> None:
        """Wait `patience` seconds for the tasks to end, cancel the others, and wait for those too, at most
        `deadline` seconds; also for what they start meanwhile. A task may close its own group."""
        if patience > 0 and (tasks := self._list_others()):
            await asyncio.wait(tasks, timeout=patience)
        try:
            async with asyncio.timeout(deadline):
                while tasks := self._list_others():
                    for task in tasks:
                        task.cancel()
                    await asyncio.wait(tasks)
        except TimeoutError:
            for task in self._list_others():
                _log.error("%s was cancelled, and has not ended in %g s", task.get_name(), deadline)

    def _list_others(self) -> set[asyncio.Task[Any]]:
        return self._tasks - {asyncio.current_task()}

    async def __aenter__(self) -> Tasks:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


async def finish(work: Coroutine[Any, Any, T], name: str) -> T:
    """Do `work` to its end, also when the caller is cancelled meanwhile: only then is that raised. So what
    the caller holds, a lock or a reservation, is held until no thread works under it any more."""
    task = asyncio.create_task(work, name=name)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled from (None if task.cancelled() else task.exception())
    return task.result()


def _log_failure(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("%s failed", task.get_name(), exc_info=error)
