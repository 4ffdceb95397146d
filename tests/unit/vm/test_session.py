# SPDX-License-Identifier: Apache-2.0
"""A session against VMMs that behave and others that do not: each witness by itself, one connection for
all."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from hypemand.agent.channel import AgentChannel
from hypemand.budget import BURST, PER_SECOND, Price
from hypemand.errors import GuestError
from hypemand.model.evidence import Marker, RunState
from hypemand.systemd.journal import JournalLine
from hypemand.vm.console import PERIOD
from hypemand.vm.session import Resumption, Session
from hypemand.vm.tracker import BootTracker
from hypemand.vm.watcher import LATER, SOON, BootWatcher
from hypemand.vmm.driver import Connect, Ending
from hypemand.vmm.qemu import connect_qemu
from hypemand.vmm.shutdown import Shutdown
from hypemand.workers import Pool, run_in
from tests.unit.agent.support import BOOT, FROZEN_GREETING, GREETING, Guest, in_loop

RUN = "e" * 32
START = f"HYPEMAN-PROGRAM-START ts=2026-02-03T04:05:06Z mode=exec boot={BOOT}".encode()
AGENT = f"HYPEMAN-AGENT-READY ts=2026-02-03T04:05:06Z boot={BOOT}".encode()


def format_stage(name: str) -> bytes:
    """A line of init's report of its stages."""
    return f"HYPEMAN-STAGE name={name} start=0.1 end=0.2 boot={BOOT}".encode()


