# SPDX-License-Identifier: Apache-2.0
"""Server-sent events: what they hold, and how they end."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from hypemand.errors import GuestError
from hypemand.model.state import State
from tests.unit.api.harness import Api, description, drive


async def read_events(response: aiohttp.ClientResponse) -> AsyncIterator[Any]:
    """Data of each event as it comes."""
    async for line in response.content:
        if line.startswith(b"data: "):
            data = json.loads(line[6:])
            yield data


async def until_nobody_watches(api: Api) -> None:
    """The server has let go of its streams: a deadline stands around every scenario."""
    while api.host.watchers("a"):  # noqa: ASYNC110 - the fake needs no event for this alone
        await asyncio.sleep(0)


def test_watch_sends_the_vm_at_each_change_until_it_is_deleted(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        await api.host.put("a")
        async with api.session.get(api.url("/instances/a/watch")) as response:
            assert response.headers["Content-Type"] == "text/event-stream"
            events = read_events(response)
            seen = [(await anext(events))["state"]]
            api.host.guest("a").boots = False
            await api.manager.start_vm("a")
            while seen[-1] in ("Stopped", "Created"):
                seen.append((await anext(events))["state"])
            live = api.host.vmms.live
            await api.host.until_true(lambda: "a" in live and bool(live["a"].monitor.orders))
            api.host.vmm("a").come_up()
            last = await anext(events)
            while last["state"] != "Running":
                last = await anext(events)
            description().check_schema("Instance", last)
            assert (seen[0], seen[-1], last["state"]) == ("Stopped", "Initializing", "Running")
            vm = api.host.vm("a")
            await api.manager.delete_vm("a")
            assert [event["state"] async for event in events][-1:] in ([], ["Stopped"])
        assert not vm.changes._watchers

    drive(tmp_path, scenario)


def test_a_client_that_goes_is_noticed_though_nothing_is_sent(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        await api.host.put("a")
        async with api.session.get(api.url("/instances/a/watch")) as response:
            await anext(read_events(response))
            assert api.host.watchers("a") == 1
            response.close()
        await until_nobody_watches(api)

    drive(tmp_path, scenario)


def test_a_stream_breaks_off_when_the_daemon_stops(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        await api.host.put("a")
        async with api.session.get(api.url("/instances/a/watch")) as response:
            events = read_events(response)
            await anext(events)
            api.stop.set()
            with pytest.raises(aiohttp.ClientPayloadError):
                await anext(events)
        await until_nobody_watches(api)

    drive(tmp_path, scenario)


def test_wait_asks_the_client_to_come_again_when_the_daemon_stops(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        await api.host.put("a", State.INITIALIZING)
        waiting = asyncio.create_task(api.ask("GET", "/instances/a/wait?state=Running"))
        await api.ask("GET", "/health")
        api.stop.set()
        answer = await waiting
        assert (answer.status, answer.code) == (503, "stopping")
        assert "X-Should-Retry" not in answer.headers

    drive(tmp_path, scenario)


def test_logs_give_the_lines_that_were_asked_for(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        sentinel = "HYPEMAN-AGENT-READY ts=x boot=y"
        await api.host.put("a")
        for text in ("one", sentinel, "two", "qemu-system-x86_64: vmm line"):
            api.host.log("a", text, realtime=1_700_000_000.25)
        api.host.log("a", "systemd line", SYSLOG_IDENTIFIER="systemd")
        # of a VM before it that had its name, and of hypemand
        unit = "hypeman-vm-a.service"
        fields = {"HYPEMAN_VM_ID": "0" * 32, "_SYSTEMD_UNIT": unit, "SYSLOG_IDENTIFIER": "a"}
        api.host.journal.add_entry(b"another's", fields)
        fields = {"HYPEMAN_VM_ID": api.host.vm("a").record.id, "_SYSTEMD_UNIT": "hypemand.service"}
        api.host.journal.add_entry(b"VM a is Stopped", fields)

        async def lines(query: str) -> list[object]:
            return [data for _, data in (await api.ask("GET", f"/instances/a/logs{query}")).events]

        assert await lines("") == ["one", "two"]
        assert await lines("?tail=1") == ["two"]
        assert await lines("?tail=0") == []
        assert await lines("?sentinels=true&tail=all") == ["one", sentinel, "two"]
        assert await lines("?source=hypeman") == ["VM a is Stopped"]
        assert await lines("?source=vmm") == ["qemu-system-x86_64: vmm line", "systemd line"]
        assert await lines("?tail=1&json=true") == [
            {
                "time": "2023-11-14T22:13:20.250Z",
                "text": "two",
                "invocation_id": "ab" * 16,
                "base64": None,
                "partial": False,
                "missing": 0,
            }
        ]
        texts = [f"line {n} \n\r\x00\u2028 \ufffd" for n in range(500)]
        api.host.journal.entries.clear()
        for text in texts:
            api.host.log("a", text.encode().replace(b"\xef\xbf\xbd", b"\xff"))
        assert await lines("") == texts[-100:]
        assert await lines("?tail=all") == texts

    drive(tmp_path, scenario)


def test_followed_logs_go_on_until_the_run_has_ended(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        await api.host.put("a", State.RUNNING)
        api.host.vmm("a").print("two")
        async with api.session.get(api.url("/instances/a/logs?follow=true&tail=1")) as response:
            events = read_events(response)
            assert await anext(events) == "two"
            api.host.vmm("a").print("three")
            assert await anext(events) == "three"
            api.host.vmm("a").print("last")
            await api.manager.stop_vm("a")
            assert [event async for event in events] == ["last"]

    drive(tmp_path, scenario)


@pytest.mark.parametrize(
    "query",
    [
        "tail=-1",
        "tail=x",
        "tail=1e3",
        "tail=10000000",
        "tail=%C2%B2",
        "follow=yes",
        "source=all",
        "until=1",
        "since=soon",
    ],
)
def test_wrong_parameters_of_logs_are_refused_by_name(tmp_path: Path, query: str) -> None:
    async def scenario(api: Api) -> None:
        await api.host.put("a")
        answer = await api.ask("GET", f"/instances/a/logs?{query}")
        assert answer.status == 400
        assert query.partition("=")[0] in answer.json["message"]
        assert (await api.ask("GET", "/instances/nobody/logs")).code == "not_found"
        assert (await api.ask("GET", "/instances/nobody/watch")).code == "not_found"

    drive(tmp_path, scenario)


@pytest.mark.parametrize(
    ("failure", "code"), [(GuestError("it broke"), "guest_error"), (KeyError("odd"), "internal_error")]
)
def test_an_error_within_a_stream_is_told_and_the_stream_breaks_off(
    tmp_path: Path, failure: Exception, code: str
) -> None:
    async def scenario(api: Api) -> None:
        await api.host.put("a")
        api.host.log("a", "two")
        api.host.journal.failure = failure
        reader, writer = await asyncio.open_unix_connection(str(api.path))
        writer.write(b"GET /instances/a/logs?tail=1 HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = await reader.read()
        writer.close()
        assert b'data: "two"\n\n' in answer
        assert f'event: error\ndata: {{"code": "{code}"'.encode() in answer
        assert b"odd" not in answer
        assert not answer.endswith(b"0\r\n\r\n")

    drive(tmp_path, scenario)


def drain(path: Path) -> int:
    """Read a whole log as fast as can be; the number of bytes."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.sendall(b"GET /instances/a/logs?tail=all HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        total = 0
        while block := connection.recv(1 << 20):
            total += len(block)
    return total


def test_a_stream_with_much_at_hand_lets_others_run(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        lines = 20_000
        await api.host.put("a")
        for _ in range(lines):
            api.host.log("a", "x")
        reading = asyncio.create_task(asyncio.to_thread(drain, api.path))
        turns = 0
        while not reading.done():
            await asyncio.sleep(0)
            turns += 1
        assert await reading > lines * len('data: "x"')
        assert turns > lines / 200

    drive(tmp_path, scenario)
