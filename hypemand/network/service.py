# SPDX-License-Identifier: Apache-2.0
"""The network service: handles requests of the daemon that need CAP_NET_ADMIN, one at a time.

What it has made stays when it ends: VMs keep their networks as they are.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hypemand.errors import HypemandError
from hypemand.model.document import BadDocument, decode, encode
from hypemand.network.port import TAP_PREFIX, BridgePlan, PortPlan
from hypemand.network.reconcile import HostNetworks
from hypemand.network.taps import TapDoor, find_peer
from hypemand.network.watch import Watch, watch_firewalls, watch_links, watch_names, watch_routes, watch_rules
from hypemand.network.wire import (
    CHANGED,
    SOCKET,
    TAMPERED,
    TAP_SOCKET,
    Op,
    encode_error,
    encode_frame,
    read_frame,
)
from hypemand.service import Service, make_parser, run_service, set_up_logging
from hypemand.sockets import open_socket, take_sockets
from hypemand.tasks import Tasks

_log = logging.getLogger(__name__)
_IDENTIFIER = "hypemand-network"
_TAP_NAME = "tap"  # FileDescriptorName= of hypemand-tap.socket
_BACKLOG = 16
# between two mends of bridges: who takes them away again and again is not fought with all there is
_MEND_PAUSE = 1.0
# after the first of many changes of the host's firewalls and routes, and between two looks at what they mean
_LOOK_DELAY, _LOOK_PAUSE = 0.5, 5.0
# until ports that the kernel still remembers old connections to are tried again
_HOLD_PAUSE = 5.0


class NetworkService:
    """Serves requests. Each is done in the event loop, which does nothing else meanwhile: the kernel answers
    in milliseconds, and if it does not, the watchdog notices."""

    def __init__(self, host: HostNetworks) -> None:
        self._host = host
        self._service = Service()
        self._tasks = Tasks("the network service")
        self._connections: set[asyncio.Task[Any]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._mending: asyncio.TimerHandle | None = None
        self._mended_at = -_MEND_PAUSE
        self._looking: asyncio.TimerHandle | None = None
        self._looked_at = -_LOOK_PAUSE
        self._holding: asyncio.TimerHandle | None = None
        # by the VMs' names: for what they are to be ended, and what was seen, for events come in numbers
        self._tampered: dict[str, str] = {}
        self._seen: dict[str, str | None] = {}

    async def run(self, listener: socket.socket, tap_listener: socket.socket) -> None:
        """Serve until SIGTERM or SIGINT: the daemon on `listener`, launchers of VMs on the other."""
        async with self._service.watch():
            loop = asyncio.get_running_loop()
            watches = list(self._start_watches(loop))
            door = TapDoor(loop, tap_listener, self._host.open_tap)
            server = await asyncio.start_server(self._serve, sock=listener)  # it is systemd's, and stays
            try:
                self._update_status()
                await self._service.serve()
            finally:
                door.close()
                for watch in watches:
                    watch.close()
                for timer in (self._mending, self._looking, self._holding):
                    if timer is not None:
                        timer.cancel()
                server.close()
                for task in self._connections:
                    task.cancel()
                await asyncio.gather(*self._connections, return_exceptions=True)

    def _start_watches(self, loop: asyncio.AbstractEventLoop) -> Iterator[Watch]:
        try:
            yield watch_rules(loop, self._restore_rules)
            yield watch_links(loop, self._host.is_bridge, self._begin_mend)
            yield watch_firewalls(loop, self._begin_look)
            yield watch_routes(loop, self._host.is_our_bridge, self._begin_look)
            yield watch_names(loop, lambda name: name.startswith(TAP_PREFIX), self._check_taps)
            yield watch_names(loop, self._host.is_awaited, lambda _names: self._begin_mend())
        except OSError as error:  # as each request will say
            _log.error("cannot watch the networks of the host: %s", error.strerror)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            uid = find_peer(writer.get_extra_info("socket"))
            if uid not in (0, os.geteuid()):
                _log.warning("refused a connection of uid %d", uid)
                return
            self._writers.add(writer)
            self._tell_tampered(self._tampered, {writer})
            while (request := await read_frame(reader)) is not None:
                writer.write(encode_frame(self._answer(request)))
                await writer.drain()
        except BadDocument as error:
            _log.warning("closed a connection: %s", error)
        except ConnectionError as error:
            # whoever has asked may go as soon as the answer is there
            _log.debug("a connection has ended: %s", error)
        except asyncio.CancelledError:
            pass  # the service ends
        finally:
            self._connections.discard(task)
            self._writers.discard(writer)
            writer.close()

    def _answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        number = request.get("id")
        try:
            result = self._do(request)
        except HypemandError as error:
            return {"id": number, "error": encode_error(error)}
        except Exception as error:
            _log.exception("%s failed", request.get("op"))
            told = HypemandError(f"the network service failed: {type(error).__name__}: {error}")
            return {"id": number, "error": encode_error(told)}
        finally:
            self._update_status()
            if self._holding is None:
                self._hold_ports()
        return {"id": number, "result": encode(result)}

    def _do(self, request: Mapping[str, Any]) -> object:
        match request.get("op"):
            case Op.APPLY:
                bridges = decode(tuple[BridgePlan, ...], request.get("bridges"))
                ports = decode(tuple[PortPlan, ...], request.get("ports"))
                return self._host.apply(bridges, ports, prune=request.get("prune") is True)
            case Op.ATTACH:
                return self._host.attach(decode(PortPlan, request.get("port")))
            case Op.DETACH:
                self._host.detach(decode(PortPlan, request.get("port")))
                return None
            case Op.COUNTERS:
                return self._host.counters()
            case Op.CONNECTIONS:
                return self._host.connections()
            case Op.ENDED:
                if self._tampered.get(vm := str(request.get("vm"))) == request.get("what"):
                    del self._tampered[vm]
                return None
            case other:
                raise BadDocument(f"no operation {other!r}")

    def _update_status(self) -> None:
        self._service.update_status(self._host.summary)

    def _hold_ports(self) -> None:
        self._holding = None
        if not self._host.complete_reservations():
            self._holding = asyncio.get_running_loop().call_later(_HOLD_PAUSE, self._hold_ports)

    def _restore_rules(self) -> None:
        """Somebody has removed a table: ours, perhaps."""
        try:
            if self._host.restore_rules():
                _log.warning("the rules of nftables were removed by another program; restored")
        except HypemandError as error:
            _log.error("the rules of nftables were removed, and cannot be restored: %s", error)

    def _begin_mend(self) -> None:
        """A bridge is not what it was, perhaps."""
        if self._mending is None:
            loop = asyncio.get_running_loop()
            self._mending = loop.call_at(max(loop.time(), self._mended_at + _MEND_PAUSE), self._mend_bridges)

    def _mend_bridges(self) -> None:
        self._mending = None
        lost = self._host.restore_bridges()
        for status in lost:
            if status.problem:
                _log.error(
                    "network %s was removed by another program, and cannot be restored: %s",
                    status.network,
                    status.problem,
                )
            else:
                _log.warning("network %s was removed by another program; restored", status.network)
            for warning in status.warnings:
                _log.warning("network %s: %s", status.network, warning)
        if lost or self._find_come():
            self._mended_at = asyncio.get_running_loop().time()
            self._tell_changed()

    def _find_come(self) -> list[str]:
        """Bridges of others that were missing before: the daemon is to send the desired state."""
        try:
            return self._host.find_come()
        except HypemandError as error:
            _log.warning("cannot look for bridges: %s", error)
            return []

    def _check_taps(self, names: set[str]) -> None:
        """Something of these TAP devices has changed, of any after events were lost."""
        found = self._host.mend_taps(names or self._host.list_taps())
        news = {vm: what for vm, what in found.items() if what is not None and self._seen.get(vm) != what}
        for vm, what in news.items():
            _log.error("VM %s: %s", vm, what)
        self._seen |= found
        self._seen = {vm: what for vm, what in self._seen.items() if what is not None}
        self._tampered |= news
        self._tell_tampered(news, self._writers)

    def _tell_tampered(self, tampered: Mapping[str, str], writers: Iterable[asyncio.StreamWriter]) -> None:
        """Have the daemon end those VMs. If the daemon ends meanwhile, the next one gets the report again."""
        for vm, what in tampered.items():
            for writer in writers:
                writer.write(encode_frame({"event": TAMPERED, "vm": vm, "what": what}))

    def _begin_look(self) -> None:
        """The rest of the host is not what it was: there may be something to report, or to repair."""
        if self._looking is None:
            loop = asyncio.get_running_loop()
            at = max(loop.time() + _LOOK_DELAY, self._looked_at + _LOOK_PAUSE)
            self._looking = loop.call_at(at, self._look)

    def _look(self) -> None:
        self._looking = None
        self._looked_at = asyncio.get_running_loop().time()
        try:
            if self._host.has_changed():
                self._tell_changed()
        except HypemandError as error:
            _log.warning("cannot check changes of the host: %s", error)

    def _tell_changed(self) -> None:
        """Have the daemon send the desired state again: it shows the answer."""
        for writer in self._writers:
            writer.write(encode_frame({"event": CHANGED}))


def _run(arguments: argparse.Namespace) -> None:
    with contextlib.closing(HostNetworks()) as host:
        if arguments.clean:
            host.clean()
        else:
            asyncio.run(_serve(host, arguments.socket, arguments.tap_socket))


async def _serve(host: HostNetworks, path: Path, tap_path: Path) -> None:
    sockets = take_sockets()
    taps = sockets.pop(_TAP_NAME, None)
    listener = next(iter(sockets.values()), None)
    await NetworkService(host).run(
        listener or open_socket(path, _BACKLOG),
        taps or open_socket(tap_path, _BACKLOG, socket.SOCK_SEQPACKET),
    )


def main() -> int:
    """Run the service, or remove all that it has made, and return its exit status; see `run_service`."""
    parser = make_parser(_IDENTIFIER, "Set up the networks of micro VMs. Started by hypemand-network.socket.")
    parser.add_argument(
        "--clean", action="store_true", help="remove all bridges, interfaces and nftables rules of hypemand"
    )
    parser.add_argument("--socket", type=Path, default=SOCKET, metavar="PATH", help="socket of hypemand")
    parser.add_argument(
        "--tap-socket", type=Path, default=TAP_SOCKET, metavar="PATH", help="socket of VM launchers"
    )
    arguments = parser.parse_args()
    set_up_logging(_IDENTIFIER, quiet="pyroute2")
    return run_service(lambda: _run(arguments))


if __name__ == "__main__":
    sys.exit(main())
