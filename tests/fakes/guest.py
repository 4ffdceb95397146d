# SPDX-License-Identifier: Apache-2.0
"""A guest's agent on one connection: commands that are coroutines, and files in memory."""

from __future__ import annotations

import asyncio
import signal
import struct
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from hypemand.model.files import FileKind
from tests.fakes.files import GuestFiles
from tests.fakes.stream import Stream
from tests.unit.agent.support import (
    ATTACH,
    CLOCK,
    CLOSE,
    CREDIT,
    DATA,
    ERROR,
    EXEC,
    EXIT,
    FEATURES,
    FILES,
    FREEZE,
    HEALTH,
    HELLO,
    PING,
    PONG,
    RESIZE,
    SHUTDOWN,
    SIGNAL,
    THAW,
    Guest,
    pack,
    records,
)


@dataclass
class Command:
    """What the agent was asked to run. `values`: of the records that come once; `ended`: it runs no more;
    `signals` and `sizes`: what it was sent."""

    argv: list[str]
    env: dict[str, str]
    values: dict[str, str]
    stream: Stream
    files: GuestFiles
    signals: list[int] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    resized: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def tty(self) -> bool:
        """Has it a terminal?"""
        return self.values.get("tty") == "1"


@dataclass
class HealthCheck:
    """A check that the agent repeats. `values`: its records; `ended`: the host has lost interest in it."""

    values: dict[str, str]
    stream: Stream
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def report(self, status: str, error: str = "", *, failures: int = 0, successes: int = 0) -> None:
        """What an attempt has come to."""
        passed = "0" if failures or status != "healthy" else "1"
        pairs = [("status", status), ("passed", passed), ("failures", str(failures))]
        pairs += [("successes", str(successes)), *([("error", error)] if error else [])]
        await self.stream.write(pack(HEALTH, 0, records(*pairs)))

    async def run(self) -> None:
        """Until the host has lost interest."""
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.set()
            self.stream.exit(0, "exited with code 0", channels=(1,))


Program = Callable[[Command], Awaitable[int]]
"""What a command does, until it returns its exit status. A signal ends it."""


@dataclass
class Attached:
    """What is attached to: the program of the VM with its `run`, and a terminal if it has a `tty`; `end`: it
    has ended, with a code."""

    run: Program
    tty: bool
    end: Callable[[int], None]


def says(out: bytes = b"", err: bytes = b"", code: int = 0) -> Program:
    """It writes, and ends."""

    async def run(command: Command) -> int:
        for channel, data in ((1, out), (1 if command.tty else 2, err)):
            await command.stream.write(data, channel)
        return code

    return run


async def cat(command: Command) -> int:
    """It gives back what it reads; on a terminal also each new size."""
    stream = command.stream

    async def tell_sizes() -> None:
        while True:
            await command.resized.wait()
            command.resized.clear()
            await stream.write("{}x{}\n".format(*command.sizes[-1]).encode())

    telling = asyncio.create_task(tell_sizes())
    try:
        while data := await stream.read():
            await stream.write(data)
    finally:
        telling.cancel()
    return 0


async def sleep(command: Command) -> int:
    """It reads nothing, says nothing and does not end."""
    await asyncio.Event().wait()
    return 0


async def lost(command: Command) -> int:
    """It never ends: the VMM is gone."""
    command.stream.break_off()
    return await sleep(command)


async def chown(command: Command) -> int:
    """chown UID:GID PATH."""
    file = command.files.files[command.argv[2]]
    uid, gid = (int(word) for word in command.argv[1].split(":"))
    command.files.put(file.info.path, FileKind.DIRECTORY, mode=file.info.mode, uid=uid, gid=gid)
    return 0


async def chmod(command: Command) -> int:
    """chmod MODE PATH."""
    info = command.files.files[command.argv[2]].info
    mode = int(command.argv[1], 8)
    command.files.put(info.path, FileKind.DIRECTORY, mode=mode, uid=info.uid, gid=info.gid)
    return 0


PROGRAMS: Mapping[str, Program] = {
    "cat": cat, "sleep": sleep, "lost": lost, "both": says(b"out", b"err", 3),
    "/bin/chown": chown, "/bin/chmod": chmod,
}  # fmt: skip


