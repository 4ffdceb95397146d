# SPDX-License-Identifier: Apache-2.0
"""Puts VMs into Standby. The caller holds the VM's operation."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from hypemand.config.definition import Definition, HostShutdown
from hypemand.errors import GuestError, HypemandError, WrongState
from hypemand.fulldisk import name_full_disk_beside
from hypemand.manager.parts import Parts
from hypemand.model.evidence import RunState
from hypemand.model.state import Operation, State, check_allowed
from hypemand.storage.images import Image
from hypemand.tasks import Tasks, finish
from hypemand.vm.pause import reach_session
from hypemand.vm.saved import SavedRun, load_saved
from hypemand.vm.session import AGENT_DEADLINE, Session
from hypemand.vm.standby import SaveFacts, write_save
from hypemand.vm.standbyfiles import begin_save, commit_save, drop_save
from hypemand.vm.vm import Vm
from hypemand.vmm.driver import VmmError
from hypemand.vmm.host import VmmHost, find_vmm_host
from hypemand.workers import Pool, run_in

# for a save: seconds, and bytes a second of the slowest disk
_LEAST_DEADLINE, _SLOWEST = 30.0, 16 * 1024 * 1024
# for the VMM of a VM that was saved to end
_END_DEADLINE = 30.0
_SIGKILL = 9
_LIVE = (RunState.RUNNING, RunState.PAUSED)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Program:
    """What a VM was started with."""

    definition: Definition
    image: Image
    digest: str


async def enter_standby(parts: Parts, vm: Vm) -> None:
    """Save a VM, and end its run. WrongState, GuestError, TimedOut, InsufficientResources: it runs on then,
    and nothing is left; or it has ended meanwhile."""
    await vm.refresh()
    if vm.state is State.STANDBY:
        return
    at_shutdown = _is_at_shutdown(vm)
    if not at_shutdown:
        check_allowed(Operation.STANDBY, vm.state, vm.name, vm.state_error)
    program = await _find_program(parts, vm)
    async with name_full_disk_beside(f"put VM {vm.name} into standby", vm.places.state):
        with reach_session(vm, f"put VM {vm.name} into standby") as session, vm.standby.saving():
            await _save(parts, vm, session, program, at_shutdown=at_shutdown)
    if not at_shutdown:
        await end_saved(parts, vm)
    elif vm.session is not None:
        # its unit waits for this answer before it ends
        await _quit(vm.session)


async def gather_facts(parts: Parts, vm: Vm) -> SaveFacts:
    """With what a VM runs that is to be saved. WrongState, GuestError, as `enter_standby`."""
    return await _gather(parts, vm, await _find_program(parts, vm))


def _is_at_shutdown(vm: Vm) -> bool:
    """Does its unit, which is being stopped, ask for it (launcher/ending)?"""
    definition, session = vm.runs.definition, vm.session
    wants = definition.on_host_shutdown is HostShutdown.STANDBY and vm.is_ending
    return wants and session is not None and session.is_ready and session.run_state in _LIVE


async def _save(parts: Parts, vm: Vm, session: Session, program: _Program, *, at_shutdown: bool) -> None:
    """Until it is on the disk, and its guest is not to run any more. VmmError, OSError, HypemandError."""
    was_running = session.run_state is not RunState.PAUSED

    async def commit() -> None:
        vm.standby.take(await run_in(Pool.TOOLS, commit_save, vm.places.state))
        notes = session.tracker.notes
        await run_in(Pool.TOOLS, vm.runs.files.keep_saved_end, session.run, notes)

    async def write(folder: Path, ready: asyncio.Task[SaveFacts]) -> None:
        await _write(session, folder, program, ready)
        # PID 1 has processes to move when the unit ends
        parts.easing.begin()
        await finish(commit(), f"commit of {vm.name}")

    try:
        is_over = partial(_is_over, vm, session, at_shutdown=at_shutdown)
        what = "put into standby"
        gather = partial(_gather, parts, vm, program)
        await _save_until_it_ends(vm, session, what, gather, write, is_over, was_running=was_running)
    except BaseException:
        if not vm.standby.has_saved(session):
            await finish(run_on(vm, session, was_running=was_running), f"resumption of {vm.name}")
            raise
        await finish(end_saved(parts, vm), f"end of {vm.name}")
        raise


async def save_beside(
    parts: Parts, vm: Vm, session: Session, folder: Path, copy: Callable[[], Awaitable[None]]
) -> SavedRun:
    """Save a Running VM to another folder; it runs on. `copy`: what else is done while it stands still.
    VmmError, OSError, HypemandError."""
    program = await _find_program(parts, vm)

    async def write(_: Path, ready: asyncio.Task[SaveFacts]) -> SavedRun:
        await _write(session, folder, program, ready)
        await copy()
        return await run_in(Pool.TOOLS, load_saved, folder)

    try:
        what = "copied to a snapshot"
        is_over = partial(_is_over, vm, session)
        gather = partial(_gather, parts, vm, program)
        return await _save_until_it_ends(vm, session, what, gather, write, is_over, was_running=True)
    finally:
        await finish(_go_on(vm, session), f"resumption of {vm.name}")


async def _write(session: Session, folder: Path, program: _Program, ready: asyncio.Task[SaveFacts]) -> None:
    """See `write_save`."""
    size = program.definition.memory
    await write_save(session, folder, size, ready, _LEAST_DEADLINE + size / _SLOWEST)


async def _go_on(vm: Vm, session: Session) -> None:
    """Have it run on: with its processes, which its agent has stand still until it is spoken to."""
    await run_on(vm, session, was_running=True)
    if session.has_agent and session is vm.session:
        with suppress(HypemandError):  # it is tried again, as long as it takes
            await session.open_agent(AGENT_DEADLINE)


async def _save_until_it_ends(
    vm: Vm,
    session: Session,
    what: str,
    gather: Callable[[], Coroutine[Any, Any, SaveFacts]],
    write: Callable[[Path, asyncio.Task[SaveFacts]], Awaitable[T]],
    is_over: Callable[[], bool],
    *,
    was_running: bool,
) -> T:
    """`write` it, in the folder that is made for it, as soon as it stands still: all that needs no guest is
    done while that is frozen. A stop that comes meanwhile, of systemd's own too, is stronger (`is_over`)."""

    async def stand_still(making: asyncio.Task[Path]) -> None:
        if was_running and session.has_agent:
            await session.freeze()
        await session.leave_guest(f"VM {vm.name} is being {what}")
        # by which a daemon that comes after this one knows that the guest is to run on
        await asyncio.wait((making,))
        if was_running and making.exception() is None:
            await session.pause()

    async def be_ready(making: asyncio.Task[Path]) -> SaveFacts:
        facts: SaveFacts | BaseException
        stood, facts = await asyncio.gather(stand_still(making), gather(), return_exceptions=True)
        if stood is not None:
            raise stood
        if isinstance(facts, BaseException):
            raise facts
        return facts

    async def save() -> T:
        async with Tasks(f"the save of VM {vm.name}") as tasks:
            begin = run_in(Pool.TOOLS, begin_save, vm.places.state, was_running=was_running)
            making = tasks.start("folder", finish(begin, f"folder of {vm.name}"), awaited=True)
            ready = tasks.start("readiness", be_ready(making), awaited=True)
            try:
                return await write(await making, ready)
            finally:
                # where what is written beside it has failed, nobody asks for its own failure
                ready.add_done_callback(lambda task: task.cancelled() or task.exception())

    async with Tasks(f"the save of VM {vm.name}") as tasks:
        saving = tasks.start("save", save(), awaited=True)
        ending = tasks.start("end", vm.changes.wait_for(is_over, None), awaited=True)
        await asyncio.wait((saving, ending), return_when=asyncio.FIRST_COMPLETED)
        if not saving.done():
            saving.cancel()
            await asyncio.wait((saving,))
        if saving.cancelled():
            raise WrongState(f"VM {vm.name} was stopped while it was being {what}")
        return saving.result()


