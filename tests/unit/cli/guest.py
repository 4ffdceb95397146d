# SPDX-License-Identifier: Apache-2.0
"""The exec endpoint of a daemon over a real WebSocket, with a guest that has four commands."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aiohttp import WSMsgType, web

STDOUT, STDERR = b"\x01", b"\x02"


class FakeGuest:
    """Serves /instances/web/exec; everything else about exec is refused as a daemon would."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.openings: list[dict[str, Any]] = []
        self.signals: list[int] = []

    @contextmanager
    def serve(self) -> Iterator[FakeGuest]:
        """Listen while it is entered."""
        ready, loop = threading.Event(), asyncio.new_event_loop()
        stop = asyncio.Event()

        async def work() -> None:
            app = web.Application()
            app.router.add_get("/instances/{ref}/exec", self._exec)
            runner = web.AppRunner(app)
            await runner.setup()
            await web.UnixSite(runner, str(self.path)).start()
            ready.set()
            await stop.wait()
            await runner.cleanup()

        thread = threading.Thread(target=loop.run_until_complete, args=(work(),), name="fake-guest")
        thread.start()
        try:
            assert ready.wait(60)
            yield self
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join(60)
            loop.close()

    async def _exec(self, request: web.Request) -> web.StreamResponse:
        if request.match_info["ref"] != "web":
            body = {
                "code": "invalid_state",
                "message": "db is Stopped",
                "hint": "start it first",
                "problems": [],
            }
            return web.json_response(body, status=409)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        opening = json.loads((await socket.receive()).data)
        self.openings.append(opening)
        if opening["command"][0] == "/bin/sh":
            await self._tty(socket)
        else:
            await getattr(self, f"_{opening['command'][0]}")(socket, *opening["command"][1:])
        return socket

    async def _tty(self, socket: web.WebSocketResponse) -> None:
        """Tells each key, size and signal; q ends it with 7, v without a word."""
        await socket.send_bytes(STDOUT + b"ready")
        async for frame in socket:
            if frame.type is not WSMsgType.BINARY:
                body = json.loads(frame.data)
                size, number = body.get("resize"), body.get("signal")
                words = f"{size['rows']}x{size['cols']}" if size else f"signal {number}" if number else ""
                await socket.send_bytes(STDOUT + words.encode())
            elif frame.data == b"q":
                await self._end(socket, 7)
            elif frame.data == b"v":
                await socket.close(code=1011)
            else:
                await socket.send_bytes(STDOUT + "".join(f"<{key:02x}>" for key in frame.data).encode())

    async def _cat(self, socket: web.WebSocketResponse) -> None:
        """Copies its input until its end."""
        async for frame in socket:
            if frame.type is WSMsgType.BINARY:
                await socket.send_bytes(STDOUT + frame.data)
            elif json.loads(frame.data) == {"eof": True}:
                break
        await self._end(socket, 0)

    async def _say(self, socket: web.WebSocketResponse, out: str, err: str, code: str) -> None:
        """Says one thing on each output and ends."""
        await socket.send_bytes(STDOUT + out.encode("latin-1"))
        await socket.send_bytes(STDERR + err.encode("latin-1"))
        await self._end(socket, int(code))

    async def _trap(self, socket: web.WebSocketResponse) -> None:
        """Ends by the second signal that it gets."""
        await socket.send_bytes(STDOUT + b"ready\n")
        async for frame in socket:
            body = json.loads(frame.data)
            if "signal" in body:
                self.signals.append(body["signal"])
                await socket.send_bytes(STDOUT + b"got one\n")
            if len(self.signals) == 2:
                await self._end(socket, 128 + self.signals[-1])

    async def _vanish(self, socket: web.WebSocketResponse, reason: str = "") -> None:
        """Ends without an exit status."""
        await socket.close(code=1011, message=reason.encode())

    async def _end(self, socket: web.WebSocketResponse, code: int) -> None:
        message = "not found: nope" if code == 127 else "exited"
        await socket.send_str(json.dumps({"exitCode": code, "message": message}))
        await socket.close()
