# SPDX-License-Identifier: Apache-2.0
"""Background tasks have a name, end with their owner, and lose no failure."""

from __future__ import annotations

import asyncio
import gc
import logging
from contextlib import suppress

import pytest

from hypemand.tasks import Tasks, finish


async def fail() -> None:
    await asyncio.sleep(0)
    raise LookupError("lost")


def errors_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_failure_is_logged_once_with_its_name(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        tasks = Tasks("VM web")
        task = tasks.start("refresh", fail())
        await asyncio.wait([task])
        await tasks.close()

    asyncio.run(run())
    gc.collect()
    assert errors_of(caplog) == ["refresh of VM web failed"]
    assert "LookupError: lost" in caplog.text


def test_a_failure_that_is_awaited_is_raised_there_alone(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async with Tasks("VM web") as tasks:
            with pytest.raises(LookupError):
                await tasks.start("look", fail(), awaited=True)

    asyncio.run(run())
    gc.collect()
    assert errors_of(caplog) == []


def test_a_failure_that_was_to_be_awaited_is_not_lost_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        async with Tasks("VM web") as tasks:
            await asyncio.wait([tasks.start("look", fail(), awaited=True)])

    asyncio.run(run())
    gc.collect()
    (error,) = errors_of(caplog)
    assert "look of VM web" in error


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_shielded_work_goes_on_and_its_failure_is_known(
    caplog: pytest.LogCaptureFixture, *, is_cancelled: bool
) -> None:
    """asyncio.shield drops what is raised when its caller was cancelled before."""

    async def run() -> None:
        tasks = Tasks("VMs")
        may_fail = asyncio.Event()

        async def work() -> None:
            await may_fail.wait()
            raise LookupError("lost")

        async with Tasks("test") as callers:
            caller = callers.start("call", tasks.run_shielded("undo", work()), awaited=True)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            if is_cancelled:
                caller.cancel()
                await asyncio.wait([caller])
            may_fail.set()
            await asyncio.wait([caller])
            assert caller.cancelled() == is_cancelled
            assert is_cancelled or isinstance(caller.exception(), LookupError)
        await asyncio.sleep(0)

    asyncio.run(run())
    gc.collect()
    assert errors_of(caplog) == ["undo of VMs failed"] * is_cancelled


def test_all_end_with_their_owner_also_what_they_start_then() -> None:
    ended: list[str] = []

    async def run() -> None:
        tasks = Tasks("VM web")

        async def work(name: str) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(name)
                if name == "first":
                    tasks.start("second", work("second"))
                    await asyncio.sleep(0)

        tasks.start("first", work("first"))
        await asyncio.sleep(0)
        await tasks.close()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())
    assert ended == ["first", "second"]


def test_what_ends_by_itself_in_time_is_not_cancelled() -> None:
    async def run() -> None:
        tasks = Tasks("VM web")
        may_end = asyncio.Event()
        asyncio.get_running_loop().call_later(0.01, may_end.set)
        quick = tasks.start("quick", may_end.wait())
        slow = tasks.start("slow", asyncio.Event().wait())
        await tasks.close(patience=0.2)
        assert quick.result() is True
        assert slow.cancelled()

    asyncio.run(run())


def test_a_task_that_does_not_end_is_named_and_left(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        tasks = Tasks("VM web")
        may_end = asyncio.Event()

        async def work() -> None:
            while not may_end.is_set():
                with suppress(asyncio.CancelledError):
                    await may_end.wait()

        task = tasks.start("stubborn", work())
        await asyncio.sleep(0)
        await tasks.close(deadline=0.05)
        may_end.set()
        await task

    asyncio.run(run())
    assert errors_of(caplog) == ["stubborn of VM web was cancelled, and has not ended in 0.05 s"]


def test_a_task_may_close_its_own_group() -> None:
    async def run() -> None:
        tasks = Tasks("VM web")
        other = tasks.start("other", asyncio.Event().wait())
        await tasks.start("end", tasks.close(), awaited=True)
        assert other.cancelled()

    asyncio.run(run())


def test_a_caller_that_is_cancelled_waits_for_work_that_is_finished() -> None:
    async def run() -> None:
        may_end, done = asyncio.Event(), asyncio.Event()

        async def work() -> None:
            await may_end.wait()
            done.set()

        async with Tasks("test") as callers:
            caller = callers.start("call", finish(work(), "work"), awaited=True)
            await asyncio.sleep(0)
            caller.cancel()
            await asyncio.sleep(0)
            assert not caller.done()
            may_end.set()
            await asyncio.wait([caller])
        assert caller.cancelled()
        assert done.is_set()

    asyncio.run(run())
