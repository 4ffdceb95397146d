# SPDX-License-Identifier: Apache-2.0
"""What a daemon that starts does about the one before it: first learn, which nothing may keep it from, and
clean up when it serves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from hypemand.errors import HypemandError
from hypemand.manager.compression import settle_doubled
from hypemand.manager.inventory import Inventory
from hypemand.manager.parts import Parts
from hypemand.manager.standby import settle
from hypemand.model.state import Origin
from hypemand.storage.volume import Volume
from hypemand.systemd.rootdir import make_root
from hypemand.systemd.units import Units
from hypemand.tasks import Tasks
from hypemand.unitnames import unit_name
from hypemand.vm.handle import find_notes
from hypemand.vm.runfiles import RunFiles, load_past, remove_leftovers
from hypemand.vm.vm import Vm
from hypemand.workers import Pool, run_in

_log = logging.getLogger(__name__)
# for what systemd has to tell of all VMs before the daemon serves: it takes milliseconds for each
_DEADLINE = 10.0
# between two questions to a systemd that does not answer
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0


@contextmanager
def logged(what: str) -> Iterator[None]:
    """Nothing that goes wrong in the block keeps the daemon from what comes after it."""
    try:
        yield
    except (HypemandError, OSError) as error:
        _log.error("%s: %s", what, error)
    except Exception:
        _log.exception("%s", what)


class Recovery:
    """`delete` removes the VM of that name."""

    def __init__(self, parts: Parts, delete: Callable[[str], Awaitable[None]]) -> None:
        self._parts = parts
        self._delete = delete
        # helper VMs of a daemon before this one
        self._cut_off: set[str] = set()

    async def recover(self) -> None:
        """Load the VMs from their records, then their states from systemd. An error in one does not prevent
        the others: it is logged, and what is not known counts as in use."""
        with logged("the VMs' records"):
            await run_in(Pool.RECORDS, self._parts.records.load)
        with logged("the volumes' records"):
            await run_in(Pool.TOOLS, self._parts.volumes.load)
        with logged("the shared pools of volumes"):
            await self._parts.pools.read()
        with logged("the records of snapshots"):
            await run_in(Pool.TOOLS, self._parts.snapshots.load)
        with logged("the folders of VMs that run"):
            await run_in(Pool.RECORDS, self.prepare_runtime)
        for record in self._parts.records:
            with logged(f"the record of VM {record.name}"):
                past = await run_in(Pool.RECORDS, load_past, record.name, self._parts.places(record.name))
                vm = self._parts.adopt(record, past)
                if record.origin is Origin.HELPER:
                    self._cut_off.add(vm.name)
        await recover_vms(tuple(self._parts.fleet))
        with logged("what VMs have of their networks"):
            await self._parts.networks.recover(lambda name: self._parts.fleet.get(name).state.is_vmm_active)
        # beside all else: VMs without a network do not need it
        self._parts.networks.begin_sync()
        ended = [vm.runs.files for vm in self._parts.fleet if not vm.state.is_vmm_active]
        with logged("the folders of VMs that have ended"):
            await run_in(Pool.TOOLS, _remove_runtimes, ended)

    def prepare_runtime(self) -> None:
        """Make what all VMs that run have in common, or complete it. Blocks; OSError."""
        self._parts.runtime_root.mkdir(mode=0o711, parents=True, exist_ok=True)
        make_root(self._parts.vmm_root, self._parts.vmm_own)

    @property
    def has_doubled(self) -> bool:
        """Was a daemon before this one cut off while it compressed, or unpacked, saved memory?"""
        return self._parts.snapshots.has_doubled or any(vm.standby.is_doubled for vm in self._parts.fleet)

    async def clean_up(self) -> None:
        """End and delete what a daemon that was cut off has left: VMs that worked on a volume, what was being
        made or removed, and units of VMs that are not known. What fails is logged, and keeps nothing else
        from being done."""
        await ask_again(tuple(self._parts.fleet))
        for vm in self._parts.fleet:
            with logged(f"the standby of VM {vm.name}"):
                await settle(self._parts, vm)
                await settle_doubled(self._parts.compressions, vm)
        with logged("the control units of VMs"):
            await self.compare_handles()
        await asyncio.gather(
            *(
                self._remove_helper(vm)
                for vm in self._parts.fleet
                if vm.record.origin is Origin.HELPER and vm.name in self._cut_off
            )
        )
        for volume in self._parts.volumes.unfilled:
            with logged(f"the volume {volume.name}"), self._parts.volume_use.work_on(volume, "removed"):
                await self._settle_volume(volume)
        with logged("what is left of volumes"):
            await run_in(Pool.TOOLS, self._parts.volumes.clean_up)
        with logged("templates for warm starts"):
            await self._parts.templates.clean_up()
        with logged("what is left of snapshots"):
            await run_in(Pool.TOOLS, self._parts.snapshots.clean_up)
        with logged("what is left of VMs"):
            await run_in(Pool.TOOLS, self._parts.records.clean_up)
        with logged("what is left of VMs that are not known"):
            units = await self._parts.units.list_vms()
            with logged("runtime folders of VMs that neither hypemand nor systemd knows"):
                await remove_leftovers(
                    self._parts.runtime_root, lambda name: name in units or self._is_known(name)
                )
            with logged("units that belong to no VM"):
                await stop_unknown(self._parts.units, units, self._parts.records, self._is_known)

    async def _settle_volume(self, volume: Volume) -> None:
        """Remove a volume that was not filled to its end. One that was imported with a VM is complete: it
        stays if the VM is there, and also where that is not known."""
        store = self._parts.volumes
        if volume.imported_for:
            if any(record.id == volume.imported_for for record in self._parts.records):
                await run_in(Pool.TOOLS, store.finish, volume)
                return
            self._parts.records.check_complete()
        await run_in(Pool.TOOLS, store.remove_unfilled, volume)

    async def compare_handles(self) -> None:
        """Have the handle of each VM that runs active, and remove what is left of those of others. A VM may
        have ended, or may have been started by a daemon that ended before it had its handle started."""
        states = await self._parts.units.list_handles()
        noted = await run_in(Pool.RECORDS, find_notes, self._parts.runtime_root.parent / "handles")
        work = []
        for vm in self._parts.fleet:
            if vm.operations.is_busy:
                continue
            if vm.has_handle and vm.state.is_vmm_active and states.get(vm.name) != "active":
                work.append(vm.handle.follow())
            elif not vm.state.is_vmm_active and (vm.name in states or vm.name in noted):
                work.append(vm.handle.release())
        await asyncio.gather(*work)

    async def _remove_helper(self, vm: Vm) -> None:
        _log.info("removing VM %s, whose work on a volume was interrupted", vm.name)
        with logged(f"VM {vm.name} is left, which worked on a volume"):
            await self._delete(vm.name)

    def _is_known(self, name: str) -> bool:
        known = (self._parts.fleet.find(name), self._parts.records.find(name))
        return known != (None, None) or self._parts.records.is_unreadable(name)

    async def resync(self) -> None:
        """Look at everything again, after signals may have been missed."""
        await asyncio.gather(*(vm.refresh() for vm in self._parts.fleet))
        with logged("the control units of VMs"):
            await self.compare_handles()


async def recover_vms(vms: Sequence[Vm], deadline: float = _DEADLINE) -> None:
    """Query the state of the VMs from systemd. Those for which there is no answer in time are Unknown."""
    if not vms:
        return
    async with Tasks("VMs") as tasks:
        looks = [tasks.start(f"recovery of VM {vm.name}", vm.recover()) for vm in vms]
        _, late = await asyncio.wait(looks, timeout=deadline)
    if late:
        _log.error("systemd does not report the state of %d VMs: they are Unknown until it does", len(late))


async def ask_again(vms: Sequence[Vm]) -> None:
    """Repeat the query until systemd has answered for each VM. A VM whose query fails for another reason is
    skipped."""
    pause = _FIRST_PAUSE
    left: set[str] = set()
    while unknown := [vm for vm in vms if not (vm.is_known or vm.operations.closed or vm.name in left)]:
        found = await asyncio.gather(*(vm.refresh() for vm in unknown), return_exceptions=True)
        for vm, error in zip(unknown, found, strict=True):
            if isinstance(error, Exception):
                _log.error("cannot query VM %s", vm.name, exc_info=error)
                left.add(vm.name)
        if not all(vm.is_known for vm in unknown):
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)


async def stop_unknown(
    units: Units, found: Iterable[str], inventory: Inventory, is_known: Callable[[str], bool]
) -> None:
    """Stop the units of VMs that are not known: `found` are the VMs that have one. Release uids that only
    such a VM can have had."""
    unknown = [name for name in found if not is_known(name)]
    for name in unknown:
        _log.warning("the unit of VM %s does not belong to a known VM: stopping it", name)
        await units.stop(unit_name(name))
    if unknown:
        return  # a uid may be theirs: the daemon sees to it when it starts again
    for uid in await run_in(Pool.RECORDS, inventory.find_lost_uids):
        await run_in(Pool.RECORDS, inventory.free_uid, uid)


def _remove_runtimes(ended: Iterable[RunFiles]) -> None:
    """Remove what runs that have ended have left in the runtime folder. Blocks."""
    for files in ended:
        files.remove_runtime()
