# SPDX-License-Identifier: Apache-2.0
"""Operations on one VM that meet: whatever their order, one VMM at most, and a state that is the host's."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from hypemand.errors import HypemandError, NotFound
from hypemand.model.state import State
from tests.fakes.host import FakeHost, define, drive


async def outcome(work: Awaitable[object]) -> Exception | None:
    """What went wrong, of what may go wrong."""
    try:
        await work
    except (HypemandError, OSError) as error:
        return error
    return None


async def hold_start(host: FakeHost) -> tuple[asyncio.Task[object], asyncio.Event]:
    """A start whose unit systemd has taken and not answered for; it does when the event is set."""
    taken, go_on = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        taken.set()
        await go_on.wait()

    host.systemd.hooks["StartTransientUnit"] = wait
    task = asyncio.ensure_future(host.manager.start_vm("web"))
    await taken.wait()
    return task, go_on


async def deaf_stop(host: FakeHost) -> asyncio.Task[object]:
    """A stop that its guest does not heed."""
    host.guest().heeds = False
    task = asyncio.ensure_future(host.manager.stop_vm("web"))
    await host.until_true(lambda: host.unit() == "deactivating/stop")
    return task


def test_starts_at_once_are_one() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.create(network="default")
        await asyncio.gather(*(host.manager.start_vm("web") for _ in range(5)))
        await host.until(State.RUNNING)
        assert host.vmms.runs == {"web": 1}
        assert host.systemd.asked.count("StartTransientUnit") == 1

    drive(scenario)


def test_restarts_at_once_are_made_one_after_the_other() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run(network="default")
        await asyncio.gather(*(host.manager.restart_vm("web") for _ in range(3)))
        await host.until(State.RUNNING)
        assert host.vmms.runs == {"web": 4}
        assert len(host.network.taps) == 1
        await host.stop_for_good()

    drive(scenario)


@pytest.mark.parametrize("last", ["stop", "restart"])
def test_of_a_restart_and_a_stop_the_later_one_counts(last: str) -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run(network="default")
        works = [host.manager.restart_vm("web"), host.manager.stop_vm("web")]
        assert await asyncio.gather(*map(outcome, works if last == "stop" else works[::-1])) == [None, None]
        if last == "stop":
            assert host.vm().state is State.STOPPED
            assert host.traces() == []
        await host.start()
        assert len(host.network.taps) == 1

    drive(scenario)


def test_a_start_while_it_is_being_stopped_waits_for_the_end() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run(network="default")
        first = host.vmm()
        stop = await deaf_stop(host)
        start = asyncio.ensure_future(host.manager.start_vm("web"))
        await asyncio.sleep(0.01)
        assert host.vmms.runs == {"web": 1}
        first.exit(0)
        await asyncio.gather(stop, start)
        await host.until(State.RUNNING)
        assert host.vmms.runs == {"web": 2}
        assert len(host.network.taps) == 1

    drive(scenario)


def test_a_stop_while_it_is_being_started_stops_it() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.create(network="default")
        start, go_on = await hold_start(host)
        stop = asyncio.ensure_future(host.manager.stop_vm("web"))
        await asyncio.sleep(0.01)
        go_on.set()
        assert await outcome(start) is None
        assert await outcome(stop) is None
        assert host.vm().state is State.STOPPED
        assert host.traces() == []

    drive(scenario)


@pytest.mark.parametrize("held", [True, False])
def test_a_stop_of_a_start_whose_job_waits(*, held: bool) -> None:
    async def scenario(host: FakeHost) -> None:
        await host.create(network="default")
        with host.systemd.jobs_held(host.vm().unit if held else ""):
            await host.manager.start_vm("web")
            assert host.vm().state.is_vmm_active
            assert (await host.manager.stop_vm("web")).state is State.STOPPED
        assert host.traces() == []
        assert host.vmms.runs.get("web", 0) <= (0 if held else 1)

    drive(scenario)


def test_systemd_stops_it_while_it_is_being_started() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.create(network="default")
        start, go_on = await hold_start(host)
        await host.until_true(lambda: host.unit() is not None)
        host.systemd.jobs.add(host.vm().unit, "stop", "replace")
        await host.until_true(lambda: host.unit() is None)
        go_on.set()
        await outcome(start)
        await host.until_ended()
        assert host.traces() == []

    drive(scenario)


# --- delete ---


async def while_it_is_stopped(host: FakeHost) -> list[asyncio.Task[object]]:
    await host.run(network="default", stop_timeout="1s")
    return [await deaf_stop(host)]


async def while_it_is_started(host: FakeHost) -> list[asyncio.Task[object]]:
    await host.create(network="default")
    start, go_on = await hold_start(host)
    asyncio.get_running_loop().call_later(0.02, go_on.set)
    return [start]


async def while_it_is_restarted(host: FakeHost) -> list[asyncio.Task[object]]:
    await host.run(network="default")
    return [asyncio.ensure_future(host.manager.restart_vm("web"))]


async def while_it_boots(host: FakeHost) -> list[asyncio.Task[object]]:
    host.guest().boots = False
    await host.create(network="default")
    await host.manager.start_vm("web")
    return []


async def while_it_is_deleted(host: FakeHost) -> list[asyncio.Task[object]]:
    await host.run(network="default")
    return [asyncio.ensure_future(host.manager.delete_vm("web"))]


async def while_it_is_waited_for(host: FakeHost) -> list[asyncio.Task[object]]:
    host.guest().boots = False
    await host.create(network="default")
    await host.manager.start_vm("web")
    return [asyncio.ensure_future(host.manager.wait_vm("web", State.RUNNING, 30))]


@pytest.mark.parametrize(
    "begin",
    [
        while_it_is_stopped,
        while_it_is_started,
        while_it_is_restarted,
        while_it_boots,
        while_it_is_deleted,
        while_it_is_waited_for,
    ],
)
def test_a_delete_in_the_midst_of_something_leaves_nothing(
    begin: Callable[[FakeHost], Awaitable[list[asyncio.Task[object]]]],
) -> None:
    async def scenario(host: FakeHost) -> None:
        others = await begin(host)
        await asyncio.sleep(0)
        failed = await outcome(host.manager.delete_vm("web"))
        assert failed is None or (begin is while_it_is_deleted and isinstance(failed, NotFound))
        for error in await asyncio.gather(*map(outcome, others)):
            assert error is None or isinstance(error, HypemandError)
        host.check_gone()

    drive(scenario)


def test_a_name_is_free_again_after_a_delete_in_a_creation() -> None:
    async def scenario(host: FakeHost) -> None:
        taken, go_on = asyncio.Event(), asyncio.Event()

        async def wait() -> None:
            taken.set()
            await go_on.wait()

        host.systemd.hooks["StartTransientUnit"] = wait
        creation = asyncio.ensure_future(host.manager.create_vm(define(network="default"), start=True))
        await taken.wait()
        deletion = asyncio.ensure_future(host.manager.delete_vm("web"))
        await asyncio.sleep(0.01)
        go_on.set()
        await asyncio.gather(creation, deletion, return_exceptions=True)
        host.check_gone()
        await host.run(network="default")

    drive(scenario)


def test_many_at_random_end_as_the_host_says() -> None:
    """Six of each, interleaved: at the end nothing holds more than the one run that there may be."""

    async def scenario(host: FakeHost) -> None:
        await host.run(network="default", restart="on-failure")
        works: list[Awaitable[object]] = []
        for number in range(6):
            works += [host.manager.restart_vm("web"), host.manager.stop_vm("web")]
            works += [host.manager.start_vm("web"), host.manager.get_vm("web")]
            if number % 2:
                works.append(host.manager.kill_vm("web"))
        await asyncio.gather(*map(outcome, works))
        if host.vm().state.is_vmm_active:
            await host.until_true(lambda: host.vm().state is State.RUNNING)
            assert host.unit() == "active/running"
            assert len(host.network.taps) == 1
        await host.manager.stop_vm("web")
        assert host.traces() in ([], [host.vm().unit])

    drive(scenario)
