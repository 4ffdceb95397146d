# SPDX-License-Identifier: Apache-2.0
"""Who asks, and may they: on the socket the kernel says who it is, over TCP a token must.

Whoever comes over TCP without a good token learns nothing: the answer is the same whatever was asked for,
and why it was refused stands in the journal alone.
"""

from __future__ import annotations

import logging
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web

from hypemand.api.failures import Forbidden, Handler, error_response
from hypemand.api.tokens import Token, TokenStore
from hypemand.errors import HostNotReady, HypemandError

# Lines in the journal on refused requests: one for so many seconds, with the count of the others.
REFUSED_LOG_SECONDS = 10.0
# GET, and yet not for a token of the read-only kind: it sees nothing of a guest's inside but its console.
_NOT_READABLE = frozenset(
    {"exec_command", "copy_files", "read_archive", "read_volume", "stat_path", "export_image"}
)
_TOKEN_HANDLERS = frozenset({"list_tokens", "create_token", "revoke_token"})
_PEER = "hypemand.peer"
_UCRED = struct.Struct("3i")

log = logging.getLogger(__name__)


class Unauthorized(HypemandError):
    """No token, or none that is good."""

    code = "unauthorized"
    status = 401


@dataclass(frozen=True, slots=True)
class Peer:
    """Who asks. `uid` of a process on this host, by the socket; None over TCP, where `token` is there."""

    uid: int | None
    token: Token | None
    words: str


def find_peer(request: web.Request) -> Peer:
    """Who asks, as the gate has found out."""
    peer: Peer = request[_PEER]
    return peer


def _set_peer(request: web.Request, peer: Peer) -> None:
    request[_PEER] = peer


def _name_handler(request: web.Request) -> str:
    handler = request.match_info.handler
    return str(getattr(handler, "__name__", ""))


def _changes_something(request: web.Request) -> bool:
    return request.method != "GET" or _name_handler(request) in ("exec_command", "copy_files")


def _log_change(request: web.Request, peer: Peer) -> None:
    if request.match_info.http_exception is None and _changes_something(request):
        log.info("%s %s by %s", request.method, request.path, peer.words)


@web.middleware
async def local_gate(request: web.Request, handler: Handler) -> web.StreamResponse:
    """On the unix socket: its mode and group have decided already who may."""
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("the client has gone")
    raw = transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, gid = _UCRED.unpack(raw)
    peer = Peer(uid, None, f"uid {uid}, gid {gid}, pid {pid}")
    _set_peer(request, peer)
    _log_change(request, peer)
    return await handler(request)


class TokenGate:
    """Over TCP: every request needs a token, also one for what is not there. `refused`: how many had none."""

    def __init__(self, tokens: TokenStore, clock: Callable[[], float] = time.monotonic) -> None:
        self.refused = 0
        self._tokens = tokens
        self._clock = clock
        self._logged_at: float | None = None
        self._unlogged = 0

    @web.middleware
    async def check(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let through whoever has a good token."""
        token, why = await self._find_token(request)
        if token is None:
            self._note_refusal(request, why)
            return _refuse()
        peer = Peer(None, token, f"token {token.name} from {request.remote}")
        _set_peer(request, peer)
        check_allowed_by(token, request)
        _log_change(request, peer)
        return await handler(request)

    async def _find_token(self, request: web.Request) -> tuple[Token | None, str]:
        given = request.headers.getall("Authorization", [])
        if len(given) != 1:
            return None, "no token" if not given else "more than one token"
        scheme, _, text = given[0].partition(" ")
        if scheme.lower() != "bearer" or not text.strip():
            return None, "no token"
        try:
            token = await self._tokens.find(text.strip())
        except HostNotReady as error:
            return None, str(error)
        return token, "a token that is not known, or good no more"

    def _note_refusal(self, request: web.Request, why: str) -> None:
        """Count it, and log it unless a line is too near: whoever guesses must not fill the journal."""
        self.refused += 1
        now = self._clock()
        if self._logged_at is not None and now - self._logged_at < REFUSED_LOG_SECONDS:
            self._unlogged += 1
            return
        others = f"; {self._unlogged} others were refused before" if self._unlogged else ""
        log.warning("refused a request from %s: %s%s", request.remote, why, others)
        self._logged_at, self._unlogged = now, 0


def _refuse() -> web.Response:
    response = error_response(Unauthorized("a token is needed"))
    response.headers["WWW-Authenticate"] = "Bearer"
    # Nothing of a body is waited for, and a connection serves for one guess.
    response.force_close()
    return response


def check_allowed_by(token: Token, request: web.Request) -> None:
    """Raise Forbidden for what the token's kind does not allow, or no token does."""
    name = _name_handler(request)
    if name in _TOKEN_HANDLERS:
        raise Forbidden(
            "tokens are made and revoked on the host alone", hint="use hypemanctl token there, as root"
        )
    if token.read_only and (request.method not in ("GET", "HEAD") or name in _NOT_READABLE):
        raise Forbidden(f"the token {token.name} is read-only", hint="ask with another one")
