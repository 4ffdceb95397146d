# SPDX-License-Identifier: Apache-2.0
"""Directories of the host in a VM, under the real manager."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from hypemand.errors import InvalidDefinition, WrongState
from hypemand.model.state import State
from hypemand.run import Completed
from hypemand.storage.tools import DirectTools
from tests.fakes.host import FakeHost, drive


class SlowTools(DirectTools):
    """It makes no image, until it is cancelled."""

    def __init__(self) -> None:
        super().__init__()
        self.began = threading.Event()

    def build(
        self,
        argv: Sequence[str],
        *,
        folder: Path,
        timeout: float,
        env: Mapping[str, str] | None = None,
        readable: Sequence[Path] = (),
    ) -> Completed:
        self.began.set()
        self._cancelled.wait(20)
        self.check()
        raise AssertionError("nobody has cancelled it")


def make_site(host: FakeHost) -> Path:
    source = host.folder / "site"
    source.mkdir()
    (source / "index.html").write_text("one")
    return source


def images_of(host: FakeHost) -> list[Path]:
    return sorted((host.config.state_dir / "vms/web").glob("dir-*"))


def test_a_vm_has_the_image_of_its_directory_and_a_new_one_when_that_has_changed() -> None:
    async def scenario(host: FakeHost) -> None:
        source = make_site(host)
        await host.run(volumes=[{"source": str(source), "mount_path": "/www"}])
        (image,) = images_of(host)
        bound = host.systemd.units[host.vm().unit].properties["BindReadOnlyPaths"]
        assert str(image) in {row[0] for row in bound}
        (source / "new").write_text("two")
        await host.manager.restart_vm("web")
        await host.until(State.RUNNING)
        (other,) = images_of(host)
        assert other.read_bytes().count(b"two") == 1

    drive(scenario)


def test_a_directory_that_is_not_there_ends_the_start_unless_it_is_not_required() -> None:
    async def scenario(host: FakeHost) -> None:
        mount = {"source": str(host.folder / "none"), "mount_path": "/www"}
        await host.create(volumes=[mount])
        with pytest.raises(InvalidDefinition, match="none: cannot be read: No such file"):
            await host.manager.start_vm("web")
        assert host.vm().state is State.STOPPED
        await host.create("other", volumes=[{**mount, "required": False}])
        await host.manager.start_vm("other")
        await host.until(State.RUNNING, "other")

    drive(scenario)


def test_a_stop_ends_the_making_of_an_image() -> None:
    async def scenario(host: FakeHost) -> None:
        source = make_site(host)
        await host.create(volumes=[{"source": str(source), "mount_path": "/www"}])
        tools = SlowTools()
        object.__setattr__(host.parts, "make_tools", lambda: tools)
        start = asyncio.create_task(host.manager.start_vm("web"))
        assert await asyncio.to_thread(tools.began.wait, 10)
        assert f"making an image of {source}" in host.vm().view().status_text
        await host.manager.stop_vm("web")
        with pytest.raises(WrongState, match=f"was cancelled while the image of {source} was being made"):
            await start
        assert images_of(host) == []

    drive(scenario)
