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
from collections.abc import Callable, Mapping
from typing import Any

from hypemand.budget import Budget, Price, Reserve, Turn
from hypemand.model.evidence import QmpStatus
from hypemand.tasks import Tasks

_log = logging.getLogger(__name__)
# Answers to what is asked here have some hundred bytes.
_LINE_LIMIT = 64 * 1024
# Of commands that a VMM does not take: it is as one that does not answer then.
_QUEUE_LIMIT = 64 * 1024
ANSWER_DEADLINE = 0.5
# to stop the guest, QEMU waits for the requests to disks that are under way
_PAUSE_DEADLINE = 10.0
# of drives; a VM has less than half of that
_MOST_DRIVES = 64
# an event's name and its data
OnEvent = Callable[[str, Mapping[str, object]], None]


class QmpError(Exception):
    """The VMM refused a command, answered nonsense, or is gone."""


class QmpTimeout(QmpError):
    """The VMM did not answer in time."""


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
        """Connect and negotiate. OSError while nothing listens yet; QmpError when it does not answer. Every
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

    async def execute(self, command: str, *, deadline: float | None = ANSWER_DEADLINE) -> Any:
        """Run a command without arguments and give back its `return`. `deadline` in seconds; None: until the
        connection ends."""
        if self.closed.is_set():
            raise QmpError("the VMM has closed its QMP socket")
        if self._writer.transport.get_write_buffer_size() > _QUEUE_LIMIT:
            raise QmpTimeout("the VMM does not read its QMP socket")
        number = self._next_id
        self._next_id += 1
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._pending[number] = answer
        try:
            self._writer.write(json.dumps({"execute": command, "id": number}).encode() + b"\n")
            return await asyncio.wait_for(answer, deadline)
        except TimeoutError:
            raise QmpTimeout(f"the VMM did not answer {command} in {deadline:g} s") from None
        except OSError as error:
            raise QmpError(f"the QMP socket of the VMM failed: {error.strerror}") from None
        finally:
            self._pending.pop(number, None)

    async def query_status(self) -> QmpStatus:
        """Run state of the VMM as evidence, whenever it answers: never raises."""
        try:
            answer = await self.execute("query-status", deadline=None)
        except QmpTimeout:
            return QmpStatus.NO_ANSWER
        except QmpError:
            return QmpStatus.ABSENT
        word = answer.get("status") if isinstance(answer, dict) else None
        return QmpStatus.from_query_status(word) if isinstance(word, str) else QmpStatus.UNRECOGNISED

    async def list_full_drives(self) -> tuple[str, ...]:
        """The drives that could not be written since the host had no space left for it, while the run state
        is `io-error`; until `cont`. QmpError."""
        answer = await self.execute("query-block")
        if not isinstance(answer, list):
            raise QmpError("the VMM does not report the state of its disks")
        drives = (drive for drive in answer[:_MOST_DRIVES] if isinstance(drive, dict))
        full = (drive.get("device") for drive in drives if drive.get("io-status") == "nospace")
        return tuple(name for name in full if isinstance(name, str))

    async def pause(self) -> None:
        """Stop the guest's CPUs. QmpError."""
        await self.execute("stop", deadline=_PAUSE_DEADLINE)

    async def resume(self) -> None:
        """Let the guest go on, and have what could not be written tried again. QmpError."""
        await self.execute("cont", deadline=_PAUSE_DEADLINE)

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
                    answer.set_exception(QmpError("the VMM has closed its QMP socket"))

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
            answer.set_exception(QmpError(str(words or "the VMM refused the command")[:500]))

    async def close(self) -> None:
        """End the session. The VMM goes on."""
        self._writer.transport.abort()
        await self._tasks.close()
