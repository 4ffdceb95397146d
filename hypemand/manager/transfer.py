# SPDX-License-Identifier: Apache-2.0
"""VMs as archives: the export of one that is stopped, and the import of an archive as a new one.

An import is staged in folders that a daemon removes when it starts. The archive is checked to its end first.
Then the image and the volumes are added, and the rename of the VM's folder commits the import: the volumes
are not ready before that, and after a crash in between the next daemon removes them, or finishes them if the
VM exists.
"""

from __future__ import annotations

import json
import logging
import shutil
import uuid
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from hypemand.config.definition import Definition, VolumeMount
from hypemand.config.netparse import parse_mac
from hypemand.config.vmdef import definition_to_json, parse_definition
from hypemand.errors import AlreadyExists, HypemandError, InvalidRequest, NotFound, WrongState
from hypemand.fulldisk import name_full_disk_beside
from hypemand.manager.parts import Parts
from hypemand.manager.starts import derive_pin
from hypemand.manager.vmrecords import is_id
from hypemand.manager.volumes import ApiVolumes
from hypemand.model.state import Operation, Origin, check_allowed
from hypemand.model.transfer import ExportWanted, ImportWanted, MakeDefinition
from hypemand.model.vm import VmView
from hypemand.recordfile import parse_json
from hypemand.storage.disks import has_journal_to_replay
from hypemand.storage.images import Image
from hypemand.storage.room import RoomWatch
from hypemand.storage.sparse import SparseFile
from hypemand.storage.store import parse_new_name
from hypemand.storage.vmarchive import (
    DISK,
    IMAGE,
    ArchivedVolume,
    ArchiveReader,
    ArchiveWriter,
    Discarded,
    Manifest,
    PlainFile,
    Source,
    Target,
)
from hypemand.storage.volume import DISK as VOLUME_DISK
from hypemand.storage.volume import Volume
from hypemand.tar import InvalidArchive
from hypemand.tasks import finish
from hypemand.vm.operation import Ongoing
from hypemand.vm.record import ImagePin, Imported, Lease, VmRecord, lease_from_json, lease_to_json
from hypemand.vm.runfiles import Past
from hypemand.workers import Lent, Pool, run_in

_log = logging.getLogger(__name__)


