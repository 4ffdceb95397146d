# SPDX-License-Identifier: Apache-2.0
"""Client of the network service.

It loads nothing that talks to the kernel: that is the service's, and so is the memory it takes.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from hypemand.errors import HostNotReady, HypemandError
from hypemand.model.counters import Connections, Counters
from hypemand.model.document import BadDocument, decode, encode
from hypemand.network.port import BridgePlan, NetworkStatus, PortPlan
from hypemand.network.wire import (
    CHANGED,
    NOT_APPLIED,
    SOCKET,
    TAMPERED,
    Op,
    decode_error,
    encode_frame,
    read_frame,
)
from hypemand.tasks import Tasks

_log = logging.getLogger(__name__)
_CONNECT_TIMEOUT = 10.0
_TIMEOUT = 10.0
_APPLY_TIMEOUT = 60.0
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 30.0
_HINT = "systemctl status hypemand-network.socket hypemand-network.service"


class _Lost(HostNotReady):
    """The connection ended before the answer came."""

    def __init__(self) -> None:
        super().__init__("the network service has closed the connection", hint=_HINT)


class NetworkClient:
    """`NetworkHost` by the service's socket. One connection, made with the first request.

    `on_reconnect` is awaited whenever the service may be another one than before, and when it says that
    others have changed the host's networks: it has to call `apply` with all there is. It runs in a task of
    the client, or within the request that found a service that knows nothing yet. `on_tampered` is awaited
    with a VM's name and words for what somebody has made of its TAP device. `timeout`: seconds within which
    each request but `apply` has to be answered.
    """

    def __init__(
        self,
        path: Path = SOCKET,
        *,
        on_reconnect: Callable[[], Awaitable[object]] | None = None,
        on_tampered: Callable[[str, str], Awaitable[object]] | None = None,
        timeout: float = _TIMEOUT,
    ) -> None:
        self.on_reconnect = on_reconnect
        self.on_tampered = on_tampered
        self._path = path
        self._timeout = timeout
        self._ids = itertools.count(1)
        self._pending: dict[int, asyncio.Future[Any]] = {}
        self._connecting = asyncio.Lock()
        self._writer: asyncio.StreamWriter | None = None
        self._tasks = Tasks("the network service")
        self._recovery: asyncio.Task[None] | None = None
        self._reapplying: asyncio.Task[None] | None = None
        self._ending: set[str] = set()  # VMs, by name
        self._closed = False

    async def close(self) -> None:
        """End the connection. What is still waited for fails."""
        self._closed = True
        await self._tasks.close()
        self._drop()

    async def apply(
        self, bridges: tuple[BridgePlan, ...], ports: tuple[PortPlan, ...], *, prune: bool
    ) -> tuple[NetworkStatus, ...]:
        """See NetworkHost. Takes at most 60 s."""
        wish = {"bridges": encode(bridges), "ports": encode(ports), "prune": prune}
        answer = await self._ask(Op.APPLY, wish, tuple[NetworkStatus, ...], _APPLY_TIMEOUT)
        return tuple(answer)

    async def attach(self, port: PortPlan) -> int:
        """See NetworkHost. Whether the port is there after a deadline has passed is not known: detach it."""
        return int(await self._ask_knowing(Op.ATTACH, {"port": encode(port)}, int))

    async def detach(self, port: PortPlan) -> None:
        """See NetworkHost."""
        await self._ask_knowing(Op.DETACH, {"port": encode(port)}, None | int)

    async def counters(self) -> Mapping[str, Counters]:
        """See NetworkHost."""
        return dict(await self._ask(Op.COUNTERS, {}, Mapping[str, Counters], self._timeout))

    async def connections(self) -> Mapping[str, Connections]:
        """See NetworkHost."""
        return dict(await self._ask(Op.CONNECTIONS, {}, Mapping[str, Connections], self._timeout))

    async def _ask_knowing(self, op: Op, request: dict[str, Any], kind: Any) -> Any:
        """Ask what a service can do only once it knows all there is."""
        try:
            return await self._ask(op, request, kind, self._timeout)
        except HypemandError as error:
            if error.code != NOT_APPLIED or self.on_reconnect is None:
                raise
        await self._reapply()
        return await self._ask(op, request, kind, self._timeout)

    async def _reapply(self) -> None:
        """Let the daemon tell the service all there is; one time for all that wait for it."""
        if self._reapplying is None or self._reapplying.done():
            self._reapplying = self._tasks.start("apply", self._call_back(), awaited=True)
        await asyncio.shield(self._reapplying)

    async def _call_back(self) -> None:
        if self.on_reconnect is not None:
            await self.on_reconnect()

    async def _ask(self, op: Op, request: dict[str, Any], kind: Any, timeout: float) -> Any:
        """One request. What was on its way when the connection ended is asked again, once: each operation
        may be repeated."""
        try:
            try:
                answer = await asyncio.wait_for(self._send(op, request), timeout)
            except _Lost:
                answer = await asyncio.wait_for(self._send(op, request), timeout)
        except TimeoutError:
            raise HostNotReady(
                f"the network service has not answered within {timeout:g} s", hint=_HINT, code="timed_out"
            ) from None
        try:
            return decode(kind, answer)
        except BadDocument as error:
            raise HostNotReady(f"the answer of the network service is invalid: {error}", hint=_HINT) from None

    async def _send(self, op: Op, request: dict[str, Any]) -> Any:
        writer = await self._connect()
        number = next(self._ids)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._pending[number] = answer
        try:
            writer.write(encode_frame({"id": number, "op": op, **request}))
            with suppress(ConnectionError):  # the reader finds it out too, and says so
                await writer.drain()
            return await answer
        except BadDocument as error:
            raise HostNotReady(f"cannot query the network service: {error}") from None
        finally:
            self._pending.pop(number, None)

    async def _connect(self) -> asyncio.StreamWriter:
        async with self._connecting:
            if self._writer is not None:
                return self._writer
            if self._closed:
                raise HostNotReady("the connection to the network service is closed")
            try:
                reader, writer = await asyncio.wait_for(
                    asyncio.open_unix_connection(str(self._path)), _CONNECT_TIMEOUT
                )
            except (OSError, TimeoutError) as error:
                reason = getattr(error, "strerror", None) or "no answer"
                raise HostNotReady(
                    f"the network service is not reachable: {self._path}: {reason}", hint=_HINT
                ) from None
            self._writer = writer
            self._tasks.start("answers", self._read(reader))
            return writer

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while (frame := await read_frame(reader)) is not None:
                self._take(frame)
        except (BadDocument, ConnectionError) as error:
            _log.warning("network service: %s", error)
        finally:
            self._drop()
        self._begin_recovery()

    def _begin_recovery(self) -> None:
        if self._recovery is None or self._recovery.done():
            self._recovery = self._tasks.start("recovery", self._recover())

    def _take(self, frame: dict[str, Any]) -> None:
        if frame.get("event") == CHANGED:
            self._begin_recovery()
            return
        if frame.get("event") == TAMPERED:
            self._begin_end(str(frame.get("vm")), str(frame.get("what")))
            return
        answer = self._pending.get(frame.get("id", 0))
        if answer is None or answer.done():
            return  # nobody waits for it any more
        if "error" in frame:
            answer.set_exception(decode_error(frame["error"]))
        else:
            answer.set_result(frame.get("result"))

    def _begin_end(self, vm: str, what: str) -> None:
        if vm not in self._ending and not self._closed:
            self._ending.add(vm)
            task = self._tasks.start(f"end of VM {vm} for a change", self._end(vm, what))
            task.add_done_callback(lambda _: self._ending.discard(vm))

    async def _end(self, vm: str, what: str) -> None:
        if self.on_tampered is None:
            return
        try:
            await self.on_tampered(vm, what)
        except HypemandError as error:
            _log.error("VM %s cannot be stopped, and %s: %s", vm, what, error)
            return
        try:
            await self._ask(Op.ENDED, {"vm": vm, "what": what}, None | int, self._timeout)
        except HypemandError as error:  # it will tell the next connection of it again
            _log.debug("cannot notify the network service that VM %s is stopped: %s", vm, error)

    def _drop(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        for answer in self._pending.values():
            if not answer.done():
                answer.set_exception(_Lost())

    async def _recover(self) -> None:
        """After the connection has ended, or the host's networks have changed: tell the service that is there
        now all there is."""
        pause = _FIRST_PAUSE
        while not self._closed and self.on_reconnect is not None:
            await asyncio.sleep(pause)
            try:
                await self._connect()
                await self._reapply()
            except HypemandError as error:
                _log.warning("networks: %s", error)
                pause = min(pause * 2, _LONGEST_PAUSE)
            else:
                return
