# SPDX-License-Identifier: Apache-2.0
"""The routes of instances, over HTTP."""

import asyncio
import math
import time
from dataclasses import replace
from pathlib import Path

import pytest

from hypemand.config.definition import Definition
from hypemand.config.vmdef import parse_definition
from hypemand.model.state import Origin, State
from hypemand.model.vm import ExitReport
from hypemand.version import VERSION
from tests.unit.api.fakes import IMAGE
from tests.unit.api.harness import Api, description, drive

NO_NETWORK: dict[str, object] = {
    **dict.fromkeys(
        ("name", "ip", "mac", "bandwidth_download", "bandwidth_upload", "ip6", "group", "isolated")
    ),
    **dict.fromkeys(("interface", "counters")),
    "enabled": False,
    "publish": [],
}


def test_health_and_description_are_served(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        health = (await api.ask("GET", "/health")).json
        assert (health["status"], health["version"]) == ("ok", VERSION)
        text = (await api.ask("GET", "/openapi.yaml")).body.decode()
        assert "openapi: 3.1.0" in text

    drive(tmp_path, scenario)


def test_list_filters_by_state_and_all_tags(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        tags = {"team": "backend", "env": "test"}
        api.manager.add("a", state=State.RUNNING, definition=Definition("a", IMAGE, tags=tags))
        api.manager.add("b", definition=Definition("b", IMAGE, tags={"team": "backend"}))
        api.manager.add("c", state=State.RUNNING)

        async def names(query: str) -> list[str]:
            return [i["name"] for i in (await api.ask("GET", f"/instances{query}")).json]

        assert await names("") == ["a", "b", "c"]
        assert await names("?state=Running") == ["a", "c"]
        assert await names("?tags%5Bteam%5D=backend") == ["a", "b"]
        assert await names("?tags[team]=backend&tags[env]=test") == ["a"]
        assert await names("?tags[team]=other") == []
        assert (await api.ask("GET", "/instances?state=running")).code == "invalid_request"
        refused = (await api.ask("GET", "/instances?sate=Running")).json
        assert "sate" in refused["message"]
        assert "state" in refused["hint"]
        assert (await api.ask("GET", "/instances?state=Running&state=Stopped")).status == 400

    drive(tmp_path, scenario)


def test_an_instance_shows_all_that_is_known(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        definition = Definition("a", IMAGE, memory=512 * 2**20, cmd=("x",), boot_timeout=None)
        view = api.manager.add("a", definition=definition, state=State.UNKNOWN).view
        api.manager.vms["a"].view = replace(
            view,
            state_error="the VMM does not answer",
            started_at=1_700_000_000.1239,
            exit=ExitReport(137, "out of memory", success=False),
            memory_current=5,
            cpu_seconds=2.5,
            phase_durations_ms={"Running": 7},
        )
        shown = (await api.ask("GET", "/instances/a")).json
        expected = {
            "state": "Unknown",
            "state_error": "the VMM does not answer",
            "size": "512MB",
            "overlay_size": "10GB",
            "started_at": "2023-11-14T22:13:20.123Z",
            "stopped_at": None,
            "exit_code": 137,
            "exit_message": "out of memory",
            "exit_success": False,
            "current_phase": "unknown",
            "phase_durations_ms": {"running": 7},
            "network": NO_NETWORK,
            "hypervisor": "qemu-microvm",
            "restart_policy": {"policy": "never"},
            "origin": "api",
            "unit": "hypeman-vm-a.service",
            "memory_current": 5,
            "cpu_seconds": 2.5,
        }
        assert {key: shown[key] for key in expected} == expected
        assert parse_definition("a", shown["definition"]) == definition

    drive(tmp_path, scenario)


def test_a_vm_is_found_by_name_id_and_prefix_and_nothing_else(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        for name in ("a", "b", "c"):
            api.manager.add(name)
        first = api.manager.vms["a"].view
        other = api.manager.vms["b"].view
        assert (await api.ask("GET", f"/instances/{first.id}")).json["name"] == "a"
        assert (await api.ask("GET", f"/instances/{other.id[:3]}")).json["name"] == "b"
        ambiguous = await api.ask("GET", "/instances/xyz")
        assert (ambiguous.status, ambiguous.code) == (409, "ambiguous")
        for ref in ("nobody", "UPPER", "a%2Fb", "%2e%2e", "a%00", "-a", "x" * 5000, "%F0%9F%98%80"):
            answer = await api.ask("GET", f"/instances/{ref}")
            assert (answer.status, answer.code) == (404, "not_found"), ref

    drive(tmp_path, scenario)


def test_start_stop_restart_kill_and_delete_do_what_they_say(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        api.manager.add("a")
        assert (await api.ask("POST", "/instances/a/start")).json["state"] == "Initializing"
        assert (await api.ask("POST", "/instances/a/start", {})).json["state"] == "Initializing"
        stopped = (await api.ask("POST", "/instances/a/stop", {"timeout": "1m30s"})).json
        assert (stopped["state"], stopped["exit_message"]) == ("Stopped", "stopped on request, timeout 90.0")
        for body, timeout in (
            ({"timeout": 2.5}, 2.5),
            ({"timeout": 0}, 0.0),
            ({"timeout": None}, None),
            (None, None),
        ):
            message = (await api.ask("POST", "/instances/a/stop", body)).json["exit_message"]
            assert message == f"stopped on request, timeout {timeout}"
        assert (await api.ask("POST", "/instances/a/restart")).json["state"] == "Initializing"
        assert (await api.ask("POST", "/instances/a/kill", {"signal": 15})).json["state"] == "Initializing"
        assert (await api.ask("POST", "/instances/a/kill")).json["state"] == "Stopped"
        assert api.manager.killed == [("a", 15), ("a", 9)]
        refused = await api.ask("POST", "/instances/a/kill")
        assert (refused.status, refused.code) == (409, "invalid_state")
        assert refused.headers["X-Should-Retry"] == "false"
        assert (await api.ask("DELETE", "/instances/a")).status == 204
        assert (await api.ask("DELETE", "/instances/a")).code == "not_found"

    drive(tmp_path, scenario)


def test_pause_and_resume_do_what_they_say_and_an_error_names_what_is_full(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        api.manager.add("a", state=State.RUNNING)
        assert (await api.ask("POST", "/instances/a/pause")).json["state"] == "Paused"
        refused = await api.ask("POST", "/instances/a/pause", {})
        assert (refused.status, refused.code) == (409, "invalid_state")
        assert (await api.ask("POST", "/instances/a/resume")).json["state"] == "Running"
        assert (await api.ask("POST", "/instances/a/resume")).status == 409
        assert (await api.ask("POST", "/instances/nobody/pause")).status == 404
        api.manager.add("full", state=State.PAUSED, state_error="the file system /srv is full")
        for target in ("/instances/full/stat?path=/", "/instances/full/exec"):
            answer = await api.ask("GET", target)
            assert answer.status == 409
            assert "full is Paused: the file system /srv is full" in answer.json["message"]
            assert "hypemanctl resume" in answer.json["hint"]

    drive(tmp_path, scenario)


def test_delete_without_grace_kills_first_but_not_what_it_may_not_delete(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        api.manager.add("mine", state=State.RUNNING)
        api.manager.add("filed", state=State.RUNNING, origin=Origin.FILE)
        api.manager.add("still")
        for name, status in (("mine", 204), ("filed", 409), ("still", 204)):
            assert (await api.ask("DELETE", f"/instances/{name}?graceful_shutdown=false")).status == status
        assert api.manager.killed == [("mine", 9)]
        api.manager.add("graceful", state=State.RUNNING)
        assert (await api.ask("DELETE", "/instances/graceful?graceful_shutdown=true")).status == 204
        assert len(api.manager.killed) == 1
        assert (await api.ask("DELETE", "/instances/filed?graceful_shutdown=perhaps")).status == 400

    drive(tmp_path, scenario)


@pytest.mark.parametrize(
    ("target", "body", "words"),
    [
        ("/instances/a/start", {"cmd": ["x"]}, "cmd"),
        ("/instances/a/start", {"entrypoint": ["x"]}, "entrypoint"),
        ("/instances/a/start", {"wait": True}, "wait"),
        ("/instances/a/stop", {"timeout": "soon"}, "timeout"),
        ("/instances/a/stop", {"timeout": -1}, "timeout"),
        ("/instances/a/stop", {"timeout": True}, "timeout"),
        ("/instances/a/stop", {"timeout": "infinity"}, "timeout"),
        ("/instances/a/stop", {"force": True}, "force"),
        ("/instances/a/restart", {"x": 1}, "x"),
        ("/instances/a/kill", {"signal": 0}, "signal"),
        ("/instances/a/kill", {"signal": 65}, "signal"),
        ("/instances/a/kill", {"signal": "TERM"}, "signal"),
        ("/instances/a/kill", {"signal": True}, "signal"),
        ("/instances/a/kill", {"sig": 9}, "sig"),
        ("/instances/a/pause", {"for": "1s"}, "for"),
        ("/instances/a/resume", {"force": True}, "force"),
        ("/reload", {"x": 1}, "x"),
    ],
)
def test_a_wrong_field_is_refused_by_name(tmp_path: Path, target: str, body: object, words: str) -> None:
    async def scenario(api: Api) -> None:
        view = api.manager.add("a", state=State.RUNNING).view
        answer = await api.ask("POST", target, body)
        assert answer.status == 400
        assert words in answer.json["message"]
        assert api.manager.vms["a"].view == view

    drive(tmp_path, scenario)


def test_wait_is_back_at_once_when_the_state_is_there_or_cannot_come(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        api.manager.add("runs", state=State.RUNNING)
        api.manager.add("broken", state=State.UNKNOWN, state_error="no answer")
        there = await api.ask("GET", "/instances/runs/wait?state=Running")
        assert there.json == {"state": "Running", "timed_out": False, "state_error": None}
        never = await api.ask("GET", "/instances/broken/wait?state=Running&timeout=5m")
        assert never.json == {"state": "Unknown", "timed_out": False, "state_error": "no answer"}

    drive(tmp_path, scenario)


def test_wait_ends_with_the_change_the_deadline_or_the_vm(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        api.manager.add("a", state=State.INITIALIZING)
        late = await api.ask("GET", "/instances/a/wait?state=Running&timeout=50ms")
        assert late.json == {"state": "Initializing", "timed_out": True, "state_error": None}
        waiting = asyncio.create_task(api.ask("GET", "/instances/a/wait?state=Running"))
        await api.manager.boot("a")
        assert (await waiting).json["state"] == "Running"
        waiting = asyncio.create_task(api.ask("GET", "/instances/a/wait?state=Paused"))
        await api.ask("GET", "/health")
        await api.ask("DELETE", "/instances/a")
        assert (await waiting).code == "not_found"

    drive(tmp_path, scenario)


@pytest.mark.parametrize("text", ["0", "0s", "-1s", "soon", "", "infinity", "1x", "nan", "9" * 30])
def test_wait_refuses_a_timeout_that_is_none(tmp_path: Path, text: str) -> None:
    async def scenario(api: Api) -> None:
        api.manager.add("a", state=State.RUNNING)
        answer = await api.ask("GET", f"/instances/a/wait?state=Running&timeout={text}")
        assert (answer.status, answer.code) == (400, "invalid_timeout")

    drive(tmp_path, scenario)


def test_wait_refuses_what_is_no_state(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        api.manager.add("a")
        for query in ("", "?state=", "?state=running", "?timeout=1s"):
            answer = await api.ask("GET", f"/instances/a/wait{query}")
            assert (answer.status, answer.code) == (400, "invalid_request")
            assert "Running" in answer.json["hint"]

    drive(tmp_path, scenario)


def test_timeline_and_reload_are_as_described(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        api.manager.add("a")
        assert (await api.ask("GET", "/instances/a/timeline")).code == "invalid_state"
        await api.manager.boot("a")
        timeline = (await api.ask("GET", "/instances/a/timeline")).json
        assert (timeline["vm"], timeline["running_ms"]) == ("a", 612.5)
        assert timeline["spans"][1] == {"name": "kernel", "lane": "kernel", "start_ms": 12.5, "end_ms": 600.0}
        report = (await api.ask("POST", "/reload")).json
        assert (report["defined"], report["changed"], report["removed"]) == (["new"], ["other"], [])
        assert report["problems"][0]["key"] == "memory"

    drive(tmp_path, scenario)


def test_create_answers_for_both_forms_as_described(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        client_form = {"name": "web", "image": IMAGE, "size": "512MB", "env": {"A": "ä"}}
        description().check_request("POST", "/instances", client_form)
        made = await api.ask("POST", "/instances", client_form)
        assert (made.status, made.json["state"], made.json["env"]) == (201, "Initializing", {"A": "ä"})
        native = {"definition": {"image": IMAGE, "memory": "256M"}, "start": False}
        description().check_request("POST", "/instances", native)
        made = await api.ask("POST", "/instances", native)
        assert (made.status, made.json["state"], made.json["size"]) == (201, "Stopped", "256MB")
        assert (await api.ask("GET", f"/instances/{made.json['name']}")).status == 200
        assert (await api.ask("POST", "/instances", client_form)).code == "already_exists"
        missing = await api.ask("POST", "/instances", client_form | {"name": "n", "image": "missing"})
        assert (missing.status, missing.code) == (404, "image_not_found")
        broken = await api.ask("POST", "/instances", client_form | {"name": "n", "image": "breaks"})
        assert (broken.status, broken.code, broken.headers["X-Should-Retry"]) == (
            502,
            "start_failed",
            "false",
        )
        problems = (await api.ask("POST", "/instances", {"name": "n", "size": "many", "gpu": {}})).json[
            "problems"
        ]
        assert {p["key"] for p in problems} == {"gpu", "image", "size"}

    drive(tmp_path, scenario)


def test_twenty_vms_are_listed_in_a_few_milliseconds(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        for number in range(20):
            api.manager.add(f"vm-{number}", definition=Definition(f"vm-{number}", IMAGE, env={"A": "b"}))
        best = math.inf
        for _ in range(20):
            begin = time.perf_counter()
            async with api.session.get(api.url("/instances")) as response:
                await response.read()
            best = min(best, time.perf_counter() - begin)
        assert best < 0.010, f"{best * 1000:.1f} ms"

    drive(tmp_path, scenario)
