# SPDX-License-Identifier: Apache-2.0
"""What boots is looked at as often as it asks for, and no longer."""

import asyncio

import pytest

from hypemand.boot.watcher import BootWatcher, Look


class Boot:
    """Answers a look with the next of `looks`; an exception is raised instead."""

    def __init__(self, *looks: Look | Exception) -> None:
        self._looks = list(looks)
        self.times: list[float] = []
        self.over = asyncio.Event()

    def poll(self) -> Look:
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
    async with asyncio.timeout(5):
        for boot in boots:
            await boot.over.wait()
    await asyncio.sleep(Look.SOON.value * 4)
    watcher.close()


def test_it_is_looked_at_until_it_says_never() -> None:
    async def run() -> None:
        boot = Boot(Look.SOON, Look.SOON, Look.NEVER)
        await watch(boot)
        assert len(boot.times) == 3

    asyncio.run(run())


def test_later_is_later_than_soon() -> None:
    async def run() -> None:
        boot = Boot(Look.SOON, Look.LATER, Look.NEVER)
        await watch(boot)
        first, second, third = boot.times
        assert second - first >= Look.SOON.value
        assert third - second >= Look.LATER.value

    asyncio.run(run())


def test_one_that_waits_for_later_holds_up_no_other() -> None:
    async def run() -> None:
        slow, quick = Boot(Look.LATER, Look.NEVER), Boot(*[Look.SOON] * 3, Look.NEVER)
        await watch(slow, quick)
        assert quick.times[-1] < slow.times[-1]

    asyncio.run(run())


def test_one_that_fails_is_told_and_looked_at_no_more(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        broken, other = Boot(OSError("no journal")), Boot(Look.SOON, Look.NEVER)
        await watch(broken, other)
        assert (len(broken.times), len(other.times)) == (1, 2)

    asyncio.run(run())
    assert "no journal" in caplog.text


def test_a_closed_watcher_looks_no_more() -> None:
    async def run() -> None:
        watcher = BootWatcher()
        boot = Boot(Look.SOON, Look.SOON)
        watcher.add(boot)
        watcher.close()
        await asyncio.sleep(Look.SOON.value * 4)
        assert boot.times == []

    asyncio.run(run())
