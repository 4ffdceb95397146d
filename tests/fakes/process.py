# SPDX-License-Identifier: Apache-2.0
"""Processes without processes: coroutines that have a pid, take signals, and end with a status."""

from __future__ import annotations

import asyncio
import itertools
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple

# above what the kernel gives any process (PID_MAX_LIMIT)
_PIDS = itertools.count(5_000_000)

# signal(7)
_IGNORED = (signal.SIGCHLD, signal.SIGURG, signal.SIGWINCH)


class Exit(NamedTuple):
    """How a process ended, in the words of systemd.exec(5): `code` is exited or killed, `status` the exit
    status or the signal's number."""

    code: str
    status: int

    @property
    def word(self) -> str:
        """$EXIT_STATUS: signals have names."""
        return (
            str(self.status)
            if self.code == "exited"
            else signal.Signals(self.status).name.removeprefix("SIG")
        )


Program = Callable[["Process"], Awaitable[int]]
"""What a process does, until it returns its exit status."""


class Process:
    """One process. `handlers`: what its program does on a signal; None: nothing. Other signals end it."""

    def __init__(self, unit: str, argv: Sequence[str], env: Mapping[str, str]) -> None:
        self.pid = next(_PIDS)
        self.unit = unit
        self.argv = tuple(argv)
        self.env = dict(env)
        self.handlers: dict[int, Callable[[], None] | None] = {}
        self.exit: Exit | None = None
        self._task: asyncio.Task[None] | None = None
        self._on_end: Callable[[], None] = lambda: None

    def start(self, program: Program, on_end: Callable[[], None]) -> None:
        """Run it; `on_end` is called when it has ended."""
        self._on_end = on_end
        self._task = asyncio.create_task(self._run(program), name=f"process {self.pid} of {self.unit}")

    async def _run(self, program: Program) -> None:
        try:
            self._end(Exit("exited", await program(self)))
        except asyncio.CancelledError:
            self._end(Exit("killed", signal.SIGKILL))  # by the end of the test, unless by a signal before
        except BaseException:
            self._end(Exit("killed", signal.SIGABRT))
            raise

    def _end(self, how: Exit) -> None:
        if self.exit is None:
            self.exit = how
            asyncio.get_running_loop().call_soon(self._on_end)

    def kill(self, number: int) -> None:
        """Send it a signal."""
        if self.exit is not None:
            return
        if number in _IGNORED and number not in self.handlers:
            return
        if number != signal.SIGKILL and number in self.handlers:
            handler = self.handlers[number]
            if handler is not None:
                handler()
            return
        self._end(Exit("killed", number))
        if self._task is not None:
            self._task.cancel()

    async def close(self) -> None:
        """End it with the test."""
        self._on_end = lambda: None
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