class Transfers:
    """Implements `hypemand.model.services.TransferService`."""

    def __init__(self, parts: Parts, volumes: ApiVolumes) -> None:
        self._parts = parts
        self._fleet, self._records, self._images = parts.fleet, parts.records, parts.images
        self._store, self._volume_use, self._pools = parts.volumes, parts.volume_use, parts.pools
        self._volumes = volumes

    # export

    @asynccontextmanager
    async def export_vm(self, ref: str, wanted: ExportWanted) -> AsyncIterator[AsyncIterator[bytes]]:
        """See `TransferService`."""
        vm = self._fleet.get(ref)
        async with AsyncExitStack() as stack:
            operation = await stack.enter_async_context(vm.operations.hold(Operation.EXPORT, patience=0.0))
            await vm.refresh()
            check_allowed(Operation.EXPORT, vm.state, vm.name, vm.state_error)
            await vm.runs.settle()
            record = vm.record
            await self._pools.read([*wanted.volumes, *(one.volume for one in record.definition.volumes)])
            volumes = self._choose_volumes(record.definition, wanted)
            for volume in volumes:
                stack.enter_context(self._volume_use.work_on(volume, "exported", beside_readers=True))
            image = await self._find_image(record) if wanted.image else None
            packed = None
            if image is not None:
                packed = await stack.enter_async_context(self._images.export_content(image))
            # what is in a disk that every start makes anew belongs to no VM
            has_own = record.definition.persistent and record.definition.root_volume is None
            disks = [Source(DISK, vm.places.disk)] if has_own else []
            disks += [Source(_describe(one).member, one.disk, shared=True) for one in volumes]
            writer = ArchiveWriter(
                partial(_make_manifest, record, volumes, has_image=packed is not None),
                _format_keys(record.definition),
                disks,
                packed,
            )
            archive = Lent(Pool.ARCHIVES, writer, ArchiveWriter.close)
            # the disks are unlocked when the next operation begins
            stack.push_async_callback(_close_writer, archive)
            await archive.run(ArchiveWriter.open)
            vm.log(logging.INFO, f"VM {vm.name} is being exported")
            yield _read(archive, operation, vm.name)

    def _choose_volumes(self, definition: Definition, wanted: ExportWanted) -> list[Volume]:
        mounts = [mount for mount in definition.volumes if not mount.is_device]
        found = [self._store.find(mount.volume) for mount in mounts]
        own = {volume.ref: volume for volume in found if volume is not None}
        if wanted.all_volumes:
            missing = [one.volume for one in mounts if self._store.find(one.volume) is None]
            if missing:
                raise NotFound(
                    f"the volume {missing[0]} of VM {definition.name} does not exist",
                    hint="name the volumes to be exported",
                    code="volume_not_found",
                )
            return _check_local(own.values())
        chosen = {volume.ref: volume for ref in wanted.volumes for volume in (self._store.get(ref),)}
        for volume in chosen.values():
            if volume.ref not in own:
                raise NotFound(f"the volume {volume.name} is not one of VM {definition.name}")
        return _check_local(chosen.values())

    async def _find_image(self, record: VmRecord) -> Image | None:
        """The image that the VM would be started with; None for one that every host has."""
        image = await self._images.get_for(record.definition.image, record.image_digest)
        if not image.builtin:
            _check_can_carry(image.name)
        return None if image.builtin else image

    # import

    async def import_vm(
        self,
        wanted: ImportWanted,
        pieces: AsyncIterator[bytes],
        make_definition: MakeDefinition,
        *,
        short_name: bool = True,
    ) -> VmView:
        """See `TransferService`."""
        archive = ArchiveReader()
        reader = Lent(Pool.ARCHIVES, archive, ArchiveReader.close)
        state_dir = self._parts.config().state_dir
        async with name_full_disk_beside("import a VM", state_dir), AsyncExitStack() as stack:
            stack.push_async_callback(_close_reader, reader)
            plan: _Plan | None = None
            async for data in pieces:
                if await reader.run(partial(ArchiveReader.feed, data=data)):
                    assert archive.manifest is not None
                    plan = await self._plan(archive.manifest, archive.definition, wanted, make_definition)
                    stack.push_async_callback(_remove, plan)
                    targets = await self._stage(plan, stack)
                    await reader.run(partial(ArchiveReader.go_on, targets=targets))
            await reader.run(ArchiveReader.finish)
            assert plan is not None, "there is no archive without a manifest"
            return await self._take(plan, short_name=short_name)

    async def _plan(
        self, manifest: Manifest, text: bytes, wanted: ImportWanted, make_definition: MakeDefinition
    ) -> _Plan:
        """What becomes of an archive. Nothing is made yet."""
        name = wanted.name or manifest.name
        keys = _parse_keys(text)
        defined = await run_in(Pool.RECORDS, make_definition, name, keys)
        # what it has come with does not decide where it is put
        names = _derive_names(manifest, defined, wanted)
        definition = await run_in(Pool.RECORDS, _adapt, defined, names, keep=wanted.keep_identity)
        if manifest.has_image:
            _check_can_carry(definition.image)
        imported = _derive_identity(manifest, definition, keep=wanted.keep_identity)
        self._check_free(name, imported)
        volumes = {}
        for one in manifest.volumes:
            plan = partial(self._store.plan_import, names[one.name], one.size, one.tags, one.id, imported.id)
            try:
                volumes[one.member] = await run_in(Pool.ARCHIVES, plan)
            except AlreadyExists as error:
                raise AlreadyExists(error.message, hint=f"give {one.name} another name") from None
        pin = _derive_kept_pin(manifest, definition)
        local = None if pin is None else await self._images.find_for(definition.image, pin.digest)
        known = local is not None and pin is not None and local.digest == pin.digest
        return _Plan(
            definition,
            imported,
            manifest.disk is not None,
            volumes,
            pin if known or not manifest.has_image else None,
            takes_image=manifest.has_image and not known,
            members=tuple(manifest.members()),
            sizes=manifest.sizes(),
            folder=self._records.making_folder(imported.id),
        )

    def _check_free(self, name: str, imported: Imported) -> None:
        if self._fleet.find(name) is not None:
            raise AlreadyExists(f"a VM {name} already exists", hint="choose another name, or remove that VM")
        self._records.check_new(name, imported)

    async def _stage(self, plan: _Plan, stack: AsyncExitStack) -> dict[str, Target]:
        """The files for the members of the archive."""
        what = f"the import of VM {plan.definition.name}"
        size = max(plan.definition.disk, plan.sizes.get(DISK, 0)) if plan.has_disk else 0
        size += sum(volume.size for volume, _ in plan.volumes.values())
        disks = await self._fleet.look_at_disks()
        key = f"import {uuid.uuid4().hex}"
        stack.enter_context(self._fleet.promise_room(disks, what, size, key=key))
        config = self._parts.config()
        return await finish(
            run_in(Pool.ARCHIVES, plan.open_targets, what, config.state_dir, config.disk.reserve), what
        )

    async def _take(self, plan: _Plan, *, short_name: bool) -> VmView:
        """Commit what was staged."""
        name = plan.definition.name
        await run_in(Pool.ARCHIVES, plan.check_disks)
        made: Image | None = None
        if plan.takes_image:
            made, plan = await self._import_image(plan)
        try:
            return await finish(self._add(plan, short_name=short_name), f"import of VM {name}")
        except BaseException:
            if made is not None:
                await finish(self._drop_image(made), f"removal of the image of {name}")
            raise

    async def _import_image(self, plan: _Plan) -> tuple[Image | None, _Plan]:
        """The image if it was not here before, and what is left to be done."""
        name = plan.definition.image
        before = await run_in(Pool.IMAGES, self._images.store.find_image, name)
        await self._images.import_image(name, str(plan.image))
        await run_in(Pool.ARCHIVES, plan.image.unlink)
        image = await run_in(Pool.IMAGES, self._images.store.get_image, name)
        return (image if before is None else None), replace(plan, pin=derive_pin(plan.definition, image))

    async def _drop_image(self, image: Image) -> None:
        try:
            await self._images.remove_image(image.name)
        except HypemandError as error:
            _log.warning("the image %s stays, which came with a VM: %s", image.name, error)

    async def _add(self, plan: _Plan, *, short_name: bool) -> VmView:
        """Take the volumes and the VM: both, or none."""
        volumes = [volume for volume, _ in plan.volumes.values()]
        await self._volumes.add_imported(list(plan.volumes.values()))
        try:
            # it may have come meanwhile
            self._check_free(plan.definition.name, plan.imported)
            async with self._images.choosing:
                record = await self._records.add(
                    plan.definition, Origin.API, plan.pin, short_name=short_name, imported=plan.imported
                )
                vm = self._parts.adopt(record, Past())
        except BaseException:
            await self._volumes.drop_imported(volumes)
            raise
        await self._volumes.finish_imported(volumes)
        vm.log(logging.INFO, f"VM {vm.name} was imported")
        return vm.view()


