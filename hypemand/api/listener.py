# SPDX-License-Identifier: Apache-2.0
"""The API over TCP: starts, moves and stops as configured, without affecting other listeners."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass

from hypemand.api.server import HttpServer
from hypemand.config.listen import ListenConfig
from hypemand.errors import HostNotReady
from hypemand.tasks import Tasks
from hypemand.workers import Pool, run_in

BACKLOG = 128
# more than the limits' grace and the flush of what is left
_END_DEADLINE = 30.0

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Open:
    """What is listened on now."""

    config: ListenConfig
    server: HttpServer
    tls: ssl.SSLContext | None


class Listener:
    """Listens, or not. `make_server` gives a server with the same routes as the socket's."""

    def __init__(self, make_server: Callable[[], HttpServer]) -> None:
        self._make_server = make_server
        self._open: _Open | None = None
        self._tasks = Tasks("the API over TCP")
        # what is open is looked at, waited on and then replaced: one at a time, or one would be left open
        self._turn = asyncio.Lock()

    @property
    def address(self) -> str | None:
        """Where, if anywhere."""
        return None if self._open is None else str(self._open.config)

    async def apply(self, config: ListenConfig | None) -> None:
        """Be as `config` says. Raises HostNotReady when that cannot be; what was before goes on then.

        A certificate is read anew even where nothing else has changed. Connections to an old address have
        the server's grace to end. Two at once: the config of the later one stays.
        """
        async with self._turn:
            await self._apply(config)

    async def _apply(self, config: ListenConfig | None) -> None:
        tls = await run_in(Pool.RECORDS, _load_tls, config)
        now = self._open
        if now is not None and config is not None and _is_same_place(now.config, config):
            if (now.tls is None) == (tls is None):
                self._renew(now, config)
                return
            # The place can be had once only: let go of it first.
            self._end(now)
        sock = _bind(config) if config is not None else None
        if now is not None and now is self._open:
            self._end(now)
        if config is None or sock is None:
            return
        server = self._make_server()
        try:
            await server.start(sock, tls)
        except BaseException:
            sock.close()
            raise
        self._open = _Open(config, server, tls)
        log.info("listening on %s%s", config, "" if tls is None else " with TLS")

    def _renew(self, now: _Open, config: ListenConfig) -> None:
        """Connections that come from now on see the new certificate."""
        if now.tls is not None and config.certificate is not None and config.key is not None:
            now.tls.load_cert_chain(config.certificate, config.key, password="")
        now.config = config

    def _end(self, old: _Open) -> None:
        self._open = None
        old.server.stop_listening()
        log.info("no longer listening on %s", old.config)
        self._tasks.start(f"end of {old.config}", old.server.finish())

    async def close(self) -> None:
        """Listen no more, and wait for what goes on to end."""
        async with self._turn:
            if self._open is not None:
                self._end(self._open)
        await self._tasks.close(patience=_END_DEADLINE)


def _is_same_place(one: ListenConfig, other: ListenConfig) -> bool:
    return (one.host, one.port) == (other.host, other.port)


def _load_tls(config: ListenConfig | None) -> ssl.SSLContext | None:
    """TLS 1.2 and later, with the certificate as it is now."""
    if config is None or config.certificate is None or config.key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # An empty passphrase: a key that needs one is refused rather than asked for on some terminal.
        context.load_cert_chain(config.certificate, config.key, password="")
    except ssl.SSLError as error:
        raise HostNotReady(
            (
                f"{config.certificate} and {config.key} are not a "
                f"certificate and its key: {error.reason or error}"
            ),
            hint="both must be in PEM format, the key without a passphrase",
        ) from None
    except OSError as error:
        raise HostNotReady(
            f"{config.certificate} or {config.key} cannot be read: {error.strerror}",
            hint="check their owner and mode",
        ) from None
    return context


def _bind(config: ListenConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((config.host, config.port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise HostNotReady(
            f"cannot listen on {config}: {error.strerror}", hint="see listen in /etc/hypemand/hypemand.yaml"
        ) from None
    return sock
