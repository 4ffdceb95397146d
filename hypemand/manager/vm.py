# SPDX-License-Identifier: Apache-2.0
"""One VM: its current state, and the reactions to changes.

Evidence comes in from systemd's signals, from the VMM's sockets and from the journal; the state is derived
from it each time. Transitions are seen and told in one place, `_evaluate`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from hypemand.boot.console import OpenJournal
from hypemand.boot.record import ExitRecord
from hypemand.boot.session import Session
from hypemand.boot.tracker import BootNotes, Moment
from hypemand.boot.watcher import BootWatcher
from hypemand.config.definition import Definition
from hypemand.manager.changes import Changes
from hypemand.manager.evidence import derive_evidence, make_tracker
from hypemand.manager.handle import Handle
from hypemand.manager.inventory import VmRecord
from hypemand.manager.networks import Networks
from hypemand.manager.operation import Operations
from hypemand.manager.phases import Phases
from hypemand.manager.plan import Places, runtime_part
from hypemand.manager.runfiles import Found, Past, RunFiles, derive_exit, derive_unseen_exit
from hypemand.manager.running import Running
from hypemand.manager.telling import extend_boot, register, tell_readiness, tell_running, tell_systemd
from hypemand.manager.tenancy import Tenant
from hypemand.model.evidence import Derived, derive_state, derive_status_text
from hypemand.model.state import HeadersStatus, State
from hypemand.model.vm import ExitReport, VmView
from hypemand.qemu.commandline import DISK_DRIVE, volume_of_drive
from hypemand.qemu.process import read_cpu_seconds
from hypemand.systemd.bus import BusError
from hypemand.systemd.journal import BootJournal
from hypemand.systemd.log import MessageId, log_state_change, log_vm
from hypemand.systemd.notify import notify_for
from hypemand.systemd.port import Bus, Notify
from hypemand.systemd.units import Units, UnitStatus
from hypemand.tasks import Tasks
from hypemand.unitnames import unit_name
from hypemand.workers import Pool, run_in

_log = logging.getLogger(__name__)
_RECOVER_DEADLINE = 1.0
_DETACH_DEADLINE = 5.0


@dataclass(frozen=True, slots=True)
class VmServices:
    """What all VMs share. `on_change` is called when the state of any of them has changed; `volume_disk`: the
    file that the volume of that name or id is. `open_journal` gives the journal of a boot; `notify` sends
    systemd something in the name of a VMM."""

    bus: Bus
    units: Units
    watcher: BootWatcher
    on_change: Callable[[], None]
    volume_disk: Callable[[str], Path | None] = lambda _ref: None
    open_journal: OpenJournal = BootJournal
    notify: Notify = notify_for


class Vm:
    """A VM that is defined; `past`: what there is of its runs before. `record` and `removed` (its file is
    gone) are set by the manager, all else follows evidence."""

    def __init__(
        self, record: VmRecord, places: Places, services: VmServices, networks: Networks, past: Past
    ) -> None:
        self.record = record
        self.removed = False
        self.changes = Changes()
        self.operations = Operations(record.name, self.changes.tell)
        self.places = places
        self._tasks = Tasks(f"VM {record.name}")
        self.files = RunFiles(record.name, places, self._tasks)
        self.handle = Handle(record.name, services.units, self._tasks)
        self._activity = ""
        self._services = services
        self._networks = networks
        self._unit = UnitStatus(None)
        self._bus_up = True
        self._session: Session | None = None
        self.running = Running()
        self._notes, self._exit = past.notes, past.exit
        self._requested: dict[Moment, float] = {}
        self._was_live = False
        # by a daemon that could not ask systemd when it started
        self._is_assumed = False
        self._closing: asyncio.Task[None] | None = None
        self._derived = Derived(State.STOPPED)
        self._text = ""
        self._phases = Phases(self._derive_stop_time())
        self._asking = asyncio.Lock()
        self._stale = False
        self._recovering = False

    # what is known

    @property
    def name(self) -> str:
        """Its name."""
        return self.record.name

    @property
    def unit(self) -> str:
        """Its unit's name."""
        return unit_name(self.record.name)

    @property
    def state(self) -> State:
        """The state that was derived last."""
        return self._derived.state

    @property
    def state_error(self) -> str | None:
        """Why it is so, where something is wrong."""
        return self._derived.state_error

    @property
    def is_ending(self) -> bool:
        """Is systemd ending its unit?"""
        return self._unit.active_state == "deactivating"

    @property
    def has_unit(self) -> bool:
        """Does systemd have a unit of it, be it one that has failed?"""
        return self._unit.active_state is not None

    @property
    def session(self) -> Session | None:
        """The connections to its VMM, while there is one."""
        return self._session

    @property
    def run(self) -> str | None:
        """The id of the run that is on: the invocation id of its unit."""
        return self._session.run if self._session is not None else None

    @property
    def boot(self) -> str | None:
        """The id of the boot that is on, as soon as that is known."""
        return self._session.boot if self._session is not None else None

    @property
    def definition_in_use(self) -> Definition:
        """The definition that it runs with, or would be started with: the latter also where the former is
        lost, and then `running` has what it may hold beside."""
        return self.running.definition or self.record.definition

    @property
    def needs_restart(self) -> bool:
        """Does it run with another definition than the one it has now, or on a network that is to change?"""
        running = self.running.definition
        if not self.state.is_vmm_active:
            return False
        if self._networks.tenancy.is_outdated(self.name):
            return True
        return running is not None and runtime_part(running) != runtime_part(self.record.definition)

    @property
    def tenant(self) -> Tenant:
        """It as its network knows it."""
        record = self.record
        running = self.running.derive_network(record) if self.state.is_vmm_active else None
        use, lease = record.definition.network, record.lease
        return Tenant(record.name, record.id, record.uid, use, lease, running, record.short_name)

    @property
    def committed_memory(self) -> int:
        """Bytes of guest memory that are held for it now."""
        if not self.state.is_vmm_active:
            return 0
        return self.definition_in_use.memory

    @property
    def notes(self) -> BootNotes | None:
        """What was seen of its last boot."""
        return self._session.tracker.notes if self._session is not None else self._notes

    @property
    def exit_record(self) -> ExitRecord | None:
        """How its last run ended; None while one is on."""
        return None if self.state.is_vmm_active else self._exit

    def view(self) -> VmView:
        """A picture of it as it was last seen."""
        ended = self.exit_record
        notes = self.notes
        return VmView(
            id=self.record.id,
            name=self.name,
            origin=self.record.origin,
            definition=self.record.definition,
            state=self.state,
            state_error=self.state_error,
            status_text=self._activity or self._text,
            created_at=self.record.created_at,
            started_at=self._unit.started_at,
            stopped_at=None if ended is None else ended.ended_at,
            ready_ms=notes.ready_ms if notes is not None and self.state.is_vmm_active else None,
            exit=None if ended is None else ExitReport(ended.code, ended.message, ended.success),
            needs_restart=self.needs_restart,
            removed_from_config=self.removed,
            unit=self.unit,
            invocation_id=self.run,
            boot_id=self.boot,
            main_pid=self._unit.main_pid if self.state.is_vmm_active else None,
            uid=self.record.uid,
            memory_current=self._unit.memory_current if self.state.is_vmm_active else None,
            cpu_seconds=self._read_cpu_seconds(),
            current_phase_since=self._phases.since,
            kernel_headers=self._headers(),
            network=self._networks.view(self.tenant),
            phase_durations_ms=self._phases.list_ms(self.state, time.time()),
            operation=None if (ongoing := self.operations.current) is None else ongoing.info,
        )

    def _read_cpu_seconds(self) -> float | None:
        pid = self._unit.main_pid
        return read_cpu_seconds(pid) if pid is not None and self.state.is_vmm_active else None

    # evidence

    def attach(self) -> None:
        """Begin to follow the unit's properties."""
        self._services.units.watch(self.unit, self._take_signal)

    async def detach(self) -> None:
        """Follow nothing any more; the VM itself goes on."""
        self._services.units.unwatch(self.unit)
        await self._close_session()
        await self.files.flush_notes()
        await self._tasks.close()

    async def recover(self) -> None:
        """Learn the state that the VM is in when the daemon starts. That is no change, so it is not told.

        Where systemd does not answer, and when this fails or is cancelled, the VM is Unknown and holds all
        that a VM that runs holds, until a later `refresh` finds out.
        """
        self._recovering = True
        known = False
        try:
            await self.refresh()
            known = self._bus_up
            if self._session is not None:
                await self._session.connect_vmm(_RECOVER_DEADLINE)
            self._evaluate()
        finally:
            if not known:
                self._assume_live()
            self._recovering = False
        # the guest may have been paused, or gone on, while no daemon was there to say so
        self._tell_status()

    def _assume_live(self) -> None:
        self._bus_up, self._was_live, self._is_assumed = False, True, True
        self._evaluate()

    @property
    def is_known(self) -> bool:
        """Has systemd answered when it was asked last?"""
        return self._bus_up

    async def refresh(self, *, with_memory: bool = False, wait_vmm: bool = True) -> None:
        """Ask systemd and the VMM now. Without `wait_vmm` what the VMM said last will do for now: what it
        answers later, and that it does not, is a change like any other."""
        async with self._asking:
            self._stale = False
            was = None
            try:
                # asked again if systemd took a start meanwhile: the answer may be older than that
                while was is not self._unit:
                    was = self._unit
                    status = await self._services.units.status(self.unit, with_memory=with_memory)
                    found = await self._load_files(status)
            except BusError as error:
                _log.warning("VM %s: %s", self.name, error.message)
                found = await self._load_files(None)
                self._bus_up = False
                self.running.follow(found.definition, may_run=True)
            else:
                self._bus_up = True
                self._unit = status
                self._follow_unit(found)
                await self.running.learn_bound_files(self.record, self._services.units)
            if self._session is not None:
                await (self._session.query_status() if wait_vmm else self._session.query_status(0))
            self._evaluate()

    def _take_signal(self) -> None:
        """The unit's state may have changed. Signals that come while a refresh is under way are one more."""
        if not self._stale:
            self._stale = True
            self._tasks.start("refresh", self.refresh())

    def expect_boot(self, moments: Mapping[Moment, float], definition: Definition | None) -> None:
        """A start is under way: when it was asked for, and with what. None: it is not any more."""
        self._requested = dict(moments)
        self.running.definition = definition

    def take_start(self) -> None:
        """systemd has taken the job to start its unit: it need not be asked whether it has. What comes of
        that it signals."""
        self._unit = UnitStatus("activating", "queued")
        self._follow_unit(Found())  # nothing of its files is needed: `expect_boot` has told
        self._evaluate()
        self._take_signal()

    def add_moment(self, moment: Moment, at: float) -> None:
        """A step of the start that is under way has been made."""
        self._requested[moment] = at
        if self._session is not None:
            self._session.tracker.set_moment(moment, at)

    # consequences

    def _evaluate(self) -> None:
        session = self._session
        was_mute = session is not None and session.main_pid is None
        if session is not None:
            session.main_pid = self._unit.main_pid or session.main_pid
            if self._unit.active_state == "activating":
                tell_readiness(self.name, session)
            if self.is_ending and session.qmp_status.is_halted:
                session.let_end()
        evidence = derive_evidence(self._unit, session, bus_up=self._bus_up, guest_agent=self._guest_agent)
        derived = derive_state(evidence)
        if derived.state is State.RUNNING and session is not None and tell_running(self.name, session):
            work = register(self._services.bus, self.record, session, self._networks)
            self._tasks.start("machined", work)
        self._transit(derived)
        if session is not None and was_mute and self._unit.active_state == "activating":
            # what there was to say before, systemd could not be told
            tell_systemd(self.name, session, f"STATUS={self._text}")

    @property
    def _wants_headers(self) -> bool:
        return self.definition_in_use.kernel_headers

    def _headers(self) -> HeadersStatus | None:
        """How its kernel headers are; None where it has none, or does not run."""
        notes = self.notes
        if notes is None or not self._wants_headers or not self.state.is_vmm_active:
            return None
        return notes.headers

    @property
    def _guest_agent(self) -> bool:
        return self.definition_in_use.guest_agent

    async def _load_files(self, unit: UnitStatus | None) -> Found:
        """What `_follow_unit` will need of the files. None: systemd cannot be asked. Most often that is
        nothing, and no thread is asked."""
        definition = self.running.is_unknown and (unit is None or unit.is_live)
        exits = unit is not None and (self._has_ended(unit) or self._has_failed_unseen(unit))
        if not definition and not exits:
            return Found()
        return await run_in(Pool.RECORDS, self.files.load, definition=definition, exits=exits)

    def _has_ended(self, unit: UnitStatus) -> bool:
        return self._was_live and not unit.is_live

    def _has_failed_unseen(self, unit: UnitStatus) -> bool:
        """Has a run of it failed without a daemon?"""
        known = self._exit is not None and self._exit.run == unit.invocation_id
        return unit.active_state == "failed" and unit.invocation_id is not None and not known

    def _follow_unit(self, found: Found) -> None:
        """Open a session for an invocation that is new, close the one that is over, and when the unit has
        ended for good, take the record that it has left behind."""
        unit, session = self._unit, self._session
        self.running.follow(found.definition, may_run=unit.is_live)
        between = unit.active_state == "activating" and unit.sub_state.startswith("auto-restart")
        live = unit.is_live and unit.invocation_id is not None and not between
        if session is not None and (not live or unit.invocation_id != session.run):
            self._notes = session.tracker.notes
            self.files.keep_notes(self._notes, at_end=True)
            self._session = None
            self._closing = self._tasks.start("close", self._close(session, self._closing))
        failed = unit.active_state == "failed"
        if self._has_ended(unit):
            ended = unit.invocation_id or (None if self._notes is None else self._notes.run)
            if self._is_assumed:
                self._exit = derive_unseen_exit(found, self._notes)
            else:
                self._exit = derive_exit(found.exits, ended, failed=failed)
            self.running.definition = None
            self._closing = self._tasks.start("release", self._release(self._closing))
        elif self._has_failed_unseen(unit):
            self._exit = derive_exit(found.exits, unit.invocation_id, failed=True)
        self._was_live, self._is_assumed = unit.is_live, False
        if live and self._session is None and unit.active_state != "deactivating":
            self._open_session()

    def _derive_stop_time(self) -> float:
        """Since when it is stopped, should it be that. Now, when it ran and its end is not known."""
        if self._exit is not None:
            return self._exit.ended_at
        return self.record.created_at if self._notes is None else time.time()

    def _open_session(self) -> None:
        run = self._unit.invocation_id
        assert run is not None
        known = self._notes if self._notes is not None and self._notes.run == run else None
        tracker = make_tracker(run, self.places.runtime, self._unit, known, self._requested)
        self._requested = {}
        self._exit = None
        session = self._session = Session(
            self.name,
            tracker,
            self.places.runtime,
            self.record.uid,
            guest_agent=self._guest_agent,
            follow_journal=self._unit.active_state == "activating",
            catch_up=self._wants_headers and not tracker.headers.state.is_settled and known is not None,
            on_change=self._evaluate,
            on_loss=lambda: self._services.watcher.add(session),
            open_journal=self._services.open_journal,
            locate=self._locate_drive,
            notify=self._services.notify,
        )
        self._services.watcher.add(session)

    def _locate_drive(self, drive: str) -> tuple[str, Path] | None:
        """Of what it runs with: the volumes in the order of their drives."""
        if drive == DISK_DRIVE:
            return "its disk", self.places.disk
        number, volumes = volume_of_drive(drive), self.definition_in_use.volumes
        if number is None or number >= len(volumes):
            return None
        file = self._services.volume_disk(volumes[number].volume)
        return None if file is None else (f"its volume {volumes[number].volume}", file)

    def hold_deadline(self) -> None:
        """Let the deadline of its boot stand still for a while, if its guest does."""
        session = self._session
        if self._unit.active_state == "activating" and session is not None and session.qmp_status.is_halted:
            extend_boot(self.name, session, self.definition_in_use.boot_timeout)

    def _transit(self, derived: Derived) -> None:
        """Take the new state; tell whoever wants to know if that, or its text, is another one."""
        old, old_text = self._derived.state, self._text
        notes = self.notes
        ready = notes.ready_ms if notes is not None else None
        ended = self._exit.message if self._exit is not None else None
        self._derived = derived
        self._text = derive_status_text(derived, guest_agent=self._guest_agent, ready_ms=ready, result=ended)
        if self._session is not None:
            self.files.keep_notes(self._session.tracker.notes)
        if self._text == old_text and derived.state is old:
            return
        if derived.state is not old:
            # systemd's own time of the change, unless this change is none of the unit's or not seen there yet
            changed = self._unit.changed_at or 0.0
            now = changed if changed > self._phases.since or self._recovering else time.time()
            self._phases.end(old, now)
            self._services.on_change()
            if not self._recovering:
                log_state_change(
                    self.name, self.record.id, old, derived.state, self._text, derived.state_error
                )
        self._tell_status()
        self.hold_deadline()
        self.changes.tell()

    def _tell_status(self) -> None:
        """`systemctl status` says what is going on: of a boot all, later whether the guest runs."""
        unit, stands = self._unit.active_state, self.state in (State.RUNNING, State.PAUSED)
        told = unit == "activating" or (unit == "active" and stands and not self._recovering)
        if told and self._session is not None:
            tell_systemd(self.name, self._session, f"STATUS={self._text}")

    async def _close(self, session: Session, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        await session.close()

    async def _release(self, before: asyncio.Task[None] | None) -> None:
        """Give back what was held for a run."""
        if before is not None:
            await asyncio.wait([before])
        detaching = self._tasks.start("network", self._networks.detach(self.name))
        # a network service that hangs must not hold up an end; the next start waits for its turn there
        await asyncio.wait([detaching], timeout=_DETACH_DEADLINE)
        await run_in(Pool.STARTS, self.files.remove_runtime)
        await self.release_handle()

    async def release_handle(self) -> None:
        """Stop the hypeman@ unit of a VM that has ended, and that is not about to run again."""
        if not self._keeps_handle:
            await self.handle.release(lambda: self._unit.is_live or self._keeps_handle)

    @property
    def _keeps_handle(self) -> bool:
        current = self.operations.current
        return current is not None and current.keeps_handle

    async def settle(self) -> None:
        """Wait until all that a run has held is given back."""
        while self._closing is not None and not self._closing.done():
            await asyncio.wait([self._closing])

    async def _close_session(self) -> None:
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()

    # waiting

    async def views(self) -> AsyncIterator[VmView]:
        """Its picture now and after each change, until it is deleted. A reader that is slow sees the
        latest picture, not each."""
        with self.changes.watching() as changed:
            while not self.operations.closed:
                changed.clear()
                yield self.view()
                await changed.wait()

    def mark_deleted(self) -> None:
        """It is gone: those who wait for it are told."""
        self.operations.close()
        self.changes.tell()

    def say(self, activity: str) -> None:
        """What it waits for before there is a unit that could tell; "" for nothing any more."""
        if activity != self._activity:
            self._activity = activity
            self.changes.tell()

    def log(self, level: int, message: str, message_id: MessageId | None = None, **fields: str) -> None:
        """A journal entry about it."""
        log_vm(level, message, self.name, self.record.id, message_id, **fields)