@dataclass(frozen=True, slots=True)
class _Plan:
    """What becomes of an archive. `volumes`: by their members, each with the folder that it is made in;
    `pin`: the content that the VM keeps to; `members` and `sizes`: what the archive has; `folder`: where the
    VM's disk and its image are put; `made`: the folders that this import has made."""

    definition: Definition
    imported: Imported
    has_disk: bool
    volumes: Mapping[str, tuple[Volume, Path]]
    pin: ImagePin | None
    takes_image: bool
    members: tuple[str, ...]
    folder: Path
    sizes: Mapping[str, int]
    made: list[Path] = field(default_factory=list)

    @property
    def image(self) -> Path:
        """Where the image is put."""
        return self.folder / IMAGE

    def open_targets(self, what: str, state_dir: Path, reserve: int) -> dict[str, Target]:
        """Make the files for all members. Blocks."""
        room = RoomWatch(what, state_dir, reserve, lambda: None)
        room.check()
        try:
            self._make_folder(self.folder, 0o711)
        except FileExistsError:
            # one that keeps its id, and that is imported twice at once
            raise WrongState(f"{what} is under way already", hint="wait for it") from None
        targets: dict[str, Target] = {}
        try:
            for member in self.members:
                if member == IMAGE:
                    targets[member] = PlainFile(self.image, room.check) if self.takes_image else Discarded()
                elif member == DISK:
                    targets[member] = SparseFile(self.folder / DISK, self.sizes[DISK], room.check)
                else:
                    volume, making = self.volumes[member]
                    self._make_folder(making, 0o700)
                    targets[member] = SparseFile(making / VOLUME_DISK, volume.size, room.check)
        except BaseException:
            for target in targets.values():
                target.close()
            raise
        return targets

    def _make_folder(self, folder: Path, mode: int) -> None:
        folder.mkdir(mode=mode)
        self.made.append(folder)

    def check_disks(self) -> None:
        """Raise HypemandError unless each is an ext4. Blocks."""
        disks = [making / VOLUME_DISK for _, making in self.volumes.values()]
        for disk in [*disks, *([self.folder / DISK] if self.has_disk else [])]:
            try:
                has_journal_to_replay(disk)
            except HypemandError:
                raise InvalidArchive("a disk in the archive has no ext4 file system") from None

    def remove(self) -> None:
        """Remove all that was staged and that nobody has taken. What fails is logged: a daemon that starts
        tries again. Blocks."""
        for folder in self.made:
            try:
                shutil.rmtree(folder)
            except FileNotFoundError:
                continue
            except OSError as error:
                _log.warning("cannot remove all of %s, which an import has left: %s", folder, error)


async def _remove(plan: _Plan) -> None:
    await finish(run_in(Pool.TOOLS, plan.remove), "removal of what was imported")


async def _close_writer(archive: Lent[ArchiveWriter]) -> None:
    await finish(archive.run(ArchiveWriter.close), "end of an export")


