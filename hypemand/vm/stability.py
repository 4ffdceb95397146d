# SPDX-License-Identifier: Apache-2.0
"""A run that has been stable for long enough begins a new count of restarts.

systemd has no such rule: it counts starts in an interval. So it is asked to forget those that it has counted
(ResetFailedUnit, which changes nothing of a unit that runs). There is a timer only for a VM that was
restarted. A daemon that was away meanwhile does it when it comes back.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from hypemand.model.state import State
from hypemand.systemd.bus import BusError
from hypemand.systemd.units import Units
from hypemand.tasks import Tasks
from hypemand.vm.runs import Runs

_log = logging.getLogger(__name__)


class Stability:
    """Of one VM, whose unit is `unit`. `on_reset` is called when systemd has forgotten its restarts."""

    def __init__(
        self, unit: str, units: Units, tasks: Tasks, runs: Runs, on_reset: Callable[[], None]
    ) -> None:
        self._unit = unit
        self._units = units
        self._tasks = tasks
        self._runs = runs
        self._on_reset = on_reset
        self._due: asyncio.TimerHandle | None = None
        self._since: float | None = None

    def follow(self, state: State, changed_at: float | None) -> None:
        """It is in this state, and its unit in its own since then (seconds since the epoch)."""
        counts = state in (State.RUNNING, State.PAUSED) and self._runs.restarts > 0
        since = changed_at if counts else None
        if since == self._since and (since is None or self._due is not None):
            return
        self.close()
        self._since = since
        if since is not None:
            wait = max(since + self._runs.definition.restart_stable_after - time.time(), 0.0)
            self._due = asyncio.get_running_loop().call_later(wait, self._begin)

    def _begin(self) -> None:
        self._due = None
        self._tasks.start("stable", self._reset())

    async def _reset(self) -> None:
        try:
            await self._units.reset_failed(self._unit)
        except BusError as error:
            # asked again with the next look at it
            _log.warning("%s: its restarts still count: %s", self._unit, error.message)
            return
        self._runs.forget_restarts()
        self._on_reset()

    def close(self) -> None:
        """Nothing is due any more."""
        if self._due is not None:
            self._due.cancel()
            self._due = None