class Vmm:
    """Sockets in a folder. Each takes one client at a time, as QEMU's do: the others wait in the queue."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.report = b""
        self.status = "running"
        # of each: device, io-status
        self.drives: list[dict[str, object]] = []
        # what a resumed guest's status is
        self.after_cont = "running"
        self.orders: list[str] = []
        self.asked: list[str] = []
        self.answers = asyncio.Event()
        self.answers.set()
        self.questions = 0
        # the agent, while its guest does not stand still
        self.speaks = asyncio.Event()
        self.speaks.set()
        self.broken_hellos = 0
        # connections whose HELLO is not answered
        self.deaf = 0
        self.greeting = GREETING
        self.agents = 0
        self.qmps = 0
        self.greets = asyncio.Event()
        self.greets.set()
        self.greetings = 0
        self._clients: set[asyncio.StreamWriter] = set()

    @asynccontextmanager
    async def serve(self, *names: str) -> AsyncIterator[None]:
        """Serve the sockets of these names."""
        servers = []
        for name in names or ("qmp", "report", "agent"):
            turn = asyncio.Lock()
            handler = {"qmp": self._qmp, "report": self._report, "agent": self._agent}[name]

            async def take(
                reader: asyncio.StreamReader,
                writer: asyncio.StreamWriter,
                turn: asyncio.Lock = turn,
                handler: Callable[..., object] = handler,
            ) -> None:
                self._clients.add(writer)
                with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                    async with turn:
                        await handler(reader, writer)  # type: ignore[misc]
                writer.close()
                self._clients.discard(writer)

            servers.append(await asyncio.start_unix_server(take, self.folder / f"{name}.sock"))
        try:
            yield
        finally:
            for server in servers:
                server.close()
            self.drop()
            await asyncio.sleep(0.01)

    def drop(self) -> None:
        """End all connections."""
        for writer in list(self._clients):
            writer.transport.abort()

    async def _qmp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.qmps += 1
        self.writer = writer
        await self.greets.wait()
        writer.write(b'{"QMP": {}}\n')
        while line := await reader.readline():
            request = json.loads(line)
            if request["execute"] == "query-status":
                self.questions += 1
                await self.answers.wait()
            answer = self._take_order(request["execute"])
            writer.write(json.dumps({"return": answer, "id": request["id"]}).encode() + b"\n")

    def _take_order(self, order: str) -> object:
        self.asked.append(order)
        match order:
            case "query-status":
                return {"status": self.status}
            case "query-block":
                return self.drives
            case "stop" | "cont":
                self.orders.append(order)
                self.status = "paused" if order == "stop" else self.after_cont
        return {}

    def stop(self, *full: str) -> None:
        """Stop the guest, as for want of space for these drives."""
        self.status = "io-error"
        self.drives = [{"device": "config"}]
        self.drives += [{"device": name, "io-status": "nospace"} for name in full]
        self.writer.write(b'{"event":"BLOCK_IO_ERROR","data":{}}\n{"event":"STOP"}\n')

    async def _report(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(self.report)
        await reader.read()

    async def _agent(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.agents += 1
        guest = Guest(reader, writer)
        await guest.receive()
        await self.speaks.wait()
        if self.agents <= self.deaf:
            await reader.read()
            return
        self.greetings += 1
        guest.send(self.greeting)
        if self.agents <= self.broken_hellos:
            guest.send(b"\xff" * 12)
        await reader.read()


def make_session(
    folder: Path,
    *,
    journal: Journal | None = None,
    agent: bool = True,
    connect: Connect = connect_qemu,
) -> tuple[Session, list[str]]:
    """A session, and a list that has an item for each change that it told."""
    changes: list[str] = []
    session = Session(
        "web",
        BootTracker(RUN, lambda: BOOT),
        folder,
        os.getuid(),
        guest_agent=agent,
        follow_journal=journal is not None,
        on_change=lambda: changes.append("changed"),
        open_journal=(journal or Journal()).open,
        connect=connect,
    )
    return session, changes


@asynccontextmanager
async def watched(session: Session) -> AsyncIterator[BootWatcher]:
    watcher = BootWatcher()
    session._look_again = lambda: watcher.add(session)
    watcher.add(session)
    try:
        yield watcher
    finally:
        watcher.close()
        await session.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


class Journal:
    """A journal of these lines; `errors` are raised first, one for each read."""

    def __init__(self, *lines: bytes, errors: int = 0) -> None:
        self.lines = list(lines)
        self.errors = errors
        self.is_closed = False

    def open(self, boot: str) -> Journal:
        assert boot == RUN
        return self

    def read(self, limit: int) -> list[JournalLine]:
        if self.errors:
            self.errors -= 1
            raise OSError(74, "Bad message")
        taken, self.lines[:limit] = self.lines[:limit], []
        return [JournalLine(line, 1.0, 1.0) for line in taken]

    def reopen(self) -> None:
        pass

    def close(self) -> None:
        self.is_closed = True


# --- witnesses ---


@in_loop
async def test_a_broken_journal_leaves_the_report_port_and_the_agent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    vmm = Vmm(tmp_path)
    vmm.report = START + b"\n"
    session, _ = make_session(tmp_path, journal=Journal(errors=1000))
    async with vmm.serve(), watched(session):
        await until(lambda: session.is_ready)
        await until(lambda: session.run_state is RunState.RUNNING)
    assert caplog.text.count("Bad message") == 1


@in_loop
async def test_a_journal_that_can_be_read_again_is_read(tmp_path: Path) -> None:
    session, _ = make_session(tmp_path, journal=Journal(START, AGENT, errors=3))
    async with watched(session):
        await until(lambda: session.is_ready)


@in_loop
async def test_a_boot_is_seen_by_the_journal_alone(tmp_path: Path) -> None:
    (tmp_path / "report.sock").touch()
    (tmp_path / "agent.sock").touch()
    session, _ = make_session(tmp_path, journal=Journal(*[b"noise"] * 5000, START, AGENT))
    async with watched(session):
        await until(lambda: session.is_ready)


@in_loop
async def test_stages_that_only_the_journal_has_are_read_behind_what_running_needs(tmp_path: Path) -> None:
    """As of a guest that had reported them before the report port was connected."""
    journal = Journal(START, AGENT)
    session, _ = make_session(tmp_path, journal=journal)
    async with watched(session):
        await until(lambda: session.is_ready)
        waiting = asyncio.create_task(session.await_stages())
        # as many looks as any other witness takes
        await asyncio.sleep(3 * PERIOD)
        assert not waiting.done()
        journal.lines += [format_stage("config"), format_stage("program")]
        await waiting
        assert [stage.name for stage in session.tracker.notes.stages] == ["config", "program"]
        await until(lambda: journal.is_closed)


@in_loop
async def test_stages_that_are_reported_nowhere_are_not_waited_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hypemand.vm.console._STAGES_DEADLINE", 0.2)
    journal = Journal(START, AGENT)
    session, _ = make_session(tmp_path, journal=journal)
    async with watched(session):
        await until(lambda: session.is_ready)
        await session.await_stages()
        assert journal.is_closed


@in_loop
async def test_what_is_lost_is_connected_again_after_the_boot_too(tmp_path: Path) -> None:
    vmm = Vmm(tmp_path)
    vmm.report = START + b"\n"
    session, _ = make_session(tmp_path)
    async with vmm.serve(), watched(session):
        await until(lambda: session.is_ready and session.run_state is RunState.RUNNING)
        await until(lambda: session.poll() is None)
        vmm.status = "paused"
        vmm.drop()
        await until(lambda: session.run_state is RunState.PAUSED)


@pytest.mark.parametrize(("resumption", "status"), [(None, "inmigrate"), (Resumption("0" * 32), "paused")])
@in_loop
async def test_nothing_is_said_to_a_guest_while_its_vmm_loads_it(
    tmp_path: Path, resumption: Resumption | None, status: str
) -> None:
    """The interrupt that tells it may be lost, and with that all that follow."""
    vmm = Vmm(tmp_path)
    vmm.status, vmm.report = status, START + b"\n"
    session, _ = make_session(tmp_path)
    session.resumption = resumption
    async with vmm.serve("qmp"), watched(session):
        await until(lambda: session.run_state in (RunState.NOT_STARTED, RunState.PAUSED))
        async with vmm.serve("report", "agent"):
            await asyncio.sleep(0.1)
            assert vmm.agents == 0
            await session.resume()
            await until(lambda: vmm.agents == 1)


@in_loop
async def test_a_vmm_is_looked_for_often_only_while_its_sockets_are_not_there(tmp_path: Path) -> None:
    """Of what comes then an event tells; and many that boot at once leave the daemon little time."""
    vmm = Vmm(tmp_path)
    vmm.greets.clear()
    vmm.status = "inmigrate"
    session, _ = make_session(tmp_path)
    seen: list[RunState] = []
    session._look_again = lambda: seen.append(session.run_state)
    try:
        assert session.poll() == SOON
        async with vmm.serve("qmp"):
            assert session.poll() == SOON  # for the others
            async with vmm.serve("report", "agent"):
                assert session.poll() == LATER
                vmm.greets.set()
                await until(lambda: RunState.NOT_STARTED in seen)
    finally:
        await session.close()


@in_loop
async def test_nothing_is_said_to_a_guest_of_a_template_before_its_vmm_has_said_that_it_runs(
    tmp_path: Path,
) -> None:
    """Also by a daemon that comes in the middle: only the VMM knows whether it is loaded."""
    vmm = Vmm(tmp_path)
    vmm.status, vmm.report = "running", START + b"\n"
    (tmp_path / "warm").write_text(RUN)
    session, _ = make_session(tmp_path)
    async with vmm.serve("report", "agent"), watched(session):
        await asyncio.sleep(0.1)
        with pytest.raises(GuestError, match="has not loaded the guest yet"):
            await session.open_agent(1)
        assert vmm.agents == 0
        async with vmm.serve("qmp"):
            await until(lambda: vmm.agents == 1)


@in_loop
async def test_another_main_process_is_told_of_readiness_anew(tmp_path: Path) -> None:
    """That of a warm start changes, and systemd refuses what comes from the one before."""
    session, _ = make_session(tmp_path, agent=False)
    session.take_main_pid(5)
    session.notified = True
    session.take_main_pid(5)
    session.take_main_pid(None)
    assert (session.main_pid, session.notified) == (5, True)
    session.take_main_pid(6)
    assert (session.main_pid, session.notified) == (6, False)


@in_loop
async def test_a_vmm_that_flaps_is_tried_ever_less_often(tmp_path: Path) -> None:
    count = 0

    async def refuse(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        count += 1
        writer.close()

    server = await asyncio.start_unix_server(refuse, tmp_path / "qmp.sock")
    session, _ = make_session(tmp_path, agent=False)
    async with watched(session):
        await asyncio.sleep(1)
    server.close()
    assert 3 <= count <= 10


# --- one connection for all ---


@in_loop
async def test_all_who_find_the_agents_channel_broken_share_one_new_one(tmp_path: Path) -> None:
    vmm = Vmm(tmp_path)
    vmm.broken_hellos = 1
    session, _ = make_session(tmp_path)
    async with vmm.serve("agent"):
        with contextlib.suppress(GuestError):
            await session.open_agent(5)  # its HELLO may be seen before what comes behind it
        assert session.agent is not None
        await session.agent.closed
        channels = await asyncio.gather(*(session.open_agent(5) for _ in range(5)))
        assert all(channel is channels[0] and channel.is_ready for channel in channels)
        assert vmm.agents == 2
        await session.close()


@in_loop
async def test_one_who_gives_up_waiting_takes_the_channel_from_nobody(tmp_path: Path) -> None:
    vmm = Vmm(tmp_path)
    session, _ = make_session(tmp_path)
    async with vmm.serve("agent"):
        hasty = asyncio.create_task(session.open_agent(5))
        patient = asyncio.create_task(session.open_agent(5))
        await asyncio.sleep(0)
        hasty.cancel()
        assert (await patient).is_ready
        assert vmm.agents == 1
        await session.close()


@in_loop
async def test_a_recovery_and_the_watcher_connect_once(tmp_path: Path) -> None:
    vmm = Vmm(tmp_path)
    session, _ = make_session(tmp_path, agent=False)
    async with vmm.serve("qmp"), watched(session):
        await asyncio.gather(session.connect_vmm(5), session.connect_vmm(5))
        assert session.run_state is RunState.RUNNING
        assert vmm.qmps == 1


@in_loop
async def test_a_session_that_is_closed_connects_no_more(tmp_path: Path) -> None:
    vmm = Vmm(tmp_path)
    session, _ = make_session(tmp_path)
    async with vmm.serve():
        await session.close()
        with pytest.raises(GuestError, match="has stopped meanwhile"):
            await session.open_agent(5)
        assert session.poll() is None
    assert vmm.agents == 0


@in_loop
async def test_a_look_at_file_systems_that_takes_long_brings_no_old_state_back(
    tmp_path: Path,
) -> None:
    vmm = Vmm(tmp_path)
    session, _ = make_session(tmp_path, agent=False)
    session._locate = lambda _drive: ("its disk", tmp_path)
    go_on = threading.Event()
    async with vmm.serve("qmp"), watched(session):
        await until(lambda: session.run_state is RunState.RUNNING)
        busy = [asyncio.create_task(run_in(Pool.RECORDS, go_on.wait, 10)) for _ in range(Pool.RECORDS.value)]
        vmm.status, vmm.drives = "io-error", [{"device": "disk", "io-status": "nospace"}]
        old = asyncio.create_task(session.query_status())
        await until(lambda: vmm.asked[-1] == "query-block")
        vmm.status = "running"
        assert await session.query_status() is RunState.RUNNING
        go_on.set()
        await asyncio.gather(old, *busy)
        assert (session.run_state, session.full) == (RunState.RUNNING, ())


@in_loop
@pytest.mark.parametrize("first", ["resumed", "reached"])
async def test_the_clock_of_a_guest_that_stood_still_is_set_whenever_its_agent_speaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    set_clocks: list[AgentChannel] = []

    async def set_clock(channel: AgentChannel) -> None:
        set_clocks.append(channel)

    monkeypatch.setattr(AgentChannel, "set_clock", set_clock)
    vmm = Vmm(tmp_path)
    vmm.status = "paused"
    session, _ = make_session(tmp_path)
    if first == "resumed":
        vmm.speaks.clear()
    async with vmm.serve(), watched(session):
        await until(lambda: session.run_state is RunState.PAUSED and vmm.agents == 1)
        await until(lambda: vmm.greetings == (first == "reached"))
        await until(lambda: session.agent is not None and session.agent.is_ready == (first == "reached"))
        set_clocks.clear()
        await session.resume()
        vmm.speaks.set()
        await until(lambda: len(set_clocks) == 1)
        assert set_clocks == [session.agent]


# --- an agent that does not answer ---


@in_loop
async def test_an_agent_that_leaves_a_hello_unanswered_is_greeted_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hypemand.vm.session.AGENT_DEADLINE", 0.02)
    vmm = Vmm(tmp_path)
    vmm.deaf = 3
    session, _ = make_session(tmp_path)
    session.tracker.take_agent(0.0)
    async with vmm.serve(), watched(session):
        await until(lambda: session.agent is not None and session.agent.is_ready)
        assert vmm.agents > vmm.deaf


@in_loop
@pytest.mark.parametrize("why", ["it boots", "it is paused"])
async def test_a_guest_that_cannot_answer_yet_is_greeted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    monkeypatch.setattr("hypemand.vm.session.AGENT_DEADLINE", 0.02)
    vmm = Vmm(tmp_path)
    vmm.speaks.clear()
    session, _ = make_session(tmp_path)
    if why == "it is paused":
        session.tracker.take_agent(0.0)
        vmm.status = "paused"
    async with vmm.serve(), watched(session):
        await until(lambda: session.run_state is not RunState.AWAITED and vmm.agents == 1)
        await asyncio.sleep(0.2)
        vmm.speaks.set()
        await until(lambda: session.agent is not None and session.agent.is_ready)
        assert vmm.agents == 1


@in_loop
async def test_a_guest_that_stands_still_is_asked_until_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[AgentChannel] = []

    async def thaw(channel: AgentChannel, _thaw: object) -> None:
        asked.append(channel)
        if len(asked) <= 2:
            raise GuestError("the guest cannot go on: as wanted")

    monkeypatch.setattr(AgentChannel, "thaw", thaw)
    monkeypatch.setattr("hypemand.vm.session._RESUME_PAUSE", 0.01)
    vmm = Vmm(tmp_path)
    vmm.greeting = FROZEN_GREETING
    session, _ = make_session(tmp_path)
    async with vmm.serve(), watched(session):
        await until(lambda: session.tracker.has(Marker.AGENT))
        assert len(set(asked)) == vmm.agents == 3


# --- a VMM that takes its time ---


@in_loop
async def test_a_vmm_that_is_slow_is_what_it_was_and_asked_once(tmp_path: Path) -> None:
    vmm = Vmm(tmp_path)
    session, _ = make_session(tmp_path, agent=False)
    async with vmm.serve("qmp"), watched(session):
        await until(lambda: session.run_state is RunState.RUNNING)
        vmm.answers.clear()
        vmm.status, vmm.questions = "paused", 0
        # who lists does not wait for it at all, others only for a while
        assert await asyncio.gather(*(session.query_status(0) for _ in range(20))) == [RunState.RUNNING] * 20
        assert await session.query_status(0.05) is RunState.RUNNING
        vmm.answers.set()
        await until(lambda: session.run_state is RunState.PAUSED)
        await asyncio.sleep(0.05)
        assert vmm.questions == 1


@in_loop
async def test_a_vmm_that_is_silent_for_long_is_not_known_until_it_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hypemand.vm.session.SILENCE_DEADLINE", 0.2)
    vmm = Vmm(tmp_path)
    session, changes = make_session(tmp_path, agent=False)
    async with vmm.serve("qmp"), watched(session):
        await until(lambda: session.run_state is RunState.RUNNING)
        vmm.answers.clear()
        changes.clear()
        await session.query_status(0)
        await until(lambda: session.run_state is RunState.NO_ANSWER and changes != [])
        changes.clear()
        vmm.answers.set()
        await until(lambda: session.run_state is RunState.RUNNING and changes != [])


# --- bounds ---


def most_changes(began: float) -> float:
    """That the budget of a VM pays, which was full by then."""
    seconds = asyncio.get_running_loop().time() - began
    return (BURST + seconds * PER_SECOND) / Price.CHANGE + 2


@in_loop
async def test_a_vmm_that_floods_events_is_asked_one_question_at_a_time(tmp_path: Path) -> None:
    vmm = Vmm(tmp_path)
    session, changes = make_session(tmp_path, agent=False)
    async with vmm.serve("qmp"), watched(session):
        await until(lambda: session.run_state is RunState.RUNNING)
        before, began = len(asyncio.all_tasks()), asyncio.get_running_loop().time()
        vmm.writer.write(b'{"event":"STOP"}\n{"event":"RESUME"}\n' * 20_000)
        most = 0
        for _ in range(100):
            await asyncio.sleep(0.005)
            most = max(most, len(asyncio.all_tasks()))
        assert most <= before + 2
        assert len(changes) <= most_changes(began)


@in_loop
async def test_a_guest_that_changes_its_exit_all_the_time_causes_few_changes(tmp_path: Path) -> None:
    vmm = Vmm(tmp_path)
    lines = [f'HYPEMAN-EXIT code={n % 256} message="{n}" boot={BOOT}\n' for n in range(2000)]
    vmm.report = "".join(lines).encode()
    session, changes = make_session(tmp_path, agent=False)
    began = asyncio.get_running_loop().time()
    async with vmm.serve("report"), watched(session):
        await until(lambda: len(changes) > 10)
        await asyncio.sleep(0.5)
        assert len(changes) <= most_changes(began)


@in_loop
async def test_changes_beyond_the_budget_are_told_later_and_as_one(tmp_path: Path) -> None:
    vmm = Vmm(tmp_path)
    session, changes = make_session(tmp_path, agent=False)
    loop = asyncio.get_running_loop()
    async with vmm.serve("qmp"), watched(session):
        await until(lambda: session.run_state is RunState.RUNNING)
        await asyncio.sleep(0.05)
        changes.clear()
        session.budget.spend(BURST + Price.CHANGE / 2)
        began = loop.time()
        for _ in range(20):
            session._take_event(Ending(Shutdown.RESET))
        assert not changes
        await until(lambda: bool(changes))
        assert loop.time() - began > Price.CHANGE / 2 / PER_SECOND * 0.5
        assert len(changes) == 1


@in_loop
async def test_hostile_lines_of_the_journal_leave_the_loop_to_others(tmp_path: Path) -> None:
    """Turns are counted and not timed: what is read in one is few lines, whatever there is."""
    journal = Journal(*[b"HYPEMAN-EXIT" + b" a=HYPEMAN-EXIT" * 272 + b' "'] * 1000)
    session, _ = make_session(tmp_path, journal=journal)
    looks = 0
    while journal.lines:
        assert looks < 1000
        left = len(journal.lines)
        session.poll()
        assert left - len(journal.lines) <= 500
        looks += 1
        session._console._due = 0  # type: ignore[union-attr]
    assert looks > 2
    await session.close()
