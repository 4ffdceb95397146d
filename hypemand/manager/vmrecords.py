# SPDX-License-Identifier: Apache-2.0
"""The record of a VM, vm.json in its folder. Reading and writing block.

The VM has the name of its folder, which a rename changes alone: a record that was written under another name
is that of a VM which had this name before.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hypemand.config.names import is_name
from hypemand.config.vmdef import definition_to_json, parse_definition
from hypemand.model.state import Origin
from hypemand.recordfile import BadRecord, load_record, store_record
from hypemand.vm.record import ImagePin, VmRecord, lease_from_json, lease_to_json
from hypemand.vm.schedulerecord import schedule_from_json, schedule_to_json

_ID = re.compile(r"[0-9a-f]{32}")
# uids that are nobody's: uid_t -1, and its 16 bits (systemd, UIDs and GIDs)
_NO_UIDS = (0, 65535, 2**32 - 1)


@dataclass(frozen=True, slots=True)
class WrittenRecord:
    """What a file holds. `is_renamed`: it was written under another name than its folder has."""

    record: VmRecord
    is_renamed: bool


def is_id(text: str) -> bool:
    """Can a VM have this id?"""
    return _ID.fullmatch(text) is not None


def write_vm_record(folder: Path, record: VmRecord) -> None:
    """OSError."""
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
        "expires_at": record.expires_at,
        "former_names": list(record.former_names),
        "former_ids": list(record.former_ids),
        "snapshot_schedule": None if record.schedule is None else schedule_to_json(record.schedule),
    }
    store_record(folder / "vm.json", document, indent=2)


def is_vm_written(folder: Path, record: VmRecord) -> bool:
    """Is this what a daemon finds that reads it?"""
    try:
        return load_vm_record(folder).record == record
    except (OSError, BadRecord):
        return False


def load_vm_record(folder: Path) -> WrittenRecord:
    """The record in a VM's folder. OSError, BadRecord."""
    return load_record(folder / "vm.json", partial(_parse_record, folder))


def _check_record(record: VmRecord) -> VmRecord:
    if not is_name(record.name):
        raise ValueError("its directory has no valid name of a VM")
    if not all(map(is_name, record.former_names)):
        raise ValueError("former_names has what can be no name of a VM")
    if not all(is_id(str(former)) for former in record.former_ids):
        raise ValueError("former_ids has what can be no id of a VM")
    if not is_id(str(record.id)):
        raise ValueError("id is not 32 hexadecimal digits")
    if type(record.uid) is not int or record.uid in _NO_UIDS or not 0 < record.uid < 2**32:
        raise ValueError("uid is outside of the range for VMs")
    for key, moment in (("created_at", record.created_at), ("expires_at", record.expires_at or 0.0)):
        if type(moment) not in (int, float) or not math.isfinite(moment):
            raise ValueError(f"{key} is not a time")
    if record.pin is not None and not all(isinstance(word, str) for word in asdict(record.pin).values()):
        raise ValueError("pin has a value that is not a string")
    return record


def check_unique(record: VmRecord, owners: dict[int | str, str]) -> None:
    """Raise ValueError for the id or uid of another, as a copy of its folder has. `owners`: by both."""
    for key in (record.id, record.uid):
        if owners.setdefault(key, record.name) != record.name:
            raise ValueError(f"its id or uid is that of VM {owners[key]}")


def _parse_record(folder: Path, document: Any) -> WrittenRecord:
    name = document.get("name", folder.name)
    record = VmRecord(
        name=name,
        id=document["id"],
        uid=document["uid"],
        origin=Origin(document["origin"]),
        created_at=document["created_at"],
        definition=parse_definition(name, document["definition"]),
        pin=ImagePin(**document["pin"]) if document.get("pin") else None,
        lease=lease_from_json(document["lease"]) if document.get("lease") else None,
        short_name=bool(document.get("short_name", True)),
        expires_at=document.get("expires_at"),
        former_names=tuple(document.get("former_names", ())),
        former_ids=tuple(document.get("former_ids", ())),
        schedule=schedule_from_json(schedule) if (schedule := document.get("snapshot_schedule")) else None,
    )
    is_renamed = name != folder.name
    return WrittenRecord(_check_record(record.rename(folder.name) if is_renamed else record), is_renamed)
