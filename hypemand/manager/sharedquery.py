# SPDX-License-Identifier: Apache-2.0
"""Expensive queries of the host, made once for concurrent callers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from hypemand.tasks import Tasks

T = TypeVar("T")


class _Query(Generic[T]):
    """A query under way and the number of its callers. Cancelled when the last of them leaves."""

    def __init__(self, task: asyncio.Task[T]) -> None:
        self.task = task
        self.callers = 0
        # whoever leaves
        self.goes_on = False

    async def wait(self) -> T:
        self.callers += 1
        try:
            return await asyncio.shield(self.task)
        finally:
            self.callers -= 1
            if self.callers == 0 and not self.goes_on:
                self.task.cancel()


class SharedQuery(Generic[T]):
    """One query at a time: callers that ask while one is under way get its result too, so a hundred clients
    that ask at once cost PID 1 and the disk as much as one. `outdate` after a change of what is queried."""

    def __init__(self, name: str, query: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._tasks = Tasks(name)
        self._query = query
        self._current: _Query[T] | None = None

    async def take(self) -> T:
        """The result of the query, or what it raises."""
        return await self._join().wait()

    async def take_within(self, seconds: float) -> bool:
        """Wait for the query, and at most so long: True if it has come to its end. Else it goes on, and who
        asks meanwhile joins it. What it raises is raised, or logged if nobody waits any more."""
        query = self._join()
        query.goes_on = True
        try:
            async with asyncio.timeout(seconds):
                await query.wait()
        except TimeoutError:
            self._tasks.log_failure(query.task)
            return False
        return True

    async def close(self) -> None:
        """End the query that goes on."""
        await self._tasks.close()

    def _join(self) -> _Query[T]:
        current = self._current
        is_left = current is not None and current.callers == 0 and not current.goes_on
        if current is None or is_left or current.task.done():
            current = self._current = _Query(self._tasks.start("query", self._query(), awaited=True))
        return current

    def outdate(self) -> None:
        """Callers from now on get a query that begins after this. One that is under way goes on for those who
        wait for it."""
        self._current = None
