# SPDX-License-Identifier: Apache-2.0
"""Handlers of the routes."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TypeVar

from aiohttp import web

from hypemand.api.access import check_may_define, find_peer
from hypemand.api.archive import check_directory, receive_archive, send_archive
from hypemand.api.attach import serve_attach
from hypemand.api.bodies.guest import PathQuery, WriteArchive
from hypemand.api.bodies.host import CreateToken
from hypemand.api.bodies.instances import (
    DeleteInstance,
    KillInstance,
    ListInstances,
    Nothing,
    ReadLogs,
    RenameInstance,
    RestartInstance,
    SetLimits,
    StartInstance,
    StopInstance,
    UpdateInstance,
    WaitInstance,
)
from hypemand.api.bodies.snapshots import StandbyInstance, derive_compression
from hypemand.api.cp import serve_cp
from hypemand.api.create import parse_create
from hypemand.api.description import read_description
from hypemand.api.exec import serve_exec
from hypemand.api.images import refuse_path_of_host
from hypemand.api.lifetimes import derive_lifetime
from hypemand.api.policies import read_changes, replace_policies
from hypemand.api.render import (
    exact_line_json,
    instance_json,
    json_response,
    log_line_json,
    new_token_json,
    path_json,
    runs_json,
    stats_json,
    token_json,
)
from hypemand.api.requests import parse_ref, read_body, read_object, read_query, refuse_query
from hypemand.api.services import Limits, Services
from hypemand.api.streams import send_events
from hypemand.api.tasks import Ended, unless_ended
from hypemand.errors import InvalidRequest, Stopping
from hypemand.model.answers.guest import ArchiveResult
from hypemand.model.answers.host import EventLoop, Health
from hypemand.model.answers.instance import WaitResult
from hypemand.model.change import VmChange
from hypemand.model.document import encode
from hypemand.model.logs import LogLine
from hypemand.model.state import Operation, check_allowed
from hypemand.model.vm import Program, VmView
from hypemand.version import VERSION
from hypemand.workers import Pool, run_in

MAX_WAIT = 300.0

F = TypeVar("F")


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
            web.patch(vm, self.update_instance),
            web.delete(vm, self.delete_instance),
            web.post(f"{vm}/start", self.start_instance),
            web.post(f"{vm}/stop", self.stop_instance),
            web.post(f"{vm}/restart", self.restart_instance),
            web.post(f"{vm}/kill", self.kill_instance),
            web.post(f"{vm}/pause", self.pause_instance),
            web.post(f"{vm}/resume", self.resume_instance),
            web.post(f"{vm}/standby", self.standby_instance),
            web.post(f"{vm}/restore", self.restore_instance),
            web.post(f"{vm}/rename", self.rename_instance),
            web.get(f"{vm}/limits", self.get_limits, allow_head=False),
            web.put(f"{vm}/limits", self.set_limits),
            web.get(f"{vm}/wait", self.wait_instance, allow_head=False),
            web.get(f"{vm}/watch", self.watch_instance, allow_head=False),
            web.get(f"{vm}/logs", self.read_logs, allow_head=False),
            web.get(f"{vm}/timeline", self.read_timeline, allow_head=False),
            web.get(f"{vm}/history", self.read_history, allow_head=False),
            web.get(f"{vm}/stats", self.read_stats, allow_head=False),
            web.get(f"{vm}/exec", self.exec_command, allow_head=False),
            web.get(f"{vm}/attach", self.attach_program, allow_head=False),
            web.get(f"{vm}/cp", self.copy_files, allow_head=False),
            web.get(f"{vm}/archive", self.read_archive, allow_head=False),
            web.put(f"{vm}/archive", self.write_archive),
            web.get(f"{vm}/stat", self.stat_path, allow_head=False),
            web.get("/tokens", self.list_tokens, allow_head=False),
            web.post("/tokens", self.create_token),
            web.delete("/tokens/{name}", self.revoke_token),
        ]

    async def _read(self, request: web.Request, form: type[F]) -> F:
        return await read_body(request, form, self._limits.body)

    async def health(self, request: web.Request) -> web.StreamResponse:
        """Status of the daemon, and the slow turns of its event loop."""
        turns = self._turns()
        loop = EventLoop(turns.slow, round(turns.longest * 1000), round(turns.longest_cpu * 1000))
        return json_response(encode(Health("ok", VERSION, loop)))

    async def openapi(self, request: web.Request) -> web.StreamResponse:
        """The OpenAPI description."""
        text = await run_in(Pool.RECORDS, read_description)
        return web.Response(text=text, content_type="application/yaml")

    async def reload(self, request: web.Request) -> web.StreamResponse:
        """Read the definition files again."""
        await self._read(request, Nothing)
        return json_response(encode(await self._reload()))

    async def list_instances(self, request: web.Request) -> web.StreamResponse:
        """All VMs, or those with a state and tags."""
        wanted = read_query(request, ListInstances)
        peer = find_peer(request)
        return json_response(
            [
                instance_json(view)
                for view in await self._manager.list_vms()
                if wanted.state in (None, view.state)
                and wanted.tags.items() <= view.definition.tags.items()
                and peer.may_see(view.name, view.definition.tags)
            ]
        )

    async def create_instance(self, request: web.Request) -> web.StreamResponse:
        """Create a VM and, by default, start it."""
        body = await read_object(request, self._limits.body)
        is_root = find_peer(request).is_root
        # the first one has the schema read
        wanted = await run_in(
            Pool.RECORDS, parse_create, body, self._defaults(), self._networks(), is_root=is_root
        )
        refuse_path_of_host(request, wanted.definition.image)
        view = await self._manager.create_vm(
            wanted.definition,
            start=wanted.start,
            short_name=is_root,
            lifetime=wanted.lifetime,
            patience=wanted.patience,
        )
        return json_response(instance_json(view), status=201)

    async def get_instance(self, request: web.Request) -> web.StreamResponse:
        """One VM."""
        refuse_query(request)
        return _instance(await self._manager.get_vm(parse_ref(request)))

    async def update_instance(self, request: web.Request) -> web.StreamResponse:
        """Change what can be changed of a VM in any state."""
        ref = parse_ref(request)
        body = await self._read(request, UpdateInstance)
        lifetime = derive_lifetime(body.ttl, body.expires_at)
        changes = read_changes(body.restart_policy, body.health_check)
        if lifetime is None and not changes:
            hint = "give ttl, expires_at, restart_policy or health_check"
            raise InvalidRequest("nothing is to be changed", hint=hint)
        redefine = partial(replace_policies, changes=changes) if changes else None
        return _instance(await self._manager.change_vm(ref, VmChange(lifetime, redefine)))

    async def delete_instance(self, request: web.Request) -> web.StreamResponse:
        """Stop a VM and remove it. Without `graceful_shutdown` its guest is not shut down first."""
        ref = parse_ref(request)
        graceful = read_query(request, DeleteInstance).graceful_shutdown
        await self._manager.delete_vm(ref, kill=not graceful)
        return web.Response(status=204)

    async def start_instance(self, request: web.Request) -> web.StreamResponse:
        """Start a VM."""
        ref = parse_ref(request)
        body = await self._read(request, StartInstance)
        program = None
        if body.cmd is not None or body.entrypoint is not None:
            check_may_define(request)
            program = Program(body.entrypoint, body.cmd)
        starting = self._manager.start_vm(ref, pull=body.image_pull, program=program, standby=body.standby)
        return _instance(await starting)

    async def stop_instance(self, request: web.Request) -> web.StreamResponse:
        """Stop a VM and wait until it has stopped."""
        ref = parse_ref(request)
        timeout = (await self._read(request, StopInstance)).timeout
        return _instance(await self._manager.stop_vm(ref, timeout=timeout))

    async def restart_instance(self, request: web.Request) -> web.StreamResponse:
        """Stop, then start a VM."""
        ref = parse_ref(request)
        pull = (await self._read(request, RestartInstance)).image_pull
        return _instance(await self._manager.restart_vm(ref, pull=pull))

    async def kill_instance(self, request: web.Request) -> web.StreamResponse:
        """Send a signal to a VM's VMM."""
        ref = parse_ref(request)
        number = (await self._read(request, KillInstance)).signal
        return _instance(await self._manager.kill_vm(ref, number))

    async def pause_instance(self, request: web.Request) -> web.StreamResponse:
        """Pause a VM."""
        ref = parse_ref(request)
        await self._read(request, Nothing)
        return _instance(await self._manager.pause_vm(ref))

    async def resume_instance(self, request: web.Request) -> web.StreamResponse:
        """Resume a paused VM."""
        ref = parse_ref(request)
        await self._read(request, Nothing)
        return _instance(await self._manager.resume_vm(ref))

    async def standby_instance(self, request: web.Request) -> web.StreamResponse:
        """Save a VM to disk and end its VMM."""
        ref = parse_ref(request)
        body = await self._read(request, StandbyInstance)
        compression = derive_compression(body.compression, body.compression_delay)
        if compression is not None and body.pool is not None:
            raise InvalidRequest("pool: cannot be combined with compression", hint="leave one of them out")
        return _instance(await self._manager.standby_vm(ref, compression, body.pool))

    async def restore_instance(self, request: web.Request) -> web.StreamResponse:
        """Resume a VM in Standby."""
        ref = parse_ref(request)
        await self._read(request, Nothing)
        return _instance(await self._manager.restore_vm(ref))

    async def rename_instance(self, request: web.Request) -> web.StreamResponse:
        """Give a stopped VM another name."""
        ref = parse_ref(request)
        name = (await self._read(request, RenameInstance)).name
        by_root = find_peer(request).is_root
        return _instance(await self._manager.rename_vm(ref, name, by_root=by_root))

    async def get_limits(self, request: web.Request) -> web.StreamResponse:
        """Limits of a running VM."""
        refuse_query(request)
        return json_response(encode(await self._manager.get_limits(parse_ref(request))))

    async def set_limits(self, request: web.Request) -> web.StreamResponse:
        """Change limits of a running VM."""
        ref = parse_ref(request)
        keys = (await self._read(request, SetLimits)).definition
        return json_response(encode(await self._manager.set_limits(ref, keys)))

    async def wait_instance(self, request: web.Request) -> web.StreamResponse:
        """Wait until a VM reaches a state."""
        ref = parse_ref(request)
        query = read_query(request, WaitInstance)
        waiting = self._manager.wait_vm(ref, query.state, min(query.timeout, MAX_WAIT))
        ended = await unless_ended(request, self._closing, waiting)
        if isinstance(ended, Ended):
            raise Stopping
        view, timed_out = ended
        return json_response(encode(WaitResult(view.state, timed_out, view.state_error)))

    async def watch_instance(self, request: web.Request) -> web.StreamResponse:
        """The VM now and at each change, as events."""
        ref = parse_ref(request)
        refuse_query(request)
        self._manager.view_vm(ref)  # a stranger is told by a status, not in the stream
        return await send_events(
            request, self._manager.watch_vm(ref), instance_json, self._closing, self._limits
        )

    async def read_logs(self, request: web.Request) -> web.StreamResponse:
        """Lines of a log, as events."""
        ref = parse_ref(request)
        query = read_query(request, ReadLogs)
        to_json = log_line_json if query.json else exact_line_json if query.exact else _line_text
        self._manager.view_vm(ref)
        lines = self._manager.logs(
            ref,
            source=query.source,
            tail=query.tail,
            follow=query.follow,
            sentinels=query.sentinels,
            since=query.since,
        )
        return await send_events(request, lines, to_json, self._closing, self._limits)

    async def read_timeline(self, request: web.Request) -> web.StreamResponse:
        """Timeline of the last boot."""
        refuse_query(request)
        return json_response(encode(await self._manager.timeline(parse_ref(request))))

    async def read_history(self, request: web.Request) -> web.StreamResponse:
        """The last runs."""
        refuse_query(request)
        return json_response(runs_json(await self._manager.list_runs(parse_ref(request))))

    async def read_stats(self, request: web.Request) -> web.StreamResponse:
        """Resource usage of a VM."""
        refuse_query(request)
        return json_response(stats_json(await self._manager.get_vm(parse_ref(request))))

    async def exec_command(self, request: web.Request) -> web.StreamResponse:
        """Run a command in a VM over a WebSocket."""
        ref = parse_ref(request)
        refuse_query(request)
        self._check(Operation.EXEC, ref)
        return await serve_exec(request, self._guests, ref, self._closing, self._limits)

    async def attach_program(self, request: web.Request) -> web.StreamResponse:
        """Attach to the program of a VM over a WebSocket."""
        ref = parse_ref(request)
        refuse_query(request)
        self._check(Operation.ATTACH, ref)
        return await serve_attach(request, self._guests, ref, self._closing, self._limits)

    def _check(self, operation: Operation, ref: str) -> None:
        """Raise WrongState while a status can still tell it."""
        view = self._manager.view_vm(ref)
        ongoing = "" if view.operation is None else view.operation.describe(time.time())
        check_allowed(operation, view.state, view.name, view.state_error, ongoing=ongoing)

    async def copy_files(self, request: web.Request) -> web.StreamResponse:
        """Copy to or from a VM over a WebSocket, as the published clients do."""
        ref = parse_ref(request)
        refuse_query(request)
        self._check(Operation.COPY, ref)
        return await serve_cp(request, self._services, ref, self._closing, self._limits)

    async def read_archive(self, request: web.Request) -> web.StreamResponse:
        """A file or directory tree of a VM as a tar archive."""
        ref = parse_ref(request)
        query = read_query(request, PathQuery)
        self._check(Operation.COPY, ref)
        copy = await self._guests.copy_out(ref, query.path, follow=query.follow_links)
        try:
            return await send_archive(request, copy, query.path, self._closing)
        finally:
            await copy.close()

    async def write_archive(self, request: web.Request) -> web.StreamResponse:
        """Unpack a tar archive into a directory of a VM."""
        ref = parse_ref(request)
        path = read_query(request, WriteArchive).path
        self._check(Operation.COPY, ref)
        await check_directory(self._guests, ref, path)
        copy = await self._guests.copy_in(ref, path)
        try:
            return json_response(encode(ArchiveResult(await receive_archive(request, copy, self._closing))))
        finally:
            await copy.close()

    async def stat_path(self, request: web.Request) -> web.StreamResponse:
        """Information about a path in a VM."""
        ref = parse_ref(request)
        query = read_query(request, PathQuery)
        self._check(Operation.STAT, ref)
        found = await self._guests.stat_path(ref, query.path, follow=query.follow_links)
        return json_response(path_json(found))

    async def list_tokens(self, request: web.Request) -> web.StreamResponse:
        """All tokens, without their secrets."""
        refuse_query(request)
        return json_response([token_json(token) for token in await self._tokens.list_tokens()])

    async def create_token(self, request: web.Request) -> web.StreamResponse:
        """Create a token; its text is only in this response."""
        body = await self._read(request, CreateToken)
        token, text = await self._tokens.create(
            body.name, scope=body.scope, vms=body.vms, tags=body.tags, expires_in=body.expires
        )
        return json_response(new_token_json(token, text), status=201)

    async def revoke_token(self, request: web.Request) -> web.StreamResponse:
        """Revoke a token, with immediate effect."""
        refuse_query(request)
        await self._tokens.revoke(request.match_info["name"])
        return web.Response(status=204)


def _instance(view: VmView) -> web.Response:
    return json_response(instance_json(view))


def _line_text(line: LogLine) -> str:
    return line.text
