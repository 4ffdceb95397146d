# SPDX-License-Identifier: Apache-2.0
"""A snapshot in place of what a VM has: its disk, and for kind Standby what it goes on from.

All of it is written to `revert.new`, which becomes `revert` when it is on the disk: that commits. What
follows is a few renames, which the next daemon makes where this one is cut off (`settle_revert`). So a VM has
all of what it had, or all of the snapshot.

All functions block; OSError.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from hypemand.atomic import sync_folder
from hypemand.storage.disks import DISK
from hypemand.storage.locks import hold_disk
from hypemand.vm.folders import OLD_STANDBY, RECORD, REVERT, STANDBY
from hypemand.vm.saved import MEMORY, STATE

_NEW = f"{REVERT}.new"
# what stays in the folder, which becomes `standby`
_OF_STANDBY = frozenset({RECORD, STATE, MEMORY})


def begin_revert(state: Path) -> Path:
    """The folder that it is written to. `state`: that of what lasts of the VM."""
    folder = state / _NEW
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o711)
    return folder


def drop_revert(state: Path) -> None:
    """It came to nothing."""
    shutil.rmtree(state / _NEW, ignore_errors=True)


def commit_revert(state: Path) -> None:
    """The VM has it from now on. It must not run."""
    sync_folder(state / _NEW)
    (state / _NEW).rename(state / REVERT)
    sync_folder(state)
    try:
        finish_revert(state)
    except OSError:
        # it is given up, unless the disk is another one already: the VM may run before it is tried again
        if (state / REVERT / DISK).exists():
            (state / REVERT).rename(state / _NEW)
        raise


def settle_revert(state: Path) -> None:
    """What a daemon before this one has left. InUse if the VM runs."""
    if (state / REVERT).is_dir():
        with hold_disk(state / DISK, "replaced"):
            finish_revert(state)
    drop_revert(state)


def finish_revert(state: Path) -> None:
    """Do what is left of one that was committed, if there is one."""
    folder = state / REVERT
    if not folder.is_dir():
        return
    if (folder / DISK).exists():
        # these belong to the disk that goes
        for old in (STANDBY, OLD_STANDBY):
            shutil.rmtree(state / old, ignore_errors=True)
        sync_folder(state)
        others = [path for path in folder.iterdir() if path.name not in (*_OF_STANDBY, DISK)]
        for path in (*others, folder / DISK):
            path.rename(state / path.name)
        sync_folder(state)
        sync_folder(folder)
    if (folder / RECORD).exists():
        folder.rename(state / STANDBY)
    else:
        shutil.rmtree(folder)
    sync_folder(state)
