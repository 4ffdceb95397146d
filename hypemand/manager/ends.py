# SPDX-License-Identifier: Apache-2.0
"""How VMs are ended: asked to, by force, and for good."""

from __future__ import annotations

from hypemand.errors import TimedOut
from hypemand.manager.expiry import Expiry
from hypemand.manager.parts import Parts
from hypemand.model.state import State
from hypemand.tasks import finish
from hypemand.unitnames import handle_name
from hypemand.vm.pause import resume_to_end
from hypemand.vm.vm import Vm
from hypemand.workers import Pool, run_in

# beyond stop_timeout: SIGTERM, SIGKILL and the exit record
_STOP_MARGIN = 30.0
# a VM that is deleted and whose stop has no deadline: what systemd gives a service
_DELETE_PATIENCE = 90.0
# what a guest may take to sync and power off after its program has ended
_POWER_OFF_MARGIN = 5.0
SIGKILL = 9


class Ends:
    """Ends VMs. Whoever calls holds the VM's operations, but for `end_for_good`. `expiry` forgets those that
    are gone."""

    def __init__(self, parts: Parts, expiry: Expiry) -> None:
        self._parts, self._expiry = parts, expiry
        self._fleet, self._records = parts.fleet, parts.records
        self._units, self._networks = parts.units, parts.networks

    async def stop(self, vm: Vm, timeout: float | None) -> None:
        """Ask the guest to end, and wait for that; by force after `timeout` seconds, where None is the
        definition's. TimedOut."""
        if not vm.state.is_vmm_active:
            return
        await resume_to_end(vm)
        if timeout is None:
            await self._units.stop(vm.unit)
            limit = vm.record.definition.stop_timeout
            deadline = None if limit is None else limit + _STOP_MARGIN
            if not await vm.changes.wait_for(lambda: has_ended(vm), deadline):
                raise TimedOut(f"VM {vm.name} did not stop in {deadline:.0f} s", hint="use hypemanctl kill")
            return
        # Another grace than that of ExecStop=: of two requests the guest takes the one that ends it sooner.
        if vm.session is not None and vm.record.definition.guest_agent and vm.state is State.RUNNING:
            await vm.session.ask_to_end(timeout)
        await self._units.stop(vm.unit)
        if not await vm.changes.wait_for(lambda: has_ended(vm), timeout + _POWER_OFF_MARGIN):
            await self.end(vm)

    async def end(self, vm: Vm) -> None:
        """End what runs now of a VM by force, and wait for that. TimedOut."""
        await vm.refresh()
        if vm.state.is_vmm_active:
            run = vm.run
            await self.kill_for_good(vm)
            if not await wait_for_end(vm, run, _STOP_MARGIN):
                raise TimedOut(
                    f"VM {vm.name} did not stop in {_STOP_MARGIN:.0f} s", hint="see the status of its unit"
                )

    async def kill(self, vm: Vm, signal: int) -> None:
        """Send its VMM a signal; SIGKILL is waited for."""
        run = vm.run
        await self._units.kill(vm.unit, signal)
        if signal == SIGKILL:
            await wait_for_end(vm, run, _STOP_MARGIN)
            await vm.runs.settle()

    async def kill_for_good(self, vm: Vm) -> None:
        """End a VM at once, whatever `restart` says."""
        # the stop first: systemd would start it again
        await self._units.stop(vm.unit)
        await self._units.kill(vm.unit, SIGKILL)

    async def end_for_good(self, vm: Vm, *, kill: bool = False) -> None:
        """End a VM that is deleted: its volumes are not, and its guest is given its time to leave them."""
        if not kill:
            await vm.refresh()
            if vm.state.is_vmm_active:
                run, limit = vm.run, vm.record.definition.stop_timeout
                await resume_to_end(vm)
                await self._units.stop(vm.unit)
                deadline = (_DELETE_PATIENCE if limit is None else limit) + _STOP_MARGIN
                await wait_for_end(vm, run, deadline)
        await self.end(vm)

    async def forget(self, vm: Vm) -> None:
        """Remove a VM that has ended, and what systemd remembers of it. InUse while a VMM has its disk."""
        await vm.runs.settle()
        await self._parts.compressions.cancel(vm.record.id)
        await run_in(Pool.TOOLS, self._records.check_removable, vm.name)
        for unit in (vm.unit, handle_name(vm.name)):
            await self._units.reset_failed(unit)
        await vm.runs.files.flush_notes()
        await finish(self.remove(vm), f"removal of {vm.name}")

    async def remove(self, vm: Vm) -> None:
        """Remove a VM's files. It is gone when its folder is, and not before."""
        await run_in(Pool.STARTS, vm.runs.files.remove_runtime)
        try:
            await self._records.remove(vm.name)
        finally:
            if self._records.find(vm.name) is None:
                await run_in(Pool.STARTS, vm.runs.files.remove_exit)
                await vm.handle.remove_files()
                await vm.detach()
                self._fleet.remove(vm)
                vm.mark_gone("been deleted")
                self._expiry.schedule()
                self._networks.tell()
                self._parts.disk_watch.note_removal()


def has_ended(vm: Vm) -> bool:
    """Has it no VMM, as far as is known?"""
    return not vm.state.is_vmm_active


async def wait_for_end(vm: Vm, run: str | None, deadline: float) -> bool:
    """Wait until this run has ended. Another may be on by then, of a restart or of systemd's own start."""
    return await vm.changes.wait_for(lambda: has_ended(vm) or vm.run != run, deadline)
