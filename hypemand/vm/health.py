# SPDX-License-Identifier: Apache-2.0
"""The health of a VM that is Running: what its guest reports, and what follows.

The guest's agent makes the check, by a timer of the guest: the host has nothing to do but for changes, and a
report now and then that nothing has changed. A guest that does not send that one is unhealthy too. An agent
that cannot be reached is not: then the health is unknown.

A VM that is unhealthy is restarted by systemd, by its own watchdog (WATCHDOG=trigger in sd_notify(3)): that
counts as a failure, with the delays and limits of others. Its WatchdogSignal= has the guest power off.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import replace

from hypemand.agent.health import HealthReport, derive_confirmation, encode_order, read_reports
from hypemand.budget import Price, Reserve
from hypemand.config.health import Health
from hypemand.config.ready import Check
from hypemand.errors import HypemandError
from hypemand.model.events import Details, HealthChange
from hypemand.model.health import HealthState, HealthStatus
from hypemand.model.state import State
from hypemand.systemd.log import log_vm
from hypemand.tasks import Tasks
from hypemand.vm.notifications import notify_systemd
from hypemand.vm.record import VmRecord
from hypemand.vm.retry import Backoff
from hypemand.vm.running import restarts_unhealthy
from hypemand.vm.runs import FindProgram, Runs
from hypemand.vm.session import AGENT_DEADLINE, Session

# beyond what a report may take: a guest on a busy host
_PATIENCE = 15.0
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0
_LEVELS = {HealthState.UNHEALTHY: logging.WARNING, HealthState.HEALTHY: logging.INFO}


class HealthMonitor:
    """`status`: as it was reported last. `on_change` is called when its state or its error is another one,
    `tell` with each event.
    `record`: the VM's, as it is now. `patience`: seconds that a report may be late."""

    def __init__(
        self,
        record: Callable[[], VmRecord],
        runs: Runs,
        tasks: Tasks,
        find_program: FindProgram,
        on_change: Callable[[], None],
        tell: Callable[[Details, str], None],
    ) -> None:
        self.status = HealthStatus()
        self.patience = _PATIENCE
        self._record = record
        self._runs = runs
        self._tasks = tasks
        self._find_program = find_program
        self._on_change = on_change
        self._tell = tell
        self._followed: tuple[Health | None, Session | None, bool] | None = None
        self._task: asyncio.Task[None] | None = None
        self._silence: asyncio.TimerHandle | None = None
        self._stillness = _Stillness()

    def follow(self, state: State, since: float | None) -> None:
        """The VM is in this state, and has run since then. The check is that of its definition as it is now,
        and begins anew with each run, each resume and each other check. While its guest stands still, neither
        its start period goes on nor a report is waited for."""
        self._stillness.follow(self._runs.session)
        if since is not None:
            since += self._stillness.seconds
        health = self._record().definition.health
        session = self._runs.session if state is State.RUNNING and health is not None else None
        followed = (health, session, state is State.INITIALIZING)
        if followed == self._followed:
            return
        self.close()
        self._followed = followed
        starts = state is State.INITIALIZING or (session is not None and _start_left(health, since) > 0)
        self.status = HealthStatus(
            HealthState.DISABLED
            if health is None
            else HealthState.STARTING
            if starts
            else HealthState.UNKNOWN
        )
        if health is not None and session is not None:
            self._task = self._tasks.start("health check", self._watch(health, session, since))

    def close(self) -> None:
        """Nothing is checked any more."""
        self._stop_waiting()
        self._followed = None
        if self._task is not None:
            self._task.cancel()
            self._task = None

    # what its guest reports

    async def _watch(self, health: Health, session: Session, since: float | None) -> None:
        pauses = Backoff(first=_FIRST_PAUSE, longest=_LONGEST_PAUSE)
        while True:
            try:
                await self._follow_reports(health, session, since)
            except HypemandError as error:
                self._stop_waiting()
                self._become(replace(self.status, state=HealthState.UNKNOWN, error=error.message))
                if error.code == "agent_too_old":
                    return
            pauses.fail()
            await asyncio.sleep(pauses.wait_time)

    async def _follow_reports(self, health: Health, session: Session, since: float | None) -> None:
        record, definition = self._record(), self._runs.definition
        is_command = health.check.check is Check.EXEC
        program = await self._find_program(record, definition) if is_command else None
        channel = await session.open_agent(AGENT_DEADLINE)
        left = _start_left(health, since)
        order = encode_order(health, left, program, loopback=definition.network is None)
        stream = await channel.check_health(order)
        longest = health.check.interval + health.timeout + derive_confirmation(health) + self.patience
        try:
            self._wait_for_report(longest + left, session, health)
            async for report in read_reports(stream):
                self._wait_for_report(longest, session, health)
                await self._take(report, session, health)
        finally:
            await stream.close()

    async def _take(self, report: HealthReport, session: Session, health: Health) -> None:
        now = time.time()
        status = HealthStatus(
            report.state,
            report.failures,
            report.successes,
            now,
            now if report.passed else self.status.succeeded_at,
            self.status.failed_at if report.passed else now,
            report.error,
        )
        if (status.state, status.error) != (self.status.state, self.status.error):
            # what follows from a change is paid, so that a guest cannot have the daemon write all the time
            await session.budget.wait(Reserve.CHANGES)
            session.budget.spend(Price.CHANGE)
        self._become(status)
        if status.state is HealthState.UNHEALTHY:
            await self._restart(session, health, status.error or "")

    def _wait_for_report(self, seconds: float, session: Session, health: Health) -> None:
        self._stop_waiting()
        loop = asyncio.get_running_loop()
        self._silence = loop.call_later(seconds, self._miss_report, seconds, session, health)

    def _miss_report(self, seconds: float, session: Session, health: Health) -> None:
        self._silence = None
        reason = f"the guest has not reported for {seconds:.0f} s"
        self._become(replace(self.status, state=HealthState.UNHEALTHY, failed_at=time.time(), error=reason))
        self._tasks.start("restart of a silent guest", self._restart(session, health, reason))

    def _stop_waiting(self) -> None:
        if self._silence is not None:
            self._silence.cancel()
            self._silence = None

    # what follows

    def _become(self, status: HealthStatus) -> None:
        old, self.status = self.status, status
        if (status.state, status.error) == (old.state, old.error):
            return
        if status.state is not old.state:
            self._report_change(old.state, status)
        self._on_change()

    def _report_change(self, old: HealthState, status: HealthStatus) -> None:
        """To the journal what an administrator looks for there, and as an event every change."""
        why = f": {status.error}" if status.state is HealthState.UNHEALTHY and status.error else ""
        text = f"health {old} -> {status.state}{why}"
        if (level := _LEVELS.get(status.state)) is not None:
            record = self._record()
            words = f"VM {record.name}: {text}"
            log_vm(level, words, record.name, record.id, HYPEMAN_HEALTH=status.state.value)
        self._tell(HealthChange(old, status.state, status.error), text)

    async def _restart(self, session: Session, health: Health, reason: str) -> None:
        """Have systemd restart it, once in a run. One whose unit was not made for that is only shown, and
        needs a restart (`lacks_watchdog`)."""
        running = self._runs.definition
        if not restarts_unhealthy(running) or not health.restarts(running.restart):
            return
        if session.tracker.unhealthy is not None:
            return
        session.tracker.unhealthy = reason
        # for ExecStopPost=, which says why the run has ended
        self._runs.files.keep_notes(session.tracker.notes, at_end=True)
        await self._runs.files.flush_notes()
        if self._runs.session is session:
            notify_systemd(self._record().name, session, "WATCHDOG=trigger", f"STATUS=Unhealthy: {reason}")


class _Stillness:
    """For how many `seconds` the guest of the run that is on has stood still, as far as this daemon knows."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._run: str | None = None
        self._since: float | None = None

    def follow(self, session: Session | None) -> None:
        """It is this run, in its state now."""
        if session is None or session.run != self._run:
            self.seconds, self._since = 0.0, None
            self._run = None if session is None else session.run
        is_halted = session is not None and session.run_state.is_halted
        now = time.monotonic()
        if self._since is not None:
            self.seconds += now - self._since
        self._since = now if is_halted else None


def _start_left(health: Health | None, since: float | None) -> float:
    """Seconds of the start period that are left."""
    if health is None:
        return 0.0
    return health.start_period if since is None else max(since + health.start_period - time.time(), 0.0)
