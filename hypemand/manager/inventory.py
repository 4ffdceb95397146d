# SPDX-License-Identifier: Apache-2.0
"""The VMs that there are: one folder each under STATE/vms, with the record that lasts.

    vm.json     id, uid, origin, when it was made, its definition (of a file: the last good one), its lease
    port.json   its port while it runs (hypemand.manager.ports)
    disk.ext4   the writable disk
    boot.json   what was seen of the last boot (hypemand.boot.tracker)
    exit.json   how the last run ended (hypemand.boot.record)

Each VM has a uid of its own, which it keeps. They come from systemd's dynamic range: journald keeps the
lines of those in the system's journal, where any other uid would get a journal file for itself. Records in
/run/userdb make the uids known by name (nss-systemd), so that systemd itself hands out none of them.
"""

from __future__ import annotations

import contextlib
import json
import logging
import pwd
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from hypemand.atomic import sync_folder, write_file
from hypemand.config.definition import Definition, Origin
from hypemand.config.vmdef import definition_to_json, parse_definition
from hypemand.errors import AlreadyExists, HostNotReady, HypemandError, InsufficientResources
from hypemand.manager.leases import Lease, lease_from_json, lease_to_json
from hypemand.storage.disks import DISK
from hypemand.storage.locks import hold_disk

_log = logging.getLogger(__name__)
# a VM that is being made or removed: all that is ever deleted unasked
_MARKED = re.compile(r"\.[0-9a-f]{32}\.(making|removed)")
_LOST_AND_FOUND = "lost+found"
_DYNAMIC_LOCKS = Path("/run/systemd/dynamic-uid")


@dataclass(frozen=True, slots=True)
class ImagePin:
    """The content that a VM keeps to while its definition says `name`."""

    name: str
    digest: str


@dataclass(frozen=True, slots=True)
class VmRecord:
    """What lasts of a VM. `id` is 32 hex digits, `created_at` seconds since the epoch. `pin`: what it was
    started with last; None: nothing yet, or an image that a package may change. `lease`: of the network that
    it was started on last. `short_name`: the host knows it by its bare name too, which can hide a name of
    DNS, and so is not for a VM that somebody other than root has made."""

    name: str
    id: str
    uid: int
    origin: Origin
    created_at: float
    definition: Definition
    pin: ImagePin | None = None
    lease: Lease | None = None
    short_name: bool = True

    @property
    def image_digest(self) -> str:
        """The content that it is to be started with; "" for what its image's name stands for."""
        return self.pin.digest if self.pin is not None and self.pin.name == self.definition.image else ""


