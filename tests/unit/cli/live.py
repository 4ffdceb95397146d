# SPDX-License-Identifier: Apache-2.0
"""The API and the manager as they are, over a fake host, in a thread: for tests that drive hypemanctl."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from hypemand.config.definition import MIB, DefinitionDefaults
from hypemand.model.state import State
from tests.fakes.api import make_services, serving
from tests.fakes.host import FakeHost, folder_in_memory, running

T = TypeVar("T")
_DEADLINE = 60.0
_SMALL = DefinitionDefaults(memory=96 * MIB, disk=64 * MIB, network=None)


class Live:
    """A host with its daemon, for another thread."""

    def __init__(self, host: FakeHost, loop: asyncio.AbstractEventLoop) -> None:
        self.host = host
        self._loop = loop

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Have something done there."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_DEADLINE)

    def call(self, function: Callable[..., T], *arguments: object) -> T:
        """Have something called there."""

        async def work() -> T:
            return function(*arguments)

        return self.do(work())

    def put(self, name: str, state: State = State.STOPPED, **keys: object) -> None:
        """A VM in that state."""
        self.do(self.host.put(name, state, **keys))

    def until(self, state: State, name: str = "web") -> None:
        """Wait until it is in that state."""
        self.do(self.host.until(state, name))

    def until_true(self, condition: Callable[[], bool]) -> None:
        """Wait for it."""
        self.do(self.host.until_true(condition))

    def names(self) -> list[str]:
        """Of the VMs that there are."""
        return sorted(vm.name for vm in self.host.parts.fleet)


@contextmanager
def start(path: Path) -> Iterator[Live]:
    """Serve on a socket at `path` as long as the block lasts. VMs are small unless they say otherwise."""
    lives: list[Live] = []
    begun, ended = threading.Event(), asyncio.Event()

    async def main(folder: Path) -> None:
        async with running(folder) as host:
            services = replace(make_services(host), defaults=lambda: _SMALL)
            async with serving(host, path, services):
                lives.append(Live(host, asyncio.get_running_loop()))
                begun.set()
                await ended.wait()

    def run() -> None:
        try:
            with folder_in_memory() as folder:
                asyncio.run(main(folder / "host"))
        finally:
            begun.set()

    thread = threading.Thread(target=run, name="live")
    thread.start()
    begun.wait(_DEADLINE)
    (live,) = lives
    try:
        yield live
    finally:
        live.call(ended.set)
        thread.join(_DEADLINE)
