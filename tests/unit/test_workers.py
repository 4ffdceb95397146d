# SPDX-License-Identifier: Apache-2.0
"""Work in threads: what they work on is closed after it, and one kind of work does not wait for another."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from hypemand.workers import Closed, Lent, Pool, run_in

DEADLINE = 60.0


class Thing:
    """Something that must not be closed while a thread works on it."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go = threading.Event()
        self.closed_at: list[bool] = []
        self.is_working = False

    def work(self) -> str:
        self.is_working = True
        self.begun.set()
        assert self.go.wait(DEADLINE)
        self.is_working = False
        return "done"

    def close(self) -> None:
        self.closed_at.append(self.is_working)


async def until_closed(thing: Thing) -> None:
    async with asyncio.timeout(DEADLINE):
        while not thing.closed_at:  # noqa: ASYNC110 - a thread does it
            await asyncio.sleep(0.005)


def test_a_caller_who_leaves_does_not_close_it_under_the_thread() -> None:
    async def main() -> None:
        thing = Thing()
        lent = Lent(Pool.LOGS, thing, Thing.close)
        task = asyncio.create_task(lent.run(Thing.work))
        await asyncio.to_thread(thing.begun.wait, DEADLINE)
        task.cancel()
        began = time.monotonic()
        lent.close()
        assert time.monotonic() - began < DEADLINE / 2, "the event loop waits for no thread"
        await asyncio.sleep(0.05)
        assert thing.closed_at == []
        thing.go.set()
        await until_closed(thing)
        assert thing.closed_at == [False]

    asyncio.run(main())


def test_what_is_closed_is_closed_once_and_works_no_more() -> None:
    async def main() -> None:
        thing = Thing()
        lent = Lent(Pool.LOGS, thing, Thing.close)
        lent.close()
        lent.close()
        await until_closed(thing)
        with pytest.raises(Closed):
            await lent.run(Thing.work)
        assert thing.closed_at == [False]

    asyncio.run(main())


def test_one_thread_at_a_time_works_on_it() -> None:
    async def main() -> None:
        lent = Lent(Pool.SPOOL, [0], lambda _: None)

        def add(counts: list[int]) -> None:
            seen = counts[0]
            time.sleep(0.001)
            counts[0] = seen + 1

        await asyncio.gather(*(lent.run(add) for _ in range(20)))
        assert await lent.run(lambda counts: counts[0]) == 20

    asyncio.run(main())


def test_a_kind_whose_threads_are_all_busy_holds_up_no_other() -> None:
    async def main() -> None:
        go = threading.Event()
        busy = [
            asyncio.create_task(run_in(Pool.TOOLS, go.wait, DEADLINE)) for _ in range(2 * Pool.TOOLS.value)
        ]
        try:
            assert await asyncio.wait_for(run_in(Pool.TOKENS, lambda: "served"), DEADLINE) == "served"
            assert not any(task.done() for task in busy)
        finally:
            go.set()
            await asyncio.gather(*busy)

    asyncio.run(main())
