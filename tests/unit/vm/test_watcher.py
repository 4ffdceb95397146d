# SPDX-License-Identifier: Apache-2.0
"""What boots is looked at as often as it asks for, and no longer."""

import asyncio

import pytest

from hypemand.vm.watcher import LATER, SOON, BootWatcher

DEADLINE = 60.0
# which does not go by in a test
NEVER = 3600.0


class Boot:
    """Answers a look with the next of `looks`; an exception is raised instead."""

    def __init__(self, *looks: float | Exception | None) -> None:
        self._looks = list(looks)
        self.times: list[float] = []
        self.over = asyncio.Event()

    def poll(self) -> float | None:
        self.times.append(asyncio.get_running_loop().time())
        look = self._looks.pop(0)
        if not self._looks:
            self.over.set()
        if isinstance(look, Exception):
            raise look
        return look


async def watch(*boots: Boot) -> None:
    """Until all have had their looks, and then for as long as it would take to look again."""
    watcher = BootWatcher()
    for boot in boots:
        watcher.add(boot)
    async with asyncio.timeout(DEADLINE):
        for boot in boots:
            await boot.over.wait()
    await asyncio.sleep(SOON * 4)
    watcher.close()


def test_it_is_looked_at_until_it_says_never() -> None:
    async def run() -> None:
        boot = Boot(SOON, SOON, None)
        await watch(boot)
        assert len(boot.times) == 3

    asyncio.run(run())


def test_later_is_later_than_soon() -> None:
    async def run() -> None:
        boot = Boot(SOON, LATER, None)
        await watch(boot)
        first, second, third = boot.times
        assert second - first >= SOON
        assert third - second >= LATER

    asyncio.run(run())


def test_one_that_waits_for_later_holds_up_no_other() -> None:
    async def run() -> None:
        slow, quick = Boot(NEVER, None), Boot(*[SOON] * 3, None)
        watcher = BootWatcher()
        for boot in (slow, quick):
            watcher.add(boot)
        async with asyncio.timeout(DEADLINE):
            await quick.over.wait()
        assert len(slow.times) == 1
        watcher.close()

    asyncio.run(run())


def test_one_that_fails_is_told_once_and_looked_at_again(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        broken = Boot(OSError("no journal"), OSError("no journal"), None)
        other = Boot(SOON, None)
        await watch(broken, other)
        assert (len(broken.times), len(other.times)) == (3, 2)

    asyncio.run(run())
    assert caplog.text.count("OSError: no journal") == 1


def test_one_that_is_added_again_is_looked_at_now_and_by_one_timer() -> None:
    async def run() -> None:
        watcher = BootWatcher()
        boot = Boot(NEVER, None, None)
        failed: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: failed.append(context))
        watcher.add(boot)
        async with asyncio.timeout(DEADLINE):
            while not boot.times:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(SOON)
            watcher.add(boot)
            watcher.add(boot)
            while len(boot.times) == 1:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(SOON)
        await asyncio.sleep(2 * LATER)
        assert (len(boot.times), failed) == (2, [])
        watcher.close()

    asyncio.run(run())


def test_a_closed_watcher_looks_no_more() -> None:
    async def run() -> None:
        watcher = BootWatcher()
        boot = Boot(SOON, SOON)
        watcher.add(boot)
        watcher.close()
        await asyncio.sleep(SOON * 4)
        assert boot.times == []

    asyncio.run(run())


def test_what_is_added_after_the_end_is_not_looked_at() -> None:
    async def run() -> None:
        boot, watcher = Boot(None), BootWatcher()
        watcher.close()
        watcher.add(boot)
        await asyncio.sleep(SOON * 4)
        assert boot.times == []

    asyncio.run(run())
