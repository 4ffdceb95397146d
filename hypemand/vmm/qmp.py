# SPDX-License-Identifier: Apache-2.0
"""A QMP client: one connection, commands with deadlines, events handed on.

The VMM is not trusted: it may have been taken over by its guest. Lines are bounded, what is not
understood is dropped, events are paid from the VM's budget, and nothing it sends can do more than end the
connection.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import Callable, Mapping
from typing import Any

from hypemand.budget import Budget, Price, Reserve, Turn
from hypemand.tasks import Tasks
from hypemand.vmm.driver import VmmError, VmmTimeout

_log = logging.getLogger(__name__)
# Commands and answers have some hundred bytes.
_LINE_LIMIT = 64 * 1024
# Of commands that a VMM does not take: it is as one that does not answer then.
_QUEUE_LIMIT = 64 * 1024
ANSWER_DEADLINE = 0.5
# an event's name and its data
OnEvent = Callable[[str, Mapping[str, object]], None]


def _format_command(command: str, arguments: Mapping[str, object] | None, number: int) -> bytes:
    message = {"execute": command, "id": number}
    if arguments is not None:
        message["arguments"] = arguments
    line = json.dumps(message).encode() + b"\n"
    if len(line) > _LINE_LIMIT:
        raise VmmError(f"the command {command} is too long")
    return line


class Qmp:
    """An open QMP session. Use `connect`; `close` when done."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        on_event: OnEvent,
        name: str,
        budget: Budget,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._on_event = on_event
        self._budget = budget
        self._pending: dict[int, asyncio.Future[Any]] = {}
        self._next_id = 1
        self._tasks = Tasks(f"VM {name}")
        self.closed = asyncio.Event()

    @classmethod
    async def connect(cls, path: str, on_event: OnEvent, name: str, budget: Budget) -> Qmp:
        """Connect and negotiate. OSError while nothing listens yet; VmmError when it does not answer. Every
        line of the VMM's that is no answer is paid from `budget`."""
        reader, writer = await asyncio.open_unix_connection(path, limit=_LINE_LIMIT)
        qmp = cls(reader, writer, on_event, name, budget)
        qmp._tasks.start("QMP", qmp._read())
        try:
            await qmp.execute("qmp_capabilities", deadline=10.0)
        except BaseException:
            await qmp.close()
            raise
        return qmp

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        *,
        fd: int | None = None,
        deadline: float | None = ANSWER_DEADLINE,
    ) -> Any:
        """Run a command and give back its `return`. `fd`: a descriptor that goes with it (SCM_RIGHTS,
        unix(7)), as `getfd` needs one; the VMM gets one of its own. `deadline` in seconds; None: until the
        connection ends. VmmError, VmmTimeout."""
        if self.closed.is_set():
            raise VmmError("the VMM has closed its QMP socket")
        if self._writer.transport.get_write_buffer_size() > (_QUEUE_LIMIT if fd is None else 0):
            raise VmmTimeout("the VMM does not read its QMP socket")
        number = self._next_id
        self._next_id += 1
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._pending[number] = answer
        try:
            self._send(_format_command(command, arguments, number), fd)
            return await asyncio.wait_for(answer, deadline)
        except TimeoutError:
            raise VmmTimeout(f"the VMM did not answer {command} in {deadline:g} s") from None
        except OSError as error:
            raise VmmError(f"the QMP socket of the VMM failed: {error.strerror}") from None
        finally:
            self._pending.pop(number, None)

    def _send(self, line: bytes, fd: int | None) -> None:
        if fd is None:
            self._writer.write(line)
            return
        # asyncio sends no descriptors; nothing of its own is waiting to be sent
        with self._writer.get_extra_info("socket").dup() as connection:
            sent = socket.send_fds(connection, [line], [fd])
        self._writer.write(line[sent:])

    async def _read(self) -> None:
        turn = Turn()
        try:
            while line := await self._reader.readline():
                if not self._take(line):
                    self._budget.spend(Price.EVENT)
                    await self._budget.wait(Reserve.EVENTS)
                # a read that finds a line does not yield
                await turn.pause()
        except (OSError, ValueError) as error:
            _log.debug("QMP: %s", error)
        finally:
            self.closed.set()
            for answer in self._pending.values():
                if not answer.done():
                    answer.set_exception(VmmError("the VMM has closed its QMP socket"))

    def _take(self, line: bytes) -> bool:
        """True: that was an answer to something that was asked."""
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            return False
        if not isinstance(message, dict):
            return False
        if isinstance(event := message.get("event"), str):
            data = message.get("data")
            self._on_event(event, data if isinstance(data, dict) else {})
            return False
        number = message.get("id")
        answer = self._pending.get(number) if isinstance(number, int) else None
        if answer is None or answer.done():
            return False
        self._settle(answer, message)
        return True

    @staticmethod
    def _settle(answer: asyncio.Future[Any], message: Mapping[str, Any]) -> None:
        if "return" in message:
            answer.set_result(message["return"])
        else:
            failure = message.get("error")
            words = failure.get("desc") if isinstance(failure, dict) else None
            answer.set_exception(VmmError(str(words or "the VMM refused the command")[:500]))

    async def close(self) -> None:
        """End the session. The VMM goes on."""
        self._writer.transport.abort()
        await self._tasks.close()
