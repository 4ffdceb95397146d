# SPDX-License-Identifier: Apache-2.0
"""A command in a guest over a WebSocket.

The client's first frame says what to run. Binary frames are input and output; the one text frame that
comes back holds the exit code. What cannot be run, or whose exit nobody knows, ends without that frame, by
a close frame with the reason. A client that asked for streams gets the whole error as text before that.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass

from aiohttp import web
from aiohttp.http import WSMsgType

from hypemand.api.failures import error_json
from hypemand.api.requests import parse_object, refuse_unknown
from hypemand.api.services import Limits
from hypemand.api.tasks import Ended, first_of
from hypemand.api.websocket import await_close, is_end, receive_first, serve_websocket
from hypemand.errors import HypemandError, InvalidRequest
from hypemand.model.exec import ExecRequest, ExecSession, ExecStream
from hypemand.model.services import GuestService
from hypemand.model.vm import ExitReport

MAX_SIGNAL = 64
MAX_SIDE = 65535
MAX_UMASK = 0o777

_KEYS = (
    "command", "env", "cwd", "user", "umask", "timeout", "wait_for_agent", "tty", "rows", "cols", "streams"
)  # fmt: skip
_STREAM_BYTES = {ExecStream.STDOUT: b"\x01", ExecStream.STDERR: b"\x02"}


@dataclass(frozen=True, slots=True)
class Opening:
    """The first frame. `streams`: output frames begin with a byte that tells which stream it was."""

    request: ExecRequest
    streams: bool


def parse_opening(text: str) -> Opening:
    """Raises InvalidRequest that names the field."""
    body = {key: value for key, value in parse_object(text, "the first frame").items() if value is not None}
    refuse_unknown(body, _KEYS)
    tty = _bool(body, "tty")
    for key in ("rows", "cols"):
        if key in body and not tty:
            raise InvalidRequest(f"{key}: needs tty")
    # Running means that the agent answers: there is nothing left to wait for.
    _seconds(body, "wait_for_agent")
    return Opening(
        ExecRequest(
            argv=_command(body), env=_env(body), cwd=_text(body, "cwd"), user=_text(body, "user"),
            # The published client's 0 is its way to say none.
            timeout=_seconds(body, "timeout") or None,
            umask=_umask(body), tty=tty, rows=_side(body, "rows", 24), cols=_side(body, "cols", 80),
        ),
        streams=_bool(body, "streams"),
    )  # fmt: skip


def _command(body: Mapping[str, object]) -> tuple[str, ...]:
    command = body.get("command")
    if not isinstance(command, list) or not command:
        raise InvalidRequest("command: must be a list of at least one string")
    words = tuple(_checked(word, "command") for word in command)
    if not words[0]:
        raise InvalidRequest("command: its first word is empty")
    return words


def _env(body: Mapping[str, object]) -> dict[str, str]:
    env = body.get("env", {})
    if not isinstance(env, dict):
        raise InvalidRequest("env: must be an object of strings")
    for key in env:
        if not key or "=" in key or "\0" in key:
            raise InvalidRequest(f"env: {key[:80]!r} cannot be the name of a variable")
    return {key: _checked(value, f"env.{key[:80]}") for key, value in env.items()}


def _checked(value: object, key: str) -> str:
    if not isinstance(value, str):
        raise InvalidRequest(f"{key}: {json.dumps(value)[:40]} is not a string")
    if "\0" in value:
        raise InvalidRequest(f"{key}: a string contains a NUL byte")
    return value


def _text(body: Mapping[str, object], key: str) -> str | None:
    return (_checked(body[key], key) or None) if key in body else None


def _bool(body: Mapping[str, object], key: str) -> bool:
    value = body.get(key, False)
    if not isinstance(value, bool):
        raise InvalidRequest(f"{key}: is neither true nor false")
    return value


def _seconds(body: Mapping[str, object], key: str) -> float:
    value = body.get(key, 0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1e9:
        raise InvalidRequest(f"{key}: must be a non-negative number of seconds")
    return float(value)


def _umask(body: Mapping[str, object]) -> int | None:
    value = body.get("umask")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_UMASK:
        raise InvalidRequest(f"umask: must be a number from 0 to {MAX_UMASK}, which is 0777")
    return value


def _side(body: Mapping[str, object], key: str, default: int) -> int:
    """Lines or columns of a terminal."""
    value = body.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_SIDE:
        raise InvalidRequest(f"{key}: must be a whole number from 1 to {MAX_SIDE}")
    return value


async def serve_exec(
    request: web.Request, guests: GuestService, ref: str, closing: asyncio.Event, limits: Limits
) -> web.WebSocketResponse:
    """Take the connection over and run one command. The VM has been found Running before."""

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
        await socket.send_str(json.dumps(_exit_frame(report, opening.streams)))
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
        return await first_of(output=_send_output(socket, session, opening), input=_feed(socket, session))
    finally:
        await session.close()


async def _send_output(
    socket: web.WebSocketResponse, session: ExecSession, opening: Opening
) -> ExitReport | None:
    async for stream, data in session.output():
        await socket.send_bytes(_STREAM_BYTES[stream] + data if opening.streams else data)
    return await session.wait()


async def _feed(socket: web.WebSocketResponse, session: ExecSession) -> ExitReport | None:
    """Pass input on until the client closes."""
    while not is_end(frame := await socket.receive()):
        if frame.type is WSMsgType.BINARY:
            await session.write(frame.data)
        else:
            await _control(frame.data, session)
    return None


async def _control(text: str, session: ExecSession) -> None:
    body = parse_object(text, "a control frame")
    if body == {"eof": True}:
        await session.write_eof()
        return
    number = body.get("signal")
    if len(body) == 1 and isinstance(number, int) and number is not True and 1 <= number <= MAX_SIGNAL:
        await session.signal(number)
        return
    size = body.get("resize")
    if len(body) == 1 and isinstance(size, dict) and size.keys() == {"rows", "cols"}:
        await session.resize(_side(size, "rows", 0), _side(size, "cols", 0))
        return
    raise InvalidRequest(
        'a control frame is none of {"eof":true}, {"signal":n} with n from 1 to 64,'
        ' and {"resize":{"rows":n,"cols":n}}'
    )


def _exit_frame(report: ExitReport, streams: bool) -> dict[str, object]:
    """The published client wants this key and no other; who asked for streams gets the words too."""
    if report.code is None:
        raise HypemandError(
            (f"the exit status of the command is not known: {report.message}"), code="guest_error"
        )
    return {"exitCode": report.code} | ({"message": report.message} if streams else {})
