# SPDX-License-Identifier: Apache-2.0
"""VMMs and their guests: what a VM's unit executes, with the sockets that hypemand connects to.

The commands of the unit's end are those of launcher/ending and of hypemand.unit: what they ask of the host is
answered here, what they conclude and write down is their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import time
import uuid
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from hypemand.config.mode import Mode
from hypemand.model.evidence import describe_check, list_missing
from hypemand.unit.exit import (
    Findings,
    describe_end,
    keep_record,
    scan_journal,
    set_aside_template,
    settle_standby,
)
from hypemand.unitnames import unit_name, vm_of_unit
from hypemand.vm.exitrecord import (
    Ending,
    ExitRecord,
    add_start,
    derive_exit_record,
    derive_saved,
    find_spare,
)
from hypemand.vm.folders import STALLED, STANDBY, WARM
from hypemand.vm.places import CONFIG_DISK
from hypemand.vm.runrecord import RUN_RECORD, find_boot_id
from hypemand.vm.saved import find_saved
from hypemand.vm.tracker import load_notes
from tests.fakes.files import GuestFile, GuestFiles
from tests.fakes.guest import PROGRAMS, Agent, Attached, Command, Freezer, HealthCheck, Program, cat
from tests.fakes.journal import FakeJournal
from tests.fakes.launchers import find_ending
from tests.fakes.process import Process
from tests.fakes.qmp import GREETING, Monitor
from tests.fakes.systemd import FakeSystemd
from tests.unit.agent.support import Guest

ENDING = "/usr/lib/hypemand/ending"
_STAMP = "ts=2026-02-03T04:05:06Z"
# A guest boots for longer than it takes to connect to its VMM and to hear from it: so many turns of the event
# loop after the first question. Who does not connect is not waited for.
_BOOT_TIME = 0.2
_TURNS = 50
# of launcher/ending: the seconds that a guest has for its power off, beside those of its program
_POWER_OFF = 5
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Behaviour:
    """What the guests of a VM do. `boots`: they come up; `heeds`: they end when the stop port tells them to;
    `code`: what the program ends with then; `ends`: it ends by itself, right after it has come up, with that
    code and `message`; `prints`: its lines until then. `sockets`: those that its VMM makes; `programs`: what
    its agent runs beside guest.PROGRAMS, unless it has a `refusal`; `files`: its root. `program`: what it
    does for who is attached, in a terminal if it has a `tty`. `loads`: the VMM can go on from what was saved,
    and the guest of a warm start `continues`; `ends_stop`: what its unit's ExecStop= waits for as well;
    `thaw_refusal`: why its guest does not go on then."""

    boots: bool = True
    loads: bool = True
    continues: bool = True
    ends_stop: asyncio.Event | None = None
    thaw_refusal: str = ""
    heeds: bool = True
    code: int = 0
    ends: int | None = None
    sockets: tuple[str, ...] = ("qmp", "report", "agent")
    message: str = ""
    prints: tuple[str | bytes, ...] = ()
    programs: dict[str, Program] = field(default_factory=dict)
    refusal: str = ""
    files: GuestFiles = field(default_factory=GuestFiles)
    program: Program = cat
    tty: bool = False


class DescriptorSocket(socket.socket):
    """A Unix socket that keeps the descriptors that come with what is received by it, or by those that it
    accepts."""

    def __init__(self, kept: list[int], family: int = -1, fileno: int | None = None) -> None:
        super().__init__(family, fileno=fileno)
        self._kept = kept

    def accept(self) -> tuple[socket.socket, Any]:
        """As it does."""
        connection, address = super().accept()
        return DescriptorSocket(self._kept, fileno=connection.detach()), address

    def recv(self, size: int, flags: int = 0) -> bytes:
        """As it does."""
        data, fds, _, _ = socket.recv_fds(self, size, 4, flags)
        self._kept += fds
        return data


class Vmm:
    """One VMM and its guest, for one run. `monitor` is what its QMP socket shows."""

    def __init__(
        self, process: Process, host: Vmms, vm: str, properties: Mapping[str, Any], behaviour: Behaviour
    ) -> None:
        self.process = process
        self.run_id = process.env["INVOCATION_ID"]
        self.boot = uuid.uuid4().hex
        self.ended = asyncio.Event()
        self.monitor = Monitor(self._say, self.ended.set)
        ((_, words, _),) = properties["ExecStart"]
        self.monitor.take_start_line(words)
        # what its agent was asked to run
        self.commands: list[Command] = []
        # the health checks that it was asked to repeat, the last one last
        self.checks: list[HealthCheck] = []
        # nanoseconds since the epoch that its clock was set to
        self.clocks: list[int] = []
        # whether it stands still, and what it got when it went on
        self.freezer = Freezer()
        # the seconds that it was given by SHUTDOWN, and whether the stop port told it to end
        self.graces: list[int] = []
        self.heard_stop = False
        self._behaviour = behaviour
        self._folder = host.runtime / vm
        self._uid = int(properties["User"])
        self._journal = host.journal
        self._volumes = host.volumes
        # what journald knows of its lines
        self._fields = dict(bytes(field).decode().split("=", 1) for field in properties["LogExtraFields"])
        self._fields["_SYSTEMD_UNIT"] = process.unit
        self._fields["SYSLOG_IDENTIFIER"] = str(properties["SyslogIdentifier"])
        self._fields["_TRANSPORT"] = "journal"
        self._reports: list[asyncio.StreamWriter] = []
        self._monitors: list[asyncio.StreamWriter] = []
        # that came with commands, for the monitor to take
        self._fds: list[int] = []
        self._writers: set[asyncio.StreamWriter] = set()
        self._said: list[bytes] = []
        self._is_up = False
        self._asked = asyncio.Event()
        self._agents: list[Agent] = []
        # when connections to the agent began and ended, in the loop's seconds
        self.talks: list[tuple[str, float]] = []
        # it goes on from a VM that was saved
        self.is_restored = self._take_saved(words, properties)
        # it goes on from a template
        self.is_warm = self._has_template(words, properties)
        process.handlers[signal.SIGTERM] = self.ended.set
        process.handlers[signal.SIGURG] = self._take_watchdog

    async def run(self) -> int:
        """Until its guest has ended. QEMU's own status is 0 whatever the guest's program said."""
        behaviour = self._behaviour
        self._keep_run_record()
        for name in (WARM, STALLED):
            (self._folder / name).unlink(missing_ok=True)
        if self.is_warm and not behaviour.continues:
            # as hypeman-console has it start again
            self._note(STALLED)
            self.is_warm = False
        if self.is_warm:
            self._note(WARM)
        if (self.is_restored or self.is_warm) and not behaviour.loads:
            return 1
        async with AsyncExitStack() as stack:
            stack.callback(self._unmount, self._mount())
            stack.push_async_callback(self.monitor.close)
            handlers = {"qmp": self._qmp, "report": self._report, "agent": self._agent}
            for name in behaviour.sockets:
                await stack.enter_async_context(self._serve(name, handlers[name]))
            if self.is_restored:
                await self._load()
            elif behaviour.boots:
                # not wait_for, which loses a cancellation that comes with the answer (Python 3.11)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_BOOT_TIME):
                        await self._asked.wait()
                for _ in range(_TURNS):
                    await asyncio.sleep(0)
                self.come_up()
            if behaviour.ends is not None:
                self.exit(behaviour.ends, behaviour.message)
            await self.ended.wait()
        return 0

    def _take_saved(self, words: Sequence[str], properties: Mapping[str, Any]) -> bool:
        """As the launcher does: a saved VM, as long as it is there."""
        option = next((word for word in words if word.startswith("--restore=")), "")
        state, _, rest = option.removeprefix("--restore=").partition(",")
        places = {inside: Path(path) for path, inside, *_ in properties["BindPaths"]}
        if not option or not places[state].exists():
            return False
        self.boot = rest.partition(",")[0]
        self.monitor.status = "inmigrate"
        self.freezer.frozen, self.freezer.refusal = True, self._behaviour.thaw_refusal
        return True

    def _has_template(self, words: Sequence[str], properties: Mapping[str, Any]) -> bool:
        """As the launcher does: a template, as long as it is what it was."""
        option = next((word for word in words if word.startswith("--warm=")), "")
        if not option:
            return False
        state, crc, _, *marks = option.removeprefix("--warm=").split(",")
        places = {inside: Path(path) for path, inside, *_ in properties["BindPaths"]}
        if not places[state].exists() or zlib.crc32(places[state].read_bytes()) != int(crc):
            return False
        for mark in marks:
            path, size, mtime = mark.split(":")
            found = places.get(path, Path(path)).stat()
            if (found.st_size, found.st_mtime_ns) != (int(size), int(mtime)):
                return False
        return True

    async def _load(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_BOOT_TIME):
                await self._asked.wait()
        self.monitor.status = "paused"
        self.monitor.tell("MIGRATION", status="completed")

    def _go_on(self) -> None:
        """Its CPUs run for the first time since it was saved."""
        self._is_up = True
        for agent in self._agents:
            agent.greet()

    def _note(self, name: str) -> None:
        """As the launcher and hypeman-console do, of this run."""
        (self._folder / name).write_text(self.run_id)
        os.chown(self._folder / name, self._uid, -1)

    def _keep_run_record(self) -> None:
        """As the launcher does."""
        record = self._folder / RUN_RECORD
        record.write_text(f"{self.run_id} {self.boot}\n")
        os.chown(record, self._uid, -1)

    @asynccontextmanager
    async def _serve(self, name: str, handler: Handler) -> AsyncIterator[None]:
        path = self._folder / f"{name}.sock"
        turn = asyncio.Lock()

        async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._writers.add(writer)
            try:
                with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                    async with turn:
                        if not self.ended.is_set():
                            await handler(reader, writer)
            finally:
                writer.transport.abort()
                self._writers.discard(writer)

        path.unlink(missing_ok=True)  # of a run before, as QEMU does
        bound = DescriptorSocket(self._fds, socket.AF_UNIX)
        try:
            bound.bind(str(path))
            os.chown(path, self._uid, -1)
        except OSError:
            bound.close()
            raise
        # it may be killed at any await: until then the server is not begun, so that it is not lost
        server = await asyncio.start_unix_server(take, sock=bound, start_serving=False)
        try:
            await server.start_serving()
            yield
        finally:
            # a server that is closed loses the connections that it has just accepted
            try:
                asyncio.get_running_loop().remove_reader(bound.fileno())
                for _ in range(3):  # accepted, made a connection, and taken
                    await asyncio.sleep(0)
            finally:
                server.close()
                bound.close()
            for writer in list(self._writers):
                writer.transport.abort()

    # the guest

    def come_up(self) -> None:
        """Its program has started, and its agent answers."""
        self._is_up = True
        for line in self._behaviour.prints:
            self.print(line)
        self.say(f"HYPEMAN-PROGRAM-START {_STAMP} mode=exec boot={self.boot}")
        self.say(f"HYPEMAN-STAGE name=program start=0.3 end=0.4 boot={self.boot}")
        self.say(f"HYPEMAN-AGENT-READY {_STAMP} boot={self.boot}")
        for agent in self._agents:
            agent.greet()

    def become_ready(self) -> None:
        """The check of its definition succeeds."""
        self.say(f"HYPEMAN-READY {_STAMP} boot={self.boot}")

    def keep_waiting(self, reason: str) -> None:
        """The check of its definition has failed once more."""
        self.say(f'HYPEMAN-WAITING {_STAMP} boot={self.boot} reason="{reason}"')

    def print(self, text: str | bytes) -> None:
        """A line on its console."""
        self._journal.add(self.run_id, text, **self._fields)

    def say(self, text: str) -> None:
        """A line on its console, which is a sentinel: on the report port too."""
        self.print(text)
        line = text.encode() + b"\n"
        self._said.append(line)
        for writer in self._reports:
            writer.write(line)

    def exit(self, code: int, message: str = "") -> None:
        """Its program ends, and it powers off."""
        words = message or f"exited with code {code}"
        self.say(f'HYPEMAN-EXIT {_STAMP} code={code} message="{words}" boot={self.boot}')
        self.power_off()

    def power_off(self) -> None:
        """It ends with no word."""
        self.monitor.shut_down()

    # its sockets

    def _say(self, message: dict[str, Any]) -> None:
        if message.get("event") == "RESUME" and self.is_restored and not self._is_up:
            self._go_on()
        for writer in self._monitors:
            writer.write(json.dumps(message).encode() + b"\n")

    def fill_disk(self) -> None:
        """The host has no room for what its guest writes."""
        self.monitor.drives = [{"device": "disk", "io-status": "nospace"}]
        self.monitor.status = "io-error"
        self.monitor.tell("BLOCK_IO_ERROR", device="disk", nospace=True, action="stop")
        self.monitor.tell("STOP")

    async def _qmp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._monitors.append(writer)
        self._say(GREETING)
        try:
            while line := await reader.readline():
                self._asked.set()
                self._say(await self.monitor.take(json.loads(line), self._fds))
        finally:
            self._monitors.remove(writer)

    async def _report(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for line in self._said:
            writer.write(line)
        self._reports.append(writer)
        try:
            await reader.read()
        finally:
            self._reports.remove(writer)

    async def _agent(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behaviour = self._behaviour
        programs = {**PROGRAMS, **behaviour.programs}
        agent = Agent(
            Guest(reader, writer),
            self.boot,
            programs,
            behaviour.files,
            self.commands,
            self._shut_down,
            behaviour.refusal,
            self.clocks,
            self.checks,
            Attached(behaviour.program, behaviour.tty, self.exit),
            self.freezer,
        )
        self._agents.append(agent)
        clock = asyncio.get_running_loop().time
        self.talks.append(("begins", clock()))
        if self._is_up:
            agent.greet()
        try:
            await agent.serve()
        finally:
            self.talks.append(("ends", clock()))
            self._agents.remove(agent)

    def _take_watchdog(self) -> None:
        """What the launcher's leader does: the guest is asked to power off."""
        if self._behaviour.heeds:
            self.exit(0, "stopped on request")

    def _shut_down(self, grace: int) -> None:
        self.graces.append(grace)
        self.exit(143, "stopped on request")

    def _mount(self) -> list[tuple[str, str]]:
        """Its volumes, as its config disk says: serials and places. Their files are the guest's now."""
        data = (self._folder / CONFIG_DISK).read_bytes()
        pairs = (record.decode().partition("=") for record in data[16:].split(b"\0") if b"=" in record)
        volumes = (value for key, _, value in pairs if key == "volume")
        fields = (dict(word.split("=", 1) for word in value.split(",")) for value in volumes)
        found = [(values["serial"], values["path"]) for values in fields]
        for serial, path in found:
            self._behaviour.files.bring_in(path, self._volumes.get(serial, {}))
        return found

    def _unmount(self, mounted: list[tuple[str, str]]) -> None:
        for serial, path in mounted:
            self._volumes[serial] = self._behaviour.files.take_out(path)