class Inventory:
    """The folders under `vms`; `userdb` is where the names of the uids are made known."""

    def __init__(self, vms: Path, uid_range: tuple[int, int], userdb: Path) -> None:
        self._vms = vms
        self._first_uid, self._last_uid = uid_range
        self._userdb = userdb
        self._records: dict[str, VmRecord] = {}
        self._unreadable: set[str] = set()

    def load(self) -> None:
        """Read all records. One that cannot be read is reported and left as it is."""
        self._vms.mkdir(mode=0o711, parents=True, exist_ok=True)
        for folder in sorted(self._vms.iterdir()):
            if folder.name == _LOST_AND_FOUND:
                continue  # of fsck(8)
            if _MARKED.fullmatch(folder.name):
                _log.warning("removing what is left of a VM whose making or removal was cut off")
                shutil.rmtree(folder, ignore_errors=True)
                continue
            try:
                record = _load_record(folder)
            except (OSError, ValueError, KeyError, TypeError, HypemandError) as error:
                _log.error("cannot read the VM in %s: %s", folder, error)
                self._unreadable.add(folder.name)
                continue
            self._records[record.name] = record
            self._publish(record)

    def is_unreadable(self, name: str) -> bool:
        """Is there a VM of that name of which no more is known? What is its own is not to be touched."""
        return name in self._unreadable

    def check_complete(self) -> None:
        """Raise HostNotReady if there is a VM whose record cannot be read: nobody knows what it needs."""
        if self._unreadable:
            files = ", ".join(str(self.folder(name) / "vm.json") for name in sorted(self._unreadable))
            raise HostNotReady(
                f"it cannot be told what is needed: the records of some VMs cannot be read: {files}",
                hint="journalctl -u hypemand says why; repair them or move them away, restart hypemand",
            )

    def folder(self, name: str) -> Path:
        """Where the VM's data stands."""
        return self._vms / name

    def find(self, name: str) -> VmRecord | None:
        """The record of that name."""
        return self._records.get(name)

    def __iter__(self) -> Iterator[VmRecord]:
        return iter(list(self._records.values()))

    def add(
        self,
        definition: Definition,
        origin: Origin,
        pin: ImagePin | None = None,
        *,
        short_name: bool = True,
    ) -> VmRecord:
        """Make a VM's folder and record. Nothing is left when that fails. AlreadyExists."""
        if self.is_unreadable(definition.name):
            record_file = self.folder(definition.name) / "vm.json"
            raise AlreadyExists(
                f"there is a VM {definition.name}, whose record cannot be read: {record_file}",
                hint="journalctl -u hypemand says why; repair it or move its folder away, restart hypemand",
            )
        record = VmRecord(
            definition.name,
            uuid.uuid4().hex,
            self._free_uid(),
            origin,
            time.time(),
            definition,
            pin,
            short_name=short_name,
        )
        making = self._vms / f".{record.id}.making"
        making.mkdir(mode=0o711)
        try:
            _write_record(making, record)
            making.rename(self.folder(record.name))
        except BaseException:
            shutil.rmtree(making, ignore_errors=True)
            raise
        self._records[record.name] = record
        sync_folder(self._vms)
        self._publish(record)
        return record

    def update(self, name: str, definition: Definition, origin: Origin) -> VmRecord:
        """Give a VM a new definition. One that a file defines has its short name."""
        old = self._records[name]
        short_name = old.short_name or origin is Origin.FILE
        record = replace(old, definition=definition, origin=origin, short_name=short_name)
        self._store(record)
        return record

    def pin(self, name: str, pin: ImagePin | None) -> VmRecord:
        """Have a VM keep to a content."""
        record = self._records[name]
        if record.pin != pin:
            record = replace(record, pin=pin)
            self._store(record)
        return record

    def lease(self, name: str, lease: Lease | None) -> VmRecord:
        """Have a VM keep its addresses; None: it has none."""
        record = self._records[name]
        if record.lease != lease:
            record = replace(record, lease=lease)
            self._store(record)
        return record

    def check_removable(self, name: str) -> None:
        """Raise InUse while a VMM has the VM's disk, whatever is known of the VM."""
        with self._hold_disk(name):
            pass

    def _hold_disk(self, name: str) -> AbstractContextManager[None]:
        return hold_disk(self.folder(name) / DISK, "removed")

    def remove(self, name: str) -> None:
        """Forget a VM and remove its data. InUse while a VMM has its disk."""
        record = self._records[name]
        # half-removed data must not come back as a VM
        removed = self._vms / f".{record.id}.removed"
        with self._hold_disk(name):
            self.folder(name).rename(removed)
        sync_folder(self._vms)
        shutil.rmtree(removed)
        del self._records[name]
        for path in self._userdb_files(record):
            path.unlink(missing_ok=True)

    def _store(self, record: VmRecord) -> None:
        _write_record(self.folder(record.name), record)
        self._records[record.name] = record

    def _free_uid(self) -> int:
        taken = {record.uid for record in self._records.values()}
        # of a VM whose record cannot be read, its files tell
        taken |= {uid for name in self._unreadable for uid in _find_owners(self.folder(name))}
        for uid in range(self._last_uid, self._first_uid - 1, -1):
            if uid not in taken and not (_DYNAMIC_LOCKS / str(uid)).exists() and not _is_known(uid):
                return uid
        raise InsufficientResources(
            f"all uids from {self._first_uid} to {self._last_uid} are in use, one for each VM",
            hint="remove VMs that are not needed, or widen uid_range in /etc/hypemand/hypemand.yaml",
        )

    def _userdb_files(self, record: VmRecord) -> tuple[Path, ...]:
        user = f"hypeman-{record.uid}"
        names = (f"{user}.user", f"{record.uid}.user", f"{user}.group", f"{record.uid}.group")
        return tuple(self._userdb / name for name in names)

    def _publish(self, record: VmRecord) -> None:
        """Drop-in user and group records (nss-systemd(8)): the uid has a name, and so an owner."""
        user, by_uid, group, by_gid = self._userdb_files(record)
        name = user.stem
        common = {"disposition": "dynamic", "service": "hypemand"}
        try:
            self._userdb.mkdir(mode=0o755, exist_ok=True)
            about = {
                "userName": name,
                "uid": record.uid,
                "gid": record.uid,
                "realName": f"Micro VM {record.name}",
            }
            nowhere = {"homeDirectory": "/", "shell": "/usr/sbin/nologin", "locked": True}
            user.write_text(json.dumps(about | nowhere | common))
            group.write_text(json.dumps({"groupName": name, "gid": record.uid} | common))
            for link, target in ((by_uid, user), (by_gid, group)):
                with contextlib.suppress(FileExistsError):
                    link.symlink_to(target.name)
        except OSError as error:
            _log.warning("cannot make uid %d of VM %s known by name: %s", record.uid, record.name, error)


def _write_record(folder: Path, record: VmRecord) -> None:
    document = {
        "name": record.name,
        "id": record.id,
        "uid": record.uid,
        "origin": record.origin,
        "created_at": record.created_at,
        "definition": definition_to_json(record.definition),
        "pin": None if record.pin is None else asdict(record.pin),
        "lease": None if record.lease is None else lease_to_json(record.lease),
        "short_name": record.short_name,
    }
    write_file(folder / "vm.json", json.dumps(document, indent=2).encode() + b"\n", mode=0o600)


def _is_known(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _find_owners(folder: Path) -> Iterator[int]:
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            yield path.lstat().st_uid


def _load_record(folder: Path) -> VmRecord:
    document = json.loads((folder / "vm.json").read_text())
    return VmRecord(
        name=folder.name,
        id=document["id"],
        uid=document["uid"],
        origin=Origin(document["origin"]),
        created_at=document["created_at"],
        definition=parse_definition(folder.name, document["definition"]),
        pin=ImagePin(**document["pin"]) if document.get("pin") else None,
        lease=lease_from_json(document["lease"]) if document.get("lease") else None,
        short_name=bool(document.get("short_name", True)),
    )
