# SPDX-License-Identifier: Apache-2.0
"""Authentication and authorization: by peer credentials on the socket, by tokens over TCP.

The permissions of a token's scope are a table of handlers; a handler in neither set requires ADMIN. A client
without a valid token gets the same response for every request over TCP; the reason is logged to the journal
only.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from hypemand.api.failures import Handler, error_response
from hypemand.api.requests import parse_ref
from hypemand.api.tokens import Token, TokenStore
from hypemand.errors import Forbidden, HostNotReady, HypemandError, NotFound
from hypemand.model.caller import CALLER
from hypemand.model.metrics import ApiCounts
from hypemand.model.services import Manager
from hypemand.model.tokens import Scope

# Lines in the journal on refused requests: one for so many seconds, with the count of the others.
REFUSED_LOG_SECONDS = 10.0
# No request takes a month; a timer of asyncio that is set further ahead could not be waited for by epoll(7).
_LONGEST_TIMER = 30 * 86400.0
# Nothing here changes anything, or shows more of a guest's inside than its console.
_READ = frozenset(
    {
        "health", "openapi", "list_instances", "get_instance", "wait_instance", "watch_instance",
        "read_logs", "read_timeline", "read_history", "read_stats", "list_images", "get_image", "watch_image",
        "list_volumes", "get_volume", "get_limits", "read_space", "list_networks", "get_network",
        "read_capabilities", "read_resources", "refuse_unsupported", "read_metrics",
        "read_events", "list_snapshots", "get_snapshot", "get_schedule", "list_templates",
    }
)  # fmt: skip
# What is done to and in a VM that is there.
_OPERATE = _READ | {
    "start_instance", "stop_instance", "restart_instance", "kill_instance", "pause_instance",
    "resume_instance", "standby_instance", "restore_instance", "exec_command", "attach_program", "copy_files",
    "read_archive", "write_archive", "stat_path",
}  # fmt: skip
_ALLOWED = {Scope.READ: _READ, Scope.OPERATE: _OPERATE}
# Of what names no VM, all that a token for some VMs may ask: the list, and events, have those VMs alone.
_OF_NO_VM = frozenset(
    {"health", "openapi", "list_instances", "read_capabilities", "read_events", "refuse_unsupported"}
)
# WebSockets, by which what runs in a VM is changed.
_CHANGING_GETS = frozenset({"exec_command", "attach_program", "copy_files"})
_TOKEN_HANDLERS = frozenset({"list_tokens", "create_token", "revoke_token"})
_ROOT_HANDLERS = {"create_token": "create a token", "revoke_token": "revoke a token"}
_PEER = "hypemand.peer"
_UCRED = struct.Struct("3i")

log = logging.getLogger(__name__)


class Unauthorized(HypemandError):
    """No token, or no valid one."""

    code = "unauthorized"
    status = 401


@dataclass(frozen=True, slots=True)
class Peer:
    """The client. `uid` of a process on this host, by the socket; None over TCP, where `token` is there."""

    uid: int | None
    token: Token | None
    words: str

    @property
    def is_root(self) -> bool:
        """Is it root on this host, or the user of the daemon?"""
        return self.uid is not None and self.uid in (0, os.geteuid())

    @property
    def sees_all(self) -> bool:
        """Is it not restricted to some VMs?"""
        return self.token is None or not self.token.is_selective

    def may_see(self, name: str, tags: Mapping[str, str]) -> bool:
        """Does its token cover a VM of that name and those tags?"""
        return self.token is None or self.token.covers(name, tags)


def check_root(request: web.Request, what: str) -> None:
    """Raise Forbidden unless the client is root on the unix socket; `what`: the operation, for the text."""
    if not find_peer(request).is_root:
        raise Forbidden(f"only root may {what}, on the host's own socket", hint="use sudo")


def check_may_define(request: web.Request) -> None:
    """Raise Forbidden for a token that is good for VMs as they are, and not for changes of them."""
    token = find_peer(request).token
    if token is not None and token.scope is not Scope.ADMIN:
        raise Forbidden(
            f"the token {token.name} does not permit a start with another program:"
            f" its scope is {token.scope}",
            hint="omit cmd and entrypoint, or use another token",
        )


def find_peer(request: web.Request) -> Peer:
    """The client, as authenticated by the gate."""
    peer: Peer = request[_PEER]
    return peer


def _set_peer(request: web.Request, peer: Peer) -> None:
    request[_PEER] = peer
    CALLER.set(f"uid {peer.uid}" if peer.token is None else f"token {peer.token.name}")


def _name_handler(request: web.Request) -> str:
    handler = request.match_info.handler
    return str(getattr(handler, "__name__", ""))


def _changes_something(request: web.Request) -> bool:
    return request.method != "GET" or _name_handler(request) in _CHANGING_GETS


def _log_change(request: web.Request, peer: Peer) -> None:
    if request.match_info.http_exception is None and _changes_something(request):
        log.info("%s %s by %s", request.method, request.path, peer.words)


@web.middleware
async def local_gate(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Gate of the unix socket, whose mode and group have authorized the client."""
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("the client has gone")
    raw = transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, gid = _UCRED.unpack(raw)
    peer = Peer(uid, None, f"uid {uid}, gid {gid}, pid {pid}")
    _set_peer(request, peer)
    # A member of the group could keep what it made when the membership ends.
    if (what := _ROOT_HANDLERS.get(_name_handler(request))) is not None:
        check_root(request, what)
    _log_change(request, peer)
    return await handler(request)


