# SPDX-License-Identifier: Apache-2.0
"""GET /events: who sees which, and how they are asked for."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from hypemand.model.events import Event, EventKind, StateChange
from hypemand.model.state import State
from hypemand.model.tokens import Scope
from tests.unit.api.harness import Api, drive
from tests.unit.api.test_listener import Place, over_tcp


async def read(api: Api, query: str = "") -> list[Any]:
    """What is kept."""
    answer = await api.ask("GET", f"/events{query}")
    assert answer.status == 200, answer.body
    return [data for _, data in answer.events]


def test_events_are_read_by_vm_kind_time_and_cursor(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        await api.host.run("web")
        await api.host.run("db")
        found = await read(api)
        assert {event["kind"] for event in found} == {"state", "start", "ready"}
        assert {event["vm"] for event in found} == {"web", "db"}
        ready = next(event for event in found if event["kind"] == "ready")
        assert ready["details"]["start"] == "request"
        assert ready["details"]["run"] == api.host.vmm("web").run_id
        assert ready["message"].startswith("Running after ")
        of_web = await read(api, "?vms=web")
        assert of_web == [event for event in found if event["vm"] == "web"]
        assert await read(api, f"?vms={api.host.vm('web').record.id}") == of_web
        assert await read(api, "?vms=web,db&kinds=start,ready") == [
            event for event in found if event["kind"] in ("start", "ready")
        ]
        cursor = found[3]["cursor"]
        assert await read(api, f"?cursor={cursor}") == found[4:]
        assert await read(api, f"?since={found[-1]['time']}") != []
        assert await read(api, "?since=2100-01-01T00:00:00Z") == []
        for query in ("cursor=x", f"cursor={cursor}&since=1", "kinds=frob", "vms=", "since=soon"):
            answer = await api.ask("GET", f"/events?{query}")
            assert answer.status == 400, query

    drive(tmp_path, scenario)


def test_what_comes_is_sent_as_it_comes_and_across_a_restart_of_the_daemon(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        await api.host.create()
        url = api.url("/events?follow=true&kinds=start")
        async with api.session.get(url) as response:
            await api.host.start()
            while not (line := await response.content.readline()).startswith(b"data: "):
                assert line in (b":\n", b"\n"), line
            event = json.loads(line.removeprefix(b"data: "))
            assert (event["vm"], event["kind"]) == ("web", "start")
        stale = await read(api, "?cursor=00000000-7")
        assert stale[0]["kind"] == "missed"
        assert stale[0]["details"] == {"count": None}
        assert stale[1:] == await read(api)

    drive(tmp_path, scenario)


def test_a_token_for_some_vms_sees_events_of_those_alone(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        host = place.api.host
        for name, tags in (("shop", {"team": "a"}), ("db", {})):
            await host.put(name, State.RUNNING, tags=tags)
        host.parts.events.tell(Event(StateChange(State.STOPPED, State.RUNNING), "x", "gone", "0" * 24))
        token = await place.token(scope=Scope.READ, tags={"team": "a"})
        whole = await place.token("whole", scope=Scope.READ)

        async def names(token: str) -> set[str]:
            headers = {"Authorization": f"Bearer {token}"}
            async with place.session.get(place.url("/events"), headers=headers) as response:
                assert response.status == 200
                lines = (await response.read()).splitlines()
            return {json.loads(line[6:])["vm"] for line in lines if line.startswith(b"data: ")}

        assert await names(token) == {"shop"}
        assert await names(whole) >= {"shop", "db", "gone"}

    over_tcp(tmp_path, scenario)


def test_a_client_that_does_not_read_is_told_what_it_missed(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        events = api.host.parts.events
        reader, writer = await asyncio.open_unix_connection(str(api.path), limit=2**16)
        writer.write(b"GET /events?follow=true HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        text = "x" * 2000
        for _ in range(5000):
            events.tell(Event(StateChange(State.STOPPED, State.RUNNING), text, "web", "1" * 24))
            await asyncio.sleep(0)
        found: list[Any] = []
        while not found or found[-1]["kind"] != EventKind.MISSED:
            line = await reader.readline()
            if line.startswith(b"data: "):
                found.append(json.loads(line[6:]))
        assert len(found) + found[-1]["details"]["count"] <= 5000
        assert found[-1]["details"]["count"] > 100
        writer.close()
        await writer.wait_closed()

    drive(tmp_path, scenario)


def test_a_rename_is_found_by_both_names(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        await api.host.create()
        await api.host.manager.rename_vm("web", "db")
        (told,) = await read(api, "?kinds=rename")
        assert (told["vm"], told["details"]) == ("db", {"old": "web", "new": "db"})
        for query in ("vms=web", "vms=db", f"vms={told['vm_id']}"):
            assert await read(api, f"?{query}") == [told]
        assert await read(api, "?vms=shop") == []

    drive(tmp_path, scenario)
