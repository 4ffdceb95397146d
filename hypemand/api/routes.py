# SPDX-License-Identifier: Apache-2.0
"""Handlers of the routes."""

from __future__ import annotations

import asyncio
import contextlib
import signal as signals

from aiohttp import web

from hypemand.api.access import find_peer
from hypemand.api.archive import check_directory, receive_archive, send_archive
from hypemand.api.cp import serve_cp
from hypemand.api.create import parse_create
from hypemand.api.description import read_description
from hypemand.api.entries import parse_guest_path
from hypemand.api.exec import serve_exec
from hypemand.api.images import refuse_path_of_host, required_text
from hypemand.api.render import (
    instance_json,
    json_response,
    log_line_json,
    new_token_json,
    path_json,
    stats_json,
    token_json,
)
from hypemand.api.requests import (
    parse_choice,
    parse_positive_duration,
    parse_ref,
    read_object,
    read_query,
    refuse_unknown,
    want_bool,
)
from hypemand.api.services import Limits, Services
from hypemand.api.streams import send_events
from hypemand.api.tasks import Ended, unless_ended
from hypemand.api.tokens import Scope
from hypemand.config.definition import ImagePull
from hypemand.errors import InvalidRequest, Stopping, WrongState
from hypemand.model.answers.guest import ArchiveResult
from hypemand.model.answers.host import EventLoop, Health
from hypemand.model.document import encode
from hypemand.model.logs import LogLine, LogSource
from hypemand.model.state import Operation, Origin, State, check_allowed
from hypemand.model.vm import VmView
from hypemand.version import VERSION
from hypemand.workers import Pool, run_in

MAX_WAIT = 300.0
DEFAULT_WAIT = "60s"
DEFAULT_TAIL = "100"
MAX_TAIL = 1_000_000


