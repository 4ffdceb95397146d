# SPDX-License-Identifier: Apache-2.0
"""The process for the bus, as a thread, with a bus of the test's."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from hypemand.systemd.bus import Worker
from hypemand.systemd.busworker import BusWorker

DEADLINE = 60.0


class BusThread:
    """Stands for the process. `open_bus`: gives a connection, or raises Failure."""

    def __init__(self, end: socket.socket, open_bus: Callable[[], Any]) -> None:
        self._end = end.dup()
        self._thread = threading.Thread(target=BusWorker(self._end, open_bus).run)
        self._thread.start()

    def kill(self) -> None:
        """End it, as soon as the call that is under way has ended."""
        self._end.shutdown(socket.SHUT_RDWR)

    async def wait(self) -> None:
        """Until it has ended."""
        await asyncio.to_thread(self._thread.join, DEADLINE)
        assert not self._thread.is_alive()
        self._end.close()


def in_thread(open_bus: Callable[[], Any]) -> Callable[[socket.socket], Awaitable[Worker]]:
    """For SystemBus, in place of what starts the process."""

    async def start(end: socket.socket) -> Worker:
        return BusThread(end, open_bus)

    return start
