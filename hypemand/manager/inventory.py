# SPDX-License-Identifier: Apache-2.0
"""The VMs that there are: one folder each under STATE/vms, with the record that lasts.

vm.json     id, uid, origin, when it was made, its definition (of a file: the last good one), its lease
port.json   its port while it runs (hypemand.manager.net.ports)
disk.ext4   the writable disk
boot.json   what was seen of the last boot (hypemand.vm.tracker)
exit.json   how the last run ended (hypemand.vm.exitrecord)
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from hypemand.atomic import make_folder, sync_folder
from hypemand.config.definition import Definition
from hypemand.errors import AlreadyExists, HostNotReady, InvalidRequest, NotFound
from hypemand.manager.uids import Uids, find_owners
from hypemand.manager.vmrecords import (
    WrittenRecord,
    check_unique,
    is_id,
    is_vm_written,
    load_vm_record,
    write_vm_record,
)
from hypemand.model.lifetime import Lifetime
from hypemand.model.state import Origin
from hypemand.storage.disks import DISK
from hypemand.storage.locks import hold_disk
from hypemand.tasks import finish
from hypemand.vm.record import MAX_FORMER_IDS, ImagePin, Imported, Lease, VmRecord
from hypemand.workers import Pool, run_in

_log = logging.getLogger(__name__)
# a VM that is being made or removed: all that is ever deleted unasked
_MARKED = re.compile(r"\.[0-9a-f]{32}\.(making|removed)")
_LOST_AND_FOUND = "lost+found"


class Inventory:
    """The folders under `vms`. `on_change` is called with each record that is another one than before;
    `make_id` gives a new VM of that name its id.

    What is on the disk and what is known here are the same, also after an error, and when a caller is
    cancelled: files are changed in threads, one change at a time, and each goes on to its end. So no change
    is made of a record that another one is just replacing.
    """

    def __init__(
        self,
        vms: Path,
        uids: Uids,
        on_change: Callable[[VmRecord], None] = lambda _: None,
        make_id: Callable[[str], str] = lambda _: uuid.uuid4().hex,
    ) -> None:
        self._vms = vms
        self._uids = uids
        self._on_change = on_change
        self._make_id = make_id
        self._records: dict[str, VmRecord] = {}
        self._unreadable: dict[str, str] = {}
        # why it is not known which VMs there are; "": it is
        self._trouble = "the records of the VMs have not been read yet"
        self._marked: list[Path] = []
        # a choice of a uid asks who else has it (NSS), which may take long: no other change waits for it
        self._adding = asyncio.Lock()
        self._changing = asyncio.Lock()

    def load(self) -> None:
        """Read all records. One that cannot be read is reported and not changed. Raises OSError when the
        folder cannot be listed; then all names count as VMs whose record cannot be read. Blocks."""
        try:
            make_folder(self._vms, mode=0o711)
            folders = sorted(self._vms.iterdir())
        except OSError as error:
            self._trouble = f"the VMs in {self._vms} cannot be read: {error.strerror}"
            raise
        found: list[WrittenRecord] = []
        for folder in folders:
            if folder.name == _LOST_AND_FOUND:
                continue  # of fsck(8)
            if _MARKED.fullmatch(folder.name):
                self._marked.append(folder)
                self._uids.hold(find_owners(folder))
                continue
            with self._skip_unreadable(folder):
                found.append(load_vm_record(folder))
        owners: dict[int | str, str] = {}
        # of two with the same id, the copy has the other's name in its record
        for written in sorted(found, key=lambda written: written.is_renamed):
            record = written.record
            with self._skip_unreadable(self.folder(record.name)):
                check_unique(record, owners)
                self._records[record.name] = record
                self._uids.publish(record.uid, record.name)
                if written.is_renamed:
                    self._rewrite(record)
        self._uids.read(record.uid for record in self._records.values())
        self._trouble = ""

    @contextlib.contextmanager
    def _skip_unreadable(self, folder: Path) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            _log.error("cannot read the VM in %s: %s", folder, error)
            self._unreadable[folder.name] = str(error)

    def clean_up(self) -> None:
        """Delete what is marked for it: VMs whose making or removal was cut off. What fails is logged: the
        mark stays, and so the next try."""
        marked, self._marked = self._marked, []
        for folder in marked:
            _log.warning("removing %s: left-over of a VM whose creation or removal was interrupted", folder)
            owners = set(find_owners(folder))
            try:
                shutil.rmtree(folder)
            except OSError as error:
                _log.warning("cannot delete all of %s: %s", folder, error)
            else:
                self._uids.release(owners)

    def find_lost_uids(self) -> list[int]:
        """Uids of VMs that are not known any more, and of which nothing but a unit may be left: a daemon was
        killed while it removed them, or their folders are gone. Nobody gets them before `free_uid`."""
        if self._trouble or self._unreadable:
            return []  # it may be theirs
        return self._uids.lost

    def free_uid(self, uid: int) -> None:
        """Release one of `find_lost_uids`, whose unit is gone."""
        if uid in self.find_lost_uids():
            _log.info("uid %d is free: its VM has been removed", uid)
            self._uids.free_lost(uid)

    def is_unreadable(self, name: str) -> bool:
        """Is there, or may there be, a VM of that name of which no more is known? What is its own is not to
        be touched."""
        return bool(self._trouble) or name in self._unreadable

    @property
    def unreadable(self) -> Mapping[str, str]:
        """The VMs of which no more than the name is known, with the reason."""
        return self._unreadable

    def check_readable(self) -> None:
        """Raise HostNotReady when it is not known which VMs there are."""
        if self._trouble:
            raise HostNotReady(self._trouble, hint=f"check {self._vms}, then: systemctl restart hypemand")

    def check_complete(self) -> None:
        """Raise HostNotReady if there is, or may be, a VM whose record cannot be read: nobody knows what it
        needs."""
        self.check_readable()
        if self._unreadable:
            files = ", ".join(str(self.folder(name) / "vm.json") for name in sorted(self._unreadable))
            raise HostNotReady(
                f"cannot determine what is in use: the records of some VMs cannot be read: {files}",
                hint=(
                    "see journalctl -u hypemand for the reason; "
                    "repair them or move them away, restart hypemand"
                ),
            )

    def folder(self, name: str) -> Path:
        """Where the VM's data stands."""
        return self._vms / name

    def find(self, name: str) -> VmRecord | None:
        """The record of that name."""
        return self._records.get(name)

    def __iter__(self) -> Iterator[VmRecord]:
        return iter(list(self._records.values()))

    async def add(
        self,
        definition: Definition,
        origin: Origin,
        pin: ImagePin | None = None,
        *,
        short_name: bool = True,
        imported: Imported | None = None,
        lifetime: Lifetime | None = None,
    ) -> VmRecord:
        """Make a VM's folder and record; of one that is `imported`, its `making_folder` becomes the folder.
        Nothing is left when that fails or is cancelled. AlreadyExists, HostNotReady, InsufficientResources,
        OSError."""
        name = definition.name
        async with self._adding:
            known = imported or Imported(self._make_id(name))
            self.check_new(name, known)
            now = time.time()
            record = VmRecord(
                name=name,
                id=known.id,
                uid=0,  # it follows
                origin=origin,
                created_at=now,
                definition=definition,
                pin=pin,
                lease=known.lease,
                short_name=short_name,
                expires_at=None if lifetime is None else lifetime.derive_end(now),
                former_ids=known.former_ids[:MAX_FORMER_IDS],
            )
            try:
                # one that is derived may be that of what is left of another VM
                making = self.making_folder(known.id if imported else uuid.uuid4().hex)
                return await finish(self._add(record, making), f"record of {name}")
            except asyncio.CancelledError:
                if name in self._records:
                    await finish(self._remove(name), f"removal of {name}")
                raise

    def making_folder(self, vm_id: str) -> Path:
        """Where the disk of a VM with that id may be made, before there is such a VM. What a crash leaves
        there is removed."""
        return self._vms / f".{vm_id}.making"

    def check_new(self, name: str, imported: Imported) -> None:
        """Raise unless there can be a VM like this: AlreadyExists, HostNotReady."""
        self.check_free(name)
        if not is_id(imported.id):
            raise InvalidRequest("the id of the VM is not 32 hexadecimal digits")
        mac = None if imported.lease is None else imported.lease.mac
        for other in self:
            use = other.definition.network
            macs = {None if other.lease is None else other.lease.mac, None if use is None else use.mac}
            if other.id == imported.id or (mac is not None and mac in macs):
                what = "id" if other.id == imported.id else "MAC address"
                raise AlreadyExists(
                    f"VM {other.name} has the {what} that VM {name} is to have",
                    hint=(
                        f"{other.name} was called {name} before: choose another name, or remove {other.name}"
                        if name in other.former_names
                        else f"remove {other.name}, or let {name} have a new identity"
                    ),
                )

    def check_free(self, name: str) -> None:
        """Raise AlreadyExists if there is a VM of that name, and HostNotReady where that is not known."""
        self.check_readable()
        if self.is_unreadable(name):
            raise AlreadyExists(
                f"a VM {name} exists, and its record cannot be read: {self.folder(name) / 'vm.json'}",
                hint=(
                    "see journalctl -u hypemand for the reason; repair "
                    "it or move its folder away, restart hypemand"
                ),
            )
        if name in self._records:
            raise AlreadyExists(f"a VM {name} already exists", hint="choose another name")

    async def _add(self, record: VmRecord, making: Path) -> VmRecord:
        record = replace(record, uid=await run_in(Pool.RECORDS, self._choose_uid))
        try:
            await run_in(Pool.RECORDS, self._make, record, making)
        except OSError:
            if await run_in(Pool.RECORDS, is_vm_written, self.folder(record.name), record):
                # it could not be taken back: so nobody else gets its name and uid
                self._records[record.name] = record
            raise
        self._records[record.name] = record
        return record

    def _make(self, record: VmRecord, making: Path) -> None:
        """Make a folder whole: it gets its name last, and loses that again if the name would not last."""
        folder = self.folder(record.name)
        making.mkdir(mode=0o711, exist_ok=True)
        try:
            if (making / DISK).exists():
                os.chown(making / DISK, record.uid, -1, follow_symlinks=False)
            write_vm_record(making, record)
            making.rename(folder)
            try:
                sync_folder(self._vms)
            except OSError:
                folder.rename(making)
                raise
        except BaseException:
            shutil.rmtree(making, ignore_errors=True)
            raise
        self._uids.publish(record.uid, record.name)

    async def update(self, name: str, definition: Definition, origin: Origin) -> VmRecord:
        """Give a VM a new definition. One that a file defines has its short name, and does not expire."""
        return await self.change(
            name,
            lambda old: replace(
                old,
                definition=definition,
                origin=origin,
                short_name=old.short_name or origin is Origin.FILE,
                expires_at=None if origin is Origin.FILE else old.expires_at,
            ),
        )

    async def pin(self, name: str, pin: ImagePin | None) -> VmRecord:
        """Have a VM keep to a content."""
        return await self.change(name, lambda old: replace(old, pin=pin))

    async def lease(self, name: str, lease: Lease | None) -> VmRecord:
        """Have a VM keep its addresses; None: it has none."""
        return await self.change(name, lambda old: replace(old, lease=lease))

    async def change(self, name: str, change: Callable[[VmRecord], VmRecord]) -> VmRecord:
        """Write a record anew, unless it stays as it is. NotFound for a VM that was deleted, OSError."""
        async with self._changing:
            old = self._records.get(name)
            if old is None:
                raise NotFound(f"VM {name} was deleted meanwhile")
            new = change(old)
            if new != old:
                await finish(self._store(new), f"record of {name}")
            return new

    async def _store(self, record: VmRecord) -> None:
        folder = self.folder(record.name)
        try:
            await run_in(Pool.RECORDS, write_vm_record, folder, record)
        except OSError:
            # it may be in place, and only not have been synced
            if await run_in(Pool.RECORDS, is_vm_written, folder, record):
                self._take(record)
            raise
        self._take(record)

    def _take(self, record: VmRecord) -> None:
        self._records[record.name] = record
        self._on_change(record)

    async def rename(self, name: str, new: str, clear: Callable[[], None]) -> VmRecord:
        """Give a VM another name: that of its folder, so that a crash leaves the old or the new one. It keeps
        its name after NotFound, AlreadyExists, InUse (a VMM has its disk), HostNotReady and OSError. `clear`
        is called before, in a thread, while no VM has the new name, or can get it."""
        async with self._adding, self._changing:
            self.check_free(new)
            old = self._records.get(name)
            if old is None:
                raise NotFound(f"VM {name} was deleted meanwhile")
            return await finish(self._rename(old, old.rename(new), clear), f"new name of {name}")

    async def _rename(self, old: VmRecord, new: VmRecord, clear: Callable[[], None]) -> VmRecord:
        await run_in(Pool.STARTS, self._move, old, new, clear)
        del self._records[old.name]
        self._records[new.name] = new
        return new

    def _move(self, old: VmRecord, new: VmRecord, clear: Callable[[], None]) -> None:
        before, folder = self.folder(old.name), self.folder(new.name)
        if os.path.lexists(folder):
            raise AlreadyExists(f"{folder} exists", hint="move it away, or choose another name")
        with hold_disk(before / DISK, "renamed"):
            clear()
            before.rename(folder)
            try:
                sync_folder(self._vms)
            except OSError as error:
                if _move_back(folder, before):
                    raise
                _log.error("the name of VM %s may not last over a power failure: %s", new.name, error)
        self._rewrite(new)
        self._uids.publish(new.uid, new.name)

    def _rewrite(self, record: VmRecord) -> None:
        """Have the record of a VM that was renamed say its name. Nothing depends on that: see vmrecords."""
        try:
            write_vm_record(self.folder(record.name), record)
        except OSError as error:
            _log.warning("VM %s: its record has a former name: %s", record.name, error)

    def check_removable(self, name: str) -> None:
        """Raise InUse while a VMM has the VM's disk, whatever is known of the VM. Blocks."""
        with self._hold_disk(name):
            pass

    def _hold_disk(self, name: str) -> AbstractContextManager[None]:
        return hold_disk(self.folder(name) / DISK, "removed")

    async def remove(self, name: str) -> None:
        """Forget a VM and remove its data. InUse while a VMM has its disk. It is gone with the rename, also
        if there is an OSError after that: what cannot be deleted then is deleted when the daemon starts
        again, and its uid stays reserved until then."""
        await finish(self._remove(name), f"removal of {name}")

    async def _remove(self, name: str) -> None:
        record = self._records[name]
        # half-removed data must not come back as a VM; another one may have the same id before it is deleted
        removed = self._vms / f".{uuid.uuid4().hex}.removed"
        async with self._changing:
            await run_in(Pool.RECORDS, self._hide, name, removed)
            self._uids.hold([record.uid])
            del self._records[name]
        await run_in(Pool.TOOLS, self._delete, record, removed)
        self._uids.release([record.uid])

    def _hide(self, name: str, removed: Path) -> None:
        with self._hold_disk(name):
            self.folder(name).rename(removed)

    def _delete(self, record: VmRecord, removed: Path) -> None:
        sync_folder(self._vms)
        shutil.rmtree(removed)
        self._uids.unpublish(record.uid)

    def _choose_uid(self) -> int:
        used = {record.uid for record in self._records.copy().values()}
        # of a VM whose record cannot be read, its files tell
        used |= {uid for name in self._unreadable for uid in find_owners(self.folder(name))}
        return self._uids.choose(used)


def _move_back(folder: Path, before: Path) -> bool:
    with contextlib.suppress(OSError):
        folder.rename(before)
        return True
    return False