class Routes:
    """The handlers. `closing` is set when the daemon stops: what would go on ends then."""

    def __init__(self, services: Services, closing: asyncio.Event, limits: Limits) -> None:
        self._services = services
        self._manager = services.manager
        self._guests = services.guests
        self._tokens = services.tokens
        self._reload = services.reload
        self._turns = services.turns
        self._defaults = services.defaults
        self._networks = services.networks
        self._closing = closing
        self._limits = limits

    def table(self) -> list[web.RouteDef]:
        """Every route of the API."""
        vm = "/instances/{ref}"
        return [
            web.get("/health", self.health, allow_head=False),
            web.get("/openapi.yaml", self.openapi, allow_head=False),
            web.post("/reload", self.reload),
            web.get("/instances", self.list_instances, allow_head=False),
            web.post("/instances", self.create_instance),
            web.get(vm, self.get_instance, allow_head=False),
            web.delete(vm, self.delete_instance),
            web.post(f"{vm}/start", self.start_instance),
            web.post(f"{vm}/stop", self.stop_instance),
            web.post(f"{vm}/restart", self.restart_instance),
            web.post(f"{vm}/kill", self.kill_instance),
            web.post(f"{vm}/pause", self.pause_instance),
            web.post(f"{vm}/resume", self.resume_instance),
            web.get(f"{vm}/wait", self.wait_instance, allow_head=False),
            web.get(f"{vm}/watch", self.watch_instance, allow_head=False),
            web.get(f"{vm}/logs", self.read_logs, allow_head=False),
            web.get(f"{vm}/timeline", self.read_timeline, allow_head=False),
            web.get(f"{vm}/stats", self.read_stats, allow_head=False),
            web.get(f"{vm}/exec", self.exec_command, allow_head=False),
            web.get(f"{vm}/cp", self.copy_files, allow_head=False),
            web.get(f"{vm}/archive", self.read_archive, allow_head=False),
            web.put(f"{vm}/archive", self.write_archive),
            web.get(f"{vm}/stat", self.stat_path, allow_head=False),
            web.get("/tokens", self.list_tokens, allow_head=False),
            web.post("/tokens", self.create_token),
            web.delete("/tokens/{name}", self.revoke_token),
        ]

    async def _read_object(self, request: web.Request) -> dict[str, object]:
        return await read_object(request, self._limits.body)

    async def health(self, request: web.Request) -> web.StreamResponse:
        """Is the daemon up, and how long was its event loop blocked?"""
        turns = self._turns()
        loop = EventLoop(turns.slow, round(turns.longest * 1000), round(turns.longest_cpu * 1000))
        return json_response(encode(Health("ok", VERSION, loop)))

    async def openapi(self, request: web.Request) -> web.StreamResponse:
        """This API, described."""
        text = await run_in(Pool.RECORDS, read_description)
        return web.Response(text=text, content_type="application/yaml")

    async def reload(self, request: web.Request) -> web.StreamResponse:
        """Read the definition files again."""
        refuse_unknown(await self._read_object(request), ())
        return json_response(encode(await self._reload()))

    async def list_instances(self, request: web.Request) -> web.StreamResponse:
        """All VMs, or those in a state and with tags."""
        tags = {key[5:-1]: key for key in request.query if key.startswith("tags[") and key.endswith("]")}
        query = read_query(request, "state", *tags.values())
        state = _parse_state(query["state"]) if "state" in query else None
        wanted = {tag: query[key] for tag, key in tags.items()}
        peer = find_peer(request)
        return json_response(
            [
                instance_json(view)
                for view in await self._manager.list_vms()
                if state in (None, view.state)
                and wanted.items() <= view.definition.tags.items()
                and peer.may_see(view.name, view.definition.tags)
            ]
        )

    async def create_instance(self, request: web.Request) -> web.StreamResponse:
        """Define a VM, and start it unless told not to."""
        body = await self._read_object(request)
        is_root = find_peer(request).is_root
        # the first one has the schema read
        wanted = await run_in(
            Pool.RECORDS, parse_create, body, self._defaults(), self._networks(), is_root=is_root
        )
        refuse_path_of_host(request, wanted.definition.image)
        view = await self._manager.create_vm(wanted.definition, start=wanted.start, short_name=is_root)
        return json_response(instance_json(view), status=201)

    async def get_instance(self, request: web.Request) -> web.StreamResponse:
        """One VM."""
        read_query(request)
        return _instance(await self._manager.get_vm(parse_ref(request)))

    async def delete_instance(self, request: web.Request) -> web.StreamResponse:
        """Stop a VM and remove it. Without `graceful_shutdown` its guest is not asked first."""
        ref = parse_ref(request)
        query = read_query(request, "graceful_shutdown")
        if not want_bool(query, "graceful_shutdown", default=True):
            await self._kill_before_delete(ref)
        await self._manager.delete_vm(ref)
        return web.Response(status=204)

    async def _kill_before_delete(self, ref: str) -> None:
        view = await self._manager.get_vm(ref)
        if view.origin is Origin.FILE and not view.removed_from_config:
            return  # its delete will be refused, and what is refused must change nothing
        if view.state in Operation.KILL.allowed_in:
            with contextlib.suppress(WrongState):  # it may have ended by itself meanwhile
                await self._manager.kill_vm(ref)

    async def start_instance(self, request: web.Request) -> web.StreamResponse:
        """Start a VM."""
        ref = parse_ref(request)
        body = await self._read_object(request)
        pull = _parse_pull(body)
        for key in ("cmd", "entrypoint"):
            if body.get(key) is not None:
                raise InvalidRequest(
                    f"{key}: a start with another command is not supported by this version of hypemand",
                    hint="create a VM with that command",
                )
        refuse_unknown(body, ("cmd", "entrypoint", "image_pull"))
        return _instance(await self._manager.start_vm(ref, pull=pull))

    async def stop_instance(self, request: web.Request) -> web.StreamResponse:
        """Stop a VM and wait until it has."""
        ref = parse_ref(request)
        timeout = _parse_stop_timeout(await self._read_object(request))
        return _instance(await self._manager.stop_vm(ref, timeout=timeout))

    async def restart_instance(self, request: web.Request) -> web.StreamResponse:
        """Stop, then start a VM."""
        ref = parse_ref(request)
        body = await self._read_object(request)
        refuse_unknown(body, ("image_pull",))
        return _instance(await self._manager.restart_vm(ref, pull=_parse_pull(body)))

    async def kill_instance(self, request: web.Request) -> web.StreamResponse:
        """Send a signal to a VM's VMM."""
        ref = parse_ref(request)
        body = await self._read_object(request)
        refuse_unknown(body, ("signal",))
        number = body.get("signal", int(signals.SIGKILL))
        if isinstance(number, bool) or not isinstance(number, int) or number not in signals.valid_signals():
            raise InvalidRequest("signal: must be the number of a signal", hint="9 is SIGKILL, 15 is SIGTERM")
        return _instance(await self._manager.kill_vm(ref, number))

    async def pause_instance(self, request: web.Request) -> web.StreamResponse:
        """Stop the CPUs of a VM."""
        ref = parse_ref(request)
        refuse_unknown(await self._read_object(request), ())
        return _instance(await self._manager.pause_vm(ref))

    async def resume_instance(self, request: web.Request) -> web.StreamResponse:
        """Let a VM that is paused go on."""
        ref = parse_ref(request)
        refuse_unknown(await self._read_object(request), ())
        return _instance(await self._manager.resume_vm(ref))

    async def wait_instance(self, request: web.Request) -> web.StreamResponse:
        """Wait until a VM is in a state."""
        ref = parse_ref(request)
        query = read_query(request, "state", "timeout")
        if "state" not in query:
            raise InvalidRequest("model.state: is missing", hint=_STATES)
        state = _parse_state(query["state"])
        timeout = min(parse_positive_duration(query.get("timeout", DEFAULT_WAIT), "timeout"), MAX_WAIT)
        ended = await unless_ended(request, self._closing, self._manager.wait_vm(ref, state, timeout))
        if isinstance(ended, Ended):
            raise Stopping
        view, timed_out = ended
        return json_response({"state": view.state, "timed_out": timed_out, "state_error": view.state_error})

    async def watch_instance(self, request: web.Request) -> web.StreamResponse:
        """A VM now and at each change, as events."""
        ref = parse_ref(request)
        read_query(request)
        self._manager.view_vm(ref)  # a stranger is told by a status, not in the stream
        return await send_events(
            request, self._manager.watch_vm(ref), instance_json, self._closing, self._limits
        )

    async def read_logs(self, request: web.Request) -> web.StreamResponse:
        """Lines of a log, as events."""
        ref = parse_ref(request)
        query = read_query(request, "tail", "follow", "source", "sentinels", "json")
        source = parse_choice(query, "source", LogSource, LogSource.APP)
        tail = _parse_tail(query.get("tail", DEFAULT_TAIL))
        follow = want_bool(query, "follow", default=False)
        sentinels = want_bool(query, "sentinels", default=False)
        to_json = log_line_json if want_bool(query, "json", default=False) else _line_text
        self._manager.view_vm(ref)
        lines = self._manager.logs(ref, source=source, tail=tail, follow=follow, sentinels=sentinels)
        return await send_events(request, lines, to_json, self._closing, self._limits)

    async def read_timeline(self, request: web.Request) -> web.StreamResponse:
        """Where the time of the last boot went."""
        read_query(request)
        return json_response(encode(await self._manager.timeline(parse_ref(request))))

    async def read_stats(self, request: web.Request) -> web.StreamResponse:
        """What a VM uses of the host."""
        read_query(request)
        return json_response(stats_json(await self._manager.get_vm(parse_ref(request))))

    async def exec_command(self, request: web.Request) -> web.StreamResponse:
        """Run a command in a VM over a WebSocket."""
        ref = parse_ref(request)
        read_query(request)
        self._check(Operation.EXEC, ref)
        return await serve_exec(request, self._guests, ref, self._closing, self._limits)

    def _check(self, operation: Operation, ref: str) -> None:
        """Raise WrongState while a status can still tell it."""
        view = self._manager.view_vm(ref)
        check_allowed(operation, view.state, view.name, view.state_error)

    async def copy_files(self, request: web.Request) -> web.StreamResponse:
        """Copy to or from a VM over a WebSocket, as the published client does."""
        ref = parse_ref(request)
        read_query(request)
        self._check(Operation.COPY, ref)
        return await serve_cp(request, self._services, ref, self._closing, self._limits)

    async def read_archive(self, request: web.Request) -> web.StreamResponse:
        """A file or a tree of a VM as a tar archive."""
        ref = parse_ref(request)
        query = read_query(request, "path", "follow_links")
        path = parse_guest_path(query.get("path"), "path")
        follow = want_bool(query, "follow_links", default=False)
        self._check(Operation.COPY, ref)
        copy = await self._guests.copy_out(ref, path, follow=follow)
        try:
            return await send_archive(request, copy, path, self._closing)
        finally:
            await copy.close()

    async def write_archive(self, request: web.Request) -> web.StreamResponse:
        """Unpack a tar archive into a directory of a VM."""
        ref = parse_ref(request)
        path = parse_guest_path(read_query(request, "path").get("path"), "path")
        self._check(Operation.COPY, ref)
        await check_directory(self._guests, ref, path)
        copy = await self._guests.copy_in(ref, path)
        try:
            return json_response(encode(ArchiveResult(await receive_archive(request, copy, self._closing))))
        finally:
            await copy.close()

    async def stat_path(self, request: web.Request) -> web.StreamResponse:
        """What is at a path of a VM."""
        ref = parse_ref(request)
        query = read_query(request, "path", "follow_links")
        path = parse_guest_path(query.get("path"), "path")
        follow = want_bool(query, "follow_links", default=False)
        self._check(Operation.STAT, ref)
        return json_response(path_json(await self._guests.stat_path(ref, path, follow=follow)))

    async def list_tokens(self, request: web.Request) -> web.StreamResponse:
        """All tokens, without what makes them good."""
        read_query(request)
        return json_response([token_json(token) for token in await self._tokens.list_tokens()])

    async def create_token(self, request: web.Request) -> web.StreamResponse:
        """A new token; its text is in this answer and nowhere else."""
        body = await self._read_object(request)
        refuse_unknown(body, ("name", "expires", "scope", "vms", "tags"))
        expires = body.get("expires")
        token, text = await self._tokens.create(
            required_text(body, "name"),
            scope=_parse_scope(body.get("scope", Scope.ADMIN.value)),
            vms=_parse_texts(body, "vms"),
            tags=_parse_tags(body),
            expires_in=None if expires is None else parse_positive_duration(str(expires), "expires"),
        )
        return json_response(new_token_json(token, text), status=201)

    async def revoke_token(self, request: web.Request) -> web.StreamResponse:
        """A token is good no more, from now on."""
        read_query(request)
        await self._tokens.revoke(request.match_info["name"])
        return web.Response(status=204)


