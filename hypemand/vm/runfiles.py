# SPDX-License-Identifier: Apache-2.0
"""What is in a VM's folders of its runs: what a boot has shown, how it ended, what it was started with."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from hypemand.config.definition import Definition
from hypemand.config.vmdef import definition_to_json, parse_definition
from hypemand.errors import HypemandError
from hypemand.recordfile import BadRecord, load_record, store_record
from hypemand.storage.locks import is_disk_in_use
from hypemand.tasks import Tasks
from hypemand.vm.exitrecord import (
    LOST,
    ExitRecord,
    add_start,
    derive_lost,
    derive_saved,
    derive_unrecorded,
    find_spare,
    load_history,
    store_exit_record,
)
from hypemand.vm.places import CONFIG_DISK, Places
from hypemand.vm.revert import settle_revert
from hypemand.vm.standbyfiles import Kept, load_kept
from hypemand.vm.tracker import BootNotes, Moment, load_notes, store_notes
from hypemand.workers import Pool, run_in

_log = logging.getLogger(__name__)
NOTES_PERIOD = 1.0
"""Seconds between two writes of a boot's notes."""


async def remove_leftovers(root: Path, is_needed: Callable[[str], bool]) -> None:
    """Remove the runtime folders below `root` of VMs that are not needed any more, unless a VMM has the
    config disk open all the same. OSError, HypemandError."""
    unused = await run_in(Pool.TOOLS, _list_unused, root, is_needed)
    for marked in _mark_leftovers(unused, is_needed):
        await run_in(Pool.TOOLS, shutil.rmtree, marked, ignore_errors=True)


def _list_unused(root: Path, is_needed: Callable[[str], bool]) -> list[Path]:
    """Of folders that do not seem to be needed, those that no VMM uses. Blocks."""
    unused = []
    for folder in list(root.iterdir()):
        try:
            if not is_needed(folder.name) and not is_disk_in_use(folder / CONFIG_DISK):
                unused.append(folder)
        except (OSError, HypemandError) as error:
            _log.error("%s is left: %s", folder, error)
    return unused


def _mark_leftovers(folders: Sequence[Path], is_needed: Callable[[str], bool]) -> list[Path]:
    """All at once, and to names that no VM can have: none that comes meanwhile loses its own. So it is done
    in the loop; the folders are in memory."""
    marked = []
    for folder in folders:
        try:
            if not is_needed(folder.name):
                marked.append(folder.rename(folder.with_name(f".{uuid.uuid4().hex}.removed")))
        except OSError as error:
            _log.error("%s is left: %s", folder, error)
    return marked


@dataclass(frozen=True, slots=True)
class Found:
    """Content of the files of a VM's runs: the definition that it was started with, the records of its last
    runs, the newest first, and when notes of a boot were written last (seconds since
    the epoch). None or empty: it cannot be read, or was not asked for."""

    definition: Definition | None = None
    exits: tuple[ExitRecord, ...] = ()
    noted_at: float | None = None


@dataclass(frozen=True, slots=True)
class Past:
    """What a daemon that starts finds of a VM: what was seen of its last boot, how its last run ended, and
    all records of ends that there are, the newest first; `kept`: what was saved of it."""

    notes: BootNotes | None = None
    exit: ExitRecord | None = None
    ended: tuple[ExitRecord, ...] = ()
    kept: Kept = field(default_factory=Kept)


def derive_exit(
    exits: Sequence[ExitRecord], run: str | None, *, failed: bool, notes: BootNotes | None = None
) -> ExitRecord | None:
    """The record of the run that has just ended, None if there was none: `run` is its id, if that is
    known. It is there, unless it could not be written: the unit writes it before it becomes inactive, or
    `failed`. `notes`: what the daemon itself has seen of it."""
    record = next((r for r in exits if run in (None, r.run)), None)
    if record is None:
        report = notes.exit if notes is not None and notes.run == run else None
        return None if run is None else derive_unrecorded(run, time.time(), failed=failed, report=report)
    if record.reboot and failed:
        words = f"{record.message}, too often in a short time: systemd did not restart it"
        record = replace(record, message=words, success=False)
    return record


def derive_unseen_exit(found: Found, notes: BootNotes | None) -> ExitRecord | None:
    """The record of the last run, as a daemon finds it that has not seen the end; None when the host went
    down with that run, so that the record is of one before."""
    record = next(iter(found.exits), None)
    if record is not None and record.message == LOST:
        return None
    if record is None or notes is None or record.run == notes.run or found.noted_at is None:
        return record
    # of the later of two runs there is but one: systemd alone made it, or its end was not written down
    return record if record.ended_at > found.noted_at else None


