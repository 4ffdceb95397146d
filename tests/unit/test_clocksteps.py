# SPDX-License-Identifier: Apache-2.0
"""A step of the clock is an event."""

import asyncio

from hypemand.clocksteps import ClockSteps
from tests.hostclock import step_clock

DEADLINE = 60.0


def test_each_step_of_the_clock_is_told() -> None:
    async def main() -> None:
        told: asyncio.Queue[None] = asyncio.Queue()
        steps = ClockSteps(lambda: told.put_nowait(None))
        async with asyncio.timeout(DEADLINE):
            for _ in range(3):
                step_clock()
                await told.get()
        steps.close()

    asyncio.run(main())


def test_time_that_goes_by_is_no_step() -> None:
    async def main() -> None:
        told: list[None] = []
        steps = ClockSteps(lambda: told.append(None))
        await asyncio.sleep(0.05)
        steps.close()
        assert told == []

    asyncio.run(main())
