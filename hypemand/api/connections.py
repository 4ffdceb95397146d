# SPDX-License-Identifier: Apache-2.0
"""Limits of connections per server, and of concurrent requests per client.

A connection is a stranger's until a request on it has passed the gate. When places run short, the oldest
stranger of the address that has most of them makes room: connections that say nothing cannot keep those out
that do, be they of another address or of the same.
"""

from __future__ import annotations

import ipaddress
import socket
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from aiohttp import web

from hypemand.api.access import find_peer
from hypemand.api.failures import Handler, TooManyRequests
from hypemand.api.services import Limits

# of an IPv6 address, what a client usually has the rest of for itself
_PREFIX_BITS = 64

# milliseconds that data may be without an acknowledgement, or without a window at the peer, until the kernel
# takes the peer for lost
USER_TIMEOUT = 120_000
# seconds: silence until the kernel asks whether the peer is there, from one such question to the next
_KEEPALIVE_IDLE, _KEEPALIVE_INTERVAL = 30, 15


@dataclass(eq=False, slots=True)
class Place:
    """An accepted connection. `address`: the address that it is counted for; `close` closes it."""

    address: str
    close: Callable[[], object] = field(repr=False)


class Places:
    """The connections of one server, within its limit."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._known: set[Place] = set()
        # for each address, oldest first
        self._strangers: dict[str, dict[Place, None]] = {}

    def __len__(self) -> int:
        return len(self._known) + sum(map(len, self._strangers.values()))

    def take(self, address: str, close: Callable[[], object]) -> Place | None:
        """A place for a new connection, if necessary that of an unauthenticated one. None: all are
        authenticated."""
        if len(self._strangers.get(address, ())) >= self._limits.strangers:
            self._turn_out(address)
        elif len(self) >= self._limits.connections:
            if not self._strangers:
                return None
            self._turn_out(max(self._strangers, key=lambda key: len(self._strangers[key])))
        place = Place(address, close)
        self._strangers.setdefault(address, {})[place] = None
        return place

    def _turn_out(self, address: str) -> None:
        oldest = next(iter(self._strangers[address]))
        self.give_back(oldest)
        oldest.close()

    def know(self, place: Place) -> None:
        """A request on that connection was authenticated."""
        if place in self._strangers.get(place.address, ()):
            self.give_back(place)
            self._known.add(place)

    def give_back(self, place: Place) -> None:
        """Release the place: the connection was closed, or is authenticated. May be called again."""
        self._known.discard(place)
        of_address = self._strangers.get(place.address)
        if of_address is not None:
            of_address.pop(place, None)
            if not of_address:
                del self._strangers[place.address]


class Requests:
    """Authorized requests in progress, by client and by address."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._running: Counter[Hashable] = Counter()

    @web.middleware
    async def bound(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Middleware after authentication: refuse requests over the limits of a client or of an address. Root
        on the socket is not limited, since it repairs the host."""
        peer = find_peer(request)
        if peer.uid == 0:
            return await handler(request)
        if peer.token is None:
            keys: dict[Hashable, int] = {("uid", peer.uid): self._limits.client_requests}
        else:
            keys = {
                ("token", peer.token.name): self._limits.client_requests,
                ("address", derive_address(request.remote or "")): self._limits.address_requests,
            }
        for key, most in keys.items():
            if self._running[key] >= most:
                raise TooManyRequests(
                    f"{most} requests of this client are in progress", hint="cancel some, or wait for them"
                )
        with self._counted(keys):
            return await handler(request)

    @contextmanager
    def _counted(self, keys: dict[Hashable, int]) -> Iterator[None]:
        self._running.update(keys.keys())
        try:
            yield
        finally:
            self._running.subtract(keys.keys())
            for key in keys:
                if not self._running[key]:
                    del self._running[key]


def derive_address(host: str) -> str:
    """The address that a connection from `host` is counted for: an IPv4 address, or the /64 of an IPv6
    address; "" for none."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return ""
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, _PREFIX_BITS), strict=False))
    return str(address)


def find_address(connection: socket.socket, peer: object) -> str:
    """The address that a connection is counted for; on a unix socket the uid. `peer`: as from accept(2)."""
    if connection.family == socket.AF_UNIX:
        size = 3 * 4  # struct ucred: pid, uid and gid
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        return f"uid {int.from_bytes(raw[4:8], 'little')}"
    return derive_address(str(peer[0]) if isinstance(peer, tuple) else "")


def notice_loss(connection: socket.socket) -> None:
    """Have the kernel close a TCP connection whose peer has vanished (tcp(7)), which ends its requests."""
    if connection.family == socket.AF_UNIX:
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_KEEPIDLE, _KEEPALIVE_IDLE),
        (socket.TCP_KEEPINTVL, _KEEPALIVE_INTERVAL),
        (socket.TCP_USER_TIMEOUT, USER_TIMEOUT),
    ):
        connection.setsockopt(socket.IPPROTO_TCP, option, value)
