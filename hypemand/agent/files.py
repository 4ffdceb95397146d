# SPDX-License-Identifier: Apache-2.0
"""Files of a guest: stat, and copies out and in, each on a stream of the agent channel.

They are sessions whose bytes are items (hypemand.protocol.items): flow control, the end of the channel and
the loss of interest are the session's business.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from hypemand.agent.session import Session, clean_message
from hypemand.budget import Turn
from hypemand.errors import GuestError, InvalidRequest, NotFound
from hypemand.model.files import FileInfo, FileKind, Hole
from hypemand.protocol.frames import MAX_PAYLOAD
from hypemand.protocol.items import (
    MAX_PATH,
    End,
    ItemParser,
    Tree,
    encode_data,
    encode_end,
    encode_entry,
    encode_hole,
)
from hypemand.protocol.records import ProtocolError
from hypemand.tasks import Tasks

# Items are small at the least: of so many bytes none is made without a turn for others.
_STEP = 16 * 1024
_COPIED_IN = (FileKind.FILE, FileKind.DIRECTORY, FileKind.SYMLINK, FileKind.FIFO)


def check_path(path: str) -> str:
    """An absolute path of a guest, as it is. InvalidRequest if it is none."""
    if not path.startswith("/") or "\0" in path or len(path.encode("utf-8", "surrogateescape")) > MAX_PATH:
        raise InvalidRequest(
            f"{path[:80]!r} is not a valid path in a guest",
            hint=(f"use an absolute path of at most {MAX_PATH} bytes"),
        )
    return path


def _refusal(end: End) -> GuestError:
    return GuestError(clean_message(end.message))


async def _read_items(session: Session) -> AsyncIterator[FileInfo | bytes | int | End]:
    """Items up to the END, which is given too. GuestError when the stream ends before it."""
    parser = ItemParser()
    turn = Turn()
    async for _, data in session.output():
        for at in range(0, len(data), _STEP):
            for item in parser.feed(data[at : at + _STEP]):
                yield item
                if isinstance(item, End):
                    return
            await turn.pause()
    report = await session.wait()
    raise GuestError(f"the guest's agent ended this early: {report.message}")


async def read_stat(session: Session) -> FileInfo | None:
    """The answer to a stat. None: there is no such file."""
    found = None
    try:
        async for item in _read_items(session):
            if isinstance(item, FileInfo) and found is None:
                found = item
            elif not isinstance(item, End):
                raise ProtocolError("more than one entry in the answer to a stat")
            elif item.code != "ok" and item.code != "missing":
                raise _refusal(item)
    finally:
        await session.close()
    return found


class OutgoingCopy:
    """Implements model.files.CopyOut."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._items = _read_items(session)
        self._first: FileInfo | bytes | int | End | None = None

    async def begin(self) -> None:
        """Wait for the first entry. NotFound when there is no such file."""
        self._first = await anext(self._items)
        if isinstance(self._first, End) and self._first.code == "missing":
            raise NotFound(clean_message(self._first.message))

    async def events(self) -> AsyncIterator[FileInfo | bytes | Hole]:
        """See `CopyOut`. For one reader, once."""
        tree = Tree()
        left = 0
        try:
            async for item in self._all():
                if isinstance(item, FileInfo | End) and left:
                    raise ProtocolError("the contents of a file are shorter than its size")
                if isinstance(item, End):
                    if item.code != "ok":
                        raise _refusal(item)
                    return
                if isinstance(item, FileInfo):
                    tree.take(item)
                    left = item.size
                    yield item
                    continue
                size = item if isinstance(item, int) else len(item)
                if not 0 < size <= left:
                    raise ProtocolError("contents of no size, or beyond the file's")
                left -= size
                yield Hole(item) if isinstance(item, int) else item
        finally:
            await self._session.close()

    async def _all(self) -> AsyncIterator[FileInfo | bytes | int | End]:
        if self._first is not None:
            yield self._first
        async for item in self._items:
            yield item

    async def close(self) -> None:
        """Lose interest. May be called at any time."""
        await self._session.close()


class IncomingCopy:
    """Implements model.files.CopyIn."""

    def __init__(self, session: Session, what: str) -> None:
        self._session = session
        self._end: End | None = None
        self._finishing = False
        self._error: GuestError | None = None
        self._tasks = Tasks(what)
        self._reading = self._tasks.start("end", self._await_end())

    async def _await_end(self) -> None:
        """The agent may end it at any time, also while the host is still sending."""
        try:
            async for item in _read_items(self._session):
                if not isinstance(item, End):
                    raise ProtocolError("an item in the answer to a copy into a guest")
                self._end = item
        except GuestError as error:
            self._error = error
            await self._session.close()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error
        if self._end is not None and self._end.code != "ok":
            raise _refusal(self._end)
        if self._end is not None and not self._finishing:
            raise ProtocolError("the guest's agent called a copy whole that was not")

    async def _send(self, item: bytes) -> None:
        self._check()
        if self._end is None:
            with contextlib.suppress(GuestError):
                await self._session.write(item)
        if self._reading.done() or self._session.is_over:
            await asyncio.wait([self._reading])
        self._check()

    async def add(self, entry: FileInfo) -> None:
        """See `CopyIn`."""
        if entry.kind not in _COPIED_IN:
            raise InvalidRequest(
                f"{entry.path or 'it'} is a {entry.kind} file, which is not copied", hint="leave it out"
            )
        try:
            item = encode_entry(entry)
        except ValueError as error:
            raise InvalidRequest(f"{entry.path[:80]!r} cannot be copied: {error}") from None
        await self._send(item)

    async def write(self, data: bytes) -> None:
        """See `CopyIn`."""
        view = memoryview(data)
        for at in range(0, len(view), MAX_PAYLOAD):
            await self._send(encode_data(bytes(view[at : at + MAX_PAYLOAD])))

    async def skip(self, hole: Hole) -> None:
        """See `CopyIn`."""
        await self._send(encode_hole(hole.size))

    async def finish(self) -> int:
        """See `CopyIn`."""
        self._check()
        self._finishing = True
        await self._send(encode_end())
        with contextlib.suppress(GuestError):
            await self._session.write_eof()
        await asyncio.wait([self._reading])
        self._check()
        if self._end is None:
            raise GuestError("the copy was cancelled before it was complete")
        return self._end.bytes

    async def close(self) -> None:
        """See `CopyIn`."""
        await self._session.close()
        await self._tasks.close()
