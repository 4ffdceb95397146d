# SPDX-License-Identifier: Apache-2.0
"""Starts VMs that are marked `autostart`: once after the host has booted, and when they are new."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine
from pathlib import Path
from typing import Any

from hypemand.atomic import write_file
from hypemand.errors import HypemandError
from hypemand.manager.parts import Parts
from hypemand.manager.recovery import logged
from hypemand.manager.service import VmManager
from hypemand.manager.startqueue import StartQueue, Turn
from hypemand.model.events import StartKind
from hypemand.model.state import FromStandby, State
from hypemand.recordfile import read_regular
from hypemand.run import run_async
from hypemand.tasks import Tasks
from hypemand.vm.networkmember import NetworkMember
from hypemand.vm.vm import Vm
from hypemand.workers import Pool, run_in

_log = logging.getLogger(__name__)
# the programs that systemd has wait for a network give up by themselves, most after 120 s
_ONLINE_DEADLINE = 180.0
_RECORD_BYTES = 1 << 20
ReachOnline = Callable[[], Coroutine[Any, Any, object]]


class Autostarts:
    """`tasks` are the owner's, who ends them after `prepare_close`. `reach_online` waits until the host's
    network is up, or will not be in time. `boots`: how many VMs boot at a time; who starts one himself waits
    for none of them.

    The names of the VMs that are still to be started are in a file in /run, which no boot of the host has at
    first. So a daemon that is started anew continues with those, and starts no other again.
    """

    def __init__(
        self, parts: Parts, manager: VmManager, tasks: Tasks, reach_online: ReachOnline, boots: int
    ) -> None:
        self._manager, self._tasks, self._reach_online = manager, tasks, reach_online
        self._fleet, self._networks = parts.fleet, parts.networks
        self._path = parts.config().runtime_dir / "autostarted"
        self._left: set[str] = set()
        # as the file has them; None: it is not written yet
        self._recorded: frozenset[str] | None = None
        self._recording = asyncio.Lock()
        self._online: asyncio.Task[object] | None = None
        self._queue = StartQueue(boots)
        self._is_closing = False

    async def load(self) -> frozenset[str] | None:
        """The VMs that the daemon before this one has not started yet. None: the host has just booted."""
        return await run_in(Pool.RECORDS, _load, self._path)

    async def go_on(self, left: frozenset[str] | None, new: Collection[str]) -> None:
        """Start those that `load` gave, or all where the host has just booted, but for `new` ones, which have
        been begun. From now on they are on record."""
        for vm in sorted(self._fleet, key=lambda vm: vm.name):
            is_due = vm.name not in new if left is None else vm.name in left
            is_wanted = vm.record.definition.autostart and not vm.removed
            if is_due and is_wanted and vm.state in (State.STOPPED, State.STANDBY):
                self.begin(vm, at_boot=True)
        self._recorded = left or frozenset()
        await self._record(anew=left is None)

    def begin(self, vm: Vm, *, at_boot: bool) -> None:
        """Start a VM in the background; errors are in the journal. `at_boot`: the host may not have its name
        servers yet; a VM that would get none waits until the host's network is up."""
        self._left.add(vm.name)
        turn = self._queue.enter(vm)
        self._tasks.start(f"autostart of VM {vm.name}", self._start(turn, vm.name, at_boot=at_boot))

    def prepare_close(self) -> None:
        """Begin no start any more that waits for the network or its turn: the next daemon continues to wait.
        To be called as soon as the daemon is asked to end: systemd then ends the process that it waits for,
        too."""
        self._is_closing = True
        self._queue.close()
        if self._online is not None:
            self._online.cancel()

    async def _start(self, turn: Turn, name: str, *, at_boot: bool) -> None:
        try:
            await self._start_in_turn(turn, name, at_boot=at_boot)
        finally:
            self._queue.leave(turn)

    async def _start_in_turn(self, turn: Turn, name: str, *, at_boot: bool) -> None:
        vm = turn.vm
        if at_boot:
            await self._networks.learn_servers()
            if lack := self._find_lack(vm.network_member):
                self._queue.set_aside(turn)
                await self._wait_online(vm, lack)
        await self._queue.await_turn(turn)
        if self._is_closing:
            return
        if vm.record.definition.autostart and not vm.removed:
            try:
                await self._manager.start_vm(vm.name, standby=FromStandby.RESTORE, kind=StartKind.AUTOSTART)
            except HypemandError as error:
                _log.debug("autostart of %s: %s", vm.name, error)  # the manager has told it
        self._left.discard(name)
        if self._recorded is not None:
            await self._record()
        await self._queue.await_boot(turn)

    def _find_lack(self, member: NetworkMember) -> str:
        """What of the host's own network a VM would miss now; "": nothing."""
        if self._networks.lacks_lan(member):
            return "the bridge of its network does not exist yet"
        if self._networks.allocation.lacks_servers(member):
            return "the host has no DNS servers yet"
        return ""

    async def _wait_online(self, vm: Vm, lack: str) -> None:
        """Until the network is up, or will not be in time, or this is being closed: one wait for all VMs."""
        if self._is_closing:
            return
        vm.log(logging.INFO, f"VM {vm.name} starts after network-online.target: {lack}")
        if self._online is None:
            self._online = self._tasks.start("wait for network-online.target", self._reach_online())
        await asyncio.wait([self._online])

    async def _record(self, *, anew: bool = False) -> None:
        """Have the file hold what is left; `anew`: there is none yet."""
        async with self._recording:
            left = frozenset(self._left)
            if left == self._recorded and not anew:
                return
            text = "".join(f"{name}\n" for name in sorted(left))
            with logged("cannot record which VMs were started since the boot"):
                await run_in(Pool.RECORDS, write_file, self._path, text.encode())
            self._recorded = left


async def reach_online() -> None:
    """What the host has to bring its network up decides when it is."""
    try:
        await run_async(["systemctl", "start", "network-online.target"], timeout=_ONLINE_DEADLINE)
    except HypemandError as error:
        _log.warning("VMs that wait for network-online.target start without it: %s", error)


def _load(path: Path) -> frozenset[str] | None:
    try:
        return frozenset(read_regular(path, _RECORD_BYTES).decode(errors="replace").split())
    except FileNotFoundError:
        return None
    except OSError as error:
        # nothing is started twice
        _log.error("which VMs are to be started since the boot is not known: %s", error)
        return frozenset()
