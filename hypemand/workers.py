# SPDX-License-Identifier: Apache-2.0
"""Blocking work in threads: a pool for each kind, and resources that are closed after their threads.

A pool of its own keeps one kind of work from waiting for another: asyncio's default pool has a handful of
threads, and five slow volumes would hold up the check of a token.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from enum import Enum, unique
from functools import cache, partial
from typing import Generic, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")


@unique
class Pool(Enum):
    """A kind of work, and the most threads that it takes. Threads are started when they are needed."""

    RECORDS = 4  # short reads and writes of our own files, with fsync(2)
    IMAGES = 5  # the image store: locks, hashes, folders of many files
    STARTS = 8  # the files of a VM that is being started
    TOOLS = 6  # minutes: replays of a journal, growth and removal of disks
    POOLS = 9  # records on storage that hosts share, which may not answer
    TOKENS = 1
    LOGS = 7  # the journal, read by clients
    SPOOL = 3  # uploads that are kept meanwhile
    ARCHIVES = 2  # VMs that are exported and imported: a piece at a time

    def __str__(self) -> str:
        return self.name.lower()


@cache
def _threads(pool: Pool) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(pool.value, thread_name_prefix=str(pool))


async def run_in(pool: Pool, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """What `work` returns or raises. When the caller is cancelled, the thread goes on to its end: what it
    works on must not be closed before, see Lent."""
    call = partial(contextvars.copy_context().run, work, *args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(_threads(pool), call)


class Closed(Exception):
    """Work was asked of something that has been closed."""


class Lent(Generic[T]):
    """Something that threads work on, one at a time, and that is closed only when none does.

    A handle of a C library that is freed under a thread ends the process; a descriptor that is closed under
    one may be another file when the thread writes to it.
    """

    def __init__(self, pool: Pool, thing: T, close: Callable[[T], None]) -> None:
        self._pool = pool
        self._thing = thing
        self._close = close
        self._lock = threading.Lock()
        self._is_closed = False

    async def run(self, work: Callable[[T], R]) -> R:
        """What `work` returns for the thing. Raises Closed."""
        return await run_in(self._pool, self._work, work)

    def _work(self, work: Callable[[T], R]) -> R:
        with self._lock:
            if self._is_closed:
                raise Closed
            return work(self._thing)

    def close(self) -> None:
        """Close it, in a thread, when the work on it that is under way has ended. Waits for nothing; may be
        called again."""
        _threads(self._pool).submit(self._end)

    def _end(self) -> None:
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._close(self._thing)
