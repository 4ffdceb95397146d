# SPDX-License-Identifier: Apache-2.0
"""An event loop that stands still: that it is told, of what, and not too often."""

import asyncio
import hashlib
import logging
import threading
import time
from types import FunctionType

import pytest

from hypemand.turns import LOG_SECONDS, TurnCounts, TurnWatch


class Clock:
    """A clock that stands unless it is set."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def take_turn(watch: TurnWatch, clock: Clock, seconds: float) -> None:
    watch.begin()
    clock.now += seconds
    watch.end()


# longer than others may keep the CPU from a turn that is none of these, of which one is logged only
BLOCKED, SLOW = 2.0, 1.0


def wait_for_a_disk() -> None:
    time.sleep(BLOCKED)


def compute() -> None:
    until = time.thread_time() + BLOCKED
    while time.thread_time() < until:
        hashlib.sha256(b"x" * 100).hexdigest()


@pytest.mark.parametrize("work", [wait_for_a_disk, compute])
def test_what_holds_up_the_loop_is_named(work: FunctionType, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        await asyncio.sleep(0)
        work()
        await asyncio.sleep(0)

    with TurnWatch(slow=SLOW) as watch, asyncio.Runner(loop_factory=watch.make_loop) as runner:
        runner.run(main())
    assert watch.counts.slow == 1
    assert watch.counts.longest >= BLOCKED
    assert (watch.counts.longest_cpu >= 0.8 * BLOCKED) == (work is compute)
    (first,) = [record.getMessage() for record in caplog.records]
    assert f"{work.__name__} (unit/test_turns.py:" in first
    assert "main (unit/test_turns.py:" in first


def test_each_turn_is_counted_by_how_long_it_takes() -> None:
    clock = Clock()
    watch = TurnWatch(clock=clock)
    for seconds in (0.0005, 0.0015, 0.002, 0.07, 5.0):
        take_turn(watch, clock, seconds)
    found = dict(watch.durations.list_buckets())
    assert {word: found[word] for word in ("0.001", "0.0025", "0.05", "0.1", "2.5", "+Inf")} == {
        "0.001": 1.0,
        "0.0025": 3.0,
        "0.05": 3.0,
        "0.1": 4.0,
        "2.5": 4.0,
        "+Inf": 5.0,
    }
    assert abs(watch.durations.total - 5.074) < 1e-6


def test_waiting_for_events_is_no_turn(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        await asyncio.sleep(0.6)

    # so much that no slow machine reaches it, and less than what is waited for
    with TurnWatch(slow=0.5) as watch, asyncio.Runner(loop_factory=watch.make_loop) as runner:
        runner.run(main())
    assert watch.counts == TurnCounts()
    assert caplog.records == []


def test_each_slow_turn_is_counted_and_few_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    watch = TurnWatch(clock=clock)
    for _ in range(5):
        take_turn(watch, clock, 0.2)
    take_turn(watch, clock, 0.05)
    assert (watch.counts.slow, len(caplog.records)) == (5, 1)
    clock.now += LOG_SECONDS
    take_turn(watch, clock, 0.3)
    assert watch.counts.slow == 6
    assert watch.counts.longest == pytest.approx(0.3)
    assert "(the 6. time, 4 of them not logged)" in caplog.records[-1].getMessage()
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


def test_nothing_is_looked_for_while_the_loop_waits() -> None:
    async def main(watch: TurnWatch) -> None:
        loop, idle = asyncio.get_running_loop(), asyncio.Event()

        def look() -> None:
            while watch._is_due.is_set():
                time.sleep(0.01)
            loop.call_soon_threadsafe(idle.set)

        looker = threading.Thread(target=look)
        looker.start()
        async with asyncio.timeout(20):
            await idle.wait()
        looker.join()

    with TurnWatch() as watch, asyncio.Runner(loop_factory=watch.make_loop) as runner:
        runner.run(main(watch))