class RunFiles:
    """The files of the VM of that name; `runtime`: the folder of its sockets and config disk. Notes are
    written in the background, as one of its `tasks`."""

    def __init__(self, vm: str, places: Places, tasks: Tasks) -> None:
        self._vm = vm
        self._tasks = tasks
        self.runtime = places.runtime
        self._config = places.config
        self._state = places.state
        self._notes = places.state / "boot.json"
        self._exit = places.state / "exit.json"
        self._spare_exit = find_spare(places.runtime)
        self._definition = places.state / "run.json"
        self._kept: BootNotes | None = None
        self._unwritten: BootNotes | None = None
        self._writer: asyncio.Task[None] | None = None
        self._written_at = -NOTES_PERIOD
        self._hurry = asyncio.Event()
        self._flushing = False
        self._unwritable = False

    def remove_runtime(self) -> None:
        """Remove sockets and config disk, and forget what it ran with; not while a VMM has the config disk,
        whatever systemd says of the unit. Blocks."""
        try:
            if is_disk_in_use(self._config):
                _log.error("VM %s: %s is kept, because a VMM uses it", self._vm, self.runtime)
                return
        except (OSError, HypemandError) as error:
            _log.error("VM %s: %s is left: %s", self._vm, self.runtime, error)
            return
        shutil.rmtree(self.runtime, ignore_errors=True)
        with contextlib.suppress(OSError):
            self._definition.unlink()

    # what it was started with

    def keep_definition(self, definition: Definition) -> None:
        """Remember what a VM was started with, for a daemon that comes after this one. Blocks."""
        store_record(self._definition, definition_to_json(definition))

    def load(self, *, definition: bool, exits: bool) -> Found:
        """Read the requested files. Blocks."""
        return Found(
            self._load_definition() if definition else None,
            self._load_exits() if exits else (),
            self._find_noted_at() if exits else None,
        )

    def load_past(self) -> Past:
        """What is known of runs before. Blocks."""
        notes = load_notes(self._notes)
        found = self.load(definition=False, exits=True)
        return Past(notes, derive_unseen_exit(found, notes), found.exits, load_kept(self._state))

    def _load_definition(self) -> Definition | None:
        try:
            return load_record(self._definition, partial(parse_definition, self._vm))
        except (OSError, BadRecord):
            return None

    def _load_exits(self) -> tuple[ExitRecord, ...]:
        return load_history(self._exit, self._spare_exit)

    def keep_lost_end(self, run: str) -> tuple[ExitRecord, ...]:
        """Write down that this run has ended, and nobody has seen how. The records then. Blocks; OSError."""
        before = self._load_exits()
        record = derive_lost(run, self._find_noted_at() or time.time())
        store_exit_record(self._exit, record, before)
        return (record, *before)

    def keep_saved_end(self, run: str, notes: BootNotes) -> None:
        """Write down that this run was put into Standby, of which only its unit is left: that has nothing to
        find out then (launcher/ending), and does so itself where this fails. Blocks."""
        record = add_start(derive_saved(run, time.time()), notes, self.runtime)
        try:
            store_exit_record(self._exit, record, self._load_exits())
        except OSError as error:
            _log.warning("VM %s: cannot write the exit record: %s", self._vm, error)

    def _find_noted_at(self) -> float | None:
        with contextlib.suppress(OSError):
            return self._notes.stat().st_mtime
        return None

    def take_in_ends(self) -> None:
        """Have the VM's own folder hold all that is known of its last runs. Blocks; OSError."""
        records = self._load_exits()
        if self._spare_exit.exists() and records:
            store_exit_record(self._exit, records[0], records[1:])
        self.remove_exit()

    def remove_exit(self) -> None:
        """Remove what the VM's own folder does not have of its last run. Blocks."""
        with contextlib.suppress(OSError):
            self._spare_exit.unlink()

    # what its boot has shown

    def keep_notes(self, notes: BootNotes, *, at_end: bool = False) -> None:
        """Write the notes down, unless they are the same: at most once each NOTES_PERIOD, since a guest can
        change them as often as it likes, and each write is synced. Without that wait `at_end`, for what the
        unit's end will ask for, the first report of an exit or a shutdown, and when it is Running: a daemon
        that comes after this one cannot find out when that was."""
        if notes != self._kept:
            known = self._kept if self._kept is not None and self._kept.run == notes.run else BootNotes("")
            at_end |= known.exit is None and notes.exit is not None
            at_end |= known.shutdown is None and notes.shutdown is not None
            at_end |= Moment.RUNNING not in known.moments and Moment.RUNNING in notes.moments
            self._kept = self._unwritten = notes
        if self._unwritten is None:
            return
        if at_end:
            self._hurry.set()
        if self._writer is None or self._writer.done():
            self._writer = self._tasks.start("notes", self._write_notes())

    async def flush_notes(self) -> None:
        """Wait until all notes that were kept are written, which they are at once."""
        self._flushing = True
        self._hurry.set()
        if self._writer is not None:
            await asyncio.wait([self._writer])
        self._flushing = False

    async def _write_notes(self) -> None:
        while self._unwritten is not None:
            wait = self._written_at + NOTES_PERIOD - time.monotonic()
            if wait > 0 and not self._flushing:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._hurry.wait(), wait)
            self._hurry.clear()
            # what has come meanwhile is in it
            notes, self._unwritten = self._unwritten, None
            try:
                await run_in(Pool.RECORDS, store_notes, self._notes, notes)
            except OSError as error:
                if not self._unwritable:
                    _log.warning("VM %s: cannot record its boot: %s", self._vm, error)
                self._unwritable = True
            else:
                self._unwritable = False
            self._written_at = time.monotonic()


def load_past(vm: str, places: Places) -> Past:
    """What is known of the runs before of a VM that nothing is done with yet. Blocks."""
    try:
        settle_revert(places.state)
    except (OSError, HypemandError) as error:
        _log.error("VM %s: a snapshot that was restored is not there completely: %s", vm, error)
    return RunFiles(vm, places, Tasks(f"VM {vm}")).load_past()
