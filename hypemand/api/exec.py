# SPDX-License-Identifier: Apache-2.0
"""A command in a guest over a WebSocket.

The client's first frame says what to run. Binary frames are input and output; the one text frame that
comes back holds the exit code. What cannot be run, or whose exit nobody knows, ends without that frame, by
a close frame with the reason: 1008 for a request that is wrong, 1011 for what failed, 1001 when the daemon
stops. A client that asked for streams gets the whole error as text before that.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from aiohttp import WSCloseCode, WSMessage, WSMsgType, web

from hypemand.api.failures import error_json, unexpected
from hypemand.api.requests import MAX_BODY, parse_object, refuse_unknown
from hypemand.api.services import Limits
from hypemand.api.tasks import Ended, first_of, wait_ended, watch_client
from hypemand.errors import HypemandError, InvalidRequest
from hypemand.manager.view import ExecRequest, ExecSession, ExecStream, ExitReport, Manager

MAX_REASON = 123
MAX_SIGNAL = 64

_KEYS = ("command", "env", "cwd", "user", "timeout", "wait_for_agent", "tty", "rows", "cols", "streams")
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
    if _bool(body, "tty"):
        raise InvalidRequest("tty: terminals are not supported by this version of hypemand")
    for key in ("rows", "cols"):
        if key in body:
            raise InvalidRequest(f"{key}: needs tty")
    # Running means that the agent answers: there is nothing left to wait for.
    _seconds(body, "wait_for_agent")
    return Opening(
        ExecRequest(
            argv=_command(body), env=_env(body), cwd=_text(body, "cwd"), user=_text(body, "user"),
            # The published client's 0 is its way to say none.
            timeout=_seconds(body, "timeout") or None,
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
        raise InvalidRequest(f"{key}: a string holds a NUL byte")
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
        raise InvalidRequest(f"{key}: must be a number of seconds from 0 up")
    return float(value)


async def serve_exec(
    request: web.Request, manager: Manager, ref: str, closing: asyncio.Event, limits: Limits
) -> web.WebSocketResponse:
    """Take the connection over and run one command. The VM has been found Running before."""
    socket = web.WebSocketResponse(timeout=limits.closing, max_msg_size=MAX_BODY, compress=False)
    if not socket.can_prepare(request):
        raise InvalidRequest("exec is a WebSocket", hint="send Upgrade: websocket, or use hypemanctl exec")
    await socket.prepare(request)
    try:
        with watch_client(request) as gone:
            ended = await first_of(
                exec=_run(socket, manager, ref, limits),
                client=wait_ended(gone, Ended.CLIENT),
                daemon=wait_ended(closing, Ended.DAEMON),
            )
        if ended is Ended.DAEMON:
            await _close(socket, WSCloseCode.GOING_AWAY, ended.value)
        else:
            await _close(socket, WSCloseCode.OK, "")
    except ConnectionError:
        pass  # the client has gone; the command was ended with it
    except InvalidRequest as error:
        await _close(socket, WSCloseCode.POLICY_VIOLATION, f"{error.code}: {error}")
    except HypemandError as error:
        await _close(socket, WSCloseCode.INTERNAL_ERROR, f"{error.code}: {error}")
    except Exception as error:
        known = unexpected(error, f"exec in {ref}")
        await _close(socket, WSCloseCode.INTERNAL_ERROR, f"{known.code}: {known}")
    return socket


async def _close(socket: web.WebSocketResponse, code: WSCloseCode, reason: str) -> None:
    """Close with a reason of at most the 123 bytes that the protocol has room for."""
    cut = reason.encode(errors="replace")[:MAX_REASON].decode(errors="ignore")
    await socket.close(code=code, message=cut.encode())


async def _run(socket: web.WebSocketResponse, manager: Manager, ref: str, limits: Limits) -> Ended | None:
    """From the first frame to the exit; Ended.CLIENT when the client has closed before it."""
    opening = parse_opening(await _receive_first(socket, limits.opening))
    try:
        report = await _run_command(socket, manager, ref, opening)
        if report is None:
            return Ended.CLIENT
        await socket.send_str(json.dumps(_exit_frame(report, opening.streams)))
    except HypemandError as error:
        if opening.streams:
            await socket.send_str(json.dumps(error_json(error)))
        raise
    await _await_close(socket, limits.closing)
    return None


async def _run_command(
    socket: web.WebSocketResponse, manager: Manager, ref: str, opening: Opening
) -> ExitReport | None:
    """How it ended; None when the client has closed before."""
    session = await manager.exec_vm(ref, opening.request)
    try:
        return await first_of(output=_send_output(socket, session, opening), input=_feed(socket, session))
    finally:
        await session.close()


async def _await_close(socket: web.WebSocketResponse, deadline: float) -> None:
    """Leave it to the client to close. It may still be sending input that the command did not wait for, and
    the published client fails when it finds the connection closed before it has read the exit."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(deadline):
            while not _is_end(await socket.receive()):
                pass


async def _receive_first(socket: web.WebSocketResponse, deadline: float) -> str:
    try:
        frame = await socket.receive(timeout=deadline)
    except TimeoutError:
        raise InvalidRequest(f"no request came within {deadline:g} s") from None
    if _is_end(frame):
        raise ConnectionResetError("closed before the request")
    if frame.type is not WSMsgType.TEXT:
        raise InvalidRequest("the first frame must be text that says what to run")
    text: str = frame.data
    return text


def _is_end(frame: WSMessage) -> bool:
    return frame.type in (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR)


async def _send_output(
    socket: web.WebSocketResponse, session: ExecSession, opening: Opening
) -> ExitReport | None:
    async for stream, data in session.output():
        await socket.send_bytes(_STREAM_BYTES[stream] + data if opening.streams else data)
    return await session.wait()


async def _feed(socket: web.WebSocketResponse, session: ExecSession) -> ExitReport | None:
    """Pass input on until the client closes."""
    while not _is_end(frame := await socket.receive()):
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
    raise InvalidRequest('a control frame is neither {"eof":true} nor {"signal":n} with n from 1 to 64')


def _exit_frame(report: ExitReport, streams: bool) -> dict[str, object]:
    """The published client wants this key and no other; who asked for streams gets the words too."""
    if report.code is None:
        raise HypemandError(f"nobody could tell how the command ended: {report.message}", code="guest_error")
    return {"exitCode": report.code} | ({"message": report.message} if streams else {})
