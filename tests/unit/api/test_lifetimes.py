# SPDX-License-Identifier: Apache-2.0
"""ttl and expires_at, and PATCH, over the routes."""

import time
from datetime import datetime
from pathlib import Path

import pytest

from hypemand.model.state import State
from tests.unit.api.harness import IMAGE, Api, Json, drive

SMALL = {"name": "web", "image": IMAGE, "size": "96MB", "overlay_size": "64MB", "network": {"enabled": False}}


def end_of(instance: Json) -> float:
    return datetime.fromisoformat(instance["expires_at"]).timestamp()


def test_a_ttl_counts_from_the_creation_and_later_from_the_change(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        made = (await api.ask("POST", "/instances", SMALL | {"ttl": "1h"})).json
        created = datetime.fromisoformat(made["created_at"]).timestamp()
        assert end_of(made) == pytest.approx(created + 3600, abs=0.01)
        changed = (await api.ask("PATCH", "/instances/web", {"ttl": "2h"})).json
        assert end_of(changed) == pytest.approx(time.time() + 7200, abs=10)
        at = {"expires_at": "2999-01-01T00:00:00+00:00"}
        assert (await api.ask("PATCH", "/instances/web", at)).json["expires_at"] == "2999-01-01T00:00:00.000Z"
        assert (await api.ask("GET", "/instances/web")).json["expires_at"] == "2999-01-01T00:00:00.000Z"
        assert (await api.ask("PATCH", "/instances/web", {"ttl": "0s"})).json["expires_at"] is None

    drive(tmp_path, scenario)


def test_a_vm_of_a_definition_has_a_ttl_as_well(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        keys = {"image": IMAGE, "cmd": ["x"], "disk": "64M", "memory": "96M", "network": "none"}
        body = {"name": "web", "definition": keys, "start": False, "ttl": "200ms"}
        assert (await api.ask("POST", "/instances", body)).status == 201
        await api.host.until_true(lambda: api.host.parts.fleet.find("web") is None)
        never = await api.ask("POST", "/instances", body | {"ttl": "0s"})
        assert never.json["expires_at"] is None

    drive(tmp_path, scenario)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "nothing"),
        ({"ttl": None}, "nothing"),
        ({"ttl": "-1s"}, "ttl"),
        ({"ttl": "1h", "expires_at": "2999-01-01T00:00:00Z"}, "ttl"),
        ({"expires_at": "2001-01-01T00:00:00Z"}, "expires_at"),
        ({"env": {"A": "b"}}, "env"),
        ({"auto_standby": {"enabled": True}}, "auto_standby"),
        ({"tags": {}}, "tags"),
    ],
)
def test_a_wrong_change_is_refused_by_name(tmp_path: Path, body: Json, words: str) -> None:
    async def scenario(api: Api) -> None:
        await api.host.put("web", State.RUNNING)
        answer = await api.ask("PATCH", "/instances/web", body)
        assert (answer.status, words in answer.json["message"]) == (400, True), answer.json
        assert api.host.vm().record.expires_at is None

    drive(tmp_path, scenario)


def test_a_vm_of_a_file_does_not_expire(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        api.host.write("web")
        await api.host.reload()
        assert (await api.ask("PATCH", "/instances/web", {"ttl": "1h"})).code == "invalid_state"

    drive(tmp_path, scenario)


def test_a_snapshot_has_a_ttl_or_an_end(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        await api.host.put("web", State.RUNNING)
        where = "/instances/web/snapshots"
        made = (await api.ask("POST", where, {"ttl": "1h"})).json
        created = datetime.fromisoformat(made["created_at"]).timestamp()
        assert end_of(made) == pytest.approx(created + 3600, abs=0.01)
        at = {"expires_at": "2999-01-01T00:00:00.000Z"}
        assert (await api.ask("POST", where, at)).json["expires_at"] == at["expires_at"]
        assert (await api.ask("POST", where, {"ttl": "0s"})).json["expires_at"] is None
        found = (await api.ask("GET", "/snapshots")).json
        assert [one["expires_at"] for one in found] == [made["expires_at"], at["expires_at"], None]
        for body, words in (
            ({"ttl": "-1s"}, "ttl"),
            ({"ttl": "1h", "expires_at": "2999-01-01T00:00:00Z"}, "ttl"),
            ({"expires_at": "2001-01-01T00:00:00Z"}, "expires_at"),
        ):
            answer = await api.ask("POST", where, body)
            assert (answer.status, words in answer.json["message"]) == (400, True), answer.json
        assert len(list(api.host.parts.snapshots)) == 3

    drive(tmp_path, scenario)
