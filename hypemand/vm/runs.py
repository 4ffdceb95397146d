# SPDX-License-Identifier: Apache-2.0
"""The runs of a VM: the one that is on, what it holds, and what the last one has left.

A run begins when its unit has a new invocation and ends with that. What it holds of the host is given back
when the unit has ended for good.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from hypemand.config.definition import Definition
from hypemand.errors import NotFound
from hypemand.model.events import StartKind, Tell, ignore_event
from hypemand.model.state import HeadersStatus
from hypemand.model.vm import ExitReport, RestartStatus, RunReport
from hypemand.protocol.configdisk import GuestConfig
from hypemand.systemd.journal import BootJournal, LogJournal, SystemLogJournal
from hypemand.systemd.notify import notify_for
from hypemand.systemd.port import Bus, Notify
from hypemand.systemd.units import Units, UnitStatus
from hypemand.tasks import Tasks
from hypemand.unitnames import unit_name
from hypemand.vm.console import OpenJournal
from hypemand.vm.evidence import derive_start, make_tracker
from hypemand.vm.exitrecord import MAX_RUNS, ExitRecord
from hypemand.vm.folders import STALLED
from hypemand.vm.places import Places
from hypemand.vm.record import VmRecord
from hypemand.vm.restarts import RestartFacts, derive_delay, derive_restart_status, derive_start_limit
from hypemand.vm.runfiles import Found, Past, RunFiles, derive_exit, derive_unseen_exit
from hypemand.vm.running import Running
from hypemand.vm.runrecord import has_note
from hypemand.vm.session import Session
from hypemand.vm.tracker import BootNotes, Moment
from hypemand.vm.watcher import BootWatcher
from hypemand.vmm.driver import Connect, Drive
from hypemand.vmm.qemu import connect_qemu
from hypemand.workers import Pool, run_in

_log = logging.getLogger(__name__)


FindProgram = Callable[[VmRecord, Definition], Awaitable[GuestConfig]]


async def _find_no_program(record: VmRecord, _: Definition) -> GuestConfig:
    raise NotFound(f"the program of {record.name} is not known")


@dataclass(frozen=True, slots=True)
class VmServices:
    """What all VMs share. `on_change` is called when the state of any of them has changed; `volume_disk`: the
    file that the volume of that name or id is. `open_journal` gives the journal of a boot, `log_journal` that
    of logs; `notify` sends systemd something in the name of a VMM; `connect` connects to one; `tell_event` is
    called with each event; `find_program`: what a VM's program runs with."""

    bus: Bus
    units: Units
    watcher: BootWatcher
    on_change: Callable[[], None]
    volume_disk: Callable[[str], Path | None] = lambda _ref: None
    open_journal: OpenJournal = BootJournal
    log_journal: LogJournal = field(default_factory=SystemLogJournal)
    notify: Notify = notify_for
    connect: Connect = connect_qemu
    tell_event: Tell = ignore_event
    find_program: FindProgram = _find_no_program


@dataclass(frozen=True, slots=True)
class Owner:
    """The VM whose runs these are: its definition as it is now, what is called when something was seen of a
    run, and what gives back what a run has held, after the files of that are gone."""

    name: str
    uid: int
    places: Places
    definition: Callable[[], Definition]
    on_change: Callable[[], None]
    give_back: Callable[[], Awaitable[None]]


