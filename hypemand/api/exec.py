# SPDX-License-Identifier: Apache-2.0
"""A command in a guest over a WebSocket.

The client's first frame has the command. Binary frames are input and output; the only text frame of the
daemon has the exit code. If the command cannot be run, or its exit status is not known, this frame is missing
and the close frame has the reason. A client that asked for streams gets the error as text before that.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass

from aiohttp import web
from aiohttp.http import WSMsgType

from hypemand.api.bodies.guest import ExecOpening, ExecSize
from hypemand.api.failures import error_json
from hypemand.api.fields import is_whole, read_form, without_nulls
from hypemand.api.kinds import MAX_SIGNAL
from hypemand.api.requests import parse_object
from hypemand.api.services import Limits
from hypemand.api.tasks import Ended, first_of
from hypemand.api.websocket import await_close, is_end, receive_first, serve_websocket
from hypemand.errors import HypemandError, InvalidRequest
from hypemand.model.answers.exec import ExecExit
from hypemand.model.document import encode
from hypemand.model.exec import ExecRequest, ExecSession, ExecStream
from hypemand.model.services import GuestService
from hypemand.model.vm import ExitReport

_STREAM_BYTES = {ExecStream.STDOUT: b"\x01", ExecStream.STDERR: b"\x02"}


@dataclass(frozen=True, slots=True)
class Opening:
    """The first frame. `streams`: the first byte of each output frame is the number of the stream."""

    request: ExecRequest
    streams: bool


def parse_opening(text: str) -> Opening:
    """Parse the first frame. Raises InvalidRequest that names the field."""
    body = without_nulls(parse_object(text, "the first frame"))
    given = read_form(ExecOpening, body)
    for key in ("rows", "cols"):
        if key in body and not given.tty:
            raise InvalidRequest(f"{key}: needs tty")
    return Opening(
        ExecRequest(
            # The published client's 0 and "" are its way to say none.
            argv=given.command, env=given.env, cwd=given.cwd or None, user=given.user or None,
            timeout=given.timeout or None,
            umask=given.umask, tty=given.tty, rows=given.rows, cols=given.cols,
        ),
        streams=given.streams,
    )  # fmt: skip


async def serve_exec(
    request: web.Request, guests: GuestService, ref: str, closing: asyncio.Event, limits: Limits
) -> web.WebSocketResponse:
    """Upgrade the connection to a WebSocket and run one command. The caller has checked that the VM is
    Running."""

    async def work(socket: web.WebSocketResponse) -> Ended | None:
        return await _run(socket, guests, ref, limits)

    return await serve_websocket(request, work, closing, limits, what="exec")


async def _run(socket: web.WebSocketResponse, guests: GuestService, ref: str, limits: Limits) -> Ended | None:
    """From the first frame to the exit; Ended.CLIENT when the client has closed before it."""
    opening = parse_opening(await receive_first(socket, limits.opening))
    try:
        report = await _run_command(socket, guests, ref, opening)
        if report is None:
            return Ended.CLIENT
        await socket.send_str(json.dumps(exit_frame(report, opening.streams)))
    except HypemandError as error:
        if opening.streams:
            await socket.send_str(json.dumps(error_json(error)))
        raise
    await await_close(socket, limits.closing)
    return None


async def _run_command(
    socket: web.WebSocketResponse, guests: GuestService, ref: str, opening: Opening
) -> ExitReport | None:
    """How it ended; None when the client has closed before."""
    session = await guests.exec_vm(ref, opening.request)
    try:
        return await first_of(
            output=send_output(socket, session, streams=opening.streams), input=feed(socket, session)
        )
    finally:
        await session.close()


async def send_output(
    socket: web.WebSocketResponse, session: ExecSession, *, streams: bool
) -> ExitReport | None:
    """Pass output on to its end; how what runs there has ended. `streams`: see Opening."""
    async for stream, data in session.output():
        await socket.send_bytes(_STREAM_BYTES[stream] + data if streams else data)
    return await session.wait()


async def feed(
    socket: web.WebSocketResponse, session: ExecSession, *, signals: bool = True
) -> ExitReport | None:
    """Pass input on until the client closes. `signals`: these may be sent."""
    while not is_end(frame := await socket.receive()):
        if frame.type is WSMsgType.BINARY:
            await session.write(frame.data)
        else:
            await _control(frame.data, session, signals=signals)
    return None


async def _control(text: str, session: ExecSession, *, signals: bool) -> None:
    body = parse_object(text, "a control frame")
    if body == {"eof": True}:
        await session.write_eof()
        return
    number = body.get("signal")
    if signals and len(body) == 1 and is_whole(number, 1, MAX_SIGNAL):
        assert isinstance(number, int)
        await session.signal(number)
        return
    size = body.get("resize")
    if len(body) == 1 and isinstance(size, dict) and size.keys() == {"rows", "cols"}:
        given = read_form(ExecSize, size)
        await session.resize(given.rows, given.cols)
        return
    known = '{"eof":true}, ' + '{"signal":n} with n from 1 to 64, ' * signals
    raise InvalidRequest(f'a control frame is none of {known}and {{"resize":{{"rows":n,"cols":n}}}}')


def exit_frame(report: ExitReport, streams: bool) -> dict[str, object]:
    """The last frame. The published client takes the exit code alone; the message is for clients that asked
    for streams."""
    if report.code is None:
        raise HypemandError(
            (f"the exit status of the command is not known: {report.message}"), code="guest_error"
        )
    return without_nulls(encode(ExecExit(report.code, report.message if streams else None)))
