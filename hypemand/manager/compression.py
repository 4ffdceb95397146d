# SPDX-License-Identifier: Apache-2.0
"""Compression of saved memory, in the background: of snapshots, and of VMs in Standby.

One is compressed at a time. Whoever needs the memory, or removes it, cancels that first and waits for the
end, which leaves the memory in one form or the other, whole. What was compressed is unpacked before it is
used.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from hypemand.config.host import HostConfig
from hypemand.config.sizes import format_size
from hypemand.errors import HypemandError, WrongState
from hypemand.fulldisk import name_full_disk_beside
from hypemand.manager.fleet import Fleet
from hypemand.manager.images.pulls import end_work
from hypemand.model.compression import Compression, CompressionState, CompressionView
from hypemand.model.events import CompressionEnd, Event, Tell
from hypemand.model.state import Operation
from hypemand.storage.tools import Tools
from hypemand.systemd.log import log_vm
from hypemand.tasks import Tasks, finish
from hypemand.vm.compression import Work, pack_memory, unpack_memory
from hypemand.vm.operation import OperationCancelled
from hypemand.vm.saved import Packing, SavedRun, drop_other_form, store_saved
from hypemand.vm.vm import Vm
from hypemand.workers import Pool, run_in

# for a tool that was told to end
_END_DEADLINE = 90.0
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Subject:
    """What is compressed: what was saved in a folder, of that VM or (its id) that snapshot of it. `user`: of
    the VM. `show`: takes how far that is, None: as the record says. `commit`: stores the record."""

    what: str
    folder: Path
    saved: SavedRun
    vm: str
    user: int
    snapshot: str | None
    show: Callable[[CompressionView | None], None]
    commit: Callable[[SavedRun], Awaitable[None]]


class Compressions:
    """Those under way, by the id of the snapshot or of the VM. `on_removal` is called when the disk has more
    free space."""

    def __init__(
        self,
        config: Callable[[], HostConfig],
        fleet: Fleet,
        make_tools: Callable[[], Tools],
        tell: Tell,
        on_removal: Callable[[], None],
    ) -> None:
        self._config = config
        self._fleet = fleet
        self._make_tools = make_tools
        self._tell = tell
        self._on_removal = on_removal
        self._turn = asyncio.Lock()
        self._jobs: dict[str, asyncio.Task[None]] = {}
        self._tasks = Tasks("saved memory")
        self._threads = Tasks("saved memory")

    def is_busy(self, key: str) -> bool:
        """Is it being compressed, or about to be?"""
        return key in self._jobs

    def begin(self, key: str, subject: Subject, wanted: Compression) -> None:
        """Compress it, some time. It is not compressed already."""
        subject.show(CompressionView(CompressionState.COMPRESSING, wanted))
        job = self._tasks.start("compression", self._run(subject, wanted))
        self._jobs[key] = job

        def take_end(job: asyncio.Task[None]) -> None:
            del self._jobs[key]
            if job.cancelled() or job.exception() is not None:
                subject.show(None)

        job.add_done_callback(take_end)

    async def cancel(self, key: str) -> None:
        """It is not being compressed when this returns."""
        while (job := self._jobs.get(key)) is not None:
            job.cancel()
            await asyncio.wait([job])
            await asyncio.sleep(0)  # for what follows its end

    async def close(self) -> None:
        """Cancel all."""
        await self._tasks.close(deadline=_END_DEADLINE)
        await self._threads.close()

    async def _run(self, subject: Subject, wanted: Compression) -> None:
        await asyncio.sleep(wanted.delay)
        async with self._turn:
            began = time.monotonic()
            try:
                async with name_full_disk_beside(subject.what, subject.folder):
                    packed = await self._pack(subject, wanted)
                    await finish(self._commit(subject, packed), subject.what)
            except (HypemandError, OSError) as error:
                self._take_failure(subject, wanted, str(error))
                return
        seconds = time.monotonic() - began
        before, after = subject.saved.stored, packed.stored
        words = f"{subject.what}: {format_size(before)} became {format_size(after)} after {seconds:.1f} s"
        log_vm(logging.INFO, words, subject.vm, subject.saved.vm_id)
        done = CompressionEnd(subject.snapshot, CompressionState.COMPRESSED, before, after, round(seconds, 3))
        self._tell(Event(done, words, subject.vm, subject.saved.vm_id))

    async def _pack(self, subject: Subject, wanted: Compression) -> SavedRun:
        folder, saved = subject.folder, subject.saved
        work = self._make_work(subject.what, subject.user)
        try:
            return await self._run_tools(work, pack_memory, folder, saved, wanted, work)
        except asyncio.CancelledError:
            # it may just have been done
            await finish(run_in(Pool.TOOLS, drop_other_form, folder, saved), f"end of {subject.what}")
            raise

    async def _commit(self, subject: Subject, packed: SavedRun) -> None:
        await subject.commit(packed)
        subject.show(None)
        self._on_removal()

    def _take_failure(self, subject: Subject, wanted: Compression, error: str) -> None:
        log_vm(logging.WARNING, f"{subject.what} has failed: {error}", subject.vm, subject.saved.vm_id)
        subject.show(CompressionView(CompressionState.ERROR, wanted, error=error))
        size = subject.saved.stored
        failed = CompressionEnd(subject.snapshot, CompressionState.ERROR, size, error=error)
        words = f"{subject.what} has failed: {error}"
        self._tell(Event(failed, words, subject.vm, subject.saved.vm_id))

    async def unpack(self, what: str, folder: Path, saved: SavedRun, user: int) -> SavedRun:
        """What was saved in a folder, whose memory is not compressed from now on. UnusableError if it is
        damaged, InsufficientResources, OSError, HypemandError: it is as it was then."""
        packing = saved.packing
        if packing is None:
            return saved
        look = await self._fleet.look_at_disks()
        with self._fleet.promise_room(look, what, packing.stored, key=uuid.uuid4().hex):
            work = self._make_work(what, user)
            return await self._run_tools(work, _unpack, folder, saved, packing, work)

    def _make_work(self, what: str, user: int) -> Work:
        return Work(what, self._make_tools(), user, self._config().disk.reserve)

    async def _run_tools(self, work: Work, do: Callable[..., T], *arguments: object) -> T:
        """What `do` gives, in a thread; when the caller is cancelled, it and its tools are ended first."""
        task = self._threads.start(work.what, run_in(Pool.TOOLS, do, *arguments), awaited=True)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await finish(end_work(work.tools, task), f"end of {work.what}")
            task.exception()  # that of its cancellation
            raise


def compress_standby(compressions: Compressions, vm: Vm, wanted: Compression) -> None:
    """Compress what a VM in Standby goes on from. The caller holds its operation."""
    folder, saved = vm.places.standby, vm.standby.saved
    if saved is None:
        return  # it has ended meanwhile

    def show(view: CompressionView | None) -> None:
        vm.standby.compression = view
        vm.changes.tell()

    async def commit(packed: SavedRun) -> None:
        await run_in(Pool.TOOLS, _replace_record, folder, packed)
        vm.standby.take(packed)

    what = f"the compression of the memory of VM {vm.name}"
    subject = Subject(what, folder, saved, vm.name, vm.record.uid, None, show, commit)
    compressions.begin(vm.record.id, subject, wanted)


async def unpack_standby(compressions: Compressions, vm: Vm, saved: SavedRun) -> SavedRun:
    """What a VM in Standby goes on from, with its memory not compressed. A stop of the VM ends it. The caller
    holds its operation. Raises as `Compressions.unpack`, and WrongState."""
    if saved.packing is None:
        return saved
    what = f"the memory of VM {vm.name}"
    work = compressions.unpack(what, vm.places.standby, saved, vm.record.uid)
    vm.say(f"{vm.state}: unpacking its memory")
    assert vm.operations.current is not None, "it is held"
    try:
        unpacked = await vm.operations.current.await_cancellable(work, f"unpacking of {what}")
    except OperationCancelled:
        raise WrongState(
            f"the restore of VM {vm.name} was cancelled while its memory was being unpacked"
        ) from None
    finally:
        vm.say("")
    vm.standby.take(unpacked)
    return unpacked


async def settle_doubled(compressions: Compressions, vm: Vm) -> None:
    """Remove what a compression of what the VM goes on from has left, which was cut off with its daemon."""
    if not vm.standby.is_doubled:
        return
    vm.standby.is_doubled = False
    async with vm.operations.hold(Operation.RESTORE):
        saved = vm.standby.saved
        if saved is not None and not compressions.is_busy(vm.record.id):
            await run_in(Pool.TOOLS, drop_other_form, vm.places.standby, saved)


def _replace_record(folder: Path, saved: SavedRun) -> None:
    """Blocks."""
    store_saved(folder, saved)
    drop_other_form(folder, saved)


def _unpack(folder: Path, saved: SavedRun, packing: Packing, work: Work) -> SavedRun:
    """Blocks."""
    unpacked = unpack_memory(folder, saved, packing, work)
    _replace_record(folder, unpacked)
    return unpacked
