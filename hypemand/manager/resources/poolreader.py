# SPDX-License-Identifier: Apache-2.0
"""Reads the pools of volumes before each use of them: the records of those that other hosts have too, and the
free space of all."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from hypemand.storage.pools import VolumePool
from hypemand.storage.volumes import VolumeStore
from hypemand.tasks import Tasks
from hypemand.workers import Pool, run_in

# a file server that does not answer holds a thread, and nothing else
_DEADLINE = 10.0


class PoolReader:
    """One read of a pool at a time: who asks while one is under way waits for that."""

    def __init__(self, store: VolumeStore, deadline: float = _DEADLINE) -> None:
        self._store = store
        self._deadline = deadline
        self._tasks = Tasks("the pools")
        self._reads: dict[VolumePool, asyncio.Task[None]] = {}

    async def read(self, refs: Collection[str] | None = None) -> None:
        """Read all pools, or those of which `refs`, names or ids of volumes, have one. A shared pool that
        cannot be read in time has no volumes, and says why."""
        reads = {pool: self._join(pool) for pool in self._store.list_pools(refs)}
        if not reads:
            return
        await asyncio.wait(reads.values(), timeout=self._deadline)
        for pool, task in reads.items():
            if pool.shared and not task.done():
                pool.lose(f"it was not read within {self._deadline:g} s")

    def _join(self, pool: VolumePool) -> asyncio.Task[None]:
        task = self._reads.get(pool)
        if task is None:
            task = self._tasks.start(f"read of the pool {pool.name}", run_in(Pool.POOLS, pool.refresh))
            self._reads[pool] = task
            task.add_done_callback(lambda _: self._reads.pop(pool))
        return task
