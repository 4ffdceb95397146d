# SPDX-License-Identifier: Apache-2.0
"""One look serves all who ask while it is under way."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from hypemand.manager import volumes as volumes_module
from hypemand.manager.images import Images
from hypemand.manager.looks import SharedLook
from hypemand.manager.space import measure_space
from hypemand.manager.volumes import ApiVolumes
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
        try:
            await self.gate.wait()
        finally:
            self.ended += 1
        return self.begun


def test_who_asks_meanwhile_gets_the_same_and_who_asks_later_a_new_one() -> None:
    async def main() -> None:
        counted = Counted()
        shared = SharedLook("test", counted.look)
        asked = [asyncio.create_task(shared.take()) for _ in range(50)]
        await asyncio.sleep(0)
        counted.gate.set()
        assert await asyncio.gather(*asked) == [1] * 50
        assert await shared.take() == 2

    asyncio.run(main())


def test_it_goes_on_for_those_who_stay_and_ends_when_nobody_waits() -> None:
    async def main() -> None:
        counted = Counted()
        shared = SharedLook("test", counted.look)
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
        shared = SharedLook("test", fail)
        results = await asyncio.gather(*(shared.take() for _ in range(3)), return_exceptions=True)
        assert [type(result) for result in results] == [ValueError] * 3

    asyncio.run(main())


def test_many_who_list_ask_systemd_once_for_each_vm(tmp_path: Path) -> None:
    async def scenario(host: Host) -> None:
        await host.manager.create_vm(definition(), start=True)
        await host.manager.fleet.get("web").refresh()
        asked, status = list[str](), host.units.status

        async def count(unit: str, *, with_memory: bool = False) -> UnitStatus:
            asked.append(unit)
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
        vm = host.manager.fleet.get("web")
        refresh = vm.refresh

        async def note(*, with_memory: bool = False, wait_vmm: bool = True) -> None:
            waits.append(wait_vmm)
            await refresh(with_memory=with_memory, wait_vmm=wait_vmm)

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
        images = Images(ImageStore(tmp_path / "images", ()), cast(Any, None))
        api = ApiVolumes(host.manager, images)
        # no dry run waits for a start that is choosing its image, nor such a start for it
        async with images.choosing, asyncio.timeout(10):
            await asyncio.gather(*(api.measure_space() for _ in range(10)))
        assert len(measured) == 1

    monkeypatch.setattr(volumes_module, "measure_space", count)
    use(tmp_path, scenario)


def test_an_image_that_goes_while_it_is_looked_for_is_passed_over(tmp_path: Path) -> None:
    store = ImageStore(tmp_path, ())
    gone = Image("app", "i", "sha256:0", "x86_64", 4096, 0.0, "test", tmp_path / "i")
    cast(Any, store)._iter_named = lambda: iter([gone])
    assert store.find_prunable((), every=True) == []
