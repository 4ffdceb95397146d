# SPDX-License-Identifier: Apache-2.0
"""Files to and from a guest over a WebSocket, as the published client copies.

Its first frame has the direction. To the guest, one connection carries one file or directory: its data in
binary frames, an end, and then the result of the daemon; the size of a file is not known before its end. From
the guest, each entry is a header, its data, and an end; the last end is final. An error is sent as a text
frame before the connection is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from dataclasses import dataclass, replace

from aiohttp import web
from aiohttp.http import WSMsgType

from hypemand.api.bodies.guest import CopyFrom, CopyTo, Direction
from hypemand.api.entries import PIECE, ZEROS, name_entry, put_block
from hypemand.api.failures import unexpected
from hypemand.api.fields import read_form, without_nulls
from hypemand.api.kinds import Word
from hypemand.api.requests import parse_object
from hypemand.api.services import Limits, Services
from hypemand.api.spool import Spool
from hypemand.api.tasks import Ended
from hypemand.api.websocket import await_close, is_end, receive_first, serve_websocket
from hypemand.errors import GuestError, HypemandError, InvalidRequest
from hypemand.model.answers.copy import CopyEnd, CopyError, CopyHeader, CopyResult
from hypemand.model.document import encode
from hypemand.model.files import CopyOut, FileInfo, FileKind, Hole
from hypemand.model.services import GuestService

_END = {"type": "end"}
_SENT_KINDS = (FileKind.FILE, FileKind.DIRECTORY, FileKind.SYMLINK)


@dataclass(frozen=True, slots=True)
class CopyOrder:
    """The first frame. `entry`: the file or directory to create, for a copy to the guest."""

    direction: Direction
    path: str
    follow: bool
    entry: FileInfo | None


def parse_order(text: str) -> CopyOrder:
    """Parse the first frame. Raises InvalidRequest that names the field."""
    body = without_nulls(parse_object(text, "the first frame"))
    if Word(Direction).read(body.get("direction"), "direction") is Direction.FROM:
        given = read_form(CopyFrom, body)
        return CopyOrder(given.direction, given.guest_path, given.follow_links, None)
    order = read_form(CopyTo, body)
    return CopyOrder(order.direction, order.guest_path, False, _derive_entry(order))


def _derive_entry(order: CopyTo) -> FileInfo:
    # The published server takes a mode of 0 for none.
    mode = order.mode or (0o755 if order.is_dir else 0o644)
    kind = FileKind.DIRECTORY if order.is_dir else FileKind.FILE
    uid, gid = (-1 if number is None else number for number in (order.uid, order.gid))
    return FileInfo("", kind, mode, uid, gid, 0, time.time_ns())


async def serve_cp(
    request: web.Request, services: Services, ref: str, closing: asyncio.Event, limits: Limits
) -> web.WebSocketResponse:
    """Upgrade the connection to a WebSocket and copy once. The caller has checked that the VM is Running."""

    async def work(socket: web.WebSocketResponse) -> Ended | None:
        try:
            return await _copy(socket, services, ref, limits)
        except ConnectionError:
            raise
        except HypemandError as error:
            await _send_error(socket, error, limits)
            raise
        except Exception as error:
            known = unexpected(error, f"cp of {ref}")
            await _send_error(socket, known, limits)
            raise known from None

    return await serve_websocket(request, work, closing, limits, what="cp")


async def _send_error(socket: web.WebSocketResponse, error: HypemandError, limits: Limits) -> None:
    """Send the error, then discard what the client still sends: it reads only when it has sent everything."""
    await socket.send_str(json.dumps(encode(CopyError(str(error)))))
    with contextlib.suppress(TimeoutError):
        while not is_end(await socket.receive(timeout=limits.closing)):
            pass


async def _copy(socket: web.WebSocketResponse, services: Services, ref: str, limits: Limits) -> Ended | None:
    order = parse_order(await receive_first(socket, limits.opening))
    if order.entry is not None:
        with Spool(services.spool, services.reserve()) as spool:
            if not await _receive_contents(socket, spool, order.entry.kind):
                return Ended.CLIENT
            await _store_entry(services.guests, ref, order.path, order.entry, spool)
        await socket.send_str(json.dumps(encode(CopyResult(spool.size))))
    else:
        copy = await services.guests.copy_out(ref, order.path, follow=order.follow)
        try:
            await _send_entries(socket, copy, order.path)
        finally:
            await copy.close()
    await await_close(socket, limits.closing)
    return None


async def _receive_contents(socket: web.WebSocketResponse, spool: Spool, kind: FileKind) -> bool:
    """Has all of it come? Not when the client closes before the end."""
    while not is_end(frame := await socket.receive()):
        if frame.type is WSMsgType.BINARY:
            if kind is not FileKind.FILE:
                raise InvalidRequest("a directory has no data")
            await spool.write(frame.data)
        elif parse_object(frame.data, "a control frame") == _END:
            return True
        else:
            raise InvalidRequest('a control frame is not {"type":"end"}')
    return False


async def _store_entry(guests: GuestService, ref: str, path: str, entry: FileInfo, spool: Spool) -> None:
    copy = await guests.copy_in(ref, path)
    try:
        await copy.add(replace(entry, size=spool.size))
        async for block in spool.blocks():
            await put_block(copy, block)
        await copy.finish()
    finally:
        await copy.close()


async def _send_entries(socket: web.WebSocketResponse, copy: CopyOut, root: str) -> None:
    """Entry by entry. Which end is the final one is known when there is no more: each waits for the next.

    What the published client has no word for (devices, sockets, pipes) is left out.
    """
    is_open = False
    async for event in copy.events():
        if isinstance(event, FileInfo):
            if event.kind not in _SENT_KINDS:
                continue
            if is_open:
                await _send_end(socket, final=False)
            await socket.send_str(json.dumps(encode(derive_header(name_entry(root, event), event))))
            is_open = True
        elif isinstance(event, Hole):
            for offset in range(0, event.size, PIECE):
                await socket.send_bytes(ZEROS[: event.size - offset])
        else:
            for offset in range(0, len(event), PIECE):
                await socket.send_bytes(event[offset : offset + PIECE])
    if not is_open:
        raise GuestError(f"{root} is neither a file, a directory nor a symbolic link")
    await _send_end(socket, final=True)


async def _send_end(socket: web.WebSocketResponse, *, final: bool) -> None:
    await socket.send_str(json.dumps(encode(CopyEnd(final))))


def derive_header(name: str, entry: FileInfo) -> CopyHeader:
    """The header of an entry as the published client expects it, which has no times before the epoch."""
    return CopyHeader(
        path=name,
        mode=entry.mode & 0o777,
        is_dir=entry.kind is FileKind.DIRECTORY,
        is_symlink=entry.kind is FileKind.SYMLINK,
        link_target=entry.target or "",
        size=entry.size if entry.kind is FileKind.FILE else 0,
        mtime=max(entry.mtime_ns // 1_000_000_000, 0),
        uid=entry.uid,
        gid=entry.gid,
    )
