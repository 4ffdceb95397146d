# SPDX-License-Identifier: Apache-2.0
"""Waiting for the first of several things, and noticing that a client has gone."""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any, Never, TypeVar

from aiohttp import web

from hypemand.tasks import Tasks

T = TypeVar("T")


class Ended(Enum):
    """Why a stream or a WebSocket was ended from outside."""

    CLIENT = "the client has gone"
    DAEMON = "the daemon stops"


async def first_of(**work: Coroutine[Any, Any, T]) -> T:
    """Run all, give the result of the first that ends, cancel the rest and wait until they have ended.

    Where several have ended, the one named first counts. The names are those of the tasks.
    """
    tasks: list[asyncio.Task[T]] = []
    try:
        async with Tasks("a request") as group:
            tasks += (group.start(name, coroutine, awaited=True) for name, coroutine in work.items())
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            if task.done() and not task.cancelled():
                task.exception()  # what the others end with does not count
    return next(task for task in tasks if task in done).result()


async def wait_ended(event: asyncio.Event, why: Ended) -> Ended:
    """`why`, once `event` is set."""
    await event.wait()
    return why


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Something that is sent each so many seconds on a connection that may be silent for long: no proxy
    ends it then, and the kernel finds out when the peer has vanished."""

    beat: Callable[[], Awaitable[None]]
    seconds: float

    async def go_on(self) -> Never:
        """Until it fails, with ConnectionError when the client has gone."""
        while True:
            await asyncio.sleep(self.seconds)
            await self.beat()


async def unless_ended(
    request: web.Request,
    closing: asyncio.Event,
    work: Coroutine[Any, Any, T],
    heartbeat: Heartbeat | None = None,
) -> T | Ended:
    """The result of `work`, unless the client goes or the daemon stops (`closing`): then it is cancelled."""
    with watch_client(request) as gone:
        beside: dict[str, Coroutine[Any, Any, T | Ended]] = {
            "client": wait_ended(gone, Ended.CLIENT),
            "daemon": wait_ended(closing, Ended.DAEMON),
        }
        if heartbeat is not None:
            beside["heartbeat"] = heartbeat.go_on()
        result: T | Ended = await first_of(work=work, **beside)
    return result


@contextmanager
def watch_client(request: web.Request) -> Iterator[asyncio.Event]:
    """An event that is set when the client closes its end.

    Neither writing nor reading shows that: a stream without events does not write, and reading is paused
    while the guest takes no input. So the socket is polled for the hang-up alone.
    """
    gone = asyncio.Event()
    transport = request.transport
    if transport is None or transport.is_closing():
        gone.set()
        yield gone
        return
    loop = asyncio.get_running_loop()
    # A duplicate, so that the transport closing its own cannot make the hang-up unseen.
    connection = os.dup(transport.get_extra_info("socket").fileno())
    try:
        with select.epoll() as poller:
            poller.register(connection, select.EPOLLRDHUP)

            def hung_up() -> None:
                loop.remove_reader(poller.fileno())
                gone.set()

            loop.add_reader(poller.fileno(), hung_up)
            try:
                yield gone
            finally:
                loop.remove_reader(poller.fileno())
    finally:
        os.close(connection)
