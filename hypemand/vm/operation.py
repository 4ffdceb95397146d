# SPDX-License-Identifier: Apache-2.0
"""Operations that change a VM: one at a time, in the order of the requests, and visible meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

from hypemand.errors import HypemandError, NotFound, WrongState
from hypemand.model.caller import CALLER
from hypemand.model.state import Operation
from hypemand.model.vm import OngoingOperation
from hypemand.tasks import Tasks

T = TypeVar("T")


class OperationCancelled(HypemandError):
    """Another operation has cancelled what this one waited for."""


class Ongoing:
    """An operation that is under way. `is_cancelled`: it was asked to end."""

    def __init__(self, name: Operation) -> None:
        self.info = OngoingOperation(name, CALLER.get(), time.time())
        self.is_cancelled = False
        self._wait: asyncio.Task[Any] | None = None

    async def await_cancellable(self, work: Coroutine[Any, Any, T], name: str) -> T:
        """The result of `work`, which `cancel` ends. Raises OperationCancelled then."""
        async with Tasks(f"operation {self.info.name}") as tasks:
            wait: asyncio.Task[T] = tasks.start(name, work, awaited=True)
            self._wait = wait
            try:
                return await wait
            except asyncio.CancelledError:
                current = asyncio.current_task()
                if current is not None and current.cancelling():
                    raise
                raise OperationCancelled("it was cancelled") from None
            finally:
                self._wait = None

    def cancel(self) -> None:
        """End what it waits for, if that can be ended; else it takes its time."""
        self.is_cancelled = True
        if self._wait is not None:
            self._wait.cancel()


class Operations:
    """Those of the VM of that name. `on_change` is called when another one is under way, or none. `gone`:
    where it is there no more, what it has, as "been deleted"."""

    def __init__(self, vm: str, on_change: Callable[[], None]) -> None:
        self.current: Ongoing | None = None
        self.gone = ""
        self._vm = vm
        self._on_change = on_change
        self._announced: list[Ongoing] = []
        self._lock = asyncio.Lock()

    @property
    def is_busy(self) -> bool:
        """Is one under way, or about to be?"""
        return self._lock.locked()

    @asynccontextmanager
    async def hold(self, name: Operation, *, patience: float | None = None) -> AsyncIterator[Ongoing]:
        """Be the only operation on the VM in the block. Raises NotFound when the VM has gone meanwhile,
        and WrongState when others were under way for `patience` seconds; and at once while it is exported,
        which takes as long as a client wants: only what cancels that waits for it."""
        if self.current is not None and self.current.info.name is Operation.EXPORT:
            patience = patience if self.current.is_cancelled else 0.0
        try:
            async with asyncio.timeout(patience):
                await self._lock.acquire()
        except TimeoutError:
            raise WrongState(
                f"cannot {name} VM {self._vm}: it is {self.describe()}", hint="wait for that, or stop it"
            ) from None
        try:
            self.check_open()
            self.current = Ongoing(name)
            self._on_change()
            yield self.current
        finally:
            self.current = None
            self._lock.release()
            self._on_change()

    @contextmanager
    def announce(self, name: Operation) -> Iterator[None]:
        """Show an operation that is begun before it can be the only one, as a deletion, which ends the VM in
        the middle of others."""
        ongoing = Ongoing(name)
        self._announced.append(ongoing)
        self._on_change()
        try:
            yield
        finally:
            self._announced.remove(ongoing)
            self._on_change()

    def is_announced(self, name: Operation) -> bool:
        """Is this one?"""
        return any(ongoing.info.name is name for ongoing in self._announced)

    @property
    def shown(self) -> OngoingOperation | None:
        """The one that is to be seen, if any is under way."""
        ongoing = self._announced[-1] if self._announced else self.current
        return None if ongoing is None else ongoing.info

    def cancel_wait(self) -> None:
        """End what the current operation waits for, such as a pull: another one is wanted."""
        if self.current is not None:
            self.current.cancel()

    def describe(self) -> str:
        """What is under way, in words; empty if nothing is."""
        return "" if self.current is None else self.current.info.describe(time.time())

    @property
    def closed(self) -> bool:
        """Has the VM gone?"""
        return bool(self.gone)

    def check_open(self) -> None:
        """Raise NotFound if the VM has gone."""
        if self.gone:
            raise NotFound(f"VM {self._vm} has {self.gone} meanwhile")

    def close(self, gone: str) -> None:
        """The VM has gone: no other operation begins."""
        self.gone = gone
