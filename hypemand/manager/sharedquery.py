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

    async def wait(self) -> T:
        self.callers += 1
        try:
            return await asyncio.shield(self.task)
        finally:
            self.callers -= 1
            if self.callers == 0:
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
        current = self._current
        if current is None or current.callers == 0 or current.task.done():
            current = self._current = _Query(self._tasks.start("query", self._query(), awaited=True))
        return await current.wait()

    def outdate(self) -> None:
        """Callers from now on get a query that begins after this. One that is under way goes on for those who
        wait for it."""
        self._current = None
