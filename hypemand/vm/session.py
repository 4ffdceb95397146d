# SPDX-License-Identifier: Apache-2.0
"""Session with a running VMM: its connections, and the progress of its boot.

Made when a unit's invocation is seen for the first time, whether that has just begun or was there before
the daemon. Closed when the unit ends; the VMM does not notice.

The journal, the report port, the agent and the VMM are witnesses that know nothing of each other: each is
guarded and tried again by itself, and an error in one leaves the others as they are.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from hypemand.agent.channel import AgentChannel, AgentHello
from hypemand.agent.report import open_report
from hypemand.budget import Budget, Price, Reserve
from hypemand.errors import GuestError, HypemandError
from hypemand.model.evidence import Marker, RunState
from hypemand.protocol.thaw import ForkIdentity, Thaw
from hypemand.sockets import hold_socket
from hypemand.systemd.journal import BootJournal
from hypemand.systemd.notify import notify_for
from hypemand.systemd.port import Notify
from hypemand.tasks import Tasks
from hypemand.vm.console import Console, OpenJournal
from hypemand.vm.endhold import EndHold
from hypemand.vm.folders import WARM
from hypemand.vm.fulldrives import FullDrive, Locate, find_full_drives
from hypemand.vm.guestclock import GuestClock
from hypemand.vm.retry import Backoff
from hypemand.vm.tracker import BootNotes, BootTracker
from hypemand.vm.watcher import LATER, SOON
from hypemand.vmm.control import CONTROL
from hypemand.vmm.driver import Connect, Ending, Vmm, VmmError, VmmEvent
from hypemand.vmm.qemu import connect_qemu

_log = logging.getLogger(__name__)
# in which the agent of a guest that runs is to answer
AGENT_DEADLINE = 5.0
# of the budget: what follows of a pause, or of a resumption. QEMU tells of it, and is asked; its answer is a
# change, and so is that it was asked
_ORDER = 2 * Price.CHANGE + Price.EVENT
# in which a VMM that has just been spawned makes its sockets, also on a busy host
_SPAWN_DEADLINE = 10.0
# in which a VMM is waited for, by who can do with what it was last, and after which that is not known any
# more: on a busy host a VMM that is well takes seconds
_ANSWER_DEADLINE = 0.5
SILENCE_DEADLINE = 10.0
# In these a VMM may be loading a guest
_NOT_KNOWN = (RunState.AWAITED, RunState.NO_ANSWER, RunState.ABSENT)
# connections to the agent of a guest that is restored, and seconds between two of them, in which it sees that
# the first has ended, also on a busy host. Nothing tells that it has; and one that has lost where a frame
# begins hears nothing until then.
_RESUME_TRIES, _RESUME_PAUSE = 20, 0.25
# An agent that has answered in this boot is waited for ever longer before it is connected to anew, up to this
# after so many times: host and guest may be slow.
_LONGEST_SILENCE, _SILENCES = 60.0, 8


@dataclass(slots=True)
class Resumption:
    """The guest goes on from where it was saved, once its agent has been told how. `boot`: the boot id that
    it was saved with, until it is given another one with its `identity`; None: it keeps all that it has.
    `other`: the boot id to try next; `tries`: connections that have failed."""

    boot: str
    identity: ForkIdentity | None = None
    other: str = ""
    tries: int = 0


@dataclass(slots=True)
class _Link:
    """One of the VMM's sockets, and the one task that connects to it: whoever wants the connection waits for
    that task, since the VMM serves one client at a time."""

    what: str
    connect: Callable[[Path], Coroutine[None, None, None]]
    backoff: Backoff = field(default_factory=Backoff)
    task: asyncio.Task[Exception | None] | None = None
    is_up: bool = False
    told: bool = False


class Session:
    """Connections to one VMM. `on_change` is called when evidence may have changed: at once, or within a
    second for a VM that has used up its budget. `look_again`: `poll` is to be called again, now. `ready`: the
    definition has a check, which the guest makes.

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
        ready: bool = False,
        follow_journal: bool,
        catch_up: bool = False,
        on_change: Callable[[], None],
        look_again: Callable[[], None] = lambda: None,
        open_journal: OpenJournal = BootJournal,
        locate: Locate = lambda _drive: None,
        notify: Notify = notify_for,
        connect: Connect = connect_qemu,
    ) -> None:
        self.tracker = tracker
        self.run_state = RunState.AWAITED
        # why it is IO_ERROR
        self.full: tuple[FullDrive, ...] = ()
        self.agent: AgentChannel | None = None
        self.main_pid: int | None = None
        self.notified = False
        # the main process as which it was made known to systemd-machined
        self.registered: int | None = None
        self.notify = notify
        self.budget = Budget()
        self._name = name
        self._runtime = runtime
        self._uid = uid
        self._guest_agent = guest_agent
        self._ready = ready
        self._on_change = on_change
        self._look_again = look_again
        self._locate = locate
        self._connect_driver = connect
        self._opened = time.monotonic()
        self._console: Console | None = None
        # all stages of its boot are known, or nobody looks for them any more
        self._has_stages = asyncio.Event()
        if follow_journal or catch_up:
            self._console = Console(name, tracker, self.budget, open_journal, catch_up=catch_up)
        else:
            self._has_stages.set()
        self._vmm: Vmm | None = None
        self._vmm_link = _Link(CONTROL, self._open_vmm)
        self._report_link = _Link("report", self._follow_report)
        self._agent_link = _Link("agent", self._connect_agent)
        self._links = [self._vmm_link, self._report_link] + [self._agent_link] * guest_agent
        self._tasks = Tasks(f"VM {name}")
        self._end = EndHold(
            name,
            self._tasks,
            is_activating=follow_journal,
            has_report=lambda: tracker.exit is not None,
            is_ready=lambda: self.is_ready,
        )
        self._change_due: asyncio.TimerHandle | None = None
        self._refreshing: asyncio.Task[None] | None = None
        self._status_stale = False
        self._question: asyncio.Task[None] | None = None
        self._ask_again = False
        # questions that were answered
        self._answered = 0
        self._let_end = False
        self._announced = False
        self._clock = GuestClock(name, self._tasks, self._set_clock, self._may_set_clock)
        self.resumption: Resumption | None = None
        # connections in a row that the agent has left unanswered, or has not gone on by
        self._unheard = 0
        # why nobody speaks to the guest
        self._away = ""
        self._closed = False
        # not there for so long: nothing is known of it any more
        self._absence: asyncio.TimerHandle | None = None
        self._begin_absence()

    @property
    def run(self) -> str:
        """The id of this run: the unit's invocation id."""
        return self.tracker.run

    @property
    def boot(self) -> str | None:
        """The id of the boot that the run carries; None while it is not known."""
        return self.tracker.boot

    @property
    def has_agent(self) -> bool:
        """Does its guest have one, by its definition?"""
        return self._guest_agent

    @property
    def is_ready(self) -> bool:
        """Has the boot shown all that Running needs?"""
        return self.tracker.is_ready(guest_agent=self._guest_agent, ready=self._ready)

    def take_main_pid(self, pid: int | None) -> None:
        """The unit's main process, by which systemd is notified. It changes when the guest of a warm start
        gives its sign of life (guest/console/candidate.h), and systemd may have refused what was sent in the
        name of the one before: readiness is sent again then."""
        if pid is not None and pid != self.main_pid:
            self.main_pid = pid
            self.notified = False

    def follow_end(self, *, is_activating: bool) -> None:
        """See `EndHold.follow`."""
        self._end.follow(is_activating=is_activating)

    # what boots

    def poll(self) -> float | None:
        """Look for what is new. Seconds until it is to be called again, if at all."""
        if self._closed:
            return None
        waits = [self._poll_link(link) for link in self._links] + [self._poll_console()]
        return min((wait for wait in waits if wait is not None), default=None)

    def _poll_console(self) -> float | None:
        console = self._console
        if console is None or not console.is_open:
            return None
        if console.wait_time <= 0:
            if console.read(has_port=self._report_link.is_up):
                self._changed()
            if self.is_ready and console.has_all():
                # the rest of its lines is not needed: to read it would cost a talkative guest's price
                console.close()
                self._has_stages.set()
                return None
        return console.wait_time

    def _poll_link(self, link: _Link) -> float | None:
        if link.is_up or (self._away and link is not self._vmm_link):
            return None
        if link.task is not None and not link.task.done():
            return LATER  # who loses or gains it polls anew
        if link.backoff.wait_time > 0:
            return link.backoff.wait_time
        if not self._may_reach(link):
            return LATER  # until its run state is another one
        if os.path.exists(self._runtime / f"{link.what}.sock"):
            self._begin(link)
            return LATER
        return SOON if time.monotonic() < self._opened + _SPAWN_DEADLINE else LATER

    def _may_reach(self, link: _Link) -> bool:
        """May it be connected to now? While the VMM loads a guest, the interrupt of an event of a port may be
        lost: what is loaded after it takes its place. The guest's driver gets no other until it has seen that
        one, so that it would never hear of anything again."""
        if link is self._vmm_link:
            return True
        if self.resumption is not None:
            return self.run_state is RunState.RUNNING
        if self.run_state in _NOT_KNOWN and os.path.exists(self._runtime / WARM):
            return False
        return self.run_state is not RunState.NOT_STARTED

    # connections

    def _begin(self, link: _Link) -> asyncio.Task[Exception | None]:
        """The task that connects: the one that is under way, or a new one. Its result is what went wrong."""
        if link.task is None or link.task.done():
            link.task = self._tasks.start(link.what, self._connect(link))
        return link.task

    async def _connect(self, link: _Link) -> Exception | None:
        try:
            await link.connect(self._runtime / f"{link.what}.sock")
        except (OSError, VmmError, GuestError) as error:
            # made but not served yet, most often: the next poll tries again
            _log.debug("VM %s: %s: %s", self._name, link.what, error)
            self._lose(link)
            return error
        except Exception as error:
            if not link.told:
                link.told = True
                _log.exception("VM %s: cannot connect to its %s socket, retrying", self._name, link.what)
            self._lose(link)
            return error
        return None

    def _gain(self, link: _Link) -> None:
        link.is_up = True
        link.backoff.succeed()
        self._changed()

    def _lose(self, link: _Link) -> None:
        """It is not there, or no more."""
        link.is_up = False
        link.backoff.fail()
        if not self._closed:
            self._look_again()

    async def _open_vmm(self, path: Path) -> None:
        with hold_socket(path, self._uid) as held:
            self._vmm = await self._connect_driver(held, self._take_event, self._name, self.budget)
        self._tasks.start("vmm-end", self._await_vmm_end(self._vmm))
        await self.query_status(SILENCE_DEADLINE)
        if not self._vmm.is_closed:
            self._end_absence()
            self._gain(self._vmm_link)
            await self._end.meet(self._vmm)

    async def _await_vmm_end(self, vmm: Vmm) -> None:
        await vmm.wait_closed()
        await vmm.close()
        self._begin_absence()
        self._lose(self._vmm_link)
        self._changed()

    def _begin_absence(self) -> None:
        """Most often it has ended, or does not listen yet, and systemd knows more. Until SILENCE_DEADLINE has
        passed it counts as what it was last, and is connected to again."""
        self._end_absence()
        if not self._closed:
            self._absence = asyncio.get_running_loop().call_later(SILENCE_DEADLINE, self._miss_vmm)

    def _end_absence(self) -> None:
        if self._absence is not None:
            self._absence.cancel()
            self._absence = None

    def _miss_vmm(self) -> None:
        if self.run_state is not RunState.SHUTDOWN:
            self.run_state, self.full = RunState.ABSENT, ()
            self._changed()

    async def connect_vmm(self, timeout: float) -> None:
        """Connect to a VMM that is there already, rather than at the next poll, or wait for the connection
        that is being made. Never raises."""
        if not self._vmm_link.is_up and not self._closed:
            await asyncio.wait([self._begin(self._vmm_link)], timeout=timeout)

    async def _follow_report(self, path: Path) -> None:
        """Unlike the others it goes on for as long as the connection does."""
        with hold_socket(path, self._uid) as held:
            async with open_report(Path(held), self.budget) as lines:
                self._gain(self._report_link)
                async for line in lines:
                    if self.tracker.take_line(line, time.monotonic()):
                        self._changed()
        raise GuestError("the VMM closed the report port")

    async def _connect_agent(self, path: Path) -> None:
        if self.agent is not None:
            await self.agent.close()
        boot = self.boot if self.resumption is None else self.resumption.boot
        if boot is None:
            raise GuestError("it is not known yet which boot this is")
        with hold_socket(path, self._uid) as held:
            self.agent = await AgentChannel.connect(Path(held), boot, self.budget)
        # from now on it is connected anew when it is wanted: a guest that breaks it does not decide when
        self._gain(self._agent_link)
        self._tasks.start("hello", self._await_hello(self.agent))

    async def _await_hello(self, channel: AgentChannel) -> None:
        stands_still = self.resumption is not None
        try:
            hello = await self._hear(channel)
            stands_still = stands_still or hello.frozen
            if stands_still:
                await self._thaw(channel)
        except (HypemandError, TimeoutError) as error:
            if not self._closed:
                level = logging.WARNING if self._unheard == 0 else logging.DEBUG
                _log.log(level, "VM %s: agent: %s", self._name, str(error) or "it does not answer, retrying")
                if stands_still or isinstance(error, TimeoutError):
                    await self._try_again(channel)
            return
        self._unheard = 0
        if self.tracker.take_agent(time.monotonic()):
            self._changed()
        if not stands_still:
            # it read its clock from a device that counts in whole seconds, when it booted; and what came
            # since then no daemon may have seen
            self.keep_clock()

    async def _hear(self, channel: AgentChannel) -> AgentHello:
        """Its HELLO. TimeoutError: a connection is made in vain where that is lost, as what is said in the
        moment in which a guest comes back may be; but not where nothing was heard of the agent yet, which
        boots as long as it takes, or where the guest is paused."""
        while True:
            is_known = self.resumption is not None or self.tracker.has(Marker.AGENT)
            wait = self._grow(AGENT_DEADLINE) if is_known else None
            try:
                async with asyncio.timeout(wait):
                    return await channel.ready()
            except TimeoutError:
                if self.resumption is not None or self.run_state is RunState.RUNNING:
                    raise

    async def _try_again(self, channel: AgentChannel) -> None:
        """A guest that is restored does not go on without: it may have got another boot id already. One that
        stands still after it was saved would do so for ever."""
        resumption, boot = self.resumption, self.boot
        if boot is None or (resumption is not None and resumption.tries >= _RESUME_TRIES):
            return
        pause = _RESUME_PAUSE
        if resumption is None:
            pause = self._grow(_RESUME_PAUSE)
            self._unheard = min(self._unheard + 1, _SILENCES)
        else:
            resumption.tries += 1
            if resumption.identity is not None:
                resumption.boot, resumption.other = resumption.other or boot, resumption.boot
        await channel.close("the agent did not answer")
        await asyncio.sleep(pause)
        if self.agent is channel:
            self._lose(self._agent_link)

    def _grow(self, seconds: float) -> float:
        return min(seconds * (1 << self._unheard), _LONGEST_SILENCE)

    async def _thaw(self, channel: AgentChannel) -> None:
        """Have a guest go on whose processes stand still, as who it is."""
        thaw = Thaw(identity=None if self.resumption is None else self.resumption.identity)
        await self._clock.set_by(partial(channel.thaw, thaw))
        self.resumption = None

    async def freeze(self) -> None:
        """Have the guest's processes stand still, and what they have written be on its disks, for a save. Who
        speaks to it next has them go on. HypemandError: they go on, or do so then."""
        channel = await self.open_agent(AGENT_DEADLINE)
        await channel.freeze()

    def resume_boot(self, notes: BootNotes, booted_at: float | None) -> None:
        """The boot goes on that was saved with these notes."""
        self.tracker.resume(notes, booted_at)
        self._changed()

    def hold_guest(self, why: str) -> None:
        """Make no connection that the guest sees until `return_to_guest`."""
        self._away = why

    async def leave_guest(self, why: str) -> None:
        """End the connections that the guest sees, so that it sees those of a restore as new ones; none is
        made until `return_to_guest`."""
        self._away = why
        links = [link for link in self._links if link is not self._vmm_link]
        # each is made anew, and the agent says that it is there
        self.budget.grant(sum(Price.CHANGE for link in links if link.is_up) + Price.CHANGE)
        tasks = [link.task for link in links if link.task is not None and not link.task.done()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self.agent is not None:
            await self.agent.close(why)
            self.agent = None
        for link in links:
            link.is_up = False

    def return_to_guest(self) -> None:
        """Speak to it again."""
        if self._away and not self._closed:
            self._away = ""
            self._look_again()

    async def save(
        self, memory: int, state: int, *, size: int, deadline: float, ready: Awaitable[object]
    ) -> None:
        """See `Vmm.save`. VmmError, OSError."""
        vmm = await self.reach_vmm()
        await vmm.save(memory, state, size=size, user=self._uid, deadline=deadline, ready=ready)

    def keep_clock(self) -> None:
        """Set the guest's clock to the host's time: now, or when its agent speaks."""
        self._clock.keep()

    def _may_set_clock(self) -> bool:
        return self.agent is not None and self.agent.is_ready and self.run_state is not RunState.PAUSED

    async def _set_clock(self) -> None:
        assert self.agent is not None, "it may be set"
        await self.agent.set_clock()

    async def open_agent(self, timeout: float) -> AgentChannel:
        """The channel to the agent, connected anew if it has broken. GuestError when there is none."""
        try:
            async with asyncio.timeout(timeout):
                channel = await self._reach_agent()
                await channel.ready()
        except TimeoutError:
            raise GuestError(
                f"the agent did not answer in {timeout:g} s", hint="see hypemanctl logs"
            ) from None
        return channel

    async def ask_to_end(self, grace: float) -> None:
        """Have the guest shut down within `grace` seconds. One that cannot be reached is ended by force."""
        try:
            channel = await self.open_agent(AGENT_DEADLINE)
            await channel.shutdown(grace)
        except (OSError, GuestError) as error:
            _log.warning("VM %s: cannot ask the guest to shut down: %s", self._name, error)

    async def _reach_agent(self) -> AgentChannel:
        if self.agent is None or self.agent.closed.done():
            if self._closed:
                raise GuestError("the VM has stopped meanwhile")
            if self._away:
                raise GuestError(self._away)
            if not self._may_reach(self._agent_link):
                raise GuestError("the VMM has not loaded the guest yet")
            connecting = self._begin(self._agent_link)
            error = await asyncio.shield(connecting)
            if error is not None:
                raise GuestError(f"cannot reach the VM's agent: {error}") from error
        assert self.agent is not None
        return self.agent

    # evidence

    async def await_stages(self) -> None:
        """Wait until all stages of its boot are known, if it has shown all that Running needs; not for long
        where its guest does not report them."""
        if self.is_ready:
            await self._has_stages.wait()

    def _changed(self) -> None:
        """What follows from a change is paid, too, so that a guest that changes its mind all the time has the
        daemon write and tell no more than its budget allows."""
        if self.tracker.has_stages:
            self._has_stages.set()
        if self._change_due is not None or self._closed:
            return
        wait = self.budget.wait_time(Reserve.CHANGES)
        if wait > 0:
            self._change_due = asyncio.get_running_loop().call_later(wait, self._tell_change)
        else:
            self._tell_change()

    def _tell_change(self) -> None:
        self._change_due = None
        self.budget.spend(Price.CHANGE)
        self._on_change()

    def _take_event(self, event: VmmEvent) -> None:
        if isinstance(event, Ending):
            self.tracker.take_shutdown(event.reason)
            self._end.take_end(event.reason)
            # the VMM ends right after this, or is held: it would say so, or nothing
            self.run_state = RunState.SHUTDOWN
            self._changed()
        else:
            self._status_stale = True
            if self._refreshing is None or self._refreshing.done():
                self._refreshing = self._tasks.start("vmm-status", self._refresh_status())

    async def _refresh_status(self) -> None:
        """One question at a time, however many events there are."""
        while self._status_stale:
            self._status_stale = False
            await self.query_status(SILENCE_DEADLINE, anew=True)
            self._changed()
            await self.budget.wait(Reserve.CHANGES)

    async def query_status(self, wait: float = _ANSWER_DEADLINE, *, anew: bool = False) -> RunState:
        """Ask the VMM now, and wait at most that many seconds; never raises. `run_state` is its last answer:
        a later one is taken when it comes, and after SILENCE_DEADLINE without one it is NO_ANSWER until then.
        One question at a time, whoever asks; `anew`: what was asked before this does not do."""
        if self._vmm is not None and not self._vmm.is_closed and not self._closed:
            if self._question is None or self._question.done():
                self._question = self._tasks.start("vmm-question", self._ask(self._vmm))
            elif anew:
                self._ask_again = True
            await asyncio.wait([self._question], timeout=wait)
        return self.run_state

    async def _ask(self, vmm: Vmm) -> None:
        silence = partial(self._take_status, vmm, RunState.NO_ANSWER)
        silent = asyncio.get_running_loop().call_later(SILENCE_DEADLINE, silence)
        try:
            status = await self._ask_until_new(vmm)
        finally:
            silent.cancel()
        self._answered += 1
        number = self._answered
        full = self.full if status is RunState.IO_ERROR else ()
        if status is RunState.IO_ERROR and not full:
            # that takes a look at file systems, during which it may go on
            self._question = None
            full = await self._find_full(vmm)
        if number == self._answered:
            self._take_status(vmm, status, full)

    async def _ask_until_new(self, vmm: Vmm) -> RunState:
        while True:
            self._ask_again = False
            status = await vmm.query_run_state()
            if not self._ask_again:
                return status

    def _take_status(self, vmm: Vmm, status: RunState, full: tuple[FullDrive, ...] = ()) -> None:
        # one that has gone while it was asked is missed later, if it does not come back
        gone = status is RunState.ABSENT
        if vmm is self._vmm and not gone and (status, full) != (self.run_state, self.full):
            self.run_state, self.full = status, full
            if status is RunState.SHUTDOWN:
                self._end.take_end()
            self._changed()
            self._look_again()  # the guest may be reached now

    async def _find_full(self, vmm: Vmm) -> tuple[FullDrive, ...]:
        """Which disks could not be written."""
        try:
            return await find_full_drives(await vmm.list_full_drives(), self._locate)
        except VmmError as error:
            _log.debug("VM %s: %s", self._name, error)
            return ()

    async def pause(self) -> None:
        """Stop the guest's CPUs. VmmError."""
        self.budget.grant(_ORDER)
        await (await self.reach_vmm()).pause()
        await self.query_status(SILENCE_DEADLINE, anew=True)

    async def resume(self) -> None:
        """Let the guest go on, whatever it was stopped for. VmmError."""
        self.full = ()
        self.budget.grant(_ORDER)
        await (await self.reach_vmm()).resume()
        status = await self.query_status(SILENCE_DEADLINE, anew=True)
        if status is RunState.RUNNING:
            self.keep_clock()  # it stood still as long as the guest

    def announce(self) -> None:
        """Have the guest tell its network where it is; once."""
        if not self._announced:
            self._announced = True
            self._tasks.start("announcement", self._announce())

    async def _announce(self) -> None:
        try:
            await (await self.reach_vmm()).announce()
        except VmmError as error:
            _log.warning("VM %s: others may not reach it at once on its network: %s", self._name, error)

    async def reach_vmm(self) -> Vmm:
        """The VMM, which is waited for while it is being connected to. VmmError."""
        await self.connect_vmm(SILENCE_DEADLINE)
        if self._vmm is None or self._closed:
            raise VmmError("the VMM does not listen on its QMP socket")
        return self._vmm

    def let_end(self) -> None:
        """The unit is being stopped, and a guest that stands still cannot hear of it. Once: one whose disk is
        still full stands still again, and would all the time."""
        if not self._let_end:
            self._let_end = True
            self._tasks.start("resume", self._resume_to_end())

    async def _resume_to_end(self) -> None:
        try:
            await self.resume()
        except VmmError as error:
            _log.warning("VM %s: cannot resume the guest so that it ends: %s", self._name, error)
        self._changed()

    async def close(self) -> None:
        """Close every connection to the VMM, and end every task."""
        self._closed = True
        self._has_stages.set()
        self._end_absence()
        if self._change_due is not None:
            self._change_due.cancel()
        await self._end.close()
        await self._tasks.close()
        if self._console is not None:
            self._console.close()
        if self._vmm is not None:
            await self._vmm.close()
        if self.agent is not None:
            await self.agent.close()
