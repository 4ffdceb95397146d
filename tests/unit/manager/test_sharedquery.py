# SPDX-License-Identifier: Apache-2.0
"""One look serves all who ask while it is under way."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, cast

import pytest

from hypemand.config.definition import MIB
from hypemand.manager import parts as parts_module
from hypemand.manager.resources.space import measure_space
from hypemand.manager.sharedquery import SharedQuery
from hypemand.manager.volumes import ApiVolumes
from hypemand.model.space import SpaceKind, SpaceReport, SpaceUse
from hypemand.storage.images import Image
from hypemand.storage.store import ImageStore
from hypemand.systemd.units import UnitStatus
from tests.unit.manager.test_starts import Host, definition, use


class Counted:
    """A look that waits for `gate`."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.begun = self.ended = 0

    async def look(self) -> int:
        self.begun += 1
        number = self.begun
        try:
            await self.gate.wait()
        finally:
            self.ended += 1
        return number


def test_who_asks_meanwhile_gets_the_same_and_who_asks_later_a_new_one() -> None:
    async def main() -> None:
        counted = Counted()
        shared = SharedQuery("test", counted.look)
        asked = [asyncio.create_task(shared.take()) for _ in range(50)]
        await asyncio.sleep(0)
        counted.gate.set()
        assert await asyncio.gather(*asked) == [1] * 50
        assert await shared.take() == 2

    asyncio.run(main())


def test_it_goes_on_for_those_who_stay_and_ends_when_nobody_waits() -> None:
    async def main() -> None:
        counted = Counted()
        shared = SharedQuery("test", counted.look)
        first, second = (asyncio.create_task(shared.take()) for _ in range(2))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first])
        assert (counted.begun, counted.ended) == (1, 0)
        second.cancel()
        third = asyncio.create_task(shared.take())
        await asyncio.wait([second])
        counted.gate.set()
        await third
        counted.gate.clear()
        fourth = asyncio.create_task(shared.take())
        await asyncio.sleep(0)
        fourth.cancel()
        await asyncio.wait([fourth])
        await asyncio.sleep(0)
        assert counted.begun == counted.ended

    asyncio.run(main())


def test_an_error_is_everybodys() -> None:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise ValueError("no answer")

    async def main() -> None:
        shared = SharedQuery("test", fail)
        results = await asyncio.gather(*(shared.take() for _ in range(3)), return_exceptions=True)
        assert [type(result) for result in results] == [ValueError] * 3

    asyncio.run(main())