def _is_known(process: Process) -> bool:
    """Has launcher/ending nothing to execute?"""
    command = [str(find_ending()), *process.argv[1:5], "/bin/false"]
    env = {"INVOCATION_ID": process.env["INVOCATION_ID"]}
    return subprocess.run(command, env=env, timeout=30, check=False).returncode == 0


@dataclass
class Vmms:
    """The VMs' processes: `run` is the program for FakeSystemd. `live`: VMMs that run, by VM; `runs`: how
    often each was started. `behaviour`: of each VM's guests. `others`: what commands of other units do, by
    the unit's name up to an @."""

    runtime: Path
    journal: FakeJournal
    live: dict[str, Vmm] = field(default_factory=dict)
    runs: Counter[str] = field(default_factory=Counter)
    # how often hypemand.unit.exit was executed
    found_out: Counter[str] = field(default_factory=Counter)
    behaviour: dict[str, Behaviour] = field(default_factory=dict)
    others: dict[str, Callable[[Process], Awaitable[int]]] = field(default_factory=dict)
    # what is in volumes, by serial
    volumes: dict[str, dict[str, GuestFile]] = field(default_factory=dict)
    systemd: FakeSystemd = field(init=False)

    def of(self, vm: str) -> Behaviour:
        """How its guests behave, to be changed."""
        return self.behaviour.setdefault(vm, Behaviour())

    async def run(self, process: Process) -> int:
        """What any process does."""
        vm = vm_of_unit(process.unit)
        if vm is None:
            return await self.others[process.unit.partition("@")[0]](process)
        if process.argv[:2] == (ENDING, "stop"):
            saved = find_saved(Path(process.argv[4]) / STANDBY)
            is_saved = saved is not None and saved.run == process.env["INVOCATION_ID"]
            if not is_saved:
                await self._stop(vm, process)
            if (may_end := self.of(vm).ends_stop) is not None:
                await may_end.wait()
            return 0
        if "hypemand.unit.exit" in process.argv:
            return await self._note_end(process)
        return await self._run_vmm(vm, process)

    async def _run_vmm(self, vm: str, process: Process) -> int:
        properties = self.systemd.units[unit_name(vm)].properties
        vmm = self.live[vm] = Vmm(process, self, vm, properties, self.of(vm))
        self.runs[vm] += 1
        try:
            return await vmm.run()
        finally:
            vmm.ended.set()
            if self.live.get(vm) is vmm:
                del self.live[vm]

    async def _stop(self, vm: str, process: Process) -> None:
        """launcher/ending: the guest is told by the stop port, and its end is waited for."""
        vmm, behaviour = self.live.get(vm), self.of(vm)
        if vmm is None:
            return
        seconds = int(process.argv[3]) + _POWER_OFF
        self.systemd.notify(int(process.env["MAINPID"]), f"EXTEND_TIMEOUT_USEC={seconds * 1_000_000}")
        vmm.heard_stop = True
        if behaviour.heeds:
            vmm.exit(behaviour.code, "stopped on request")
        await vmm.ended.wait()

    async def _note_end(self, process: Process) -> int:
        """launcher/ending, and where that executes it hypemand.unit.exit, with this journal and systemd."""
        self.systemd.units[process.unit].disarm()
        if await asyncio.to_thread(_is_known, process):
            self.systemd.notify(process.pid, "STATUS=Stopped: put into standby")
            return 0
        self.found_out[vm_of_unit(process.unit) or ""] += 1
        at = process.argv.index("hypemand.unit.exit") + 1
        state, unit, stop_signal, needed, mode, runtime = process.argv[at : at + 6]
        run = process.env["INVOCATION_ID"]
        job = self.systemd.jobs.find(unit)
        judge = partial(
            self._judge, process, Path(state), Path(runtime), int(stop_signal), needed, Mode(mode)
        )
        boots_instead = False
        in_standby, _ = await asyncio.to_thread(settle_standby, Path(state), run, lambda: job is not None)
        if in_standby:
            record = derive_saved(run, time.time())
        else:
            ending, record = await asyncio.to_thread(judge, stop_job=job is not None)
            where = (run, needed, Path(state), Path(runtime))
            boots_instead = await asyncio.to_thread(set_aside_template, *where, ending)
        assert record.run == run
        await asyncio.to_thread(keep_record, record, Path(state) / "exit.json", find_spare(Path(runtime)))
        self.systemd.notify(process.pid, f"STATUS={describe_end(record)}")
        if record.reboot or boots_instead:
            self.systemd.jobs.add(unit, "restart", "fail")
        return record.status

    def _judge(
        self,
        process: Process,
        state: Path,
        runtime: Path,
        stop_signal: int,
        needed: str,
        mode: Mode,
        *,
        stop_job: bool,
    ) -> tuple[Ending, ExitRecord]:
        env = process.env
        run = env["INVOCATION_ID"]
        found = Findings()
        scan_journal(find_boot_id(runtime, run), reversed(self.journal.lines(run)), found)
        notes = load_notes(state / "boot.json", run)
        report = found.report or (notes.exit if notes is not None else None)
        markers = found.markers | (notes.markers if notes is not None else set())
        agent, _, check = needed.partition(":")
        ending = Ending(
            result=env["SERVICE_RESULT"],
            exit_code=env.get("EXIT_CODE", ""),
            exit_status=env.get("EXIT_STATUS", ""),
            report=report,
            missing=list_missing(markers, guest_agent=agent.startswith("1"), ready=bool(check)),
            panic=found.panic,
            vmm_words=found.vmm,
            stop_job=report is None and stop_job,
            stop_signal=stop_signal,
            mode=mode,
            shutdown=None if notes is None else notes.shutdown,
            check=describe_check(check, found.waiting or (None if notes is None else notes.waiting)),
            unhealthy=None if notes is None else notes.unhealthy,
        )
        return ending, add_start(derive_exit_record(run, ending, time.time()), notes, runtime)