class Runs:
    """`past`: records of runs before this daemon. `session`: the connections to the VMM while there is
    one; `exit`: how the last run ended; `running`: what the run that is on holds; `ended`: the records of its
    last runs, the newest first; `restarts`: how often systemd has restarted it by itself; `start`: what has
    started the run that was on last, and `began` that run, if this daemon has seen it begin."""

    def __init__(self, owner: Owner, services: VmServices, tasks: Tasks, past: Past) -> None:
        self.session: Session | None = None
        self.exit: ExitRecord | None = past.exit
        self.ended = past.ended
        self.restarts = 0
        self.start = StartKind.UNKNOWN
        self.began: str | None = None
        self.running = Running()
        self.files = RunFiles(owner.name, owner.places, tasks)
        self._owner = owner
        self._services = services
        self._tasks = tasks
        self._notes = past.notes
        # a run, and when it has begun
        self._dated: tuple[str, float | None] | None = None
        # the run whose restarts have been counted
        self._counted: str | None = None
        # only when the unit had failed
        self._counted_at_end = False
        # between two runs
        self._between = False
        # while it was that
        self._was_stopped = False
        self._requested: dict[Moment, float] = {}
        self._requested_by = StartKind.REQUEST
        # is the unit known, so that what is new in it has happened since?
        self._is_followed = False
        self._is_detached = False
        self._was_live = False
        # by a daemon that could not ask systemd when it started
        self._is_assumed = False
        self._closing: asyncio.Task[None] | None = None
        # what its last run had, as far as this daemon has seen its end
        self._ended_with: Definition | None = None

    @property
    def notes(self) -> BootNotes | None:
        """What was seen of the last boot."""
        return self.session.tracker.notes if self.session is not None else self._notes

    def is_other(self, run: str) -> bool:
        """Is a run on that is another one than this?"""
        return self.session is not None and self.session.run != run

    def has_stalled(self) -> bool:
        """Has the guest of the run that is on not continued from its template, and booted? Blocks."""
        session = self.session
        return session is not None and has_note(self._owner.places.runtime, STALLED, session.run)

    @property
    def headers(self) -> HeadersStatus | None:
        """How the kernel headers of the last boot are; None where it has none."""
        notes = self.notes
        return None if notes is None or not self.definition.wants_headers else notes.headers

    @property
    def last_end(self) -> ExitRecord | None:
        """How the last run ended that is over; None where the one that is on was started on request."""
        if self.exit is not None:
            return self.exit
        return next(iter(self._list_ended()), None) if self._between or self.restarts else None

    def _list_ended(self) -> list[ExitRecord]:
        session = self.session
        return [record for record in self.ended if session is None or record.run != session.run]

    @property
    def definition(self) -> Definition:
        """The definition of the run that is on, or that the next one would have: the latter also where the
        former is lost, and then `running` has what it may hold beside."""
        return self.running.definition or self._owner.definition()

    def derive_stop_time(self, created_at: float) -> float:
        """Since when it is stopped, should it be that. Now, when it ran and its end is not known."""
        if self.exit is not None:
            return self.exit.ended_at
        return created_at if self._notes is None else time.time()

    # before a run

    def expect(
        self,
        moments: Mapping[Moment, float],
        definition: Definition | None,
        kind: StartKind = StartKind.REQUEST,
    ) -> None:
        """A start is under way: when it was asked for, and with what. None: it is not any more."""
        self._requested, self._requested_by = dict(moments), kind
        self.running.definition = definition

    def add_moment(self, moment: Moment, at: float) -> None:
        """A step of the start that is under way has been made."""
        self._requested[moment] = at
        if self.session is not None:
            self.session.tracker.set_moment(moment, at)

    def assume_live(self) -> None:
        """systemd cannot be asked: one may be on."""
        self._was_live, self._is_assumed = True, True

    # what the unit shows

    async def count_restarts(self, unit: UnitStatus) -> None:
        """Learn how often systemd has restarted it: once for each run. BusError."""
        run = unit.invocation_id
        if run is not None and run != self._counted and (unit.is_live or unit.active_state == "failed"):
            self.restarts = await self._services.units.count_restarts(unit_name(self._owner.name))
            self._counted, self._counted_at_end = run, unit.active_state == "failed"
        elif unit.active_state is None:
            self.restarts = 0

    def date(self, unit: UnitStatus) -> UnitStatus:
        """What systemd says, but with the start of the run for that of its main process."""
        run = unit.invocation_id
        if run is None or unit.started_at is None:
            return unit
        if self._dated is None or self._dated[0] != run:
            notes = self.notes
            at = derive_start(unit, notes if notes is not None and notes.run == run else None)
            self._dated = run, at
        return replace(unit, started_at=self._dated[1])

    async def load(self, unit: UnitStatus | None) -> Found:
        """What `follow` will need of the files. None: systemd cannot be asked. Most often that is nothing,
        and no thread is asked."""
        definition = self.running.is_unknown and (unit is None or unit.is_live)
        exits = unit is not None and (
            self._has_ended(unit) or self._has_failed_unseen(unit) or self._has_been_replaced(unit)
        )
        if not definition and not exits:
            return Found()
        return await run_in(Pool.RECORDS, self.files.load, definition=definition, exits=exits)

    def _has_ended(self, unit: UnitStatus) -> bool:
        return self._was_live and not unit.is_live

    def _has_been_replaced(self, unit: UnitStatus) -> bool:
        """Has a run ended, to be followed by another one that systemd makes alone?"""
        if self.session is None or not unit.is_live:
            return False
        return unit.invocation_id != self.session.run or _is_between(unit)

    def _has_failed_unseen(self, unit: UnitStatus) -> bool:
        """Has a run failed without a daemon?"""
        known = self.exit is not None and self.exit.run == unit.invocation_id
        return unit.active_state == "failed" and unit.invocation_id is not None and not known

    def follow(self, unit: UnitStatus, found: Found) -> None:
        """Open a session for an invocation that is new, close the one that is over, and when the unit has
        ended for good, take the record that it has left behind."""
        self.running.follow(found.definition, may_run=unit.is_live)
        if found.exits:
            self.ended = found.exits
        self._was_stopped = (self._was_stopped or self._between) and not (
            unit.is_live or unit.active_state == "failed"
        )
        self._between = _is_between(unit)
        if unit.waits_for and self._requested:
            # from when systemd had the job; it may be about to be known when that was
            self._requested.setdefault(Moment.HELD, self._requested.get(Moment.QUEUED, time.monotonic()))
        live = unit.is_live and unit.invocation_id is not None and not self._between
        session = self.session
        if session is not None and (not live or unit.invocation_id != session.run):
            self._notes = session.tracker.notes
            self.files.keep_notes(self._notes, at_end=True)
            self.session = None
            self._closing = self._tasks.start("close", self._close(session, self._closing))
        failed = unit.active_state == "failed"
        if self._has_ended(unit):
            ended = unit.invocation_id or (None if self._notes is None else self._notes.run)
            if self._is_assumed:
                self.exit = derive_unseen_exit(found, self._notes)
            else:
                self.exit = derive_exit(found.exits, ended, failed=failed, notes=self._notes)
            self._ended_with, self.running.definition = self.running.definition, None
            self._closing = self._tasks.start("release", self._release(self._closing))
        elif self._has_failed_unseen(unit):
            self.exit = derive_exit(found.exits, unit.invocation_id, failed=True)
        self._was_live, self._is_assumed = unit.is_live, False
        was_followed, self._is_followed = self._is_followed, True
        if live and self.session is None and unit.active_state != "deactivating" and not self._is_detached:
            self.start = self._derive_start(was_known=was_followed)
            self.began = unit.invocation_id if was_followed else None
            self._open(unit)

    def _derive_start(self, *, was_known: bool) -> StartKind:
        """What has started the run that begins. systemd counts its own restarts from the last other start on.
        `was_known`: the unit was, before."""
        if self._requested:
            return self._requested_by
        if self.restarts > 0:
            return StartKind.RESTARTED
        if not was_known:
            return StartKind.UNKNOWN
        return StartKind.REBOOT if self.ended and self.ended[0].reboot else StartKind.SYSTEMD

    async def note_lost_end(self) -> None:
        """It is stopped, and the end of its last run is not known, as after a power cut: keep what is known
        of that. Nothing depends on it, so that a disk that is full is no error."""
        notes = self._notes
        if self.exit is not None or notes is None or any(record.run == notes.run for record in self.ended):
            return
        try:
            self.ended = await run_in(Pool.RECORDS, self.files.keep_lost_end, notes.run)
        except OSError as error:
            _log.warning("VM %s: cannot record the end of its last run: %s", self._owner.name, error)

    def derive_restart(
        self, *, started_at: float | None, is_running: bool, failed: bool
    ) -> RestartStatus | None:
        """Its restarts by systemd; see `RestartFacts`."""
        definition, session = self.definition, self.session
        if self.exit is not None and self.running.definition is None:
            # it may have been changed since: that has not kept systemd from a restart
            definition = self._ended_with or definition
        facts = RestartFacts(
            definition.restart,
            derive_start_limit(definition),
            self.restarts,
            between=self._between,
            started_at=started_at if session is not None else None,
            is_running=is_running,
            ended=self._list_ended(),
            exit=self.exit,
            failed=failed,
            refused=self._counted_at_end,
            stopped=self._was_stopped,
            delay=derive_delay(definition),
        )
        return derive_restart_status(facts, time.time())

    def forget_restarts(self) -> None:
        """systemd counts none of them any more."""
        self.restarts = 0

    def _open(self, unit: UnitStatus) -> None:
        run, places, definition = unit.invocation_id, self._owner.places, self.definition
        assert run is not None
        known = self._notes if self._notes is not None and self._notes.run == run else None
        tracker = make_tracker(run, places.runtime, unit, known, self._requested)
        self._requested = {}
        self.exit = None
        wants_headers = definition.wants_headers and not tracker.headers.state.is_settled
        session = self.session = Session(
            self._owner.name,
            tracker,
            places.runtime,
            self._owner.uid,
            guest_agent=definition.guest_agent,
            ready=definition.ready is not None,
            follow_journal=unit.active_state == "activating",
            catch_up=wants_headers and known is not None,
            on_change=self._owner.on_change,
            look_again=lambda: self._services.watcher.add(session),
            open_journal=self._services.open_journal,
            locate=self._locate_drive,
            notify=self._services.notify,
            connect=self._services.connect,
        )
        self._services.watcher.add(session)

    def _locate_drive(self, drive: Drive) -> tuple[str, Path] | None:
        """Of what it runs with: the volumes in the order of their drives."""
        number, volumes, root = drive.volume, self.definition.other_volumes, self.definition.root_volume
        if number is None:
            if root is None:
                return "its disk", self._owner.places.disk
            number, volumes = 0, (root,)
        if number >= len(volumes):
            return None
        file = self._services.volume_disk(volumes[number].volume)
        return None if file is None else (f"its volume {volumes[number].volume}", file)

    # its end

    async def _close(self, session: Session, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        await session.close()

    async def _release(self, before: asyncio.Task[None] | None) -> None:
        """Give back what was held for a run."""
        if before is not None:
            await asyncio.wait([before])
        await self._owner.give_back()

    async def settle(self) -> None:
        """Wait until all that a run has held is given back."""
        while self._closing is not None and not self._closing.done():
            await asyncio.wait([self._closing])

    async def detach(self) -> None:
        """Follow it no more; it goes on. What a look that is under way finds begins nothing."""
        self._is_detached = True
        if self.session is not None:
            session, self.session = self.session, None
            await session.close()
        await self.files.flush_notes()

    # its history

    async def list_runs(self, started_at: float | None) -> list[RunReport]:
        """Its last runs, the oldest first, with the one that is on, which was `started_at`."""
        found = await run_in(Pool.RECORDS, self.files.load, definition=False, exits=True)
        runs = [_derive_report(record) for record in reversed(found.exits)]
        session = self.session
        if session is not None and all(run.run != session.run for run in runs):
            runs.append(RunReport(session.run, started_at, session.tracker.notes.ready_ms, None, None))
        return runs[-MAX_RUNS:]


def _is_between(unit: UnitStatus) -> bool:
    """Does systemd wait until it starts it again?"""
    return unit.active_state == "activating" and unit.sub_state.startswith("auto-restart")


def _derive_report(record: ExitRecord) -> RunReport:
    report = ExitReport(record.code, record.message, record.success)
    return RunReport(record.run, record.started_at, record.ready_ms, record.ended_at, report)