class TokenGate:
    """Over TCP: every request needs a token, also one for what is not there. `counts.refused`: how many had
    none.

    `manager` says which VM a request names. A request ends when its token does: it is cancelled where the
    token is revoked or expires, so that no stream and no command goes on under it.
    """

    def __init__(
        self,
        tokens: TokenStore,
        manager: Manager,
        clock: Callable[[], float] = time.monotonic,
        counts: ApiCounts | None = None,
    ) -> None:
        self.counts = counts or ApiCounts()
        self._tokens = tokens
        self._manager = manager
        self._clock = clock
        self._logged_at: float | None = None
        self._unlogged = 0
        self._requests: dict[str, set[asyncio.Task[Any]]] = {}
        tokens.on_end = self._end_requests

    @web.middleware
    async def check(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Authenticate the request by its token, authorize it, and handle it."""
        token, why = await self._find_token(request)
        if token is None:
            self._note_refusal(request, why)
            return _refuse()
        peer = Peer(None, token, f"token {token.name} from {request.remote}")
        _set_peer(request, peer)
        check_allowed_by(token, request)
        with self._ending_with(token):
            self._select_vm(token, request)
            _log_change(request, peer)
            return await handler(request)

    def _select_vm(self, token: Token, request: web.Request) -> None:
        """For a token of some VMs the others are not there. What is asked of one of its own is asked of that
        very VM, by its id, whatever VM has the name by then."""
        ref = request.match_info.get("ref")
        if not token.is_selective or ref is None:
            return
        view = self._manager.view_vm(parse_ref(request))
        if not token.covers(view.name, view.definition.tags):
            raise NotFound(f"there is no VM {ref[:80]} for the token {token.name}")
        request.match_info["ref"] = view.id

    @contextmanager
    def _ending_with(self, token: Token) -> Iterator[None]:
        task = asyncio.current_task()
        assert task is not None, "a handler runs in a task"
        running = self._requests.setdefault(token.name, set())
        running.add(task)
        timer = None
        if token.expires_at is not None:
            left = min(max(token.expires_at - time.time(), 0.0), _LONGEST_TIMER)
            timer = asyncio.get_running_loop().call_later(left, task.cancel)
        try:
            yield
        finally:
            if timer is not None:
                timer.cancel()
            running.discard(task)
            if not running and self._requests.get(token.name) is running:
                del self._requests[token.name]

    def _end_requests(self, name: str) -> None:
        for task in tuple(self._requests.get(name, ())):
            task.cancel()

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
        return token, "an unknown, expired or revoked token"

    def _note_refusal(self, request: web.Request, why: str) -> None:
        """Count it, and log it unless a line is too near: whoever guesses must not fill the journal."""
        self.counts.refused += 1
        now = self._clock()
        if self._logged_at is not None and now - self._logged_at < REFUSED_LOG_SECONDS:
            self._unlogged += 1
            return
        others = f"; {self._unlogged} other requests were refused before" if self._unlogged else ""
        log.warning("refused a request from %s: %s%s", request.remote, why, others)
        self._logged_at, self._unlogged = now, 0


def _refuse() -> web.Response:
    response = error_response(Unauthorized("a token is needed"))
    response.headers["WWW-Authenticate"] = "Bearer"
    # Nothing of a body is waited for, and a connection serves for one guess.
    response.force_close()
    return response


def check_allowed_by(token: Token, request: web.Request) -> None:
    """Raise Forbidden for what the token's scope does not allow, or no token does."""
    name = _name_handler(request)
    if request.match_info.http_exception is not None:
        return  # there is nothing of that name, or not with this method, and so it will be answered
    if name in _TOKEN_HANDLERS:
        raise Forbidden(
            ("tokens can be created and revoked on the host only"), hint="use hypemanctl token on the host"
        )
    allowed = _ALLOWED.get(token.scope)
    if allowed is not None and name not in allowed:
        raise Forbidden(
            f"the token {token.name} does not permit this: its scope is {token.scope}",
            hint="use another token",
        )
    if token.is_selective and "ref" not in request.match_info and name not in _OF_NO_VM:
        raise Forbidden(
            f"the token {token.name} is restricted to some VMs, and does not permit access to the host",
            hint="use another token",
        )
