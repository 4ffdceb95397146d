# SPDX-License-Identifier: Apache-2.0
"""WebSockets: one task per connection, cancelled when the client disconnects or the daemon stops.

What fails ends by a close frame with the reason: 1008 for a request that is wrong, 1011 for what failed,
1001 when the daemon stops.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine

from aiohttp import web
from aiohttp.http import WSCloseCode, WSMessage, WSMsgType

from hypemand.api.failures import unexpected
from hypemand.api.requests import MAX_BODY
from hypemand.api.services import Limits
from hypemand.api.tasks import Ended, Heartbeat, unless_ended
from hypemand.errors import HypemandError, InvalidRequest

MAX_REASON = 123
STOPPING = "stopping: hypemand is stopped or restarted, for example by an upgrade; the command was terminated"
DETACHED = "stopping: hypemand is stopped or restarted, for example by an upgrade; the program goes on"

Work = Callable[[web.WebSocketResponse], Coroutine[None, None, Ended | None]]


async def serve_websocket(
    request: web.Request,
    work: Work,
    closing: asyncio.Event,
    limits: Limits,
    *,
    what: str,
    stopping: str = STOPPING,
) -> web.WebSocketResponse:
    """Take the connection over. `work` gives Ended.CLIENT when the client has closed before it was done;
    `what` says in a message what it is; `stopping`: the reason when the daemon stops."""
    socket = web.WebSocketResponse(timeout=limits.closing, max_msg_size=MAX_BODY, compress=False)
    if not socket.can_prepare(request):
        raise InvalidRequest(
            f"{what} is a WebSocket", hint=f"send Upgrade: websocket, or use hypemanctl {what}"
        )
    await socket.prepare(request)
    try:
        # No answer is waited for, as aiohttp's own heartbeat would: it is read only with the input, which
        # stands still while the guest takes none. That the client's host has vanished the kernel finds out.
        heartbeat = Heartbeat(socket.ping, limits.heartbeat)
        ended = await unless_ended(request, closing, work(socket), heartbeat)
        if ended is Ended.DAEMON:
            await _close(socket, WSCloseCode.GOING_AWAY, stopping)
        else:
            await _close(socket, WSCloseCode.OK, "")
    except ConnectionError:
        pass  # the client has gone; what it began was ended with it
    except InvalidRequest as error:
        await _close(socket, WSCloseCode.POLICY_VIOLATION, f"{error.code}: {error}")
    except HypemandError as error:
        await _close(socket, WSCloseCode.INTERNAL_ERROR, f"{error.code}: {error}")
    except Exception as error:
        known = unexpected(error, f"{what} of {request.path}")
        await _close(socket, WSCloseCode.INTERNAL_ERROR, f"{known.code}: {known}")
    return socket


async def _close(socket: web.WebSocketResponse, code: WSCloseCode, reason: str) -> None:
    """Close with a reason, cut to the 123 bytes of a close frame."""
    cut = reason.encode(errors="replace")[:MAX_REASON].decode(errors="ignore")
    await socket.close(code=code, message=cut.encode())


async def receive_first(socket: web.WebSocketResponse, deadline: float) -> str:
    """The text of the first frame, which says what is wanted."""
    try:
        frame = await socket.receive(timeout=deadline)
    except TimeoutError:
        raise InvalidRequest(f"no request came within {deadline:g} s") from None
    if is_end(frame):
        raise ConnectionResetError("closed before the request")
    if frame.type is not WSMsgType.TEXT:
        raise InvalidRequest("the first frame must be a text frame with the request")
    text: str = frame.data
    return text


def is_end(frame: WSMessage) -> bool:
    """Will nothing come after it?"""
    return frame.type in (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR)


async def await_close(socket: web.WebSocketResponse, deadline: float) -> None:
    """Leave it to the client to close. It may still be sending what nobody waited for, and the published
    client fails when it finds the connection closed before it has read the last frame."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(deadline):
            while not is_end(await socket.receive()):
                pass
