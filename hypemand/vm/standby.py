# SPDX-License-Identifier: Apache-2.0
"""A VM that is put into Standby, and goes on from it. Of the files: `standbyfiles`."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hypemand.config.definition import Definition
from hypemand.errors import HypemandError
from hypemand.fulldisk import name_full_disk
from hypemand.model.compression import CompressionView
from hypemand.model.evidence import RunState
from hypemand.model.vm import SavedView
from hypemand.tasks import Tasks, finish
from hypemand.vm.record import Lease
from hypemand.vm.saved import (
    MEMORY,
    STATE,
    FileMark,
    SavedRun,
    hash_state,
    mark_files,
    measure_stored,
    open_new,
    store_saved,
)
from hypemand.vm.session import Resumption, Session
from hypemand.vm.standbyfiles import Kept, begin_restore, drop_saved, drop_used, load_standby, settle_restore
from hypemand.vm.tracker import BootNotes
from hypemand.vmm.build import VmmBuild
from hypemand.vmm.driver import VmmError
from hypemand.workers import Pool, run_in

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SaveFacts:
    """With what a VM runs that is saved. `image`: the digest of its content; `files`: all that its devices
    are of, on the host."""

    vm_id: str
    definition: Definition
    image: str
    build: VmmBuild
    started_at: float | None
    lease: Lease | None
    files: Sequence[Path]


async def write_save(
    session: Session, folder: Path, size: int, ready: asyncio.Task[SaveFacts], deadline: float
) -> None:
    """Write a VM of `size` bytes of memory to a folder, all of it, durably, once it is `ready`: it stands
    still, and its facts are known. VmmError, OSError, InsufficientResources, and what `ready` fails with."""
    boot = session.boot
    if boot is None:
        raise VmmError("it is not known which boot of the guest this is")
    memory = folder / MEMORY
    fds = await run_in(Pool.TOOLS, open_new, (memory, folder / STATE))
    try:
        await session.save(*fds, size=size, deadline=deadline, ready=ready)
    finally:
        for fd in fds:
            os.close(fd)
    facts = await ready

    def finish_save() -> None:
        with name_full_disk(f"save VM {facts.definition.name}", folder):
            saved = SavedRun(
                run=session.run,
                vm_id=facts.vm_id,
                boot=boot,
                next_boot=boot,
                saved_at=time.time(),
                started_at=facts.started_at,
                build=facts.build,
                definition=facts.definition,
                image=facts.image,
                lease=facts.lease,
                notes=session.tracker.notes,
                files=mark_files(facts.files),
                memory=FileMark.of(memory),
                state=hash_state(folder),
                stored=measure_stored(folder),
            )
            store_saved(folder, saved)

    await run_in(Pool.TOOLS, finish_save)


class Standby:
    """What the VM of that folder goes on from. `saved`: what it is in Standby with, or will be when its run
    has ended; `problem`: why what is there cannot be read; `used`: what its run was restored from, until it
    is Running. `is_cut_off`: a save was, by the end of a daemon; `was_running`: the guest is to run on.
    `is_doubled`: a compression was; `compression`: how far one is, None: as the record says."""

    def __init__(self, name: str, state: Path, kept: Kept, tasks: Tasks) -> None:
        self.saved, self.problem = kept.saved, kept.problem
        self.used = kept.used
        self.is_cut_off = kept.is_cut_off
        self.was_running = kept.was_running
        self.is_doubled = kept.is_doubled
        self.compression: CompressionView | None = None
        self._state = state
        self._tasks = tasks
        self._name = name
        self.is_saving = False
        # the session whose guest is being resumed
        self._resuming: Session | None = None
        self._met: Session | None = None
        self._judged: tuple[SavedRun, str] | None = None
        # keeps the memory that the run has mapped (`drop_used`)
        self._held: int | None = None
        self._mapping: Session | None = None  # whose run has that mapped

    @contextmanager
    def saving(self) -> Iterator[None]:
        """It is being saved in the block: its guest is not to run on before that is over."""
        self.is_saving = True
        try:
            yield
        finally:
            self.is_saving = False

    def has_saved(self, session: Session) -> bool:
        """Is this the run that was saved, so that its guest is not to run any more?"""
        return self.saved is not None and self.saved.run == session.run

    def holds(self, session: Session) -> bool:
        """Is the guest of this run to stand still, also where its unit ends?"""
        return self.is_saving or self.has_saved(session)

    @property
    def is_there(self) -> bool:
        """Is there something to go on from, even if that cannot be read?"""
        return self.saved is not None or bool(self.problem)

    def judge(self, saved: SavedRun, problem: str) -> None:
        """Note why it cannot go on from that; "": no reason is known."""
        self._judged = saved, problem

    def find_problem(self) -> str:
        """Why it cannot go on, in words, as noted last; "": no reason is known."""
        judged = self._judged is not None and self._judged[0] is self.saved
        return self.problem or (self._judged[1] if judged and self._judged is not None else "")

    def view(self) -> SavedView:
        """It as clients see it."""
        problem = self.find_problem() or None
        if self.saved is None:
            return SavedView(None, None, problem)
        compression = self.compression or self.saved.view_compression()
        return SavedView(self.saved.saved_at, self.saved.stored, problem, compression)

    def take(self, saved: SavedRun) -> None:
        """It goes on from this."""
        self.saved, self.problem, self.compression = saved, "", None

    def meet(self, session: Session | None, *, is_activating: bool) -> None:
        """A run is on that may be a restore: its agent answers to what that was saved with, and when its
        guest runs. It is spoken to when it is known which boot this is."""
        if self._held is not None and session is not self._mapping:
            self._tasks.start("release of its memory", self.free_memory())
        origin = self.used or self.saved
        waits = session is not None and session is not self._met and is_activating
        if session is not None and waits and origin is not None and origin.run != session.run:
            self._met = session
            session.hold_guest("the VM is being restored")

    def follow(self, session: Session | None, *, is_activating: bool, is_running: bool) -> None:
        """Have a guest go on that was restored, when its VMM has loaded it; and remove what it was restored
        from when its VM is Running."""
        if session is None or session.boot is None:
            return
        if self.used is not None and is_running:
            self._mapping = session
            self._remove_used()
            return
        origin = self.used or self.saved
        if not is_activating or origin is None or origin.run == session.run:
            return
        if session.boot != origin.next_boot:
            session.return_to_guest()
        elif self._resuming is not session and session.run_state in (RunState.PAUSED, RunState.RUNNING):
            self._resuming = session
            self._tasks.start("restore", self._resume(session, origin))

    async def _resume(self, session: Session, origin: SavedRun) -> None:
        session.resumption = Resumption(origin.boot, origin.fork)
        try:
            # before that is so: should the run end meanwhile, `learn_end` looks what there is
            self.saved, self.used = None, origin
            await run_in(Pool.RECORDS, begin_restore, self._state)
            if session.run_state is RunState.PAUSED:
                await session.resume()
        except (OSError, VmmError, HypemandError) as error:
            # systemd ends it, when its time is over
            _log.error("VM %s: cannot resume what was restored: %s", self._name, error)
            return
        session.resume_boot(origin.notes, origin.started_at)
        session.return_to_guest()

    def _remove_used(self) -> None:
        self.used = None
        self._tasks.start("removal of what it was restored from", self._drop_used())

    async def _drop_used(self) -> None:
        await self.free_memory()
        await finish(self._hold_memory(), f"removal of what {self._name} was restored from")

    async def _hold_memory(self) -> None:
        self._held = await run_in(Pool.TOOLS, drop_used, self._state)

    async def free_memory(self) -> None:
        """Give back the memory that a run had mapped, which is over or followed no more."""
        held, self._held = self._held, None
        if held is not None:
            await finish(run_in(Pool.TOOLS, os.close, held), f"release of memory of {self._name}")

    async def learn_end(self, notes: BootNotes | None) -> None:
        """No run is on: what one was restored from may be there again. Its unit has seen to that, unless the
        host went down with it. `notes`: of the last run."""
        if self.used is None:
            return
        self.used = None
        self.saved, self.problem = await run_in(Pool.RECORDS, self._settle, notes)

    def _settle(self, notes: BootNotes | None) -> tuple[SavedRun | None, str]:
        try:
            settle_restore(self._state, notes, is_stopped=False)
        except OSError as error:
            _log.error("VM %s: what it was restored from is left: %s", self._name, error)
        return load_standby(self._state)

    async def discard(self) -> None:
        """It is to be started cold: forget what it could go on from."""
        self.saved, self.problem = None, ""
        await run_in(Pool.TOOLS, drop_saved, self._state)
