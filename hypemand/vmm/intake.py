# SPDX-License-Identifier: Apache-2.0
"""The program that takes apart what a VMM writes when it is saved: launcher/intake.

What a VMM writes is hostile: a process of its own reads it, as the VM's user, who cannot fill the space that
file systems reserve for root.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
from asyncio.subprocess import Process
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from hypemand.run import ENVIRONMENT, KILL_GRACE
from hypemand.tasks import Tasks
from hypemand.vmm.driver import VmmError

_log = logging.getLogger(__name__)
PROGRAM = Path("/usr/lib/hypemand/intake")
STATE_SIZE = 16 * 1024**2
"""Bytes that all but the memory of a guest may have. It has 100 KB."""
_WORDS_SIZE = 1024


class _Status(IntEnum):
    """What it exits with: launcher/intake/fail.h."""

    DONE = 0
    FAILED = 1
    NO_SPACE = 2
    BAD_STREAM = 3
    TOO_LARGE = 4
    CUT_SHORT = 5


class CutShort(VmmError):
    """The VMM has ended its stream early. It knows why."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a guest is saved to: descriptors of two files, `memory` and `state`, which remain the caller's.
    `size`: bytes of memory, which is the RAM block `block`; `user`: who writes it."""

    memory: int
    state: int
    block: str
    size: int
    user: int


class Intake:
    """One at work. `theirs` is for the VMM. `ended` is there after `start`, and ends when both files are on
    the disk: OSError when one cannot be written, VmmError where that is the VMM's fault. `close` it."""

    ended: asyncio.Task[None]

    def __init__(self) -> None:
        self._ours, self.theirs = socket.socketpair()
        self._process: Process | None = None
        # of its standard error, of which no more is taken in than a pipe has
        self._words = -1

    async def start(self, program: Path, target: Target) -> None:
        """OSError."""
        self._words, words = os.pipe()
        try:
            self._process = await asyncio.create_subprocess_exec(
                program,
                str(target.user),
                target.block,
                *map(str, (target.size, STATE_SIZE, target.memory, target.state)),
                stdin=self._ours.fileno(),
                stderr=words,
                stdout=words,
                pass_fds=(target.memory, target.state),
                env=ENVIRONMENT,
                cwd="/",
                start_new_session=True,
            )
        finally:
            os.close(words)
        self.ended = Tasks("a VM that is saved").start("intake", self._await_end(self._process), awaited=True)

    async def _await_end(self, process: Process) -> None:
        code = await process.wait()
        if code != _Status.DONE:
            words = os.read(self._words, _WORDS_SIZE).decode(errors="replace")
            raise _derive_error(code, words.strip().removeprefix("intake: "))

    def check(self) -> None:
        """Raise why it has failed, if it has and the VMM does not know better."""
        error = self.ended.exception() if self.ended.done() else None
        if error is not None and not isinstance(error, CutShort):
            raise error

    def cut(self) -> None:
        """Take no more: a writer at the other end gets EPIPE."""
        with suppress(OSError):
            self._ours.shutdown(socket.SHUT_RDWR)

    async def close(self) -> None:
        """End it, whatever it does, and close all that this has opened."""
        self.cut()
        self.theirs.close()
        try:
            if self._process is not None:
                await self._end(self._process)
        finally:
            self._ours.close()
            if self._words >= 0:
                os.close(self._words)

    async def _end(self, process: Process) -> None:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        # only one that is stuck in the kernel stays, for a disk that hangs
        await asyncio.wait((self.ended,), timeout=KILL_GRACE)
        if not self.ended.done():
            _log.warning("the process %d that saves a VM does not end", process.pid)
            self.ended.cancel()
        self.ended.add_done_callback(lambda task: task.cancelled() or task.exception())


def _derive_error(code: int, words: str) -> Exception:
    match code:
        case _Status.NO_SPACE:
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        case _Status.FAILED:
            return OSError(errno.EIO, words)
        case _Status.CUT_SHORT:
            return CutShort(f"the VMM could not be saved: {words}")
        case _Status.BAD_STREAM | _Status.TOO_LARGE:
            return VmmError(f"the VMM could not be saved: {words}")
    return VmmError(f"the VMM could not be saved: what takes it in ended with status {code}")
