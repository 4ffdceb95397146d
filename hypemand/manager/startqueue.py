# SPDX-License-Identifier: Apache-2.0
"""How many VMs boot at a time of those that the daemon starts by itself.

All at once they would share the host's CPUs, and each would run into its own boot_timeout.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from hypemand.model.state import State
from hypemand.unitnames import vm_of_handle, vm_of_unit
from hypemand.vm.vm import Vm

# A boot also waits for disks, so that one for each CPU would leave CPUs idle.
_PER_CPU, _LEAST = 2, 4
# Seconds. One that boots for longer, or has no boot_timeout, keeps no other from its start.
_LONGEST_TURN = 120.0
_STARTED = (State.CREATED, State.INITIALIZING, State.RUNNING, State.PAUSED)


def derive_boots(cpus: int) -> int:
    """How many VMs boot at a time on a host with so many CPUs."""
    return max(_LEAST, _PER_CPU * cpus)


@dataclass(slots=True, eq=False)
class Turn:
    """One of a VM, from when it is to be started until its boot is over. `before`: the VMs that systemd has
    before it; `is_ready`: nothing else keeps it from its start, which is known soon; `is_aside`: something
    else does, for longer; `has_come`: it may start, or has."""

    vm: Vm
    before: frozenset[str]
    is_ready: bool = False
    is_aside: bool = False
    has_come: bool = False


class StartQueue:
    """VMs that are to be started, in the order in which they came, but for those that systemd orders after
    another one that waits here. `size`: how many may boot at a time.

    A VM that a client starts meanwhile waits no longer.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._turns: dict[Turn, None] = {}
        self._is_closed = False
        self._due: asyncio.Handle | None = None

    def close(self) -> None:
        """Nobody gets a turn any more, and no boot is waited for."""
        self._is_closed = True
        for turn in self._turns:
            turn.vm.changes.tell()

    def enter(self, vm: Vm) -> Turn:
        """It is to be started; to be ended with `leave`."""
        turn = Turn(vm, _list_before(vm))
        self._turns[turn] = None
        return turn

    def leave(self, turn: Turn) -> None:
        """It is not any more, or its boot is over: the next one may start."""
        del self._turns[turn]
        self._call_soon()

    def set_aside(self, turn: Turn) -> None:
        """Until `await_turn` those behind it go before it."""
        turn.is_aside = True
        self._call_soon()

    async def await_turn(self, turn: Turn) -> None:
        """Wait until the VM may be started, or a client has started it, or this is closed. While that lasts
        its status text says so."""
        vm, turn.is_ready, turn.is_aside = turn.vm, True, False
        self._call_soon()
        await asyncio.sleep(0)  # most often it may at once
        if not turn.has_come:
            vm.say(f"{vm.state}: will start when fewer than {self._size} VMs boot")
            await vm.changes.wait_for(lambda: turn.has_come or self._is_in_vain(vm), None)
            vm.say("")

    def _is_in_vain(self, vm: Vm) -> bool:
        return self._is_closed or vm.operations.closed or vm.state in _STARTED

    async def await_boot(self, turn: Turn) -> None:
        """Wait until the boot of a VM that was started is over, or does not take the host's CPUs."""
        vm = turn.vm
        await vm.changes.wait_for(lambda: self._is_closed or not vm.is_booting, _LONGEST_TURN)

    def _call_soon(self) -> None:
        """When all that come now are here."""
        if self._due is None:
            self._due = asyncio.get_running_loop().call_soon(self._call)

    def _call(self) -> None:
        self._due = None
        free = self._size - sum(turn.has_come for turn in self._turns)
        while free > 0 and not self._is_closed and (turn := self._find_next()) is not None:
            turn.has_come = True
            turn.vm.changes.tell()
            free -= 1

    def _find_next(self) -> Turn | None:
        """The first that is ready and ordered after none that waits. Where they are ordered in a circle, the
        first of them."""
        waiting = [turn for turn in self._turns if not turn.has_come]
        names = {turn.vm.name for turn in waiting}
        for turn in waiting:
            if not (turn.is_ready or turn.is_aside):
                return None
            if turn.is_ready and not any(name in names for name in turn.before - {turn.vm.name}):
                return turn
        is_circle = all(turn.is_ready for turn in waiting)
        return waiting[0] if waiting and is_circle else None


def _list_before(vm: Vm) -> frozenset[str]:
    """The VMs that systemd has before it, by their names (After=)."""
    units = vm.record.definition.unit.get("After", ())
    found = (vm_of_unit(unit) or vm_of_handle(unit) for unit in units)
    return frozenset(name for name in found if name is not None)
