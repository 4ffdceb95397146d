# SPDX-License-Identifier: Apache-2.0
"""Snapshots that have a lifetime are deleted at its end, by the timer of VMs: once nothing needs them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from typing import Any

from hypemand.manager.expiry import Expiry
from hypemand.manager.snapshotends import list_terms
from hypemand.manager.snapshots import ApiSnapshots
from hypemand.model.events import Since, SnapshotChange
from hypemand.model.lifetime import Lifetime
from hypemand.model.snapshots import SnapshotView
from tests.fakes.host import DEADLINE, FakeHost, drive

SOON = 0.2


def service(host: FakeHost) -> ApiSnapshots:
    return ApiSnapshots(host.parts, host.manager)


async def make(host: FakeHost, name: str, lifetime: Lifetime | None = None) -> SnapshotView:
    return await service(host).create_snapshot("web", None, name, {}, lifetime)


def kept(host: FakeHost) -> list[str | None]:
    return [snapshot.name for snapshot in host.parts.snapshots]


def is_armed(host: FakeHost) -> bool:
    return host.manager.expiry.timer.is_set


async def list_events(host: FakeHost) -> list[Mapping[str, Any]]:
    found = [noted.event async for noted in host.parts.events.read(Since(kept=True), follow=False)]
    return [
        {"action": event.details.action, "cause": event.details.cause, "text": event.message, "vm": event.vm}
        for event in found
        if isinstance(event.details, SnapshotChange)
    ]


async def until_told(host: FakeHost, count: int) -> list[Mapping[str, Any]]:
    """So many events; they are there some time after they were told."""
    async with asyncio.timeout(DEADLINE):
        while len(found := await list_events(host)) < count:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.01)
    return found


def test_a_snapshot_is_deleted_at_its_end_and_others_stay() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.put("web")
        await host.start()
        await host.manager.stop_vm("web")
        await make(host, "stays")
        assert not is_armed(host)
        made = await make(host, "goes", Lifetime(SOON))
        assert made.expires_at == made.created_at + SOON
        assert is_armed(host)
        await host.until_true(lambda: kept(host) == ["stays"])
        await host.until_true(lambda: not host.manager.expiry._ending)
        assert not is_armed(host)
        assert await until_told(host, 3) == [
            {"action": "created", "cause": "request", "text": "the snapshot stays was made", "vm": "web"},
            {"action": "created", "cause": "request", "text": "the snapshot goes was made", "vm": "web"},
            {
                "action": "deleted",
                "cause": "expired",
                "text": "the snapshot goes has expired, and was deleted",
                "vm": "web",
            },
        ]

    drive(scenario)


def test_a_daemon_that_starts_deletes_what_has_expired_of_a_vm_that_has_gone() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run()
        made = await make(host, "goes", Lifetime(at=time.time() + 3600))
        await host.restart_daemon()
        (read,) = await service(host).list_snapshots()
        assert (read.id, read.expires_at) == (made.id, made.expires_at)
        await make(host, "soon", Lifetime(0.5))
        await host.manager.delete_vm("web", kill=True)

        async def wait() -> None:
            await asyncio.sleep(0.6)

        await host.restart_daemon(wait)
        await host.until_true(lambda: kept(host) == ["goes"])

    drive(scenario)


def test_one_that_is_restored_or_copied_is_deleted_later() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run()
        await host.manager.expiry.close()
        await make(host, "goes", Lifetime(SOON))
        expiry = Expiry(lambda: list_terms(host.parts), retry=0.1)
        (snapshot,) = host.parts.snapshots
        with host.parts.snapshots.using(snapshot):
            expiry.begin()
            await asyncio.sleep(3 * SOON)
            assert kept(host) == ["goes"]
        await host.until_true(lambda: kept(host) == [])
        await host.until_true(lambda: not expiry.timer.is_set)
        await expiry.close()

    drive(scenario)


def test_a_lifetime_that_is_no_time_makes_the_record_unreadable_and_nothing_is_deleted() -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run()
        made = await make(host, "base", Lifetime(3600.0))
        folder = host.config.state_dir / "snapshots" / made.id
        record = json.loads((folder / "snapshot.json").read_text())
        (folder / "snapshot.json").write_text(json.dumps(record | {"expires_at": float("nan")}))
        await host.restart_daemon()
        assert (kept(host), folder.is_dir()) == ([], True)
        # one of a daemon before this one has no such key
        del record["expires_at"]
        (folder / "snapshot.json").write_text(json.dumps(record))
        await host.restart_daemon()
        assert [snapshot.expires_at for snapshot in host.parts.snapshots] == [None]

    drive(scenario)
