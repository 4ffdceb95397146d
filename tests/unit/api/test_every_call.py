# SPDX-License-Identifier: Apache-2.0
"""Every call of the published client works, or is refused with 501 and its name."""

import asyncio
from pathlib import Path

import hypeman

from hypemand.api.unsupported import UNSUPPORTED
from tests.clientcalls import Walk, list_calls, read_table, render_table
from tests.unit.api.harness import Api
from tests.unit.api.test_client import use_client

SMALL = {"size": "96MB", "overlay_size": "64MB", "network": {"enabled": False}, "cmd": ["x"]}


def test_every_call_works_or_is_refused_by_its_name_as_the_guide_says(tmp_path: Path) -> None:
    def work(client: hypeman.Hypeman, api: Api, loop: asyncio.AbstractEventLoop) -> None:
        loop.call_soon_threadsafe(api.host.add_image, "app:v1")
        found = Walk(client, "app:v1", SMALL).run()
        assert set(found.values()) == {"yes", "not_supported"}, found
        assert {name for name, code in found.items() if code == "not_supported"} == set(UNSUPPORTED)
        assert render_table(found) == read_table(), "docs/api.md has another table"

    use_client(tmp_path, work)


def test_the_calls_are_those_of_the_client() -> None:
    with hypeman.Hypeman(api_key="any", base_url="http://localhost") as client:
        found = list_calls(client)
    assert {"health.check", "instances.update", "instances.snapshots.create", "builds.events"} <= set(found)
    assert len(found) > 60
    assert not any("with_" in name or "raw" in name for name in found)
