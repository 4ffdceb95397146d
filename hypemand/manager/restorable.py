# SPDX-License-Identifier: Apache-2.0
"""What this host can restore: the rule by which a restore is refused, and reports of what it would refuse.

It compares what was noted, and looks at files without reading them: whether what was saved is whole, a
restore finds out.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from hypemand.errors import HypemandError, WrongState
from hypemand.manager.parts import Parts
from hypemand.model.restores import cure_orphan, cure_snapshot, cure_standby
from hypemand.model.state import State
from hypemand.systemd.log import MessageId, log_vm
from hypemand.tasks import Tasks
from hypemand.vm.saved import SavedRun
from hypemand.vm.snapshots import Snapshot
from hypemand.vm.vm import Vm
from hypemand.vmm.build import VmmBuild, list_differences
from hypemand.vmm.host import find_vmm_host
from hypemand.workers import Pool, run_in

_log = logging.getLogger(__name__)
# so many get a line of their own in the journal
_TOLD = 12


async def find_build(parts: Parts) -> VmmBuild:
    """What VMs are restored with now. HypemandError, OSError."""
    host = await run_in(Pool.STARTS, find_vmm_host, parts.config())
    return await parts.builds.find(host.binary, host.accel.kind)


async def find_standby_problem(parts: Parts, vm: Vm, saved: SavedRun, build: VmmBuild) -> str:
    """Why a VM cannot go on from what it has saved, in words; "" if nothing is known of that."""

    def compare() -> str:
        if saved.vm_id != vm.record.id:
            return "it was saved of another VM"
        if differences := list_differences(saved.build, build):
            return differences[0]
        changed = saved.find_changed()
        return "" if changed is None else f"{changed} was changed or removed since it was saved"

    return await _find_image_problem(parts, saved) or await run_in(Pool.RECORDS, compare)


async def find_snapshot_problem(parts: Parts, snapshot: Snapshot, build: VmmBuild) -> str:
    """The same of the VM of a snapshot, or of a fork where that was removed. One without memory has none."""
    run = snapshot.run
    if run is None:
        return ""
    vm = _find_vm(parts, snapshot)
    folder = parts.records.folder(run.definition.name)

    def compare() -> str:
        if vm is not None and run.definition.name != vm.name:
            return f"the VM was called {run.definition.name} then, and its guest knows that name"
        if differences := list_differences(run.build, build):
            return differences[0]
        # the disk, and images of directories, come with it
        others = (mark for mark in run.files if Path(mark.path).parent != folder)
        changed = next((mark.path for mark in others if mark.has_changed()), None)
        return "" if changed is None else f"{changed} was changed or removed since it was made"

    return await _find_image_problem(parts, run) or await run_in(Pool.RECORDS, compare)


async def _find_image_problem(parts: Parts, saved: SavedRun) -> str:
    image = await parts.images.find_for(saved.definition.image, saved.image)
    is_gone = image is None or saved.image not in ("", image.digest)
    return f"its image {saved.definition.image} is gone" if is_gone else ""


def _find_vm(parts: Parts, snapshot: Snapshot) -> Vm | None:
    return next((vm for vm in parts.fleet if vm.record.id == snapshot.vm_id), None)


def refuse_restore(vm: Vm, why: str) -> WrongState:
    """Why a VM cannot go on from Standby."""
    return WrongState(f"VM {vm.name} cannot be restored: {why}", hint=cure_standby(vm.name))


def refuse_snapshot(vm: str, snapshot: Snapshot, why: str, *, orphan: bool = False) -> WrongState:
    """Why it cannot go on from a snapshot. `orphan`: it was removed."""
    what = f"VM {vm}{', which was removed,' if orphan else ''} cannot go on from the snapshot"
    hint = cure_orphan(snapshot.id) if orphan else cure_snapshot(snapshot.id)
    return WrongState(f"{what} {snapshot.name or snapshot.id}: {why}", hint=hint)


class Restorables:
    """Reports what can no longer be restored: in views, and in the journal when the daemon has started, and
    when QEMU is another file."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._tasks = Tasks("what can be restored")
        self._task: asyncio.Task[None] | None = None
        # the QEMU that was told about
        self._qemu: tuple[int, ...] | None = None

    async def close(self) -> None:
        """Tell no more."""
        await self._tasks.close()

    async def judge_vms(self) -> None:
        """Have the views of VMs in Standby say which of them cannot be restored."""
        waiting = [(vm, saved) for vm in self._list_waiting() if (saved := vm.standby.saved) is not None]
        if not waiting or (build := await self._find_build()) is None:
            return
        for vm, saved in waiting:
            vm.standby.judge(saved, await find_standby_problem(self._parts, vm, saved, build))

    async def find_problems(self, snapshots: Iterable[Snapshot]) -> Mapping[str, str]:
        """Of those that cannot be restored with their memory: why, by id."""
        kept = [snapshot for snapshot in snapshots if snapshot.run is not None]
        found: dict[str, str] = {}
        if not kept or (build := await self._find_build()) is None:
            return found
        for snapshot in kept:
            found[snapshot.id] = await find_snapshot_problem(self._parts, snapshot, build)
        return {key: problem for key, problem in found.items() if problem}

    async def _find_build(self) -> VmmBuild | None:
        """None: this host can start no VM now, which is not for good."""
        try:
            return await find_build(self._parts)
        except (HypemandError, OSError) as error:
            _log.debug("what can be restored is not known: %s", error)
            return None

    def _list_waiting(self) -> list[Vm]:
        return [vm for vm in self._parts.fleet if vm.state is State.STANDBY]

    def look_soon(self) -> None:
        """Tell again if QEMU is another file by now, in the background."""
        has_memory = any(snapshot.run is not None for snapshot in self._parts.snapshots)
        is_over = self._task is None or self._task.done()
        if self._qemu is not None and is_over and (has_memory or self._list_waiting()):
            self._task = self._tasks.start("look", self._look())

    async def _look(self) -> None:
        if await run_in(Pool.RECORDS, self._identify) != self._qemu:
            await self.tell()

    def _identify(self) -> tuple[int, ...]:
        """Which file QEMU is; nothing where there is none. Blocks."""
        try:
            found = os.stat(self._parts.config().qemu)
        except OSError:
            return ()
        return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size

    async def tell(self) -> None:
        """Log each, as far as they are few."""
        self._qemu = await run_in(Pool.RECORDS, self._identify)
        await self.judge_vms()
        problems = await self.find_problems(self._parts.snapshots)
        refused = [*self._refuse_vms(), *self._refuse_snapshots(problems)]
        for name, vm_id, error in refused[:_TOLD]:
            log_vm(logging.WARNING, str(error), name, vm_id, MessageId.NOT_RESTORABLE)
        if len(refused) > _TOLD:
            hint = "hypemanctl list and hypemanctl snapshot list show them"
            _log.warning("%d more VMs and snapshots cannot be restored; %s", len(refused) - _TOLD, hint)

    def _refuse_vms(self) -> Iterator[tuple[str, str, WrongState]]:
        for vm in self._list_waiting():
            if problem := vm.standby.find_problem():
                yield vm.name, vm.record.id, refuse_restore(vm, problem)

    def _refuse_snapshots(self, problems: Mapping[str, str]) -> Iterator[tuple[str, str, WrongState]]:
        for snapshot in self._parts.snapshots:
            if (problem := problems.get(snapshot.id)) is not None:
                vm = _find_vm(self._parts, snapshot)
                name = snapshot.vm if vm is None else vm.name
                yield name, snapshot.vm_id, refuse_snapshot(name, snapshot, problem, orphan=vm is None)