def _is_over(vm: Vm, session: Session, *, at_shutdown: bool = False) -> bool:
    """Does the run end that is being saved, but for a shutdown that waits for the save?"""
    return vm.session is not session or (vm.is_ending and not at_shutdown)


async def run_on(vm: Vm, session: Session, *, was_running: bool) -> None:
    """Nothing has come of a save: its guest goes on, if it ran before, and nothing is left."""
    try:
        if was_running and session is vm.session:
            # whatever it was last: the VMM may be about to pause it
            await session.resume()
    except VmmError as error:
        vm.log(logging.ERROR, f"VM {vm.name} cannot be resumed after a save that has failed: {error}")
    if session is vm.session:
        # also where it was left before that: who connects to the agent has the processes go on
        await session.leave_guest(f"VM {vm.name} has not been saved")
        session.return_to_guest()
    await run_in(Pool.TOOLS, drop_save, vm.places.state)


async def end_saved(parts: Parts, vm: Vm) -> None:
    """End the run of a VM that is saved: its guest is asked nothing. TimedOut."""
    run, session = vm.run, vm.session
    # first, so that systemd does not start it again
    await parts.units.stop(vm.unit)
    # beside that, the handle's process ends, and another one of it follows
    parts.easing.begin()
    ends = [vm.handle.end()] if session is None else [vm.handle.end(), _quit(session)]
    await asyncio.gather(*ends)

    def has_ended() -> bool:
        return not vm.state.is_vmm_active or vm.run != run

    if not await vm.changes.wait_for(has_ended, _END_DEADLINE):
        await parts.units.kill(vm.unit, _SIGKILL)
        await vm.changes.wait_for(has_ended, _END_DEADLINE)
    await vm.runs.settle()


