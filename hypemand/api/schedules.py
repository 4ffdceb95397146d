# SPDX-License-Identifier: Apache-2.0
"""Handlers of the routes of snapshot schedules."""

from __future__ import annotations

import asyncio

from aiohttp import web

from hypemand.api.bodies.snapshots import RetentionForm, SetSchedule
from hypemand.api.render import Json, json_response, time_json
from hypemand.api.requests import parse_ref, read_body, refuse_query
from hypemand.api.services import Limits, Services
from hypemand.config.durations import format_go_duration
from hypemand.model.answers import snapshot as answers
from hypemand.model.document import encode
from hypemand.model.schedules import Retention, ScheduleWanted, SnapshotSchedule


class ScheduleRoutes:
    """The handlers."""

    def __init__(self, services: Services, closing: asyncio.Event, limits: Limits) -> None:
        self._schedules = services.schedules
        self._limits = limits

    def table(self) -> list[web.RouteDef]:
        """Every route of schedules."""
        path = "/instances/{ref}/snapshot-schedule"
        return [
            web.get(path, self.get_schedule, allow_head=False),
            web.put(path, self.set_schedule),
            web.delete(path, self.delete_schedule),
        ]

    async def get_schedule(self, request: web.Request) -> web.StreamResponse:
        """The schedule of a VM."""
        refuse_query(request)
        return json_response(_schedule_json(*await self._schedules.get_schedule(parse_ref(request))))

    async def set_schedule(self, request: web.Request) -> web.StreamResponse:
        """Set the schedule of a VM."""
        ref = parse_ref(request)
        body = await read_body(request, SetSchedule, self._limits.body)
        kept = body.retention or RetentionForm(max_count=None, max_age=None)
        retention = Retention(kept.max_count or 0, kept.max_age or 0.0)
        wanted = ScheduleWanted(body.interval, retention, body.name_prefix, body.metadata)
        return json_response(_schedule_json(*await self._schedules.set_schedule(ref, wanted)))

    async def delete_schedule(self, request: web.Request) -> web.StreamResponse:
        """Remove the schedule of a VM."""
        refuse_query(request)
        await self._schedules.remove_schedule(parse_ref(request))
        return web.Response(status=204)


def _schedule_json(vm_id: str, schedule: SnapshotSchedule) -> Json:
    wanted, kept = schedule.wanted, schedule.wanted.retention
    answer = answers.SnapshotSchedule(
        instance_id=vm_id,
        interval=format_go_duration(wanted.interval),
        next_run_at=time_json(schedule.next_run_at),
        retention=answers.Retention(
            kept.max_count or None, format_go_duration(kept.max_age) if kept.max_age else None
        ),
        name_prefix=wanted.name_prefix,
        metadata=wanted.tags,
        created_at=time_json(schedule.created_at),
        updated_at=time_json(schedule.updated_at),
        last_run_at=time_json(schedule.last_run_at),
        last_snapshot_id=schedule.last_snapshot_id,
        last_error=schedule.last_error,
    )
    return encode(answer)
