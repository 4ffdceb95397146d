# SPDX-License-Identifier: Apache-2.0
"""Expensive queries of the host, made once for concurrent callers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class SharedLook(Generic[T]):
    """One look at a time: who asks while one is under way gets its result too. It ends when nobody waits for
    it any more. So a hundred clients who ask at once cost PID 1 and the disk as much as one."""

    def __init__(self, name: str, look: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._name = name
        self._look = look
        self._task: asyncio.Task[T] | None = None
        self._callers = 0

    async def take(self) -> T:
        """What the look finds, or raises."""
        task = self._task
        if task is None or task.done():
            task = self._task = asyncio.create_task(self._look(), name=self._name)
            self._callers = 0
        self._callers += 1
        try:
            return await asyncio.shield(task)
        finally:
            if task is self._task:
                self._callers -= 1
                if self._callers == 0:
                    self._task = None
                    task.cancel()
