# SPDX-License-Identifier: Apache-2.0
"""The clock of a guest is right when it was set, also where the guest, or the host, was busy meanwhile."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterable

import pytest

from hypemand.errors import GuestError, TimedOut
from hypemand.tasks import Tasks
from hypemand.vm import guestclock
from hypemand.vm.guestclock import LATE, GuestClock


class Agent:
    """Answers each order after so many seconds of its own clock; None: not in time."""

    def __init__(self, takes: Iterable[float | None]) -> None:
        self.now = 0.0
        self.orders = 0
        self._takes = iter(takes)
        self.on_order: Callable[[], None] = lambda: None

    async def set_clock(self) -> None:
        self.orders += 1
        takes = next(self._takes)
        await asyncio.sleep(0)
        self.now += 5.0 if takes is None else takes
        self.on_order()
        if takes is None:
            raise TimedOut("the guest did not set its clock in 5 s")


async def keep(agent: Agent) -> None:
    """Have its clock kept, as far as that goes."""
    tasks = Tasks("test")
    GuestClock("web", tasks, agent.set_clock, lambda: True, lambda: agent.now).keep()
    await tasks.close(patience=60)


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guestclock, "_PAUSES", (0.001,) * 8)


def test_an_answer_in_time_is_enough() -> None:
    agent = Agent(itertools.repeat(LATE / 2))
    asyncio.run(keep(agent))
    assert agent.orders == 1


def test_an_order_whose_answer_took_long_is_repeated_and_so_is_one_without_an_answer() -> None:
    agent = Agent([2.0, None, 2 * LATE, 0.01])
    asyncio.run(keep(agent))
    assert agent.orders == 4


def test_a_guest_that_always_answers_late_is_asked_a_few_times(caplog: pytest.LogCaptureFixture) -> None:
    agent = Agent(itertools.repeat(1.0))
    asyncio.run(keep(agent))
    assert agent.orders == 9
    assert "VM web: its clock may be wrong" in caplog.text


def test_a_guest_that_stands_still_is_not_asked_until_it_goes_on() -> None:
    async def scenario() -> None:
        runs = True

        def pause() -> None:
            nonlocal runs
            runs = False

        agent, tasks = Agent([1.0, 0.01]), Tasks("test")
        agent.on_order = pause
        clock = GuestClock("web", tasks, agent.set_clock, lambda: runs, lambda: agent.now)
        for _ in range(2):
            clock.keep()
            await tasks.close(patience=60)
            assert agent.orders == 1
        runs, agent.on_order = True, lambda: None
        clock.keep()
        await tasks.close(patience=60)
        assert agent.orders == 2

    asyncio.run(scenario())


@pytest.mark.parametrize(("takes", "orders"), [(LATE / 2, 0), (2 * LATE, 1)])
def test_another_order_that_sets_it_is_enough_if_its_answer_came_in_time(takes: float, orders: int) -> None:
    async def scenario() -> None:
        agent, tasks = Agent([0.01]), Tasks("test")

        async def thaw() -> None:
            agent.now += takes

        await GuestClock("web", tasks, agent.set_clock, lambda: True, lambda: agent.now).set_by(thaw)
        await tasks.close(patience=60)
        assert agent.orders == orders

    asyncio.run(scenario())


def test_what_goes_wrong_is_logged_and_it_is_set_the_next_time(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        agent, tasks = Agent([0.01, 0.01]), Tasks("test")

        def refuse() -> None:
            raise GuestError("the agent has gone")

        agent.on_order = refuse
        clock = GuestClock("web", tasks, agent.set_clock, lambda: True, lambda: agent.now)
        clock.keep()
        await tasks.close(patience=60)
        assert "VM web: its clock may be wrong: the agent has gone" in caplog.text
        agent.on_order = lambda: None
        clock.keep()
        await tasks.close(patience=60)
        assert agent.orders == 2

    asyncio.run(scenario())
