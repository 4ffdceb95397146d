# SPDX-License-Identifier: Apache-2.0
"""Deletes VMs whose lifetime is over.

There is one timer, for the VM whose lifetime ends first, and none where no VM has one. A lifetime ends by the
host's clock, so the timer is set anew when that is set.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from hypemand.clocksteps import ClockSteps
from hypemand.errors import HypemandError, NotFound
from hypemand.manager.fleet import Fleet
from hypemand.tasks import Tasks
from hypemand.vm.vm import Vm

_log = logging.getLogger(__name__)
# asyncio waits for no timer that is further ahead than epoll(7) can
_LONGEST_TIMER = 10 * 86400.0
# seconds after which a deletion that failed is tried again
_RETRY = 60.0


class Expiry:
    """From `begin` to `close`. `delete`: deletes a VM if its lifetime is over, which it looks at when it is
    the only operation on that VM."""

    def __init__(
        self,
        fleet: Fleet,
        delete: Callable[[Vm], Awaitable[None]],
        clock: Callable[[], float] = time.time,
        retry: float = _RETRY,
    ) -> None:
        self._fleet = fleet
        self._delete = delete
        self._clock = clock
        self._retry = retry
        self._tasks = Tasks("the expiry of VMs")
        self._begun = False
        self._timer: asyncio.TimerHandle | None = None
        self._steps: ClockSteps | None = None
        # by the id of the VM: being deleted, or waited with after a failure until that time
        self._ending: set[str] = set()
        self._later: dict[str, float] = {}

    def begin(self) -> None:
        """The VMs are known. Those whose lifetime is over are deleted now."""
        self._begun = True
        self.schedule()

    async def close(self) -> None:
        """Delete no more VMs."""
        self._begun = False
        self.schedule()
        await self._tasks.close()

    def schedule(self) -> None:
        """To be called when a VM has another deadline, or has gone."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadlines = [self._find_time(vm) for vm in self._fleet if self._is_counted(vm)]
        self._follow_clock(bool(deadlines))
        if deadlines:
            delay = min(max(min(deadlines) - self._clock(), 0.0), _LONGEST_TIMER)
            self._timer = asyncio.get_running_loop().call_later(delay, self._look)

    def _is_counted(self, vm: Vm) -> bool:
        return self._begun and vm.record.expires_at is not None and vm.record.id not in self._ending

    def _find_time(self, vm: Vm) -> float:
        return max(vm.record.expires_at or 0.0, self._later.get(vm.record.id, 0.0))

    def _follow_clock(self, wanted: bool) -> None:
        if self._steps is not None and not wanted:
            self._steps.close()
            self._steps = None
        elif self._steps is None and wanted:
            try:
                self._steps = ClockSteps(self.schedule)
            except OSError as error:
                _log.warning("VMs do not expire earlier when this host's clock is set forward: %s", error)

    def _look(self) -> None:
        self._timer = None
        now = self._clock()
        for vm in self._fleet:
            if self._is_counted(vm) and self._find_time(vm) <= now:
                self._ending.add(vm.record.id)
                self._tasks.start(f"end of VM {vm.name}", self._end(vm))
        self.schedule()

    async def _end(self, vm: Vm) -> None:
        """Delete it, once nothing else is done with it."""
        vm_id = vm.record.id
        self._later.pop(vm_id, None)
        try:
            # an export refuses who would wait for its end
            await vm.changes.wait_for(lambda: vm.operations.closed or not vm.operations.is_busy, None)
            await self._delete(vm)
        except NotFound:
            pass  # it has been deleted meanwhile
        except (HypemandError, OSError) as error:
            vm.log(logging.ERROR, f"VM {vm.name} has expired, and is not deleted yet: {error}")
            self._later[vm_id] = self._clock() + self._retry
        finally:
            self._ending.discard(vm_id)
            self.schedule()