async def _close_reader(archive: Lent[ArchiveReader]) -> None:
    await finish(archive.run(ArchiveReader.close), "end of an import")


async def _read(archive: Lent[ArchiveWriter], operation: Ongoing, name: str) -> AsyncIterator[bytes]:
    while not operation.is_cancelled:
        if not (piece := await archive.run(ArchiveWriter.read)):
            return
        yield piece
    raise WrongState(f"the export of VM {name} was cancelled by another operation")


def _check_can_carry(image: str) -> None:
    """Raise InvalidRequest unless an archive can bring an image of that name. One that is named by its digest
    has that of its layers, which an archive does not keep."""
    try:
        parse_new_name(image)
    except InvalidRequest:
        raise InvalidRequest(
            f"the image {image} is named by a digest or a path of the host, and cannot be in an archive",
            hint="export the VM without its image, or give the image a name: hypemanctl image tag",
        ) from None


def _check_local(volumes: Iterable[Volume]) -> list[Volume]:
    """InvalidRequest for a volume of a pool, which an archive cannot name."""
    found = list(volumes)
    for volume in found:
        if volume.pool:
            raise InvalidRequest(
                f"the volume {volume.name} is in a pool, and is not exported with a VM",
                hint=f"hypemanctl volume export {volume.name} FILE; name the other volumes with --volume",
            )
    return found


def _describe(volume: Volume) -> ArchivedVolume:
    return ArchivedVolume(volume.id, volume.name, volume.size, volume.tags)


def _make_manifest(
    record: VmRecord, volumes: list[Volume], sizes: Mapping[str, int], *, has_image: bool
) -> Manifest:
    return Manifest(
        name=record.name,
        id=record.id,
        image=record.definition.image,
        digest=record.image_digest,
        has_image=has_image,
        disk=sizes.get(DISK),
        volumes=tuple(replace(one, size=sizes[one.member]) for one in map(_describe, volumes)),
        lease=None if record.lease is None else lease_to_json(record.lease),
    )


def _format_keys(definition: Definition) -> bytes:
    """The text of a definition file, which may have any name."""
    keys = definition_to_json(definition)
    del keys["name"]
    return json.dumps(keys, indent=2).encode() + b"\n"


def _parse_keys(text: bytes) -> dict[str, object]:
    """The keys of the definition in an archive, but for the name."""
    try:
        keys = parse_json(text)
    except ValueError as error:
        raise InvalidArchive(f"the definition in the archive cannot be read: {error}") from None
    if not isinstance(keys, dict):
        raise InvalidArchive("the definition in the archive is not a mapping")
    keys.pop("name", None)
    return keys


def _derive_names(manifest: Manifest, definition: Definition, wanted: ImportWanted) -> dict[str, str]:
    """The names of volumes here, by what the archive and its definition call them."""
    names = {mount.volume: mount.volume for mount in definition.volumes}
    names |= {word: one.name for one in manifest.volumes for word in (one.id, one.name)}
    for old, new in wanted.volumes.items():
        if old not in names:
            raise InvalidRequest(
                f"volumes: the VM in the archive has no volume {old[:80]!r}",
                hint=f"it has {', '.join(sorted(set(names.values()))) or 'none'}",
            )
        named = names[old]
        names |= {word: new for word, name in names.items() if name == named}
    return names


def _adapt(definition: Definition, names: Mapping[str, str], *, keep: bool) -> Definition:
    """The definition with the volumes of this host, and without addresses if it does not keep them."""
    mounts: list[VolumeMount] = [replace(one, volume=names[one.volume]) for one in definition.volumes]
    network = definition.network
    if network is not None and not keep:
        network = replace(network, mac=None, address=None, address6=None)
    changed = replace(definition, volumes=tuple(mounts), network=network)
    return parse_definition(definition.name, definition_to_json(changed))


def _derive_identity(manifest: Manifest, definition: Definition, *, keep: bool) -> Imported:
    if not keep:
        return Imported(uuid.uuid4().hex, former_ids=(manifest.id,) if is_id(manifest.id) else ())
    lease: Lease | None = None
    if manifest.lease is not None:
        try:
            lease = lease_from_json(manifest.lease)
            lease = replace(lease, mac=parse_mac(lease.mac))
        except (KeyError, TypeError, ValueError):
            raise InvalidArchive("the addresses of the VM in the archive cannot be read") from None
    network = None if definition.network is None else definition.network.name
    return Imported(manifest.id, lease if lease is not None and lease.network == network else None)


def _derive_kept_pin(manifest: Manifest, definition: Definition) -> ImagePin | None:
    if not manifest.digest or manifest.image != definition.image:
        return None
    return ImagePin(definition.image, manifest.digest)
