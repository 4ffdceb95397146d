# SPDX-License-Identifier: Apache-2.0
"""Expensive queries of the host, made once for concurrent callers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from hypemand.tasks import Tasks

T = TypeVar("T")


class _Look(Generic[T]):
    """One look, and how many wait for it. It ends when nobody does any more."""

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


class SharedLook(Generic[T]):
    """One query at a time: callers that ask while one is under way get its result too, so a hundred clients
    that ask at once cost PID 1 and the disk as much as one. `outdate` after a change of what is queried."""

    def __init__(self, name: str, look: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._tasks = Tasks(name)
        self._look = look
        self._current: _Look[T] | None = None

    async def take(self) -> T:
        """What the look finds, or raises."""
        current = self._current
        if current is None or current.callers == 0 or current.task.done():
            current = self._current = _Look(self._tasks.start("look", self._look(), awaited=True))
        return await current.wait()

    def outdate(self) -> None:
        """Who asks from now on has a look that begins after this. One that is under way goes on for those who
        wait for it."""
        self._current = None
