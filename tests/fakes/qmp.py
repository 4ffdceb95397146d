# SPDX-License-Identifier: Apache-2.0
"""QEMU as its QMP socket shows it: run states, drives, and a guest that is paused, resumed, saved and ended.

tests/unit/vmm/test_qemu.py plays the same scenarios on this and on a real QEMU.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.fakes.migration import format_stream

_THROTTLES = {"bps": "bps-total", "bps_rd": "bps-read", "bps_wr": "bps-write", "iops": "iops-total"}
GREETING: dict[str, Any] = {"QMP": {"version": {}, "capabilities": []}}
Say = Callable[[dict[str, Any]], None]


class Refused(Exception):
    """A command that QEMU answers with an error."""


class Monitor:
    """The state behind the socket. `say` sends events; `on_quit` ends the process. `status`: its run state;
    `drives`: the answer to query-block; `memory`: what the guest's memory, of `size` bytes, begins with;
    `refuses`: commands that it answers with an error. `orders` has every command that came."""

    def __init__(self, say: Say, on_quit: Callable[[], None] = lambda: None) -> None:
        self.status = "running"
        self.drives: list[dict[str, object]] = []
        self.memory = b""
        self.size = 64 * 1024**2
        # why it cannot be saved, as it finds out when it has begun
        self.failure = ""
        # bytes that the guest has; None: it has no balloon
        self.balloon: int | None = None
        self.keeps_memory = False
        self.refuses: set[str] = set()
        # it stays when its guest has shut down
        self.holds_end = False
        # a save that has begun does not come to its end
        self.holds_save = False
        self.orders: list[str] = []
        self.fds: dict[str, int] = {}
        self._wanted = 0
        self._say = say
        self._on_quit = on_quit
        self._capabilities: dict[str, bool] = {}
        self._migration: dict[str, str] = {}
        self._saving: asyncio.Task[None] | None = None
        # at the end of a save it obeys no order
        self._obeys = asyncio.Lock()

    def take_start_line(self, words: Sequence[str]) -> None:
        """Its memory, its drives with their limits, and its balloon are those of this command line."""
        self.size = int(words[list(words).index("-m") + 1].removesuffix("M")) * 1024**2
        for option, value in pairwise(words):
            parts = dict(part.partition("=")[::2] for part in value.split(","))
            if option == "-drive":
                limits = {key: int(parts.get(f"throttling.{word}", 0)) for key, word in _THROTTLES.items()}
                group = parts.get("throttling.group")
                self.drives.append({"device": parts["id"], "inserted": limits, "group": group})
            elif option == "-device" and value.startswith("virtio-balloon-device"):
                self.balloon = self.size

    async def take(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        """The answer to a command that came with these descriptors."""
        order = request["execute"]
        self.orders.append(order)
        async with self._obeys:
            try:
                answer = {"return": self._obey(order, request.get("arguments", {}), fds)}
            except Refused as error:
                answer = {"error": {"class": "GenericError", "desc": str(error)}}
        return {**answer, "id": request["id"]}

    def _obey(self, order: str, arguments: dict[str, Any], fds: list[int]) -> object:
        if order in self.refuses:
            raise Refused(f"{order} is refused")
        match order:
            case "query-status":
                return {"status": self.status}
            case "query-block":
                return self.drives
            case "stop" | "cont":
                self._switch("paused" if order == "stop" else "running")
            case "announce-self":
                assert arguments["rounds"] > 0
            case "query-balloon" | "balloon" if self.balloon is None:
                raise Refused("No balloon device has been activated")
            case "query-balloon":
                return {"actual": self.balloon}
            case "balloon":
                self._wanted = arguments["value"]
                if not self.keeps_memory:
                    self.give_back()
            case "block_set_io_throttle":
                self._throttle(arguments)
            case "getfd":
                self.fds[arguments["fdname"]] = fds.pop(0)
            case "closefd":
                socket.close(self._take_fd(arguments["fdname"]))
            case "migrate-set-capabilities":
                for item in arguments["capabilities"]:
                    self._capabilities[item["capability"]] = item["state"]
            case "migrate":
                self._begin_save(arguments["uri"])
            case "migrate_cancel":
                if self._saving is not None:
                    self._saving.cancel()
            case "query-migrate":
                return self._migration
            case "set-action":
                self.holds_end = arguments["shutdown"] == "pause"
            case "system_reset":
                self.shut_down("host-qmp-system-reset")
            case "quit":
                self.tell("SHUTDOWN", guest=False, reason="host-qmp-quit")
                self._on_quit()
        return {}

    def shut_down(self, reason: str = "guest-shutdown") -> None:
        """Its guest does, or is reset."""
        self.tell("SHUTDOWN", guest=reason.startswith("guest"), reason=reason)
        if self.holds_end:
            self.status = "shutdown"
            self.tell("STOP")
        else:
            self._on_quit()

    def give_back(self) -> None:
        """Its guest has given back, or taken, what it was asked to."""
        self.balloon = self._wanted
        self.tell("BALLOON_CHANGE", actual=self.balloon)

    def _throttle(self, arguments: dict[str, Any]) -> None:
        """Members of a group have one configuration."""
        if arguments["bps"] and (arguments["bps_rd"] or arguments["bps_wr"]):
            raise Refused("bps/iops/max total values and read/write values cannot be used at the same time")
        limits = {key: value for key, value in arguments.items() if key not in ("device", "group")}
        drive = next((one for one in self.drives if one["device"] == arguments["device"]), None)
        if drive is None:
            raise Refused(f"Device '{arguments['device']}' not found")
        drive["group"] = arguments["group"]
        for one in self.drives:
            if one.get("group") == arguments["group"]:
                one["inserted"] = limits

    def tell(self, event: str, **data: object) -> None:
        """An event."""
        self._say({"event": event, "data": data})

    def _switch(self, status: str) -> None:
        if self.status != status:
            self.status = status
            self.tell("RESUME" if status == "running" else "STOP")

    def _take_fd(self, name: str) -> int:
        if name not in self.fds:
            raise Refused(f"File descriptor named '{name}' not found")
        return self.fds.pop(name)

    def _begin_save(self, uri: str) -> None:
        name = uri.removeprefix("fd:")
        assert name != uri, "the sandbox allows nothing else"
        target = socket.socket(fileno=self._take_fd(name))
        target.setblocking(False)
        self._report("setup")
        self._saving = asyncio.create_task(self._save(target))

    def _report(self, status: str, **more: str) -> None:
        self._migration = {"status": status, **more}
        if self._capabilities.get("events"):
            self.tell("MIGRATION", status=status)

    async def _save(self, target: socket.socket) -> None:
        before = self.status
        try:
            self._report("active")
            if self.holds_save:
                await asyncio.get_running_loop().create_future()
            async with self._obeys:
                self._switch("finish-migrate")
                stream = format_stream(self.memory, self.size)
                if self.failure:
                    await asyncio.get_running_loop().sock_sendall(target, stream[:1000])
                    target.close()
                    await asyncio.sleep(0.05)
                    raise Refused(self.failure)
                await asyncio.get_running_loop().sock_sendall(target, stream)
        except (OSError, Refused) as error:
            self._switch(before)
            self._report("failed", **{"error-desc": f"Unable to write to socket: {error}"})
        except asyncio.CancelledError:
            self._switch(before)
            self._report("cancelled")
        else:
            self._report("completed")
            self.status = "postmigrate"
        finally:
            self._saving = None
            target.close()

    async def close(self) -> None:
        """The process has ended."""
        if self._saving is not None:
            self._saving.cancel()
            await asyncio.wait([self._saving])
        for fd in self.fds.values():
            socket.close(fd)
        self.fds.clear()


class QmpServer:
    """A QEMU's QMP socket, which takes one client at a time and descriptors too."""

    def __init__(self) -> None:
        self.monitor = Monitor(self._say, self.kill)
        self._client: socket.socket | None = None
        self.ended = asyncio.Event()

    @asynccontextmanager
    async def serve(self, path: Path) -> AsyncIterator[None]:
        """Listen until it has been ended, or this context is left."""
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()
            listener.setblocking(False)
            task = asyncio.create_task(self._run(listener))
            try:
                yield
            finally:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
                await self.monitor.close()

    def kill(self) -> None:
        """End the process."""
        self.ended.set()
        if self._client is not None:
            self._client.shutdown(socket.SHUT_RDWR)

    async def _run(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while not self.ended.is_set():
            client, _ = await loop.sock_accept(listener)
            with client, suppress(OSError):
                client.setblocking(False)
                self._client = client
                self._say(GREETING)
                await self._serve(client)
            self._client = None

    def _say(self, message: dict[str, Any]) -> None:
        if self._client is not None:
            with suppress(OSError):
                self._client.send(json.dumps(message).encode() + b"\r\n")

    async def _serve(self, client: socket.socket) -> None:
        rest, fds = b"", list[int]()
        while True:
            await _until_readable(client)
            data, new, _flags, _address = socket.recv_fds(client, 65536, 4)
            if not data:
                return
            if new:
                # as QEMU does with those that nobody has taken
                for fd in fds:
                    socket.close(fd)
                fds[:] = new
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._say(await self.monitor.take(json.loads(line), fds))


async def _until_readable(client: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_reader(client, lambda: None if ready.done() else ready.set_result(None))
    try:
        await ready
    finally:
        loop.remove_reader(client)
