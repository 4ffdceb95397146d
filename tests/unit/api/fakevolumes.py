# SPDX-License-Identifier: Apache-2.0
"""Volumes that live in memory and behave as `VolumeService` says."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from hypemand.errors import AlreadyExists, InUse, NotFound
from hypemand.manager.resources.claims import Attachment
from hypemand.model.files import CopyOut, FileInfo, FileKind
from hypemand.model.space import Room, SpaceKind, SpaceReport, SpaceUse
from hypemand.model.state import State
from hypemand.model.volumes import VolumeRoot, VolumeView
from tests.unit.api.fakefiles import FakeCopyIn, FakeCopyOut, FakeFiles
from tests.unit.api.fakes import FakeManager

GIB = 1024**3


@dataclass
class FakeFill:
    """A volume that is being filled."""

    copy: FakeCopyIn
    volume: VolumeView
    root: FileInfo | None = None

    async def set_root(self, root: FileInfo) -> None:
        self.root = root


class FakeVolumes:
    """Volumes in a dict; attached is what the definitions of the manager's VMs say."""

    def __init__(self, manager: FakeManager) -> None:
        self._manager = manager
        self.volumes: dict[str, VolumeView] = {}
        self.files: dict[str, FakeFiles] = {}
        self.roots: dict[str, VolumeRoot | None] = {}
        self.fills: list[FakeFill] = []

    def _find(self, ref: str) -> VolumeView:
        for volume in self.volumes.values():
            if ref in (volume.name, volume.id):
                attached = tuple(
                    Attachment(vm.view.name, vm.view.id, mount, vm.view.state is State.RUNNING)
                    for vm in self._manager.vms.values()
                    for mount in vm.view.definition.volumes
                    if mount.volume in (volume.name, volume.id)
                )
                return replace(volume, attachments=attached)
        raise NotFound(f"there is no volume {ref}")

    async def list_volumes(self) -> Sequence[VolumeView]:
        return [self._find(name) for name in sorted(self.volumes)]

    async def get_volume(self, ref: str) -> VolumeView:
        return self._find(ref)

    async def create_volume(
        self,
        name: str,
        size: int,
        tags: Mapping[str, str],
        volume_id: str | None,
        root: VolumeRoot | None = None,
    ) -> VolumeView:
        if name in self.volumes:
            raise AlreadyExists(f"there is a volume {name} already")
        volume_id = volume_id or f"{len(self.volumes):032x}"
        volume = VolumeView(volume_id, name, size, 4096, 1_700_000_000.0, dict(tags), ready=True)
        self.volumes[name] = volume
        self.roots[name] = root
        self.files[name] = FakeFiles()
        self.files[name].put("/volume", FileKind.DIRECTORY, mode=0o755)
        return volume

    async def remove_volume(self, ref: str) -> None:
        volume = self._find(ref)
        if volume.attachments:
            raise InUse(f"the volume {volume.name} is attached to {volume.attachments[0].vm}")
        del self.volumes[volume.name]

    async def resize_volume(self, ref: str, size: int) -> VolumeView:
        volume = self._find(ref)
        self.volumes[volume.name] = replace(volume, size=size)
        return self.volumes[volume.name]

    @asynccontextmanager
    async def fill_volume(
        self, name: str, size: int, tags: Mapping[str, str], volume_id: str | None
    ) -> AsyncIterator[FakeFill]:
        volume = await self.create_volume(name, size, tags, volume_id)
        files = self.files[name]
        fill = FakeFill(FakeCopyIn(files, "/volume"), volume)
        self.fills.append(fill)
        try:
            yield fill
        except BaseException:
            del self.volumes[name]
            raise

    @asynccontextmanager
    async def read_volume(self, ref: str) -> AsyncIterator[CopyOut]:
        yield FakeCopyOut(self.files[self._find(ref).name], "/volume")

    async def measure_space(self) -> SpaceReport:
        uses = tuple(SpaceUse(kind, 1, 4096, 4096) for kind in SpaceKind)
        return SpaceReport(uses, Room(Path("/var/lib/hypemand"), 8 * GIB, 4 * GIB), GIB, 80 * GIB)
