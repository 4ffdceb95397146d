# SPDX-License-Identifier: Apache-2.0
"""The program of a VM over a WebSocket.

As with exec, but the daemon answers the client's first frame with a text frame that says what the program
has, and the program goes on when the connection is closed.
"""

from __future__ import annotations

import asyncio
import json

from aiohttp import web

from hypemand.api.bodies.guest import AttachOpening
from hypemand.api.exec import exit_frame, feed, send_output
from hypemand.api.failures import error_json
from hypemand.api.fields import read_form, without_nulls
from hypemand.api.requests import parse_object
from hypemand.api.services import Limits
from hypemand.api.tasks import Ended, first_of
from hypemand.api.websocket import DETACHED, await_close, receive_first, serve_websocket
from hypemand.errors import HypemandError, InvalidRequest
from hypemand.model.answers.exec import AttachStarted
from hypemand.model.document import encode
from hypemand.model.exec import AttachRequest, AttachSession
from hypemand.model.services import GuestService
from hypemand.model.vm import ExitReport


def parse_opening(text: str) -> AttachRequest:
    """Parse the first frame. Raises InvalidRequest that names the field."""
    given = read_form(AttachOpening, without_nulls(parse_object(text, "the first frame")))
    if (given.rows is None) != (given.cols is None):
        raise InvalidRequest("rows and cols: one needs the other")
    return AttachRequest(given.stdin, given.replay, given.rows, given.cols)


async def serve_attach(
    request: web.Request, guests: GuestService, ref: str, closing: asyncio.Event, limits: Limits
) -> web.WebSocketResponse:
    """Upgrade the connection to a WebSocket and attach to the program. The caller has checked that the VM is
    Running."""

    async def work(socket: web.WebSocketResponse) -> Ended | None:
        opening = parse_opening(await receive_first(socket, limits.opening))
        try:
            session = await guests.attach_vm(ref, opening)
            report = await _pass_on(socket, session)
        except HypemandError as error:
            await socket.send_str(json.dumps(error_json(error)))
            raise
        if report is None:
            return Ended.CLIENT
        await socket.send_str(json.dumps(exit_frame(report, streams=True)))
        await await_close(socket, limits.closing)
        return None

    return await serve_websocket(request, work, closing, limits, what="attach", stopping=DETACHED)


async def _pass_on(socket: web.WebSocketResponse, session: AttachSession) -> ExitReport | None:
    """How the program ended; None when the client has closed before."""
    try:
        await socket.send_str(json.dumps(encode(AttachStarted(session.tty, session.stdin))))
        return await first_of(
            output=send_output(socket, session, streams=True), input=feed(socket, session, signals=False)
        )
    finally:
        await session.close()