_STATES = f"one of {', '.join(State)}"


def _instance(view: VmView) -> web.Response:
    return json_response(instance_json(view))


def _line_text(line: LogLine) -> str:
    return line.text


def _parse_state(word: str) -> State:
    try:
        return State(word)
    except ValueError:
        raise InvalidRequest(f"model.state: {word[:40]!r} is not a state", hint=_STATES) from None


def _parse_pull(body: dict[str, object]) -> ImagePull | None:
    """`image_pull` of the body: instead of the definition's, for this one start."""
    word = body.get("image_pull")
    if word is None:
        return None
    if not isinstance(word, str) or word not in list(ImagePull):
        raise InvalidRequest(
            f"image_pull: {str(word)[:40]!r} is not known", hint=f"one of {', '.join(ImagePull)}"
        )
    return ImagePull(word)


def _parse_scope(word: object) -> Scope:
    if not isinstance(word, str) or word not in list(Scope):
        raise InvalidRequest(
            f"scope: {str(word)[:40]!r} is not a scope of a token", hint=f"one of {', '.join(Scope)}"
        )
    return Scope(word)


def _parse_texts(body: dict[str, object], key: str) -> list[str]:
    value = body.get(key, [])
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise InvalidRequest(f"{key}: is not a list of texts")
    return value


def _parse_tags(body: dict[str, object]) -> dict[str, str]:
    value = body.get("tags", {})
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise InvalidRequest("tags: is not an object of texts")
    return value


def _parse_tail(word: str) -> int | None:
    if word == "all":
        return None
    if not word.isdecimal() or len(word) > 7 or int(word) > MAX_TAIL:
        raise InvalidRequest(
            f"tail: {word[:40]!r} is not a number of lines", hint=f"from 0 to {MAX_TAIL}, or all"
        )
    return int(word)


def _parse_stop_timeout(body: dict[str, object]) -> float | None:
    """`timeout` of the body: a time span, or a number of seconds. 0 asks for the end without grace."""
    refuse_unknown(body, ("timeout",))
    value = body.get("timeout")
    if value is None:
        return None
    if value == 0 and not isinstance(value, bool):
        return 0.0
    return parse_positive_duration(str(value), "timeout")
