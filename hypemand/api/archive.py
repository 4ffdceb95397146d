# SPDX-License-Identifier: Apache-2.0
"""Trees to and from a guest as a tar archive, in one request and in pieces of bounded size."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from aiohttp import web

from hypemand.api.entries import name_entry, put_block
from hypemand.api.failures import unexpected
from hypemand.api.tasks import Ended, unless_ended
from hypemand.errors import GuestError, HypemandError, InvalidRequest, NotFound, Stopping, TimedOut
from hypemand.model.files import CopyIn, CopyOut, FileInfo, FileKind, Hole
from hypemand.model.services import GuestService
from hypemand.tar import (
    END,
    TarReader,
    format_error,
    format_member,
    format_zeros,
    is_archivable,
    padding,
)

MEDIA_TYPE = "application/x-tar"
STALL = 120.0
"""Seconds: a client that takes or sends nothing for so long holds up others."""

log = logging.getLogger(__name__)


async def send_archive(
    request: web.Request, copy: CopyOut, root: str, closing: asyncio.Event
) -> web.StreamResponse:
    """Send the files of a copy as the response. An error before the first of them is an ordinary error
    response; after a later one the archive contains the error (`hypemand.tar`) and is aborted without its
    end."""
    events = copy.events()
    first = await anext(events, None)
    if first is None:
        raise GuestError(f"the guest sent no data for {root}")
    return await _send(
        request, closing, f"archive of {root}", lambda to: _Writer(to, root).write_all(first, events)
    )


async def send_pieces(
    request: web.Request, pieces: AsyncIterator[bytes], what: str, closing: asyncio.Event
) -> web.StreamResponse:
    """Send an archive that is made in pieces, in the same way."""
    first = await anext(pieces, b"")

    async def write_all(response: web.StreamResponse) -> None:
        await _write_in_time(response, first)
        async for piece in pieces:
            await _write_in_time(response, piece)

    return await _send(request, closing, what, write_all)


async def _write_in_time(response: web.StreamResponse, piece: bytes) -> None:
    try:
        async with asyncio.timeout(STALL):
            await response.write(piece)
    except TimeoutError:
        raise TimedOut(f"the client has taken no data for {STALL:g} s") from None


async def receive_in_time(request: web.Request) -> AsyncIterator[bytes]:
    """The body in pieces. TimedOut when the client sends nothing for too long."""
    body = request.content.iter_any()
    while True:
        try:
            async with asyncio.timeout(STALL):
                piece = await anext(body, b"")
        except TimeoutError:
            raise TimedOut(f"the client has sent no data for {STALL:g} s") from None
        if not piece:
            return
        yield piece


async def _send(
    request: web.Request,
    closing: asyncio.Event,
    what: str,
    write_all: Callable[[web.StreamResponse], Coroutine[Any, Any, None]],
) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": MEDIA_TYPE, "Cache-Control": "no-store"})
    await response.prepare(request)
    try:
        ended = await unless_ended(request, closing, write_all(response))
    except ConnectionError:
        raise
    except HypemandError as error:
        return await _break_off(request, response, error)
    except Exception as error:
        return await _break_off(request, response, unexpected(error, what))
    if ended is Ended.DAEMON:
        return await _break_off(request, response, Stopping())
    if ended is not None and request.transport is not None:
        request.transport.close()
    return response


class _Writer:
    """Writes the events of a copy of `root`. What is whole is padded at once: an error may follow, which is a
    member of its own then."""

    def __init__(self, response: web.StreamResponse, root: str) -> None:
        self._response = response
        self._root = root
        self._size = 0
        # bytes of contents that are still to come
        self._left = 0

    async def write_all(
        self, first: FileInfo | bytes | Hole, events: AsyncIterator[FileInfo | bytes | Hole]
    ) -> None:
        await self._write(first)
        async for event in events:
            await self._write(event)
        await self._response.write(END)

    async def _write(self, event: FileInfo | bytes | Hole) -> None:
        if isinstance(event, FileInfo):
            name = name_entry(self._root, event)
            if is_archivable(event):
                self._size = self._left = event.size if event.kind is FileKind.FILE else 0
                await self._response.write(format_member(name, event))
            return
        if isinstance(event, Hole):
            self._left -= event.size
            for zeros in format_zeros(event.size):
                await self._response.write(zeros)
        else:
            self._left -= len(event)
            await self._response.write(event)
        if self._left == 0:
            await self._response.write(padding(self._size))


async def _break_off(
    request: web.Request, response: web.StreamResponse, error: HypemandError
) -> web.StreamResponse:
    """Abort the response, with the error in the archive and in the journal."""
    log.warning("%s was aborted: %s", request.path, error)
    with contextlib.suppress(ConnectionError):
        await response.write(format_error(str(error)))
    if request.transport is not None:
        request.transport.close()
    return response


async def check_directory(guests: GuestService, ref: str, path: str) -> None:
    """Raise unless `path` is a directory of the guest."""
    found = await guests.stat_path(ref, path, follow=True)
    if found is None:
        raise NotFound(f"there is no directory {path} in the guest", code="path_not_found")
    if found.kind is not FileKind.DIRECTORY:
        raise InvalidRequest(f"{path} is not a directory in the guest", code="invalid_path")


async def receive_archive(request: web.Request, copy: CopyIn, closing: asyncio.Event) -> int:
    """Unpack the body into the copy; returns the total size of the files. The target directory keeps its mode
    and owner, whatever the archive has for its root."""
    total, _root = await receive_pieces(request, copy, closing, request.content.iter_any())
    return total


async def receive_pieces(
    request: web.Request, copy: CopyIn, closing: asyncio.Event, pieces: AsyncIterator[bytes]
) -> tuple[int, FileInfo | None]:
    """Unpack an archive into the copy; returns the total size of the files, and the archive's entry for its
    root, if any."""
    ended = await unless_ended(request, closing, _store_archive(pieces, copy))
    if ended is Ended.CLIENT:
        raise ConnectionResetError("the client has gone")
    if isinstance(ended, Ended):
        raise Stopping
    return ended


async def _store_archive(pieces: AsyncIterator[bytes], copy: CopyIn) -> tuple[int, FileInfo | None]:
    reader, total = TarReader(), 0
    root: FileInfo | None = None
    async for data in pieces:
        for event in reader.feed(data):
            if isinstance(event, bytes):
                await put_block(copy, event)
            elif event.path:
                await copy.add(event)
                total += event.size
            elif event.kind is not FileKind.DIRECTORY:
                raise InvalidRequest("the archive has a member without a name", code="invalid_archive")
            else:
                root = event
        await asyncio.sleep(0)
    reader.finish()
    await copy.finish()
    return total, root
