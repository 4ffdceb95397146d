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
from hypemand.model.evidence import Derived, derive_state, derive_status_text
from hypemand.model.state import HeadersStatus, Origin, State
from hypemand.model.vm import ExitReport, VmView
from hypemand.systemd.bus import BusError
from hypemand.systemd.log import MessageId, log_state_change, log_vm
from hypemand.systemd.units import UnitStatus
from hypemand.tasks import Tasks
from hypemand.unitnames import unit_name
from hypemand.vm.changes import Changes
from hypemand.vm.evidence import derive_evidence
from hypemand.vm.exitrecord import ExitRecord
from hypemand.vm.handle import Handle
from hypemand.vm.networkmember import NetworkHost, NetworkMember
from hypemand.vm.notifications import extend_boot, mark_running, notify_ready, notify_systemd, register
from hypemand.vm.operation import Operations
from hypemand.vm.phases import Phases
from hypemand.vm.places import Places
from hypemand.vm.record import VmRecord
from hypemand.vm.runfiles import Found, Past
from hypemand.vm.running import runtime_part
from hypemand.vm.runs import Owner, Runs, VmServices
from hypemand.vm.session import Session
from hypemand.vmm.process import read_cpu_seconds
from hypemand.workers import Pool, run_in

_log = logging.getLogger(__name__)
_RECOVER_DEADLINE = 1.0
_DETACH_DEADLINE = 5.0


class Vm:
    """A VM that is defined; `past`: records of its runs before. `record` is what was defined; all else
    follows from evidence. `removed`: its file is gone."""

    def __init__(
        self, record: VmRecord, places: Places, services: VmServices, network: NetworkHost, past: Past
    ) -> None:
        self.record = record
        self.removed = False
        self.places = places
        self.changes = Changes()
        self.operations = Operations(record.name, self.changes.tell)
        self._services = services
        self._network = network
        self._tasks = Tasks(record.name)
        owner = Owner(record.name, record.uid, places, self._get_definition, self._evaluate, self._release)
        self.runs = Runs(owner, services, self._tasks, past)
        self.handle = Handle(
            record.name, services.units, self._tasks, places.handles, self._needs_handle, self.refresh
        )
        self._unit = UnitStatus(None)
        self._bus_up = True
        self._derived = Derived(State.STOPPED)
        self._text = ""
        self._activity = ""
        self._phases = Phases(self.runs.derive_stop_time(record.created_at))
        self._asking = asyncio.Lock()
        self._stale = False
        self._recovering = False

    def _get_definition(self) -> Definition:
        return self.record.definition

    # what it is

    def take_record(self, record: VmRecord) -> None:
        """It is another one than before."""
        self.record = record

    def set_removed(self, removed: bool) -> None:
        """Is the file that defines it gone?"""
        if removed is not self.removed:
            self.removed = removed
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
        running = self.runs.running.definition
        return running is not None and runtime_part(running) != runtime_part(self.record.definition)

    @property
    def network_member(self) -> NetworkMember:
        """It as its network knows it."""
        record = self.record
        running = self.runs.running.derive_network(record) if self.state.is_vmm_active else None
        use, lease = record.definition.network, record.lease
        return NetworkMember(record.name, record.id, record.uid, use, lease, running, record.short_name)

    @property
    def committed_memory(self) -> int:
        """Bytes of guest memory that are held for it now."""
        if not self.state.is_vmm_active:
            return 0
        return self.runs.definition.memory

    @property
    def exit_record(self) -> ExitRecord | None:
        """How its last run ended; None while one is on."""
        return None if self.state.is_vmm_active else self.runs.exit

    def view(self) -> VmView:
        """A picture of it as it was last seen."""
        ended = self.exit_record
        notes = self.runs.notes
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
            network=self._network.view(self.network_member),
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
        self.handle.attach()

    async def detach(self) -> None:
        """Follow nothing any more; the VM itself goes on."""
        self._services.units.unwatch(self.unit)
        self.handle.detach()
        await self.runs.detach()
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
            if self.session is not None:
                await self.session.connect_vmm(_RECOVER_DEADLINE)
            self._evaluate()
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
                    found = await self.runs.load(status)
            except BusError as error:
                _log.warning("VM %s: %s", self.name, error.message)
                found = await self.runs.load(None)
                self._bus_up = False
                self.runs.running.follow(found.definition, may_run=True)
            else:
                self._bus_up = True
                self._unit = status
                self.runs.follow(status, found)
                await self.runs.running.learn_bound_files(self.record, self._services.units)
            if self.session is not None:
                await (self.session.query_status() if wait_vmm else self.session.query_status(0))
            self._evaluate()

    def _take_signal(self) -> None:
        """The unit's state may have changed. Signals that come while a refresh is under way are one more."""
        if not self._stale:
            self._stale = True
            self._tasks.start("refresh", self.refresh())

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
            session.main_pid = self._unit.main_pid or session.main_pid
            if self._unit.active_state == "activating":
                notify_ready(self.name, session)
            if self.is_ending and session.run_state.is_halted:
                session.let_end()
        evidence = derive_evidence(self._unit, session, bus_up=self._bus_up, guest_agent=self._guest_agent)
        derived = derive_state(evidence)
        if derived.state is State.RUNNING and session is not None and mark_running(self.name, session):
            work = register(self._services.bus, self.record, session, self._network)
            self._tasks.start("machined", work)
            self._tasks.start("handle's look", self.handle.look())
        self._transit(derived)
        if session is not None and was_mute and self._unit.active_state == "activating":
            # what there was to say before, systemd could not be told
            notify_systemd(self.name, session, f"STATUS={self._text}")

    def _headers(self) -> HeadersStatus | None:
        """How its kernel headers are; None where it has none, or does not run."""
        notes = self.runs.notes
        if notes is None or not self.runs.definition.kernel_headers or not self.state.is_vmm_active:
            return None
        return notes.headers

    @property
    def _guest_agent(self) -> bool:
        return self.runs.definition.guest_agent

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
        self._text = derive_status_text(derived, guest_agent=self._guest_agent, ready_ms=ready, result=ended)
        if self.session is not None:
            self.runs.files.keep_notes(self.session.tracker.notes)
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
        if told and self.session is not None:
            notify_systemd(self.name, self.session, f"STATUS={self._text}")

    async def _release(self) -> None:
        detaching = self._tasks.start("network", self._network.detach(self.name))
        # a network service that hangs must not hold up an end; the next start waits for its turn there
        await asyncio.wait([detaching], timeout=_DETACH_DEADLINE)
        await run_in(Pool.STARTS, self.runs.files.remove_runtime)
        await self.handle.release()

    @property
    def has_handle(self) -> bool:
        """Is its hypeman@ unit to be active while it is? Not of a VM that works for the daemon."""
        return self.record.origin is not Origin.HELPER

    def _needs_handle(self) -> bool:
        is_live = self._bus_up and self._unit.is_live and not self.is_ending
        return is_live and self.has_handle and not self.operations.closed

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
        """It is deleted: end the waits for it."""
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
