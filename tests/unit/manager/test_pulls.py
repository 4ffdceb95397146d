# SPDX-License-Identifier: Apache-2.0
"""Pulls: joined, followed, given up, and what VMs get of them."""

from __future__ import annotations

import asyncio
import json
import os
from base64 import b64decode
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from hypemand.config.definition import ImagePull
from hypemand.errors import HypemandError, ImageNotReady, NotFound, WrongState
from hypemand.manager.images.images import Images
from hypemand.manager.images.pulls import Pace, Pulls
from hypemand.model.images import Credentials, ImageInfo, PullStatus, derive_host_architecture
from hypemand.run import Completed
from hypemand.storage.images import STAGING
from hypemand.storage.store import ImageStore, ImageUse
from hypemand.storage.tools import DirectTools, RegistryAuth
from tests.unit.storage.fakeregistry import FakeRegistry
from tests.unit.storage.support import make_layout, make_tar, member, shell

NAME = "registry.example/app:v1"
Scenario = Callable[[Images, FakeRegistry], Awaitable[None]]


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images."""
    tmp_path = tmp_path_factory.mktemp("layout")
    host = derive_host_architecture()
    first = make_tar(tmp_path / "1.tar", [shell()])
    second = make_tar(tmp_path / "2.tar", [member("more", b"2")])
    path = make_layout(tmp_path / "layout", [first], tag="v1", architecture=host)
    return make_layout(path, [first, second], tag="v2", architecture=host)


def drive(tmp_path: Path, layout: Path, scenario: Scenario) -> None:
    """Run a scenario with a registry that has NAME; nothing may be left in the staging folder."""
    registry = FakeRegistry()
    registry.push(NAME, layout, "v1")
    store = ImageStore(tmp_path / "images", [])

    async def main() -> None:
        pulls = Pulls(store, lambda: registry, tmp_path, tmp_path / "auth.json")
        try:
            await asyncio.wait_for(scenario(Images(store, pulls), registry), 60)
        finally:
            registry.gate.set()
            await pulls.close()
        assert list((store.folder / STAGING).glob("*")) == []

    asyncio.run(main())


def test_who_asks_for_what_is_being_pulled_joins(tmp_path: Path, layout: Path) -> None:
    async def scenario(images: Images, registry: FakeRegistry) -> None:
        registry.gate.clear()
        first = images.pulls.start(NAME)
        assert images.pulls.start(NAME) is first
        waiting = asyncio.create_task(images.have(NAME, "", ImagePull.ALWAYS))
        seen = [info async for info in _until(images, NAME, PullStatus.PULLING)]
        assert seen[-1].progress is not None
        assert seen[-1].progress.total_layers == 1
        assert (await images.get_image(NAME)).status is PullStatus.PULLING
        assert [info.status for info in await images.list_images()] == [PullStatus.PULLING]
        with pytest.raises(ImageNotReady, match="is not ready yet: pulling"):
            await images.get_for(NAME, "")
        registry.gate.set()
        assert (await waiting).name == NAME
        assert (await images.get_image(NAME)).status is PullStatus.READY
        assert sum(asked.startswith("copy") for asked in registry.asked) == 1

    drive(tmp_path, layout, scenario)


def drip(rate: float, *, others_wait: bool, seconds: int = 3600) -> tuple[int, str]:
    """After how many seconds a pull is ended to which so many bytes a second come, and why; looked at as
    often as a real one."""
    pace = Pace(0.0)
    for step in range(1, seconds * 5):
        why = pace.judge(int(rate * step / 5), step / 5, others_wait=others_wait)
        if why:
            return step // 5, why
    return seconds, ""


def test_a_registry_that_drips_holds_no_place_that_others_wait_for() -> None:
    ended, why = drip(100.0, others_wait=True)
    assert ended <= 91
    assert why.endswith("bytes in 90 s, and other pulls are waiting")
    assert drip(100.0, others_wait=False) == (3600, "")
    assert drip(200_000.0, others_wait=True) == (3600, "")
    ended, why = drip(0.0, others_wait=False)
    assert (ended, why) == (90, "nothing for 90 s")


def test_time_in_which_nothing_is_to_come_does_not_count() -> None:
    pace = Pace(0.0)
    assert pace.judge(None, 1000.0, others_wait=True) == ""
    assert pace.judge(0, 1001.0, others_wait=True) == ""
    assert pace.judge(10, 1089.0, others_wait=True) == ""


def test_others_wait_when_there_is_no_place_for_them(tmp_path: Path, layout: Path) -> None:
    async def scenario(images: Images, registry: FakeRegistry) -> None:
        registry.gate.clear()
        names = [f"registry.example/app{number}:v1" for number in range(6)]
        for name in names:
            registry.push(name, layout, "v1")
        tasks = [images.pulls.start(name).task for name in names]
        for _ in range(4):
            assert await asyncio.to_thread(registry.arrived.acquire, timeout=30)
        # two for a place, and three of those who have one for the content that the first makes
        while len(images.pulls._waiting) != 5:  # noqa: ASYNC110 - threads tell it
            await asyncio.sleep(0.01)
        assert set(names[4:]) < images.pulls._waiting
        registry.gate.set()
        await asyncio.gather(*(task for task in tasks if task is not None))
        assert not images.pulls._waiting

    drive(tmp_path, layout, scenario)


async def _until(images: Images, name: str, status: PullStatus) -> AsyncIterator[ImageInfo]:
    async for info in images.watch_image(name):
        yield info
        if info.status is status:
            return


def test_progress_is_what_has_come(tmp_path: Path, layout: Path) -> None:
    async def scenario(images: Images, registry: FakeRegistry) -> None:
        registry.gate.clear()
        images.pulls.start(NAME)
        async for info in images.watch_image(NAME):
            if info.progress is not None and info.progress.bytes:
                assert info.progress.bytes == 1000
                assert info.progress.total_bytes > 1000
                break
        registry.gate.set()
        last = [info async for info in images.watch_image(NAME)][-1]
        assert (last.status, len(last.digest)) == (PullStatus.READY, 71)

    drive(tmp_path, layout, scenario)


def test_a_vm_keeps_to_its_content(tmp_path: Path, layout: Path) -> None:
    async def scenario(images: Images, registry: FakeRegistry) -> None:
        old = await images.have(NAME, "", ImagePull.MISSING)
        registry.push(NAME, layout, "v2")
        asked = len(registry.asked)
        assert (await images.have(NAME, old.digest, ImagePull.MISSING)).digest == old.digest
        assert (await images.have(NAME, "", ImagePull.MISSING)).digest == old.digest
        assert len(registry.asked) == asked
        new = await images.have(NAME, old.digest, ImagePull.ALWAYS)
        assert new.digest != old.digest
        images._in_use = lambda: [ImageUse("vm", NAME, old.digest)]
        assert await images.prune_images(every=False, dry_run=False) == []
        images._in_use = tuple
        [pruned] = await images.prune_images(every=False, dry_run=True)
        assert pruned.digest == old.digest
        kept = await images.have(NAME, old.digest, ImagePull.MISSING)
        assert (kept.name, kept.digest) == (NAME, old.digest)

    drive(tmp_path, layout, scenario)


def test_never_is_not_to_ask(tmp_path: Path, layout: Path) -> None:
    async def scenario(images: Images, registry: FakeRegistry) -> None:
        with pytest.raises(NotFound, match="no image"):
            await images.have(NAME, "", ImagePull.NEVER)
        assert registry.asked == []

    drive(tmp_path, layout, scenario)


def test_a_failure_is_told_to_all_and_shown_until_the_next_attempt(tmp_path: Path, layout: Path) -> None:
    async def scenario(images: Images, registry: FakeRegistry) -> None:
        registry.failure = "connection refused"
        with pytest.raises(HypemandError, match="connection refused"):
            await images.have(NAME, "", ImagePull.MISSING)
        info = await images.get_image(NAME)
        assert (info.status, info.error_code) == (PullStatus.FAILED, "pull_failed")
        assert await images.list_images() == []
        registry.failure = ""
        await images.have(NAME, "", ImagePull.MISSING)
        assert (await images.get_image(NAME)).status is PullStatus.READY

    drive(tmp_path, layout, scenario)


class OneWork(DirectTools):
    """Tools of one pull, as the daemon's are: another one's are not cancelled with them."""

    def __init__(self, registry: FakeRegistry) -> None:
        super().__init__()
        self._registry = registry

    def fetch(
        self,
        argv: Sequence[str],
        *,
        folder: Path,
        timeout: float,
        auth: RegistryAuth | None = None,
        token_option: str = "",
    ) -> Completed:
        return self._registry.fetch(
            argv, folder=folder, timeout=timeout, auth=auth, token_option=token_option
        )


def test_who_waits_for_a_content_that_another_registry_drips_counts_as_waiting_and_can_give_up(
    tmp_path: Path, layout: Path
) -> None:
    async def scenario(images: Images, registry: FakeRegistry) -> None:
        images.pulls.make_tools = lambda: OneWork(registry)
        good = "registry.example/good:v1"
        registry.push(good, layout, "v1")
        registry.gate.clear()
        dripping = images.pulls.start(NAME)
        assert await asyncio.to_thread(registry.arrived.acquire, timeout=30)
        while dripping.view.status is not PullStatus.PULLING:  # noqa: ASYNC110 - a thread tells it
            await asyncio.sleep(0.01)
        waiting = images.pulls.start(good)
        while images.pulls._waiting != {good}:  # noqa: ASYNC110 - a thread tells it
            await asyncio.sleep(0.01)
        await images.remove_image(good)  # who gives up does not wait for the other
        with pytest.raises(WrongState, match="cancelled"):
            await asyncio.shield(waiting.task or asyncio.Future())
        assert (images.pulls._waiting, dripping.view.status) == (set(), PullStatus.PULLING)
        again = images.pulls.start(good)
        registry.gate.set()
        assert (await asyncio.shield(again.task or asyncio.Future())).name == good
        assert images.pulls._waiting == set()
        assert sum(asked.startswith("copy") for asked in registry.asked) == 1

    drive(tmp_path, layout, scenario)


def test_a_pull_is_given_up_by_removing_its_image(tmp_path: Path, layout: Path) -> None:
    async def scenario(images: Images, registry: FakeRegistry) -> None:
        registry.gate.clear()
        images.pulls.start(NAME)
        async for _ in _until(images, NAME, PullStatus.PULLING):
            pass
        await images.remove_image(NAME)
        with pytest.raises(NotFound):
            await images.get_image(NAME)

    drive(tmp_path, layout, scenario)


def test_an_image_that_went_while_a_vm_was_made_is_noticed(tmp_path: Path, layout: Path) -> None:
    async def scenario(images: Images, _registry: FakeRegistry) -> None:
        image = await images.have(NAME, "", ImagePull.MISSING)
        await images.remove_image(NAME)
        async with images.choosing:
            with pytest.raises(NotFound, match="removed meanwhile"):
                await images.keep(image)

    drive(tmp_path, layout, scenario)


def test_who_only_looks_waits_for_nobody_who_chooses_an_image(tmp_path: Path, layout: Path) -> None:
    async def scenario(images: Images, _registry: FakeRegistry) -> None:
        image = await images.have(NAME, "", ImagePull.MISSING)
        async with images.choosing:  # as long as a start reads and writes records
            async with asyncio.timeout(20):
                for every, expected in ((True, [image.digest]), (False, [])):
                    found = await images.prune_images(every=every, dry_run=True)
                    assert [pruned.digest for pruned in found] == expected
                assert [info.name for info in await images.list_images()] == [NAME]
                assert (await images.get_image(NAME)).digest == image.digest
            pruning = asyncio.create_task(images.prune_images(every=True, dry_run=False))
            await asyncio.wait([pruning], timeout=0.2)
            assert not pruning.done(), "who removes images does wait"
            assert (await images.get_image(NAME)).digest == image.digest
        assert [pruned.digest for pruned in await pruning] == [image.digest]

    drive(tmp_path, layout, scenario)


def test_credentials_are_in_memory_for_one_pull(tmp_path: Path, layout: Path) -> None:
    async def scenario(images: Images, registry: FakeRegistry) -> None:
        await images.pull_image(NAME, Credentials("me", "secret"))
        async for _ in images.watch_image(NAME):
            pass
        document = json.loads(registry.credentials[0])
        assert b64decode(document["auths"]["registry.example"]["auth"]) == b"me:secret"
        assert not [name for name in os.listdir(tmp_path) if name.startswith("auth-")]
        assert "secret" not in repr(Credentials("me", "secret"))

    drive(tmp_path, layout, scenario)


def test_a_bearer_token_is_in_memory_for_one_pull_and_in_no_description_of_it(
    tmp_path: Path, layout: Path
) -> None:
    async def scenario(images: Images, registry: FakeRegistry) -> None:
        await images.pull_image(NAME, Credentials(token="secret"))  # noqa: S106 - of no registry
        async for _ in images.watch_image(NAME):
            pass
        assert set(registry.credentials) == {"--registry-tokensecret", "--src-registry-tokensecret"}
        assert not [name for name in os.listdir(tmp_path) if name.startswith("auth-")]
        assert "secret" not in repr(Credentials(token="secret"))  # noqa: S106

    drive(tmp_path, layout, scenario)


def test_a_pull_is_waited_for_so_long_and_goes_on(tmp_path: Path, layout: Path) -> None:
    async def scenario(images: Images, registry: FakeRegistry) -> None:
        registry.gate.clear()
        with pytest.raises(ImageNotReady, match="is not ready yet: pulling"):
            await images.have_within(0.5, NAME, ImagePull.MISSING)
        with pytest.raises(ImageNotReady):
            await images.have_within(0.01, NAME, ImagePull.MISSING)
        assert len([question for question in registry.asked if question.startswith("copy")]) == 1
        registry.gate.set()
        assert (await images.have_within(20.0, NAME, ImagePull.MISSING)).name == NAME
        with pytest.raises(NotFound):
            await images.have_within(20.0, "registry.example/none:v1", ImagePull.MISSING)

    drive(tmp_path, layout, scenario)


def test_closing_ends_what_is_on(tmp_path: Path, layout: Path) -> None:
    async def scenario(images: Images, registry: FakeRegistry) -> None:
        registry.gate.clear()
        pull = images.pulls.start(NAME)
        async for _ in _until(images, NAME, PullStatus.PULLING):
            pass
        await images.pulls.close()
        assert pull.task is not None
        with pytest.raises((HypemandError, WrongState)):
            await pull.task

    drive(tmp_path, layout, scenario)
