# SPDX-License-Identifier: Apache-2.0
"""The routes of instances, over HTTP."""

import asyncio
import errno
from dataclasses import replace
from pathlib import Path

import pytest

from hypemand.api.render import instance_json
from hypemand.config.definition import Definition
from hypemand.config.vmdef import parse_definition
from hypemand.model.health import HealthState, HealthStatus
from hypemand.model.state import State
from hypemand.model.tokens import Scope
from hypemand.model.vm import ExitReport
from hypemand.storage.tools import DirectTools
from hypemand.systemd.bus import BusError
from hypemand.version import VERSION
from tests.fakes.host import define
from tests.fakes.process import Exit
from tests.unit.api.harness import DEADLINE, IMAGE, Api, description, drive
from tests.unit.api.test_listener import Place, over_tcp

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
        await api.host.put("a", State.RUNNING, tags={"team": "backend", "env": "test"})
        await api.host.put("b", tags={"team": "backend"})
        await api.host.put("c", State.RUNNING)

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
        definition = Definition("a", IMAGE, memory=512 * 2**20, cmd=("x",), boot_timeout=None, network=None)
        await api.manager.create_vm(definition, start=False)
        view = replace(
            api.host.vm("a").view(),
            state=State.UNKNOWN,
            state_error="the VMM does not answer",
            started_at=1_700_000_000.1239,
            exit=ExitReport(137, "out of memory", success=False),
            memory_current=5,
            cpu_seconds=2.5,
            health=HealthStatus(HealthState.UNHEALTHY, 3, 0, 2.0, 1.0, 2.0, "http: status 500"),
            phase_durations_ms={"Running": 7},
        )
        shown = instance_json(view)
        description().check_schema("Instance", shown)
        expected = {
            "state": "Unknown",
            "state_error": "the VMM does not answer",
            "size": "512MB",
            "overlay_size": "10GB",
            "disk_io_bps": None,
            "started_at": "2023-11-14T22:13:20.123Z",
            "stopped_at": None,
            "exit_code": 137,
            "exit_message": "out of memory",
            "exit_success": False,
            "current_phase": "unknown",
            "phase_durations_ms": {"running": 7},
            "network": NO_NETWORK,
            "hypervisor": "qemu-microvm",
            "restart_policy": {
                "policy": "never",
                "backoff": "100ms",
                "max_attempts": 4,
                "stable_after": "2m",
            },
            "health_check": None,
            "health_status": {
                "status": "unhealthy",
                "consecutive_failures": 3,
                "consecutive_successes": 0,
                "last_checked_at": "1970-01-01T00:00:02.000Z",
                "last_success_at": "1970-01-01T00:00:01.000Z",
                "last_failure_at": "1970-01-01T00:00:02.000Z",
                "last_error": "http: status 500",
            },
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
        for name in ("a", "b"):
            await api.host.put(name)
        # ids are random
        api.host.vm("a").record = replace(api.host.vm("a").record, id="abcd0" + "0" * 19)
        api.host.vm("b").record = replace(api.host.vm("b").record, id="abcd1" + "0" * 19)
        assert (await api.ask("GET", f"/instances/{api.host.vm('a').record.id}")).json["name"] == "a"
        assert (await api.ask("GET", "/instances/abcd1")).json["name"] == "b"
        ambiguous = await api.ask("GET", "/instances/abcd")
        assert (ambiguous.status, ambiguous.code) == (409, "ambiguous")
        for ref in ("nobody", "UPPER", "a%2Fb", "%2e%2e", "a%00", "-a", "x" * 5000, "%F0%9F%98%80"):
            answer = await api.ask("GET", f"/instances/{ref}")
            assert (answer.status, answer.code) == (404, "not_found"), ref

    drive(tmp_path, scenario)


def test_start_stop_restart_kill_and_delete_do_what_they_say(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        host = api.host
        host.guest("a").boots = False
        await host.put("a")
        assert (await api.ask("POST", "/instances/a/start")).json["state"] == "Initializing"
        assert (await api.ask("POST", "/instances/a/start", {})).json["state"] == "Initializing"
        host.guest("a").boots = True
        assert (await api.ask("POST", "/instances/a/restart")).json["state"] == "Initializing"
        await host.until(State.RUNNING, "a")
        assert (await api.ask("POST", "/instances/a/kill", {"signal": 15})).status == 200
        await host.until(State.STOPPED, "a")
        assert (await api.ask("POST", "/instances/a/start")).status == 200
        await host.until(State.RUNNING, "a")
        killed = (await api.ask("POST", "/instances/a/kill")).json
        assert (killed["state"], killed["exit_message"]) == ("Stopped", "the VMM was killed by SIGKILL")
        refused = await api.ask("POST", "/instances/a/kill")
        assert (refused.status, refused.code) == (409, "invalid_state")
        assert refused.headers["X-Should-Retry"] == "false"
        assert (await api.ask("DELETE", "/instances/a")).status == 204
        assert (await api.ask("DELETE", "/instances/a")).code == "not_found"

    drive(tmp_path, scenario)


@pytest.mark.parametrize(
    ("body", "grace"),
    [
        ({"timeout": "1m30s"}, 90),
        ({"timeout": 2.5}, 3),
        ({"timeout": 0}, 0),
        ({"timeout": None}, None),
        (None, None),
    ],
)
def test_a_stop_gives_the_guest_the_time_that_it_says(
    tmp_path: Path, body: object, grace: int | None
) -> None:
    async def scenario(api: Api) -> None:
        await api.host.put("a", State.RUNNING)
        vmm = api.host.vmm("a")
        stopped = (await api.ask("POST", "/instances/a/stop", body)).json
        assert (stopped["state"], stopped["exit_message"]) == ("Stopped", "stopped on request")
        # without one it is the unit's own command that ends it
        assert vmm.graces == ([] if grace is None else [grace])

    drive(tmp_path, scenario)


def test_pause_and_resume_do_what_they_say_and_an_error_names_what_is_full(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        await api.host.put("a", State.RUNNING)
        assert (await api.ask("POST", "/instances/a/pause")).json["state"] == "Paused"
        refused = await api.ask("POST", "/instances/a/pause", {})
        assert (refused.status, refused.code) == (409, "invalid_state")
        assert (await api.ask("POST", "/instances/a/resume")).json["state"] == "Running"
        assert (await api.ask("POST", "/instances/a/resume")).status == 409
        assert (await api.ask("POST", "/instances/nobody/pause")).status == 404
        await api.host.put("full", State.RUNNING)
        api.host.vmm("full").fill_disk()
        await api.host.until(State.PAUSED, "full")
        shown = (await api.ask("GET", "/instances/full")).json["state_error"]
        assert "is full" in shown
        for target in ("/instances/full/stat?path=/", "/instances/full/exec"):
            answer = await api.ask("GET", target)
            assert answer.status == 409
            assert f"full is Paused: {shown}" in answer.json["message"]
            assert "hypemanctl resume" in answer.json["hint"]

    drive(tmp_path, scenario)


def test_a_vm_goes_to_standby_and_a_start_of_it_has_to_say_what_to_do(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        host = api.host
        await host.put("a", State.RUNNING)
        first, booted = host.vmm("a").run_id, (await api.ask("GET", "/instances/a")).json["started_at"]
        assert (await api.ask("POST", "/instances/a/restore")).json["invocation_id"] == first
        for _ in range(2):
            saved = (await api.ask("POST", "/instances/a/standby", {})).json
            assert (saved["state"], saved["has_snapshot"], saved["exit_success"]) == ("Standby", True, True)
            assert saved["standby"]["size_bytes"] > 0
        for body in ({}, {"standby": "refuse"}, {"standby": None}, {"image_pull": "never"}):
            refused = await api.ask("POST", "/instances/a/start", body)
            assert (refused.status, refused.code) == (409, "invalid_state")
        assert (await api.ask("POST", "/instances/a/restore")).status == 200
        await host.until(State.RUNNING, "a")
        shown = (await api.ask("GET", "/instances/a")).json
        assert (shown["has_snapshot"], shown["standby"], shown["started_at"]) == (False, None, booted)
        for what in ("restore", "cold"):
            before = host.vm("a").boot
            assert (await api.ask("POST", "/instances/a/standby")).status == 200
            assert (await api.ask("POST", "/instances/a/start", {"standby": what})).status == 200
            await host.until(State.RUNNING, "a")
            assert (host.vm("a").boot == before) is (what == "restore")
        await host.put("off")
        for target in ("standby", "restore"):
            assert (await api.ask("POST", f"/instances/off/{target}")).status == 409
            assert (await api.ask("POST", f"/instances/nobody/{target}")).status == 404

    drive(tmp_path, scenario)


def test_saved_memory_is_compressed_where_a_body_asks_for_it(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        host = api.host
        host.make_tools = DirectTools
        await host.put("a", State.RUNNING)
        host.vmm("a").monitor.memory = b"what it has in memory" * 1000
        where, plain = "/instances/a/snapshots", {"enabled": False, "algorithm": "zstd"}
        made = (await api.ask("POST", where, {"compression": plain})).json
        assert (made["compression_state"], made["compression"]) == ("none", None)
        wanted = {"enabled": True, "level": 3}
        made = (await api.ask("POST", where, {"compression": wanted})).json
        assert made["compression_state"] == "compressing"
        assert made["compression"] == {"enabled": True, "algorithm": "zstd", "level": 3}
        async with asyncio.timeout(DEADLINE):
            while made["compression_state"] == "compressing":
                made = (await api.ask("GET", f"/snapshots/{made['id']}")).json
        assert (made["compression_state"], made["compression"]["level"]) == ("compressed", 3)
        assert 0 < made["compressed_size_bytes"] < made["uncompressed_size_bytes"] == 96 * 1024**2
        body = {"compression": {"enabled": True}, "compression_delay": "1h"}
        saved = (await api.ask("POST", "/instances/a/standby", body)).json["standby"]
        assert (saved["compression_state"], saved["compression"]["level"]) == ("compressing", 1)
        refused = await api.ask("POST", "/instances/a/standby", body)
        assert (refused.status, refused.code) == (409, "invalid_state")

    drive(tmp_path, scenario)


def test_delete_without_grace_kills_first_but_not_what_it_may_not_delete(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        host = api.host
        host.write("filed", autostart=True)
        await host.reload()
        await host.until(State.RUNNING, "filed")
        await host.put("mine", State.RUNNING)
        await host.put("still")
        mine = host.vmm("mine")
        for name, status in (("mine", 204), ("filed", 409), ("still", 204)):
            assert (await api.ask("DELETE", f"/instances/{name}?graceful_shutdown=false")).status == status
        assert (mine.heard_stop, mine.process.exit) == (False, Exit("killed", 9))
        await host.put("graceful", State.RUNNING)
        vmm = host.vmm("graceful")
        assert (await api.ask("DELETE", "/instances/graceful?graceful_shutdown=true")).status == 204
        # the guest has ended by itself
        assert (vmm.heard_stop, vmm.process.exit) == (True, Exit("exited", 0))
        assert (await api.ask("DELETE", "/instances/filed?graceful_shutdown=perhaps")).status == 400
        assert host.vm("filed").state is State.RUNNING

    drive(tmp_path, scenario)


@pytest.mark.parametrize(
    ("target", "body", "words"),
    [
        ("/instances/a/start", {"cmd": "true"}, "cmd"),
        ("/instances/a/start", {"entrypoint": [1]}, "entrypoint"),
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
        ("/instances/a/standby", {"compression": {"level": 3}}, "compression.enabled"),
        ("/instances/a/standby", {"compression": {"enabled": True, "level": 20}}, "compression.level"),
        (
            "/instances/a/standby",
            {"compression": {"enabled": True, "algorithm": "lz4"}},
            "compression.algorithm",
        ),
        ("/instances/a/standby", {"compression_delay": "30s"}, "compression_delay"),
        (
            "/instances/a/standby",
            {"compression": {"enabled": True}, "pool": "san"},
            "pool: cannot be combined",
        ),
        ("/instances/a/standby", {"pool": ""}, "pool"),
        ("/instances/a/restore", {"force": True}, "force"),
        ("/instances/a/start", {"standby": "boot"}, "standby"),
        ("/reload", {"x": 1}, "x"),
    ],
)
def test_a_wrong_field_is_refused_by_name(tmp_path: Path, target: str, body: object, words: str) -> None:
    async def scenario(api: Api) -> None:
        await api.host.put("a", State.RUNNING)
        run = api.host.vmm("a").run_id
        answer = await api.ask("POST", target, body)
        assert answer.status == 400
        assert words in answer.json["message"]
        assert (api.host.vm("a").state, api.host.vmm("a").run_id) == (State.RUNNING, run)

    drive(tmp_path, scenario)


def test_wait_is_back_at_once_when_the_state_is_there_or_cannot_come(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        await api.host.put("runs", State.RUNNING)
        await api.host.put("broken", State.UNKNOWN)
        there = await api.ask("GET", "/instances/runs/wait?state=Running")
        assert there.json == {"state": "Running", "timed_out": False, "state_error": None}
        never = await api.ask("GET", "/instances/broken/wait?state=Running&timeout=5m")
        why = "the VMM reports a run state that is not known here"
        assert never.json == {"state": "Unknown", "timed_out": False, "state_error": why}

    drive(tmp_path, scenario)


def test_wait_ends_with_the_change_the_deadline_or_the_vm(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        await api.host.put("a", State.INITIALIZING)
        late = await api.ask("GET", "/instances/a/wait?state=Running&timeout=50ms")
        assert late.json == {"state": "Initializing", "timed_out": True, "state_error": None}
        waiting = asyncio.create_task(api.ask("GET", "/instances/a/wait?state=Running"))
        api.host.vmm("a").come_up()
        assert (await waiting).json["state"] == "Running"
        waiting = asyncio.create_task(api.ask("GET", "/instances/a/wait?state=Paused"))
        await api.host.until_true(lambda: api.host.watchers("a") > 0)
        # it is Stopped before it is gone, which is not what it is told
        await api.ask("DELETE", "/instances/a")
        assert (await waiting).status == 404

    drive(tmp_path, scenario)


@pytest.mark.parametrize("text", ["0", "0s", "-1s", "soon", "", "infinity", "1x", "nan", "9" * 30])
def test_wait_refuses_a_timeout_that_is_none(tmp_path: Path, text: str) -> None:
    async def scenario(api: Api) -> None:
        await api.host.put("a")
        answer = await api.ask("GET", f"/instances/a/wait?state=Running&timeout={text}")
        assert (answer.status, answer.code) == (400, "invalid_timeout")

    drive(tmp_path, scenario)


def test_wait_refuses_what_is_no_state(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        await api.host.put("a")
        for query in ("", "?state=", "?state=running", "?timeout=1s"):
            answer = await api.ask("GET", f"/instances/a/wait{query}")
            assert (answer.status, answer.code) == (400, "invalid_request")
            assert "Running" in answer.json["hint"]

    drive(tmp_path, scenario)


def test_timeline_and_reload_are_as_described(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        host = api.host
        await host.put("a")
        assert (await api.ask("GET", "/instances/a/timeline")).code == "invalid_state"
        await host.manager.start_vm("a")
        await host.until(State.RUNNING, "a")
        timeline = (await api.ask("GET", "/instances/a/timeline")).json
        assert timeline["vm"] == "a"
        assert timeline["running_ms"] == max(span["end_ms"] for span in timeline["spans"]) > 0
        assert {span["lane"] for span in timeline["spans"]} >= {"host", "kernel"}
        host.write("other")
        assert (await api.ask("POST", "/reload")).json["defined"] == ["other"]
        host.write("other", cmd=["y"])
        host.write("new")
        host.write("a2", memory="lots")
        report = (await api.ask("POST", "/reload")).json
        assert (report["defined"], report["changed"], report["removed"]) == (["new"], ["other"], [])
        assert [problem["key"] for problem in report["problems"]] == ["memory"]

    drive(tmp_path, scenario)


def test_create_answers_for_both_forms_as_described(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        client_form = {
            "name": "web",
            "image": IMAGE,
            "size": "512MB",
            "overlay_size": "64MB",
            "env": {"A": "ä"},
        }
        description().check_request("POST", "/instances", client_form)
        made = await api.ask("POST", "/instances", client_form)
        assert made.status == 201, made.json
        assert (made.status, made.json["state"], made.json["env"]) == (201, "Initializing", {"A": "ä"})
        native = {"definition": {"image": IMAGE, "memory": "256M", "disk": "64M"}, "start": False}
        description().check_request("POST", "/instances", native)
        made = await api.ask("POST", "/instances", native)
        assert (made.status, made.json["state"], made.json["size"]) == (201, "Stopped", "256MB")
        assert (await api.ask("GET", f"/instances/{made.json['name']}")).status == 200
        assert (await api.ask("POST", "/instances", client_form)).code == "already_exists"
        missing = await api.ask("POST", "/instances", client_form | {"name": "n", "image": "builtin:missing"})
        assert (missing.status, missing.code) == (404, "image_not_found")
        api.host.systemd.refuse["StartTransientUnit"] = BusError("no", errno.EINVAL)
        broken = await api.ask("POST", "/instances", client_form | {"name": "n"})
        assert (broken.status, broken.code) == (503, "bus_error")
        assert (await api.ask("GET", "/instances/n")).code == "not_found"
        problems = (await api.ask("POST", "/instances", {"name": "n", "size": "many", "gpu": {}})).json[
            "problems"
        ]
        assert {p["key"] for p in problems} == {"gpu", "image", "size"}

    drive(tmp_path, scenario)


def test_a_stopped_vm_is_renamed(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        await api.host.run("web")
        refused = await api.ask("POST", "/instances/web/rename", {"name": "db"})
        assert (refused.status, refused.code) == (409, "invalid_state")
        await api.host.stop_for_good("web")
        for body in ({}, {"name": "no_name"}, {"name": ""}, {"name": "db", "force": True}):
            assert (await api.ask("POST", "/instances/web/rename", body)).status == 400
        before = (await api.ask("GET", "/instances/web")).json
        renamed = await api.ask("POST", f"/instances/{before['id']}/rename", {"name": "db"})
        assert (renamed.status, renamed.json["name"], renamed.json["id"]) == (200, "db", before["id"])
        assert renamed.json["unit"] == "hypeman-vm-db.service"
        assert renamed.json["exit_message"] == before["exit_message"]
        assert (await api.ask("GET", "/instances/web")).status == 404
        await api.host.create("web")
        taken = await api.ask("POST", "/instances/db/rename", {"name": "web"})
        assert (taken.status, taken.code) == (400, "already_exists")

    drive(tmp_path, scenario)


def test_only_root_renames_what_the_host_knows_by_its_short_name(tmp_path: Path) -> None:
    async def scenario(place: Place) -> None:
        host = place.api.host
        await host.stop_for_good("web")
        await host.manager.create_vm(define("theirs"), start=False, short_name=False)
        for scope, name, status in (
            (Scope.OPERATE, "theirs", 403),
            (Scope.ADMIN, "web", 403),
            (Scope.ADMIN, "theirs", 200),
        ):
            token = await place.token(f"{scope}-{name}", scope=scope)
            answer = await place.ask("POST", f"/instances/{name}/rename", token, {"name": "shop"})
            assert answer == status, (scope, name)
        assert sorted(vm.name for vm in host.parts.fleet) == ["shop", "web"]

    over_tcp(tmp_path, scenario)
