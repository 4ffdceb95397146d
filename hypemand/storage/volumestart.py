# SPDX-License-Identifier: Apache-2.0
"""What is done to a volume before a VM starts with it: a look at whether others have it, on any host, and the
replay of a journal for readers. Blocks."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from hypemand.errors import HypemandError
from hypemand.fulldisk import name_full_disk
from hypemand.run import CommandFailed
from hypemand.storage.disks import has_journal_to_replay
from hypemand.storage.locks import has_others, hold_disk, lock_disk
from hypemand.storage.replay import Replay, replay_in_unit
from hypemand.storage.volume import DISK_MODE, FOLDER_MODE
from hypemand.storage.volumelock import lock_volume

# seconds that a start waits for others who work on the volume, as by a replay of its journal
_PATIENCE = 60.0
_WHAT = "given to a VM"


def check_available(disk: Path, *, writes: bool) -> None:
    """InUse if another VMM on any host has the volume, unless all of them only read. Looks only."""
    with hold_disk(disk, _WHAT, beside_readers=not writes):
        pass


def prepare_volume(disk: Path, vm: str, uid: int, *, writes: bool, replay: Replay = replay_in_unit) -> None:
    """Let the VMM of `vm`, which runs as `uid`, have a volume. InUse if another on any host has it, unless
    all of them only read; then nothing of the volume was changed.

    A journal that was left by a crash is replayed first for readers, since a guest cannot do it for them.
    """
    with lock_volume(disk, _WHAT, patience=_PATIENCE) as lock:
        fd = os.open(disk, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            lock_disk(fd, disk, _WHAT, beside_readers=not writes)
            # nobody writes to it by now; a file system that is mounted looks like one that a crash has left
            replays = not writes and has_journal_to_replay(disk)
            if replays:
                # readers may be beside a reader, but the first would have had that done
                lock_disk(fd, disk, _WHAT)
            beside_others = has_others(fd)
            if not beside_others:
                _open_to_vmms(fd, disk.parent)
            if replays:
                _replay(disk, uid, replay)
            lock.note(vm, beside_others=beside_others)
        finally:
            os.close(fd)


def _open_to_vmms(fd: int, folder: Path) -> None:
    """See `DISK_MODE`. A release before this one gave it to the user of a VM."""
    if stat.S_IMODE(folder.stat().st_mode) != FOLDER_MODE:
        folder.chmod(FOLDER_MODE)
    if stat.S_IMODE(os.fstat(fd).st_mode) != DISK_MODE:
        os.fchown(fd, os.geteuid(), os.getegid())
        os.fchmod(fd, DISK_MODE)


def _replay(disk: Path, uid: int, replay: Replay) -> None:
    try:
        with name_full_disk(f"replay the journal of {disk}", disk):
            replay(disk, uid)
    except CommandFailed as error:
        said = error.result.stdout.decode(errors="replace") + error.result.stderr
        why = next((line.strip() for line in said.splitlines() if line.strip()), error.message)
        raise HypemandError(
            f"the volume in {disk.parent} was not closed cleanly, and cannot be repaired for a read-only VM:"
            f" {why}",
            hint="start a VM that writes to it, or restore it from a backup",
        ) from error