async def _quit(session: Session) -> None:
    """End the VMM of a VM that is saved. One that does not, systemd ends."""
    with suppress(VmmError):
        await (await session.reach_vmm()).quit()


async def _find_program(parts: Parts, vm: Vm) -> _Program:
    """What it was started with, before anything is done to its guest. GuestError where that is not known,
    WrongState for a VM that cannot be saved."""
    definition, record = vm.runs.running.definition, vm.record
    digest = "" if record.pin is None else record.pin.digest
    image = None if definition is None else await parts.images.find_for(definition.image, digest)
    if definition is None or image is None:
        raise GuestError(
            f"it is not known what VM {vm.name} runs with, so that it could not be restored",
            hint="restart it",
        )
    device = next((mount.volume for mount in definition.volumes if mount.is_device), None)
    if device is not None:
        raise WrongState(
            f"VM {vm.name} has the device {device}, and when it is restored it would not be known"
            " whether others have written to that meanwhile",
            hint="stop it",
        )
    return _Program(definition, image, digest)


async def _gather(parts: Parts, vm: Vm, program: _Program) -> SaveFacts:
    """All that is to be known of it when it is restored. HypemandError."""
    definition, digest, record = program.definition, program.digest, vm.record
    host = await run_in(Pool.STARTS, find_vmm_host, parts.config())
    bound = await parts.units.bound_files(vm.unit)
    files = await run_in(Pool.STARTS, _list_devices, definition, tuple(bound), program.image, host)
    build = await parts.builds.find(host.binary, host.accel.kind)
    started_at = vm.view().started_at
    return SaveFacts(record.id, definition, digest, build, started_at, record.lease, files)


def _list_devices(
    definition: Definition, bound: tuple[Path, ...], image: Image, host: VmmHost
) -> tuple[Path, ...]:
    """The files of the host that its disks are. What the guest has read into memory is none. Blocks."""
    loaded = {host.kernel.path, host.initrd, host.binary}
    found = {path for path in bound if path not in loaded and path.is_file()}
    # some are below /usr, which it has anyway
    found.add(image.rootfs)
    if definition.wants_headers and host.kernel.headers is not None:
        found.add(host.kernel.headers)
    return tuple(sorted(found))


async def settle(parts: Parts, vm: Vm) -> None:
    """What a daemon before this one has begun, and not done: a VM that is saved is ended, one whose save was
    cut off runs on."""
    session = vm.session
    if session is not None and vm.standby.has_saved(session):
        await end_saved(parts, vm)
    if not vm.standby.is_cut_off:
        return
    vm.standby.is_cut_off = False
    if session is not None:
        try:
            async with vm.operations.hold(Operation.RESUME):
                await run_on(vm, session, was_running=vm.standby.was_running)
        except HypemandError as error:
            vm.log(logging.ERROR, f"VM {vm.name}: {error}")
    else:
        await run_in(Pool.TOOLS, drop_save, vm.places.state)
