# SPDX-License-Identifier: Apache-2.0
"""Ends of snapshots: removed by a client, or by itself."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from functools import partial

from hypemand.manager.expiry import Term
from hypemand.manager.parts import Parts
from hypemand.model.events import Event, SnapshotAction, SnapshotCause, SnapshotChange
from hypemand.systemd.log import MessageId, log_vm
from hypemand.tasks import finish
from hypemand.vm.snapshots import Snapshot
from hypemand.workers import Pool, run_in

_WORDS = {
    SnapshotCause.REQUEST: "was removed on request",
    SnapshotCause.EXPIRED: "has expired, and was deleted",
    SnapshotCause.RETENTION: "was deleted, as the retention of its schedule says",
}


async def remove_snapshot(parts: Parts, snapshot: Snapshot, cause: SnapshotCause) -> None:
    """Remove it. InUse while it is being restored or copied, NotFound where it has gone, OSError."""
    await parts.compressions.cancel(snapshot.id)
    with parts.snapshots.using(snapshot, alone=True):
        await finish(run_in(Pool.TOOLS, parts.snapshots.remove, snapshot), f"removal of {snapshot.id}")
    parts.disk_watch.note_removal()
    tell_snapshot(parts, snapshot, SnapshotAction.DELETED, cause, _WORDS[cause])
    if cause is not SnapshotCause.REQUEST:
        text = f"the snapshot {snapshot.shown} {_WORDS[cause]}"
        log_vm(logging.INFO, text, snapshot.vm, snapshot.vm_id, MessageId.SNAPSHOT_DELETED)


def tell_snapshot(
    parts: Parts, snapshot: Snapshot, action: SnapshotAction, cause: SnapshotCause, words: str
) -> None:
    """An event about it, of its VM."""
    details = SnapshotChange(action, cause, snapshot.id, snapshot.name)
    text = f"the snapshot {snapshot.name or snapshot.id} {words}"
    parts.events.tell(Event(details, text, snapshot.vm, snapshot.vm_id))


def list_terms(parts: Parts) -> Iterator[Term]:
    """The snapshots that have an end."""
    for snapshot in parts.snapshots:
        if snapshot.expires_at is not None:
            delete = partial(_delete_expired, parts, snapshot)
            what = f"the snapshot {snapshot.shown}"
            yield Term(snapshot.id, what, snapshot.expires_at, snapshot.vm, snapshot.vm_id, delete)


async def _delete_expired(parts: Parts, snapshot: Snapshot) -> None:
    if snapshot.expires_at is not None and snapshot.expires_at <= time.time():
        await remove_snapshot(parts, snapshot, SnapshotCause.EXPIRED)
