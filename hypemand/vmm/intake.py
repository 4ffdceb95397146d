# SPDX-License-Identifier: Apache-2.0
"""Takes what a VMM writes to a socket into a file, as far as the file may grow."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress
from functools import partial
from typing import TypeAlias

from hypemand.tasks import Tasks
from hypemand.vmm.driver import VmmError
from hypemand.workers import Lent, Pool

_CHUNK = 1024 * 1024
# a socket, and the descriptor of a file
_Ends: TypeAlias = tuple[socket.socket, int]


class Intake:
    """One at work. `theirs` is for the VMM. `written` ends with the number of bytes when the VMM has closed
    its end, or `cut` was called: OSError when the file cannot be written, VmmError when it would have more
    than `most` bytes. `close` it.

    The file is that of the descriptor `target`, from where that stands; the descriptor remains the caller's.
    """

    def __init__(self, target: int, most: int) -> None:
        self._ours, self.theirs = socket.socketpair()
        self._lent: Lent[_Ends] = Lent(Pool.TOOLS, (self._ours, os.dup(target)), _close)
        work = self._lent.run(partial(_receive, most=most))
        tasks = Tasks("a VM that is saved")
        self.written: asyncio.Task[int] = tasks.start("intake", work, awaited=True)

    def cut(self) -> None:
        """Take no more: a writer at the other end gets EPIPE."""
        with suppress(OSError):
            self._ours.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Take no more, and close all that this has opened, when no thread uses it any more. Waits for
        nothing; how `written` ends does not matter from then on."""
        self.cut()
        self.theirs.close()
        self._lent.close()
        self.written.add_done_callback(lambda task: task.cancelled() or task.exception())


def _receive(ends: _Ends, most: int) -> int:
    connection, file = ends
    buffer, total = memoryview(bytearray(_CHUNK)), 0
    try:
        while count := connection.recv_into(buffer):
            total += count
            if total > most:
                raise VmmError(f"the VMM wrote more than {most} bytes")
            chunk = buffer[:count]
            while chunk:
                chunk = chunk[os.write(file, chunk) :]
    finally:
        # a VMM that waits for its reader answers nothing
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
    return total


def _close(ends: _Ends) -> None:
    connection, file = ends
    connection.close()
    os.close(file)