@dataclass
class Freezer:
    """Whether the guest stands still. `thaws`: the records of each THAW; `refusal`: the words with which
    FREEZE and THAW are refused; `boot`: the new id that a fork has got; `until`: what FREEZE takes as long
    as."""

    frozen: bool = False
    thaws: list[dict[str, list[str]]] = field(default_factory=list)
    refusal: str = ""
    boot: str | None = None
    until: asyncio.Event | None = None

    def take(self, kind: int, payload: bytes) -> tuple[int, str]:
        """FREEZE or THAW: code and words of its EXIT."""
        if self.refusal:
            return 125, self.refusal
        self.frozen = kind == FREEZE
        if kind == THAW:
            said: dict[str, list[str]] = {}
            for record in payload.decode().split("\0")[:-1]:
                key, _, value = record.partition("=")
                said.setdefault(key, []).append(value)
            self.thaws.append(said)
            self.boot = said["boot"][0] if "boot" in said else self.boot
        return 0, "the guest is frozen" if self.frozen else "the guest goes on"


class Agent:
    """What answers one connection. `programs`: what it can run, by their name; `commands`: what it has been
    asked to run; `refusal`: an ERROR that it answers with instead; `power_off` ends the guest, within so many
    seconds; `clocks`: what its clock was set to."""

    def __init__(
        self,
        guest: Guest,
        boot: str,
        programs: Mapping[str, Program],
        files: GuestFiles,
        commands: list[Command],
        power_off: Callable[[int], None],
        refusal: str,
        clocks: list[int],
        checks: list[HealthCheck],
        attached: Attached,
        freezer: Freezer,
    ) -> None:
        self._attached = attached
        self._freezer = freezer
        self._checks = checks
        self._clocks = clocks
        self._guest = guest
        self._boot = boot
        self._programs = programs
        self._files = files
        self._commands = commands
        self._power_off = power_off
        self._refusal = refusal
        self._streams: dict[int, Stream] = {}
        self._running: dict[int, Command] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}

    def greet(self) -> None:
        """It answers, from now on."""
        boot = self._freezer.boot or self._boot
        identity = [("version", "1"), ("boot", boot), ("agent", "7"), *FEATURES]
        identity += [("frozen", "1")] if self._freezer.frozen else []
        self._guest.send(pack(HELLO, 0, records(*identity)))

    async def serve(self) -> None:
        """Until the host is gone; what runs then is ended."""
        try:
            while True:
                kind, number, channel, payload = await self._guest.receive()
                self._take(kind, number, channel, payload)
                await asyncio.sleep(0)  # what has begun can be cancelled
                # what the host reads slowly does not pile up here
                await self._guest.writer.drain()
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _take(self, kind: int, number: int, channel: int, payload: bytes) -> None:
        if kind == EXEC:
            self._execute(number, payload)
        elif kind == FILES:
            self._open_files(number, payload)
        elif kind == ATTACH:
            self._attach(number, payload)
        elif kind == CLOCK:
            self._clocks.append(struct.unpack("<Q", payload)[0])
            self._guest.send(pack(EXIT, number, records(("code", "0"), ("message", ""))))
        elif kind in (FREEZE, THAW):
            if kind == FREEZE and self._freezer.until is not None:
                self._tasks[number] = asyncio.create_task(self._freeze_then(self._freezer.until, number))
            else:
                self._freeze(kind, number, payload)
        elif kind == HEALTH:
            self._begin_check(number, payload)
        elif kind == PING:
            self._guest.send(pack(PONG, 0, payload))
        elif kind == SHUTDOWN:
            self._power_off(int(payload.removeprefix(b"grace=").rstrip(b"\0")))
        elif number in self._streams:
            self._take_of_stream(kind, number, channel, payload)

    async def _freeze_then(self, until: asyncio.Event, number: int) -> None:
        await until.wait()
        self._freeze(FREEZE, number, b"")

    def _freeze(self, kind: int, number: int, payload: bytes) -> None:
        code, words = self._freezer.take(kind, payload)
        self._guest.send(pack(EXIT, number, records(("code", str(code)), ("message", words))))

    def _take_of_stream(self, kind: int, number: int, channel: int, payload: bytes) -> None:
        stream, command = self._streams[number], self._running.get(number)
        if kind == DATA:
            stream.take_data(payload)
        elif kind == CREDIT:
            stream.take_credit(payload, channel)
        elif kind == CLOSE:
            self._tasks[number].cancel()
        elif kind == SIGNAL and command is not None:
            command.signals.append(struct.unpack("<I", payload)[0])
            self._tasks[number].cancel()
        elif kind == RESIZE and command is not None:
            command.sizes.append(struct.unpack("<HH", payload))
            command.resized.set()

    def _execute(self, number: int, payload: bytes) -> None:
        pairs = [record.decode().partition("=") for record in payload.split(b"\0") if record]
        argv = [value for key, _, value in pairs if key == "arg"]
        env = dict(value.split("=", 1) for key, _, value in pairs if key == "env")
        stream = Stream(number, self._guest.send, self._guest.writer.close)
        command = Command(argv, env, {key: value for key, _, value in pairs}, stream, self._files)
        self._commands.append(command)
        program = self._programs.get(argv[0])
        if self._freezer.frozen:
            stream.exit(125, "the guest is frozen: nothing runs in it until THAW")
        elif self._refusal:
            self._guest.send(pack(ERROR, number, records(("code", "refused"), ("message", self._refusal))))
        elif program is None:
            stream.exit(127, f"{argv[0]}: not found")
        else:
            self._running[number] = command
            self._begin(stream, self._run(program, command))

    async def _run(self, program: Program, command: Command) -> None:
        channels = (1,) if command.tty else (1, 2)
        try:
            code = await program(command)
            command.stream.exit(code, f"exited with code {code}", channels=channels)
        except asyncio.CancelledError:
            number = command.signals[-1] if command.signals else signal.SIGKILL
            command.stream.exit(128 + number, f"killed by signal {number}", channels=channels)
        finally:
            self._running.pop(command.stream.number, None)
            command.ended.set()

    def _attach(self, number: int, payload: bytes) -> None:
        values = dict(record.decode().split("=", 1) for record in payload.split(b"\0") if record)
        values["tty"] = str(int(self._attached.tty))
        stream = Stream(number, self._guest.send, self._guest.writer.close)
        command = Command(["attach"], {}, values, stream, self._files)
        self._commands.append(command)
        self._running[number] = command
        self._begin(stream, self._run_attached(command), ("tty", values["tty"]), ("stdin", values["stdin"]))

    async def _run_attached(self, command: Command) -> None:
        try:
            code = await self._attached.run(command)
            command.stream.exit(code, f"exited with code {code}")
            self._attached.end(code)
        except asyncio.CancelledError:
            command.stream.exit(0, "detached")
        finally:
            self._running.pop(command.stream.number, None)
            command.ended.set()

    def _open_files(self, number: int, payload: bytes) -> None:
        values = dict(
            record.decode("utf-8", "surrogateescape").split("=", 1)
            for record in payload.split(b"\0")
            if record
        )
        stream = Stream(number, self._guest.send, self._guest.writer.close)
        follow = values["follow"] == "1"
        self._begin(stream, self._copy(values["operation"], values["path"], stream, follow=follow))

    async def _copy(self, operation: str, path: str, stream: Stream, *, follow: bool) -> None:
        code, message = 137, "killed by signal 9"
        try:
            code, message = await self._files.serve(operation, path, stream, follow=follow), ""
        except asyncio.CancelledError:
            pass  # the host has lost interest
        finally:
            stream.exit(code, message, channels=(1,))

    def _begin_check(self, number: int, payload: bytes) -> None:
        """It repeats a check, of which a test says what comes."""
        pairs = [record.decode().split("=", 1) for record in payload.split(b"\0") if record]
        stream = Stream(number, self._guest.send, self._guest.writer.close)
        check = HealthCheck(dict(pairs), stream)
        self._checks.append(check)
        self._begin(stream, check.run())

    def _begin(self, stream: Stream, work: Awaitable[None], *said: tuple[str, str]) -> None:
        async def run() -> None:
            try:
                await work
            finally:
                self._streams.pop(stream.number, None)

        self._streams[stream.number] = stream
        stream.start(*said)
        task = self._tasks[stream.number] = asyncio.create_task(run())
        task.add_done_callback(lambda _: self._tasks.pop(stream.number, None))
