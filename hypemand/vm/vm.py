# SPDX-License-Identifier: Apache-2.0
"""One VM: its current state, and the reactions to changes.

Evidence comes in from systemd's signals, from the VMM's sockets and from the journal; the state is derived
from it each time. Transitions are seen and told in one place, `_evaluate`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator

from hypemand.config.definition import Definition
from hypemand.model.events import Details, Event
from hypemand.model.evidence import Derived, derive_state, derive_status_text, describe_check
from hypemand.model.state import Origin, State
from hypemand.model.vm import ExitReport, RestartStatus, RunReport, VmView
from hypemand.systemd.bus import BusError
from hypemand.systemd.log import MessageId, log_vm
from hypemand.systemd.units import UnitStatus, UnitWatch
from hypemand.tasks import Tasks
from hypemand.unitnames import unit_name
from hypemand.vm.changes import Changes
from hypemand.vm.evidence import derive_evidence
from hypemand.vm.exitrecord import ExitRecord
from hypemand.vm.handle import Handle
from hypemand.vm.happenings import Happenings, log_change
from hypemand.vm.health import HealthMonitor
from hypemand.vm.networkmember import NetworkHost, NetworkMember
from hypemand.vm.notifications import extend_boot, mark_running, notify_ready, notify_systemd, register
from hypemand.vm.operation import Operations
from hypemand.vm.pending import describe_changes
from hypemand.vm.phases import Phases
from hypemand.vm.places import Places
from hypemand.vm.record import VmRecord
from hypemand.vm.runfiles import Found, Past
from hypemand.vm.running import is_outdated
from hypemand.vm.runs import Owner, Runs, VmServices
from hypemand.vm.session import Session
from hypemand.vm.stability import Stability
from hypemand.vm.standby import Standby
from hypemand.vmm.process import read_cpu_seconds
from hypemand.workers import Pool, run_in

_log = logging.getLogger(__name__)
_RECOVER_DEADLINE = 1.0
_DETACH_DEADLINE = 5.0
# questions in a row that systemd leaves without an answer until a state that was known is Unknown, and
# seconds between them
_TRIES, _PAUSE, _LONGEST_PAUSE = 3, 1.0, 30.0


class Vm:
    """A VM that is defined; `past`: records of its runs before. `record` is what was defined; all else
    follows from evidence. `removed`: its file is gone."""

    def __init__(
        self, record: VmRecord, places: Places, services: VmServices, network: NetworkHost, past: Past
    ) -> None:
        self.record = record
        self.removed = False
        self.definition_file: str | None = None
        self.has_stale_definition = False
        self.places = places
        self.changes = Changes()
        self.operations = Operations(record.name, self.changes.tell)
        self._services = services
        self._network = network
        self._tasks = Tasks(record.name)
        self._happenings = Happenings(self.tell)
        owner = Owner(record.name, record.uid, places, self._get_definition, self._evaluate, self._release)
        self.runs = Runs(owner, services, self._tasks, past)
        self.handle = Handle(
            record.name, services.units, self._tasks, places.handles, self._needs_handle, self.refresh
        )
        self.standby = Standby(record.name, places.state, past.kept, self._tasks)
        self._stability = Stability(self.unit, services.units, self._tasks, self.runs, self._evaluate)
        find_program, told = services.find_program, self.changes.tell
        self.health = HealthMonitor(
            lambda: self.record, self.runs, self._tasks, find_program, told, self.tell
        )
        self._unit = UnitStatus(None)
        self._watch = UnitWatch(self._take_signal)
        self._bus_up = True
        self._derived = Derived(State.STANDBY if self.standby.is_there else State.STOPPED)
        self._text = ""
        self._activity = ""
        # the run whose end the journal has
        self._logged_end = None if past.exit is None else past.exit.run
        self._phases = Phases(self.runs.derive_stop_time(record.created_at))
        self._asking = asyncio.Lock()
        self._stale = False
        self._failures = 0
        self._next_look: asyncio.Task[None] | None = None
        self._recovering = False

    def _get_definition(self) -> Definition:
        return self.record.definition

    # what it is

    def take_record(self, record: VmRecord) -> None:
        """It is another one than before."""
        self.record = record
        self.health.follow(self.state, self._unit.started_at)

    def set_removed(self, removed: bool) -> None:
        """Is the file that defines it gone?"""
        if removed is not self.removed:
            self.removed = removed
            self.changes.tell()

    def set_file(self, file: str | None, *, stale: bool) -> None:
        """The file that defines it, and is that another one than was loaded?"""
        self.definition_file = file
        if stale is not self.has_stale_definition:
            self.has_stale_definition = stale
            self.changes.tell()

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
    def is_booting(self) -> bool:
        """Is its unit being started, and not kept waiting: by other units, until a restart, or for space on a
        disk?"""
        unit, session = self._unit, self.session
        stands = session is not None and session.run_state.is_halted
        waits = bool(unit.waits_for) or unit.sub_state.startswith("auto-restart") or stands
        return unit.active_state == "activating" and not waits

    @property
    def has_unit(self) -> bool:
        """Does systemd have a unit of it, be it one that has failed?"""
        return self._unit.active_state is not None

    @property
    def session(self) -> Session | None:
        """The connections to its VMM, while there is one."""
        return self.runs.session

    @property
    def run(self) -> str | None:
        """The id of the run that is on: the invocation id of its unit."""
        return self.session.run if self.session is not None else None

    @property
    def boot(self) -> str | None:
        """The id of the boot that is on, as soon as that is known."""
        return self.session.boot if self.session is not None else None

    @property
    def needs_restart(self) -> bool:
        """Does it run with another definition than the one it has now, or on a network that is to change?"""
        if not self.state.is_vmm_active:
            return False
        if self._network.is_outdated(self.name):
            return True
        running = self._running
        return running is not None and is_outdated(running, self.record.definition)

    @property
    def _running(self) -> Definition | None:
        """What it runs with, as far as that is known."""
        return self.runs.running.definition if self.state.is_vmm_active else None

    def _describe_changes(self) -> tuple[str, ...]:
        running = self._running
        changes = () if running is None else describe_changes(running, self.record.definition)
        return (*changes, "network configuration") if self._network.is_outdated(self.name) else changes

    @property
    def network_member(self) -> NetworkMember:
        """It as its network knows it."""
        record = self.record
        running = self.runs.running.derive_network(record) if self.state.is_vmm_active else None
        use, lease = record.definition.network, record.lease
        return NetworkMember(record.name, record.id, record.uid, use, lease, running, record.short_name)

    @property
    def held(self) -> Definition | None:
        """The definition whose CPUs and memory are held for it now; None: nothing is."""
        return self.runs.definition if self.state.is_vmm_active else None

    @property
    def exit_record(self) -> ExitRecord | None:
        """How its last run ended; None while one is on."""
        return None if self.state.is_vmm_active else self.runs.exit

    def view(self) -> VmView:
        """A picture of it as it was last seen."""
        ended = self.exit_record
        notes, pid = self.runs.notes, self._unit.main_pid if self.state.is_vmm_active else None
        return VmView(
            id=self.record.id,
            name=self.name,
            origin=self.record.origin,
            definition=self.record.definition,
            state=self.state,
            state_error=self.state_error,
            status_text=self._activity or self._text,
            created_at=self.record.created_at,
            started_at=(None if notes is None else notes.booted_at) or self._unit.started_at,
            stopped_at=None if ended is None else ended.ended_at,
            ready_ms=notes.ready_ms if notes is not None and self.state.is_vmm_active else None,
            exit=None if ended is None else ExitReport(ended.code, ended.message, ended.success),
            needs_restart=(needs_restart := self.needs_restart),
            running=self._running,
            changes=self._describe_changes() if needs_restart else (),
            needs_reload=self.has_stale_definition,
            definition_file=self.definition_file,
            removed_from_config=self.removed,
            expires_at=self.record.expires_at,
            unit=self.unit,
            invocation_id=self.run,
            boot_id=self.boot,
            main_pid=pid,
            uid=self.record.uid,
            memory_current=self._unit.memory_current if self.state.is_vmm_active else None,
            cpu_seconds=None if pid is None else read_cpu_seconds(pid),
            current_phase_since=self._phases.since,
            kernel_headers=self.runs.headers if self.state.is_vmm_active else None,
            network=self._network.view(self.network_member),
            phase_durations_ms=self._phases.list_ms(self.state, time.time()),
            restart=self._derive_restart(),
            health=self.health.status,
            operation=self.operations.shown,
            saved=self.standby.view() if self.state is State.STANDBY else None,
        )

    def _derive_restart(self) -> RestartStatus | None:
        unit = self._unit
        return self.runs.derive_restart(
            started_at=unit.started_at,
            is_running=self.state in (State.RUNNING, State.PAUSED),
            failed=unit.active_state == "failed",
        )

    async def list_runs(self) -> list[RunReport]:
        """Its last runs, the oldest first."""
        return await self.runs.list_runs(self._unit.started_at)

    # evidence

    def attach(self) -> None:
        """Begin to follow the unit's properties."""
        self._services.units.watch(self.unit, self._watch)
        self.handle.attach()

    async def detach(self) -> None:
        """Follow nothing any more; the VM itself goes on."""
        self._services.units.unwatch(self.unit)
        self.handle.detach()
        self._stability.close()
        self.health.close()
        await self.runs.detach()
        await self._tasks.close()
        await self.standby.free_memory()

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
            if self.session is not None:
                await self.session.connect_vmm(_RECOVER_DEADLINE)
            self._evaluate()
            if known and self.state is State.STOPPED:
                await self.runs.note_lost_end()
        finally:
            if not known:
                self._assume_live()
            self._recovering = False
        # the guest may have been paused, or gone on, while no daemon was there to say so
        self._tell_status()

    def _assume_live(self) -> None:
        self._bus_up = False
        self.runs.assume_live()
        self._evaluate()

    @property
    def is_known(self) -> bool:
        """Has systemd answered when it was asked last?"""
        return self._bus_up

    async def refresh(
        self, *, with_memory: bool = False, wait_vmm: bool = True, patient: bool = False
    ) -> None:
        """Ask systemd and the VMM now. Without `wait_vmm` what the VMM said last will do for now: what it
        answers later, and that it does not, is a change like any other. `patient`: for what is only shown, a
        systemd that is slow is asked again some times, and until then the VM is what it was. Who decides
        something has to know it."""
        async with self._asking:
            self._stale = False
            was = None
            try:
                with self._watch.asking():
                    # asked again if systemd took a start meanwhile: the answer may be older than that
                    while was is not self._unit:
                        was = self._unit
                        asked = await self._services.units.status(self.unit, with_memory=with_memory)
                        self._watch.take_answer(asked)
                        status = self.runs.date(asked)
                        await self.runs.count_restarts(status)
                        found = await self.runs.load(status)
                        if not status.is_live:
                            await self.standby.learn_end(self.runs.notes)
            except BusError as error:
                _log.warning("VM %s: %s", self.name, error.message)
                self._failures += 1
                if patient and not error.gone:
                    self._ask_again()
                    if self._bus_up and self._failures < _TRIES:
                        return
                found = await self.runs.load(None)
                self._bus_up = False
                self.runs.running.follow(found.definition, may_run=True)
            else:
                self._bus_up, self._failures = True, 0
                self._unit = status
                self.runs.follow(status, found)
                self.standby.meet(self.session, is_activating=status.active_state == "activating")
                await self.runs.running.learn_bound_files(self.record, self._services.units)
            if self.session is not None:
                await (self.session.query_status() if wait_vmm else self.session.query_status(0))
            self._evaluate()

    def _take_signal(self, active_state: str = "") -> None:
        """The unit's state may have changed, to that. Signals that come while a refresh is under way are one
        more."""
        is_saved = self.session is not None and self.standby.has_saved(self.session)
        is_ending = active_state == "deactivating" and self.is_ending
        if is_ending or (is_saved and active_state in ("active", "deactivating")):
            # a step of its end, of which nothing follows: the last one leads to another state
            return
        if not self._stale:
            self._stale = True
            self._tasks.start("refresh", self.refresh(patient=True))

    def _ask_again(self) -> None:
        if self._next_look is None or self._next_look.done():
            self._next_look = self._tasks.start("next look", self._look_later())

    async def _look_later(self) -> None:
        """Until systemd has answered. A bus that is gone says itself when it is back."""
        while self._failures:
            await asyncio.sleep(min(_PAUSE * 2 ** min(self._failures - 1, 5), _LONGEST_PAUSE))
            await self.refresh(patient=True)

    def take_start(self) -> None:
        """systemd has taken the job to start its unit: it need not be asked whether it has. What comes of
        that it signals."""
        self._unit = UnitStatus("activating", "queued")
        if self.has_handle:
            self._tasks.start("handle", self.handle.follow())
        self.runs.follow(self._unit, Found())  # nothing of its files is needed: `Runs.expect` has told
        self._evaluate()
        self._take_signal()

    # consequences

    def _evaluate(self) -> None:
        session = self.session
        was_mute = session is not None and session.main_pid is None
        if session is not None:
            session.take_main_pid(self._unit.main_pid)
            if self._unit.active_state == "activating":
                notify_ready(self.name, session)
            session.follow_end(is_activating=self._unit.active_state == "activating")
            if self.is_ending and session.run_state.is_halted and not self.standby.holds(session):
                session.let_end()
        needed = self.runs.definition
        evidence = derive_evidence(
            self._unit,
            session,
            bus_up=self._bus_up,
            guest_agent=needed.guest_agent,
            ready=needed.ready is not None,
            has_snapshot=self.standby.is_there,
        )
        derived = derive_state(evidence)
        is_new = derived.state is State.RUNNING and session is not None and mark_running(self.name, session)
        if session is not None and (is_new or session.registered not in (None, session.main_pid)):
            session.registered = session.main_pid
            work = register(self._services.bus, self.record, session, self._network)
            self._tasks.start("machined", work)
        if is_new:
            self._tasks.start("handle's look", self.handle.look())
        self._transit(derived)
        activating = self._unit.active_state == "activating"
        self.standby.follow(session, is_activating=activating, is_running=derived.state is State.RUNNING)
        self.health.follow(derived.state, self._unit.started_at)
        self._stability.follow(derived.state, self._unit.changed_at)
        if session is not None and self._is_to_announce(session, derived.state):
            session.announce()
        if session is not None and is_new and not self._recovering:
            self._happenings.take_ready(self.runs.start, session.tracker.notes)
        if session is not None and was_mute and self._unit.active_state == "activating":
            # what there was to say before, systemd could not be told
            notify_systemd(self.name, session, f"STATUS={self._text}")

    def _is_to_announce(self, session: Session, state: State) -> bool:
        """May its guest announce itself, as on a LAN? One that is restored may be getting other addresses
        until it is Running, and an announcement then would hold up its kernel for ever (`warm_arguments`)."""
        settled = session.resumption is None or state is State.RUNNING
        return settled and bool(session.tracker.markers) and self._network.is_on_lan(self.name)

    def hold_deadline(self) -> None:
        """Let the deadline of its boot stand still for a while, if its guest does."""
        session = self.session
        if self._unit.active_state == "activating" and session is not None and session.run_state.is_halted:
            extend_boot(self.name, session, self.runs.definition.boot_timeout)

    def _transit(self, derived: Derived) -> None:
        """Take the new state; tell whoever wants to know if that, or its text, is another one."""
        old, old_text = self._derived.state, self._text
        notes = self.runs.notes
        ready = notes.ready_ms if notes is not None else None
        ended = self.runs.exit.message if self.runs.exit is not None else None
        self._derived = derived
        restart = self._derive_restart()
        definition = self.runs.definition
        waiting = None if notes is None else notes.waiting
        check = "" if definition.ready is None else describe_check(definition.ready.words, waiting)
        self._text = derive_status_text(
            derived,
            guest_agent=definition.guest_agent,
            check=check,
            ready_ms=ready,
            result=ended,
            restart=restart.text if restart is not None else "",
            waits_for=self._unit.waits_for,
            saving=self.standby.is_saving,
        )
        if self.session is not None:
            self.runs.files.keep_notes(self.session.tracker.notes)
        end = self.runs.last_end
        has_ended = end is not None and end.run != self._logged_end
        if not self._recovering:
            self._happenings.take(end if has_ended else None, old, derived, self._text, self.runs)
        if self._text == old_text and derived.state is old and not has_ended:
            return
        self._logged_end = None if end is None else end.run
        if derived.state is not old:
            # systemd's own time of the change, unless this change is none of the unit's or not seen there yet
            changed = self._unit.changed_at or 0.0
            now = changed if changed > self._phases.since or self._recovering else time.time()
            self._phases.end(old, now)
            self._services.on_change()
        if (derived.state is not old or has_ended) and not self._recovering:
            log_change(self.record, old, derived, self._text, end if has_ended else None)
        self._tell_status()
        self.hold_deadline()
        self.changes.tell()

    def _tell_status(self) -> None:
        """`systemctl status` says what is going on: of a boot all, later whether the guest runs."""
        unit, stands = self._unit.active_state, self.state in (State.RUNNING, State.PAUSED)
        told = unit == "activating" or (unit == "active" and stands and not self._recovering)
        if told and self.session is not None:
            notify_systemd(self.name, self.session, f"STATUS={self._text}")

    async def _release(self) -> None:
        detaching = self._tasks.start("network", self._network.detach(self.name))
        # a network service that hangs must not hold up an end; the next start waits for its turn there
        await asyncio.wait([detaching], timeout=_DETACH_DEADLINE)
        await run_in(Pool.STARTS, self.runs.files.remove_runtime)
        await self.handle.release(succeeded=self._unit.active_state in ("inactive", None))

    @property
    def has_handle(self) -> bool:
        """Is its hypeman@ unit to be active while it is? Not of a VM that works for the daemon."""
        return self.record.origin is not Origin.HELPER

    def _needs_handle(self) -> bool:
        is_live = self._bus_up and self._unit.is_live and not self.is_ending
        is_saved = self.session is not None and self.standby.has_saved(self.session)
        return is_live and not is_saved and self.has_handle and not self.operations.closed

    # waiting

    async def views(self) -> AsyncIterator[VmView]:
        """Its picture now and after each change, until it has gone. Who reads slowly sees the latest."""
        with self.changes.watching() as changed:
            while not self.operations.closed:
                changed.clear()
                yield self.view()
                await changed.wait()

    def mark_gone(self, gone: str) -> None:
        """It has "been deleted", or the like: end the waits for it."""
        self.operations.close(gone)
        self.changes.tell()

    def say(self, activity: str) -> None:
        """What it waits for before there is a unit that could tell; "" for nothing any more."""
        if activity != self._activity:
            self._activity = activity
            self.changes.tell()

    def tell(self, details: Details, message: str) -> None:
        """An event about it."""
        self._services.tell_event(Event(details, message, self.name, self.record.id))

    def log(self, level: int, message: str, message_id: MessageId | None = None, **fields: str) -> None:
        """A journal entry about it."""
        log_vm(level, message, self.name, self.record.id, message_id, **fields)
