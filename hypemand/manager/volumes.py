# SPDX-License-Identifier: Apache-2.0
"""What the API does with volumes: one lock for all that makes them in one pool.

An archive gets into a volume, and out of one, through a small VM that has nothing else: the host never mounts
a file system that a guest has written to, nor unpacks an archive of a stranger.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from hypemand.config.definition import MIB, Definition, VolumeMount
from hypemand.errors import HypemandError, InUse, StartFailed
from hypemand.manager.guestops import GuestOps
from hypemand.manager.parts import Parts
from hypemand.manager.resources.volumeuse import derive_filler
from hypemand.manager.service import VmManager
from hypemand.model.exec import ExecRequest
from hypemand.model.files import CopyIn, CopyOut, FileInfo
from hypemand.model.space import SpaceReport
from hypemand.model.state import Origin, State
from hypemand.model.volumes import VolumeFill, VolumeRoot, VolumeView
from hypemand.storage.volume import Volume
from hypemand.storage.volumes import check_size
from hypemand.tasks import finish
from hypemand.workers import Pool, run_in

_log = logging.getLogger(__name__)
T = TypeVar("T")
_IMAGE = "builtin:busybox"
_PLACE = "/volume"
_BOOT_DEADLINE = 60.0
_COMMAND_DEADLINE = 10.0


class ApiVolumes:
    """Implements `hypemand.model.services.VolumeService`. `manager` runs the small VMs."""

    def __init__(self, parts: Parts, manager: VmManager) -> None:
        self._manager = manager
        self._fleet, self._guests, self._space = parts.fleet, parts.guests, parts.space
        self._config, self._files = parts.config, parts.files
        self._disk_watch, self._tasks = parts.disk_watch, parts.tasks
        self._store, self._volume_use, self._pools = parts.volumes, parts.volume_use, parts.pools
        # one for each pool: what waits for one of them holds up no other
        self._locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def _view_all(self, volumes: Sequence[Volume]) -> list[VolumeView]:
        threads = Pool.POOLS if any(volume.pool for volume in volumes) else Pool.RECORDS
        used = await run_in(threads, _measure_used, volumes)
        return [
            VolumeView(
                id=volume.id,
                name=volume.name,
                size=volume.size,
                used=taken,
                created_at=volume.created_at,
                tags=volume.tags,
                ready=volume.ready,
                attachments=tuple(self._volume_use.attachments(volume)),
            )
            for volume, taken in zip(volumes, used, strict=True)
        ]

    async def _view(self, volume: Volume) -> VolumeView:
        return (await self._view_all([volume]))[0]

    async def measure_space(self) -> SpaceReport:
        """See `VolumeService`."""
        return await self._space.take()

    async def list_volumes(self) -> Sequence[VolumeView]:
        """See `VolumeService`."""
        await self._pools.read()
        return await self._view_all(list(self._store))

    async def get_volume(self, ref: str) -> VolumeView:
        """See `VolumeService`."""
        return await self._view(await self._get(ref))

    async def _get(self, ref: str) -> Volume:
        await self._pools.read([ref])
        return self._store.get(ref)

    async def create_volume(
        self,
        name: str,
        size: int,
        tags: Mapping[str, str],
        volume_id: str | None,
        root: VolumeRoot | None = None,
    ) -> VolumeView:
        """See `VolumeService`."""
        return await self._view(await self._create(name, size, tags, volume_id, ready=True, root=root))

    async def _create(
        self,
        name: str,
        size: int,
        tags: Mapping[str, str],
        volume_id: str | None,
        *,
        ready: bool,
        root: VolumeRoot | None = None,
    ) -> Volume:
        await self._pools.read([name])
        async with self._locks[self._store.get_pool(name.rpartition("/")[0]).name]:
            self._store.check_new(name, size, tags, volume_id)
            fleet = self._fleet
            disks = await fleet.look_at_disks()
            create = partial(self._store.create, name, size, tags, volume_id, ready=ready, root=root)
            with fleet.promise_room(disks, f"the volume {name}", size, key=name):
                try:
                    return await _work(create)
                except asyncio.CancelledError:
                    if (made := self._store.find(name)) is not None:
                        await _work(partial(self._store.remove, made))
                    raise

    async def add_imported(self, made: Sequence[tuple[Volume, Path]]) -> None:
        """Take volumes that came with a VM, each with the folder that its disk is in: all of them, or none.
        They cannot be used before `finish_imported`."""
        async with self._locks[""]:
            added: list[Volume] = []
            try:
                for volume, making in made:
                    await _work(partial(self._store.add_imported, volume, making))
                    added.append(volume)
            except BaseException:
                await self.drop_imported(added)
                raise

    async def drop_imported(self, volumes: Sequence[Volume]) -> None:
        """Remove them: their VM did not come to be."""
        for volume in volumes:
            await _work(partial(self._store.remove_unfilled, volume))

    async def finish_imported(self, volumes: Sequence[Volume]) -> None:
        """Let them be used: their VM is there. If that cannot be recorded, the next daemon sees to it."""
        for volume in volumes:
            try:
                await _work(partial(self._store.finish, volume))
            except OSError as error:
                _log.error(
                    "cannot finish the volume %s: %s; to try again, restart hypemand", volume.name, error
                )

    async def remove_volume(self, ref: str) -> None:
        """See `VolumeService`."""
        volume = await self._get(ref)
        attached = self._volume_use.attachments(volume)
        if attached:
            names = ", ".join(attachment.vm for attachment in attached)
            ways = (self._say_how_to_detach(attachment.vm, volume) for attachment in attached)
            raise InUse(f"the volume {volume.name} is attached to {names}", hint="; ".join(ways))
        with self._volume_use.work_on(volume, "removed"):
            await _work(partial(self._store.remove, volume))
        self._disk_watch.note_removal()

    def _say_how_to_detach(self, vm: str, volume: Volume) -> str:
        found = self._fleet.find(vm)
        if found is not None and found.record.origin is Origin.FILE and not found.removed:
            file = self._files.name_file(self._config().vm_dir, vm)
            return f"remove it from volumes: in {file}, then: hypemanctl reload"
        return f"hypemanctl volume detach {vm} {volume.name}"

    async def resize_volume(self, ref: str, size: int) -> VolumeView:
        """See `VolumeService`."""
        volume = await self._get(ref)
        check_size(size)
        with self._volume_use.work_on(volume, "resized"):
            fleet = self._fleet
            disks = await fleet.look_at_disks()
            with fleet.promise_room(disks, f"the volume {volume.name}", size, key=volume.ref):
                larger = await _work(partial(self._store.resize, volume, size))
        return await self._view(larger)

    @asynccontextmanager
    async def fill_volume(
        self, name: str, size: int, tags: Mapping[str, str], volume_id: str | None
    ) -> AsyncIterator[VolumeFill]:
        """See `VolumeService`."""
        volume = await self._create(name, size, tags, volume_id, ready=False)
        try:
            mount = VolumeMount(volume.ref, _PLACE)
            async with self._run_helper(derive_filler(volume), mount) as vm:
                view = await self._view(volume)
                copy = await self._guests.copy_in(vm, _PLACE)
                fill = _Fill(self._guests, vm, copy, view)
                try:
                    yield fill
                finally:
                    await copy.close()
                # in order, so that it is clean; it counts only when that is done
                await self._manager.stop_vm(vm)
            fill.volume = await self._view(await _work(partial(self._store.finish, volume)))
        except BaseException:
            await _work(partial(self._store.remove_unfilled, volume))
            raise

    @asynccontextmanager
    async def read_volume(self, ref: str) -> AsyncIterator[CopyOut]:
        """See `VolumeService`."""
        volume = await self._get(ref)
        mount = VolumeMount(volume.ref, _PLACE, readonly=True)
        async with self._run_helper(f"volume-{secrets.token_hex(8)}", mount) as vm:
            copy = await self._guests.copy_out(vm, _PLACE)
            try:
                yield copy
            finally:
                await copy.close()

    @asynccontextmanager
    async def _run_helper(self, name: str, mount: VolumeMount) -> AsyncIterator[str]:
        """The name of a small VM that is Running with one volume, and is gone at the end."""
        definition = Definition(
            name=name,
            image=_IMAGE,
            memory=96 * MIB,
            vcpus=1,
            disk=64 * MIB,
            persistent=False,
            volumes=(mount,),
            entrypoint=(),
            cmd=("/bin/sleep", "infinity"),
            kernel_headers=False,
            boot_timeout=_BOOT_DEADLINE,
            network=None,
        )
        await self._manager.create_helper(definition)
        try:
            view, late = await self._manager.wait_vm(name, State.RUNNING, _BOOT_DEADLINE)
            if late or view.state is not State.RUNNING:
                why = view.exit.message if view.exit is not None else view.status_text
                raise StartFailed(f"the VM that was to work on the volume {mount.volume} did not run: {why}")
            yield name
        finally:
            await self._tasks.run_shielded(f"removal of VM {name}", self._manager.delete_vm(name))


def _measure_used(volumes: Iterable[Volume]) -> list[int]:
    """Bytes that each takes on the host; none for one that is just being removed, or whose pool is not
    available. Blocks."""
    used = []
    for volume in volumes:
        try:
            used.append(volume.used)
        except OSError:
            used.append(0)
    return used


async def _work(work: Callable[[], T]) -> T:
    """Work on the store in a thread. A caller that is cancelled waits for it, and holds the lock, or the
    reservation of the volume, until then."""
    return await finish(run_in(Pool.TOOLS, work), "work on a volume")


@dataclass
class _Fill:
    """Implements `VolumeFill`."""

    _guests: GuestOps
    _vm: str
    copy: CopyIn
    volume: VolumeView

    async def set_root(self, root: FileInfo) -> None:
        """See `VolumeFill`."""
        for argv in (
            ("/bin/chown", f"{max(root.uid, 0)}:{max(root.gid, 0)}", _PLACE),
            ("/bin/chmod", f"{root.mode:o}", _PLACE),
        ):
            session = await self._guests.exec_vm(
                self._vm, ExecRequest(argv, {}, None, None, _COMMAND_DEADLINE)
            )
            try:
                async for _stream, _data in session.output():
                    pass
                ended = await session.wait()
            finally:
                await session.close()
            if ended.code != 0:
                raise HypemandError(f"cannot set owner and mode of the root of the volume: {ended.message}")