def test_who_asks_after_a_change_does_not_get_what_was_seen_before() -> None:
    async def main() -> None:
        counted = Counted()
        shared = SharedQuery("test", counted.look)
        before = [asyncio.create_task(shared.take()) for _ in range(3)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        shared.outdate()
        after = [asyncio.create_task(shared.take()) for _ in range(3)]
        await asyncio.sleep(0)
        before[0].cancel()  # the look goes on for the other two, and ends with them
        counted.gate.set()
        assert await asyncio.gather(*before[1:]) == [1] * 2
        assert await asyncio.gather(*after) == [2] * 3
        counted.gate.clear()
        last = asyncio.create_task(shared.take())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        shared.outdate()
        last.cancel()
        await asyncio.wait([last])
        await asyncio.sleep(0)
        assert counted.begun == counted.ended == 3

    asyncio.run(main())


def test_many_who_list_ask_systemd_once_for_each_vm(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        await host.manager.create_vm(definition(), start=True)
        await host.parts.fleet.get("web").refresh()
        asked, status = list[str](), host.units.status

        async def count(unit: str, *, with_memory: bool = False) -> UnitStatus:
            asked.extend([unit] if unit == host.parts.fleet.get("web").unit else [])
            await asyncio.sleep(0.01)
            return await status(unit, with_memory=with_memory)

        cast(Any, host.units).status = count
        lists = await asyncio.gather(*(host.manager.list_vms() for _ in range(20)))
        assert [[view.name for view in views] for views in lists] == [["web"]] * 20
        assert len(asked) <= 2  # once more where a signal came meanwhile

    use(tmp_path, scenario)


def test_who_lists_waits_for_no_vmm_and_who_looks_at_one_does(tmp_path: Path) -> None:
    waits: list[bool] = []

    async def scenario(host: Host) -> None:
        await host.manager.create_vm(definition(), start=True)
        vm = host.parts.fleet.get("web")
        refresh = vm.refresh

        async def note(**how: bool) -> None:
            waits.append(how.get("wait_vmm", True))
            await refresh(**how)

        cast(Any, vm).refresh = note
        await host.manager.list_vms()
        assert waits == [False]
        await host.manager.get_vm("web")
        assert waits == [False, True]
        cast(Any, vm).refresh = refresh

    use(tmp_path, scenario)


def test_many_who_ask_for_the_space_have_it_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[Path] = []

    def count(state: Path, runtime: Path, unused: int) -> Any:
        measured.append(state)
        return measure_space(state, runtime, unused)

    async def scenario(host: Host) -> None:
        images, api = host.stored, ApiVolumes(host.parts, host.manager)
        # no dry run waits for a start that is choosing its image, nor such a start for it
        async with images.choosing, asyncio.timeout(60):
            await asyncio.gather(*(api.measure_space() for _ in range(10)))
        assert len(measured) == 1

    monkeypatch.setattr(parts_module, "measure_space", count)
    use(tmp_path, scenario)


class HeldMeasure:
    """measure_space that says that it has begun, and waits for `go`: it has seen what was there before."""

    def __init__(self) -> None:
        self.begun, self.go = threading.Event(), threading.Event()

    def __call__(self, state: Path, runtime: Path, unused: int) -> tuple[SpaceUse, ...]:
        uses = measure_space(state, runtime, unused)
        self.begun.set()
        assert self.go.wait(20)
        return uses


def used(report: SpaceReport, kind: SpaceKind) -> int:
    return next(use.count for use in report.uses if use.kind is kind)


async def measure_after(
    api: ApiVolumes, monkeypatch: pytest.MonkeyPatch, remove: Coroutine[Any, Any, object]
) -> tuple[SpaceReport, SpaceReport]:
    """What somebody who asked before `remove` is told, and somebody who asks after it while the first still
    waits."""
    held = HeldMeasure()
    monkeypatch.setattr(parts_module, "measure_space", held)
    first = asyncio.create_task(api.measure_space())
    assert await asyncio.to_thread(held.begun.wait, 20)
    await remove
    second = asyncio.create_task(api.measure_space())
    await asyncio.sleep(0.01)
    held.go.set()
    return await first, await second


def test_the_space_is_measured_again_after_a_removal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(host: Host) -> None:
        images, api = host.stored, ApiVolumes(host.parts, host.manager)
        await api.create_volume("data", 16 * MIB, {}, None)
        before, after = await measure_after(api, monkeypatch, api.remove_volume("data"))
        assert (used(before, SpaceKind.VOLUMES), used(after, SpaceKind.VOLUMES)) == (1, 0)
        await host.manager.create_vm(definition(), start=True)
        before, after = await measure_after(api, monkeypatch, host.manager.delete_vm("web"))
        assert (used(before, SpaceKind.DISKS), used(after, SpaceKind.DISKS)) == (1, 0)
        prune = images.prune_images(every=True, dry_run=False)
        before, after = await measure_after(api, monkeypatch, prune)
        assert before is not after

    use(tmp_path, scenario)


def test_an_image_that_goes_while_it_is_looked_for_is_passed_over(tmp_path: Path) -> None:
    store = ImageStore(tmp_path, ())
    gone = Image("app", "i", "sha256:0", "x86_64", 4096, 0.0, "test", tmp_path / "i")
    cast(Any, store)._iter_named = lambda: iter([gone])
    assert store.find_prunable((), every=True) == []
