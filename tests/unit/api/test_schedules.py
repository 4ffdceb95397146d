# SPDX-License-Identifier: Apache-2.0
"""Snapshot schedules over the routes."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path

import pytest

from tests.unit.api.harness import Api, Json, drive

WHERE = "/instances/web/snapshot-schedule"
HOURLY = {"interval": "1h", "retention": {"max_count": 3, "max_age": "48h"}}


def test_a_schedule_is_set_shown_changed_and_removed(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        await api.host.put("web")
        assert (await api.ask("GET", WHERE)).code == "not_found"
        assert (await api.ask("DELETE", WHERE)).code == "not_found"
        body = HOURLY | {"name_prefix": "nightly", "metadata": {"team": "a"}}
        made = (await api.ask("PUT", WHERE, body)).json
        slot = datetime.fromisoformat(made["next_run_at"]).timestamp()
        assert time.time() + 3590 < slot <= time.time() + 3960
        assert made | body == made | {"interval": "1h", "retention": {"max_count": 3, "max_age": "48h"}}
        assert (made["instance_id"], made["last_run_at"]) == (api.host.vm().record.id, None)
        assert (await api.ask("GET", WHERE)).json == made
        changed = (await api.ask("PUT", WHERE, {"interval": "1h", "retention": {"max_age": "24h"}})).json
        assert changed["retention"] == {"max_count": None, "max_age": "24h"}
        assert (changed["name_prefix"], changed["metadata"]) == (None, {})
        assert (changed["next_run_at"], changed["created_at"]) == (made["next_run_at"], made["created_at"])
        assert (await api.ask("DELETE", WHERE)).status == 204
        assert (await api.ask("GET", WHERE)).code == "not_found"

    drive(tmp_path, scenario)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"retention": {"max_count": 1}}, "interval"),
        ({"interval": "59s", "retention": {"max_count": 1}}, "interval: must be at least 1m"),
        ({"interval": "soon", "retention": {"max_count": 1}}, "interval"),
        ({"interval": "1h"}, "retention"),
        ({"interval": "1h", "retention": {}}, "retention: sets no limit"),
        ({"interval": "1h", "retention": {"max_count": 0, "max_age": "0s"}}, "retention: sets no limit"),
        ({"interval": "1h", "retention": {"max_count": -1}}, "retention.max_count"),
        ({"interval": "1h", "retention": {"max_age": "-1h"}}, "retention.max_age"),
        (HOURLY | {"name_prefix": "-x"}, "name_prefix"),
        (HOURLY | {"name_prefix": "a" * 48}, "name_prefix"),
        (HOURLY | {"metadata": {"?": "x"}}, "tags"),
    ],
)
def test_what_is_wrong_is_refused_by_name(tmp_path: Path, body: Json, words: str) -> None:
    async def scenario(api: Api) -> None:
        await api.host.put("web")
        answer = await api.ask("PUT", WHERE, body)
        assert (answer.status, words in answer.json["message"]) == (400, True), answer.json
        assert api.host.vm().record.schedule is None

    drive(tmp_path, scenario)
