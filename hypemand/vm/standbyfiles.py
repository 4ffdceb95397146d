# SPDX-License-Identifier: Apache-2.0
"""The folders of a VM's saves, and what becomes of them.

Its memory is written to `standby.new`, which becomes `standby` when all of it is on the disk: from then on
the VM is saved, and its run ends. A restore renames that folder to `standby.old` before the guest's CPUs run:
from then on its disks may change, so that a later start is a cold one. The unit's end (`settle_restore`) puts
it back where the guest has written to none of them; it is removed when the VM is Running.

All functions block.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hypemand.atomic import sync_folder
from hypemand.recordfile import BadRecord
from hypemand.vm.folders import OLD_STANDBY, RECORD, STANDBY
from hypemand.vm.saved import MEMORY, SavedRun, find_saved, has_other_form, load_saved
from hypemand.vm.tracker import BootNotes, Moment

_NEW = f"{STANDBY}.new"
# in a folder that is being written: the guest ran before, and is to run on if this comes to nothing
_WAS_RUNNING = "was-running"


@dataclass(frozen=True, slots=True)
class Kept:
    """What a daemon that starts finds of a VM's saves: what it can go on from, and where something is there
    that cannot be read, why; what a restore that is under way goes on from; whether a save was cut off, of a
    guest that ran before; and whether the memory is there in two forms."""

    saved: SavedRun | None = None
    problem: str = ""
    used: SavedRun | None = None
    is_cut_off: bool = False
    was_running: bool = False
    is_doubled: bool = False


def load_kept(state: Path) -> Kept:
    """`state`: the folder of what lasts of the VM. What cannot be read is left."""
    saved, problem = load_standby(state)
    cut_off = state / _NEW
    is_cut_off = cut_off.is_dir()
    was_running = is_cut_off and (cut_off / _WAS_RUNNING).exists()
    is_doubled = saved is not None and has_other_form(state / STANDBY, saved)
    return Kept(saved, problem, find_saved(state / OLD_STANDBY), is_cut_off, was_running, is_doubled)


def load_standby(state: Path) -> tuple[SavedRun | None, str]:
    """What the VM can go on from; or why not, where there is something."""
    folder = state / STANDBY
    try:
        return load_saved(folder), ""
    except (FileNotFoundError, NotADirectoryError):
        return None, ""
    except (OSError, BadRecord) as error:
        return None, f"{folder} cannot be read: {error}"


def settle_restore(state: Path, notes: BootNotes | None, *, is_stopped: bool) -> None:
    """At the end of a run: what it was restored from is what the VM can be restored from again, if it has
    never been Running and its disks are as they were; else it is of no use. `is_stopped`: systemd was asked
    to stop it. OSError."""
    used = find_saved(state / OLD_STANDBY)
    if used is None:
        return
    has_run = notes is not None and notes.run != used.run and Moment.NOTIFIED in notes.moments
    if is_stopped or has_run or used.find_changed() is not None or (state / STANDBY).exists():
        shutil.rmtree(state / OLD_STANDBY, ignore_errors=True)
    else:
        (state / OLD_STANDBY).rename(state / STANDBY)
    sync_folder(state)


def begin_save(state: Path, *, was_running: bool) -> Path:
    """The folder that a VM is saved to. What is in it before the commit is for a daemon that comes later: it
    need not outlast the host, with which the VM ends. OSError."""
    folder = state / _NEW
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o711)
    if was_running:
        (folder / _WAS_RUNNING).touch()
    return folder


def drop_save(state: Path) -> None:
    """Remove what a save has written that came to nothing."""
    shutil.rmtree(state / _NEW, ignore_errors=True)


def commit_save(state: Path) -> SavedRun:
    """It is what the VM goes on from: all of it is on the disk since its record was stored. OSError,
    BadRecord: it is not."""
    folder = state / _NEW
    saved = load_saved(folder)
    (folder / _WAS_RUNNING).unlink(missing_ok=True)
    shutil.rmtree(state / STANDBY, ignore_errors=True)
    folder.rename(state / STANDBY)
    sync_folder(state)
    return saved.move(state / STANDBY)


def begin_restore(state: Path) -> None:
    """Its disks may change from now on. OSError."""
    if (state / STANDBY).exists():
        shutil.rmtree(state / OLD_STANDBY, ignore_errors=True)
        (state / STANDBY).rename(state / OLD_STANDBY)
        sync_folder(state)


def drop_used(state: Path) -> int | None:
    """It has gone on: what it was restored from is of no use any more. A descriptor by which its memory
    stays, which the VMM has mapped: a file system takes some 100 ms to give back such a file, and who closes
    the last descriptor of it waits for that, as the VMM would that ends."""
    try:
        held = os.open(state / OLD_STANDBY / MEMORY, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        held = None
    _remove(state / OLD_STANDBY)
    return held


def drop_saved(state: Path) -> None:
    """It is not to go on."""
    _remove(state / STANDBY)


def _remove(folder: Path) -> None:
    """The record first: nothing that is half removed counts for anything."""
    with suppress(FileNotFoundError):
        (folder / RECORD).unlink()
        sync_folder(folder)
    shutil.rmtree(folder, ignore_errors=True)
