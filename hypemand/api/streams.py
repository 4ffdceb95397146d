# SPDX-License-Identifier: Apache-2.0
"""Server-sent events.

A stream with a final chunk is complete. One that cannot be completed (an error, the daemon stops) is aborted
without it, so that no client takes a part for the whole; an error is sent before as an event named `error`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import TypeVar

from aiohttp import web

from hypemand.api.failures import error_json, unexpected
from hypemand.api.services import Limits
from hypemand.api.tasks import Heartbeat, unless_ended
from hypemand.errors import HypemandError

T = TypeVar("T")

_YIELD_EVERY = 64
_COMMENT = b":\n\n"


async def send_events(
    request: web.Request,
    items: AsyncIterator[T],
    to_json: Callable[[T], object],
    closing: asyncio.Event,
    limits: Limits,
) -> web.StreamResponse:
    """Send each item as an event, until there are no more, the client goes or the daemon stops. In between
    come comments, that is lines which begin with a colon."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
    await response.prepare(request)
    heartbeat = Heartbeat(lambda: response.write(_COMMENT), limits.heartbeat)
    try:
        ended = await unless_ended(request, closing, _send_all(response, items, to_json), heartbeat)
    except ConnectionError:
        raise
    except HypemandError as error:
        return await _break_off(request, response, error)
    except Exception as error:
        return await _break_off(request, response, unexpected(error, f"stream of {request.path}"))
    if ended is not None and request.transport is not None:
        request.transport.close()
    return response


async def _send_all(
    response: web.StreamResponse, items: AsyncIterator[T], to_json: Callable[[T], object]
) -> None:
    try:
        count = 0
        async for item in items:
            await response.write(b"data: " + json.dumps(to_json(item)).encode() + b"\n\n")
            count += 1
            if count % _YIELD_EVERY == 0:
                # Neither a source with many lines at hand nor the write waits for anything: let others run.
                await asyncio.sleep(0)
    finally:
        if isinstance(items, AsyncGenerator):
            await items.aclose()


async def _break_off(
    request: web.Request, response: web.StreamResponse, error: HypemandError
) -> web.StreamResponse:
    await response.write(b"event: error\ndata: " + json.dumps(error_json(error)).encode() + b"\n\n")
    if request.transport is not None:
        request.transport.close()
    return response
