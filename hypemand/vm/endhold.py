# SPDX-License-Identifier: Apache-2.0
"""A VMM whose guest shuts down during the start of its unit stays until systemd has the unit active.

systemd calls a unit that ends before READY=1 a failure (result `protocol`), whatever its program says, and
does so as soon as the VMM has ended. A program that is quicker than the daemon would be lost to that.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from hypemand.model.evidence import RunState
from hypemand.tasks import Tasks
from hypemand.vmm.driver import Vmm, VmmError
from hypemand.vmm.shutdown import Shutdown

_log = logging.getLogger(__name__)
# From a guest's end: for what it has said before to be read, and for systemd to read READY=1. There are
# events for both; this is for a guest that sends no exit report, and for a systemd that does not answer.
_LAST_WORDS = 2.0


class EndHold:
    """Of one run. `is_activating`: systemd is starting its unit. `has_report`: has the guest's exit report
    been seen? What the guest has said before that has been too, then. `is_ready`: has the boot shown all that
    READY=1 needs?

    The VMM is ordered to stay when the daemon connects to it. Before that, and when that daemon has ended in
    order, it ends with its guest.
    """

    def __init__(
        self,
        name: str,
        tasks: Tasks,
        *,
        is_activating: bool,
        has_report: Callable[[], bool],
        is_ready: Callable[[], bool],
    ) -> None:
        self._name = name
        self._tasks = tasks
        self._holds = is_activating
        self._has_report = has_report
        self._is_ready = is_ready
        self._vmm: Vmm | None = None
        # the VMM may stay: it was told to, and has not answered yet that it is not to
        self._may_stay = False
        self._has_ended = False
        self._reason: Shutdown | None = None
        self._late: asyncio.TimerHandle | None = None

    async def meet(self, vmm: Vmm) -> None:
        """The VMM is connected to. What was said to it before, perhaps by another daemon, is said anew. Never
        raises."""
        self._vmm = vmm
        await self._say(vmm)

    def take_end(self, reason: Shutdown | None = None) -> None:
        """The guest has shut down; the VMM may be there still."""
        if not self._has_ended:
            self._has_ended, self._reason = True, reason
            if self._holds:
                self._late = asyncio.get_running_loop().call_later(_LAST_WORDS, self._let_go)

    def follow(self, *, is_activating: bool) -> None:
        """To be called after each change."""
        if self._holds and (not is_activating or (self._has_ended and self._is_in_vain())):
            self._let_go()

    def _is_in_vain(self) -> bool:
        """Will the unit never be active? A guest that resets has crashed, and has no more to say."""
        return not self._is_ready() and (self._has_report() or self._reason is Shutdown.RESET)

    def _let_go(self) -> None:
        self._cancel()
        self._holds = False
        if self._vmm is not None and not self._vmm.is_closed:
            self._tasks.start("end", self._say(self._vmm))

    async def _say(self, vmm: Vmm) -> None:
        try:
            holds = self._holds
            self._may_stay |= holds
            await vmm.hold_end(holds)
            self._may_stay = holds
            # In the order of the socket: a guest that has shut down before that was heard of. Not that of the
            # next run, where systemd was faster with it than with its signals.
            if self._has_ended and not self._holds and await vmm.query_run_state() is RunState.SHUTDOWN:
                await vmm.quit()
        except VmmError as error:
            _log.debug("VM %s: %s", self._name, error)

    def _cancel(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    async def close(self) -> None:
        """The daemon ends, or the VMM has: nobody holds it any more."""
        self._cancel()
        if self._may_stay and self._vmm is not None and not self._vmm.is_closed:
            self._holds = False
            await self._say(self._vmm)
