# SPDX-License-Identifier: Apache-2.0
"""Subscribers to changes of a VM, or of an image that is being pulled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Changes:
    """Those who wait for a change of what is shown of one thing: its state, its status text, or what else."""

    def __init__(self) -> None:
        self._watchers: set[asyncio.Event] = set()

    def tell(self) -> None:
        """Something has changed."""
        for event in self._watchers:
            event.set()

    @contextmanager
    def watching(self) -> Iterator[asyncio.Event]:
        """An event that is set at each change, for as long as it is held."""
        event = asyncio.Event()
        self._watchers.add(event)
        try:
            yield event
        finally:
            self._watchers.discard(event)

    async def wait_for(self, condition: Callable[[], bool], timeout: float | None) -> bool:
        """Wait until `condition` holds. False when `timeout` seconds have passed before."""
        with self.watching() as changed:
            try:
                async with asyncio.timeout(timeout):
                    while not condition():
                        changed.clear()
                        await changed.wait()
            except TimeoutError:
                return condition()
        return True
