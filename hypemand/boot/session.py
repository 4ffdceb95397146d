# SPDX-License-Identifier: Apache-2.0
"""A live VMM: its connections, and what its boot has shown.

Made when a unit's invocation is seen for the first time, whether that has just begun or was there before
the daemon. Closed when the unit ends; the VMM does not notice.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path

from hypemand.agent.channel import AgentChannel
from hypemand.agent.report import read_report
from hypemand.boot.tracker import BootTracker
from hypemand.boot.watcher import Look
from hypemand.errors import GuestError, HypemandError
from hypemand.qemu.qmp import Qmp, QmpError
from hypemand.sockets import hold_socket
from hypemand.state import QmpStatus
from hypemand.systemd.journal import BootJournal

_log = logging.getLogger(__name__)
# in which the agent of a guest that runs is to answer
AGENT_DEADLINE = 5.0
_LINES_AT_ONCE = 1000
_LINES_TO_CATCH_UP = 20_000


class Session:
    """Connections to one VMM. `on_change` is called whenever evidence may have changed.

    `poll` is for the BootWatcher: it connects to the VMM's sockets as they appear, and reads the journal
    (only if `follow_journal`), until all is connected and all has been seen that Running needs.
    With `catch_up` that is what the guest said of its kernel headers while no daemon listened, as far as the
    first lines of the boot have it.
    """

    def __init__(
        self,
        name: str,
        tracker: BootTracker,
        runtime: Path,
        uid: int,
        *,
        guest_agent: bool,
        follow_journal: bool,
        catch_up: bool = False,
        on_change: Callable[[], None],
    ) -> None:
        self.tracker = tracker
        self.qmp_status = QmpStatus.ABSENT
        self.agent: AgentChannel | None = None
        self.main_pid: int | None = None
        self.notified = False
        self._name = name
        self._runtime = runtime
        self._uid = uid
        self._guest_agent = guest_agent
        self._on_change = on_change
        self._qmp: Qmp | None = None
        self._report_open = False
        self._journal_due = 0.0
        self._boots = follow_journal
        self._journal = BootJournal(tracker.boot) if follow_journal or catch_up else None
        self._to_catch_up = _LINES_TO_CATCH_UP if catch_up else 0
        self._connecting: dict[str, asyncio.Task[None]] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def boot(self) -> str:
        """The id of this boot: the unit's invocation id."""
        return self.tracker.boot

    @property
    def is_ready(self) -> bool:
        """Has the boot shown all that Running needs?"""
        return self.tracker.is_ready(guest_agent=self._guest_agent)

    def poll(self) -> Look:
        """Look for what is new."""
        if self._closed:
            return Look.NEVER
        if time.monotonic() >= self._journal_due:
            self._journal_due = time.monotonic() + Look.LATER.value
            self._read_journal()
        self._connect_missing()
        connected = self._qmp is not None and self._report_open
        connected = connected and (self.agent is not None or not self._guest_agent)
        if not connected:
            return Look.SOON
        return Look.NEVER if self._journal is None else Look.LATER

    def _read_journal(self) -> None:
        if self._journal is None:
            return
        changed = False
        lines = self._journal.read(_LINES_AT_ONCE)
        for line in lines:
            changed |= self.tracker.take_line(line.message, line.monotonic)
        if changed:
            self._on_change()
        if self._has_caught_up(len(lines)) and self.is_ready:
            # the rest of its lines are nobody's business: reading them would cost a talkative guest's price
            self._journal.close()
            self._journal = None

    def _has_caught_up(self, count: int) -> bool:
        self._to_catch_up = max(self._to_catch_up - count, 0)
        # what comes from now on is said on the report port too
        at_end = count == 0 and self._report_open
        return self._to_catch_up == 0 or at_end or self.tracker.headers.state.is_settled

    def _connect_missing(self) -> None:
        if self._qmp is None:
            self._begin("qmp", self._connect_qmp)
        if not self._report_open:
            self._begin("report", self._follow_report)
        if self.agent is None and self._guest_agent:
            self._begin("agent", self._connect_agent)

    def _begin(self, what: str, connect: Callable[[Path], Coroutine[None, None, None]]) -> None:
        task = self._connecting.get(what)
        path = f"{self._runtime}/{what}.sock"
        if (task is None or task.done()) and os.path.exists(path):
            self._connecting[what] = self._spawn(what, self._guard(connect, Path(path)))

    async def _guard(self, connect: Callable[[Path], Coroutine[None, None, None]], path: Path) -> None:
        try:
            await connect(path)
        except (OSError, QmpError, GuestError) as error:
            # made but not served yet, most often: the next poll tries again
            _log.debug("VM %s: %s: %s", self._name, path.name, error)
            return
        self._on_change()

    async def _connect_qmp(self, path: Path) -> None:
        with hold_socket(path, self._uid) as held:
            qmp = await Qmp.connect(held, self._take_event, self._name)
        self._qmp = qmp
        self._spawn("qmp-end", self._await_qmp_end(qmp))
        await self.query_status()

    async def _await_qmp_end(self, qmp: Qmp) -> None:
        await qmp.closed.wait()
        self._qmp = None
        if self.qmp_status is not QmpStatus.SHUTDOWN:
            self.qmp_status = QmpStatus.ABSENT
        self._on_change()

    async def connect_vmm(self, timeout: float) -> None:
        """Connect to a VMM that is there already, rather than at the next poll. Never raises."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._guard(self._connect_qmp, self._runtime / "qmp.sock")

    def _take_event(self, event: str, data: Mapping[str, object]) -> None:
        if event == "SHUTDOWN":
            self.tracker.take_shutdown(data.get("reason"))
            # the VMM ends right after this: it will not answer a question about it
            self.qmp_status = QmpStatus.SHUTDOWN
            self._on_change()
        elif event in ("STOP", "RESUME", "RESET", "GUEST_PANICKED", "SUSPEND", "WAKEUP", "BLOCK_IO_ERROR"):
            self._spawn("qmp-status", self._refresh_status())

    async def _refresh_status(self) -> None:
        await self.query_status()
        self._on_change()

    async def query_status(self) -> QmpStatus:
        """Ask the VMM now; never raises. What the answer is, is in `qmp_status` too."""
        if self._qmp is not None:
            status = await self._qmp.query_status()
            # a VMM that has said that it shuts down is gone while it is asked
            if self.qmp_status is not QmpStatus.SHUTDOWN or status is not QmpStatus.ABSENT:
                self.qmp_status = status
        return self.qmp_status

    async def _follow_report(self, path: Path) -> None:
        self._report_open = True
        try:
            with hold_socket(path, self._uid) as held:
                async for line in read_report(Path(held)):
                    if self.tracker.take_line(line, time.monotonic()):
                        self._on_change()
        finally:
            self._report_open = False

    async def _connect_agent(self, path: Path) -> None:
        with hold_socket(path, self._uid) as held:
            channel = await AgentChannel.connect(Path(held), self.boot)
        self.agent = channel
        self._spawn("hello", self._await_hello(channel))

    async def _await_hello(self, channel: AgentChannel) -> None:
        try:
            await channel.ready()
        except GuestError as error:
            if not self._closed:
                _log.warning("VM %s: agent: %s", self._name, error)
            return
        if self.tracker.take_agent(time.monotonic()):
            self._on_change()
        if self._boots:
            await self._set_clock(channel)

    async def _set_clock(self, channel: AgentChannel) -> None:
        """A guest reads its clock from a device that counts in whole seconds."""
        try:
            await channel.set_clock()
        except HypemandError as error:
            _log.warning("VM %s: its clock may be a second behind: %s", self._name, error)

    async def open_agent(self, timeout: float) -> AgentChannel:
        """The channel to the agent, connected anew if it has broken. GuestError when there is none."""
        if self.agent is None or self.agent.closed.done():
            await self._connect_agent(self._runtime / "agent.sock")
        assert self.agent is not None
        try:
            async with asyncio.timeout(timeout):
                await self.agent.ready()
        except TimeoutError:
            raise GuestError(
                f"the agent did not answer in {timeout:g} s", hint="see hypemanctl logs"
            ) from None
        return self.agent

    def _spawn(self, what: str, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=f"{what} of {self._name}")
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    async def close(self) -> None:
        """Let go of the VMM: of every connection and task."""
        self._closed = True
        tasks = list(self._background)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        if self._qmp is not None:
            await self._qmp.close()
        if self.agent is not None:
            await self.agent.close()
