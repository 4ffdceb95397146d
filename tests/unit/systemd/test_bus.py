# SPDX-License-Identifier: Apache-2.0
"""Calls and signals of systemd, whatever the number of VMs and whatever happens to the bus."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from hypemand.systemd.bus import BusError, SystemBus, Worker, unit_path
from hypemand.systemd.busworker import Failure
from hypemand.systemd.dbuslib import DBusBaseError
from hypemand.unitnames import unit_name
from tests.unit.systemd.busthread import BusThread

UNIT = "org.freedesktop.systemd1.Unit"
STATE = f"{UNIT}.ActiveState"
DEADLINE = 60.0


class Message:
    """A signal, or none; `parsed` once its body was asked for."""

    def __init__(self, path: str = "", interface: str = UNIT, state: str = "") -> None:
        self.path = path
        self.parsed = False
        self.body = [interface.encode(), {b"ActiveState": state.encode()}, []]

    def is_empty(self) -> bool:
        return not self.path

    def get_path(self) -> bytes:
        return self.path.encode()

    def process_reply(self, _with_headers: bool) -> None:
        self.parsed = True


class Answer(Message):
    """What a method returns: what it was given."""

    def __init__(self, values: list[Any]) -> None:
        super().__init__()
        self.body = values


class Connection:
    """One connection to the bus, as pystemd has it."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.messages: list[Message] = []
        self.is_cut = False
        self.ours, self.theirs = socket.socketpair()

    def get_fd(self) -> int:
        return self.ours.fileno()

    def call_method(
        self, _service: bytes, _path: bytes, _interface: bytes, method: bytes, args: list[Any]
    ) -> Message:
        self.bus.calls.append(method.decode())
        if method == b"AddMatch" and self.bus.refuses_rules:
            raise DBusBaseError(-errno.ENOBUFS)
        if method == b"AddMatch":
            self.bus.listening = self
        if method == b"Wait" or (method == b"Get" and self.bus.reads_wait):
            self.bus.waits.set()
            assert self.bus.gate.wait(DEADLINE)
        return Answer([value for _, value in args])

    def process(self) -> Message:
        if self.is_cut:
            raise DBusBaseError(-errno.ENOTCONN)
        return self.messages.pop(0) if self.messages else Message()

    def signal(self, *messages: Message) -> None:
        self.messages += messages
        os.write(self.theirs.fileno(), b"x")

    def cut(self) -> None:
        self.is_cut = True
        self.theirs.close()

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


class Bus:
    """A bus that counts what is asked of it, and may refuse match rules."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.connections: list[Connection] = []
        self.refuses_rules = self.reads_wait = False
        self.workers: list[BusThread] = []
        self.listening: Connection | None = None
        self.refusals = 0
        self.is_there = threading.Event()
        self.is_there.set()
        self.waits, self.gate = threading.Event(), threading.Event()

    def connect(self) -> Any:
        assert self.is_there.wait(DEADLINE)
        if self.refusals:
            self.refusals -= 1
            raise Failure("cannot reach the system bus", errno.ENOTCONN)
        self.connections.append(Connection(self))
        return self.connections[-1]


def path_of(number: int) -> str:
    return unit_path(unit_name(f"vm-{number}"))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not condition():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.005)


def drive(scenario: Callable[[Bus, SystemBus], Awaitable[None]]) -> Bus:
    async def start(end: socket.socket) -> Worker:
        bus.workers.append(BusThread(end, bus.connect))
        return bus.workers[-1]

    async def main() -> None:
        system = SystemBus(start)
        system.start()
        try:
            await scenario(bus, system)
        finally:
            bus.gate.set()
            bus.is_there.set()
            await system.close()
            for connection in bus.connections:
                connection.close()

    bus = Bus()
    asyncio.run(main())
    return bus


def test_a_thousand_vms_take_one_match_rule_and_get_their_signals() -> None:
    seen: dict[int, str] = {}

    def watch(system: SystemBus, number: int) -> None:
        system.watch_properties(
            path_of(number), (STATE,), lambda changed: seen.update({number: changed[STATE]})
        )

    async def scenario(bus: Bus, system: SystemBus) -> None:
        for number in range(999):
            watch(system, number)
        await system.start_signals(lambda: None, DEADLINE)
        watch(system, 999)
        await echo(system)  # what was sent before is known by then
        foreign = Message("/org/freedesktop/systemd1/unit/ssh_2eservice", state="active")
        other = Message(path_of(5), "org.freedesktop.systemd1.Service", "active")
        bus.connections[0].signal(
            Message(path_of(0), state="failed"), foreign, other, Message(path_of(999), state="active")
        )
        await until(lambda: len(seen) == 2)
        assert seen == {0: "failed", 999: "active"}
        assert not foreign.parsed

    assert drive(scenario).calls == ["Subscribe", "AddMatch", "Echo"]


def test_a_rule_that_is_refused_is_tried_again_and_no_reason_to_look_at_everything() -> None:
    resyncs: list[None] = []

    async def scenario(bus: Bus, system: SystemBus) -> None:
        await system.start_signals(lambda: resyncs.append(None), DEADLINE)
        bus.refuses_rules = True
        bus.connections[0].cut()
        await until(lambda: bus.calls.count("AddMatch") >= 3)
        assert resyncs == []
        bus.refuses_rules = False
        await until(lambda: len(resyncs) == 1)

    drive(scenario)


def test_a_bus_that_is_lost_again_and_again_is_tried_less_and_less_often() -> None:
    """A connection that is lost at once was no success: the pause keeps growing."""
    resyncs: list[float] = []

    async def scenario(bus: Bus, system: SystemBus) -> None:
        def cut_again() -> None:
            resyncs.append(time.monotonic())
            bus.connections[-1].cut()

        await system.start_signals(cut_again, DEADLINE)
        bus.connections[0].cut()
        await until(lambda: len(resyncs) == 5)
        # 0.1 s doubled; were it reset by each connection, it would be 0.1 s
        assert resyncs[4] - resyncs[3] > 0.8

    drive(scenario)


def test_properties_of_two_interfaces_are_watched_together() -> None:
    seen: list[dict[str, str]] = []
    other = "org.freedesktop.systemd1.Service"

    async def scenario(bus: Bus, system: SystemBus) -> None:
        await system.start_signals(lambda: None, DEADLINE)
        system.watch_properties(path_of(1), (STATE, f"{other}.ActiveState"), seen.append)
        await echo(system)
        for interface in (UNIT, other, "org.freedesktop.systemd1.Scope"):
            bus.connections[0].signal(Message(path_of(1), interface, "active"))
        bus.connections[0].signal(Message(path_of(1), state="failed"))
        await until(lambda: len(seen) == 3)
        assert seen == [{STATE: "active"}, {f"{other}.ActiveState": "active"}, {STATE: "failed"}]

    drive(scenario)


def test_a_path_that_is_not_watched_any_more_is_told_nothing() -> None:
    seen: list[str] = []

    async def scenario(bus: Bus, system: SystemBus) -> None:
        await system.start_signals(lambda: None, DEADLINE)
        for number in (1, 2):
            system.watch_properties(path_of(number), (STATE,), lambda c: seen.append(c[STATE]))
        system.unwatch_properties(path_of(1))
        system.unwatch_properties(path_of(1))
        await echo(system)
        bus.connections[0].signal(Message(path_of(1), state="failed"), Message(path_of(2), state="active"))
        await until(lambda: bool(seen))
        assert seen == ["active"]

    drive(scenario)


def test_a_bus_that_does_not_answer_holds_up_nobody_and_is_looked_at_when_it_is_there() -> None:
    resyncs: list[None] = []

    async def scenario(bus: Bus, system: SystemBus) -> None:
        bus.is_there.clear()
        await system.start_signals(lambda: resyncs.append(None), 0.1)
        assert (resyncs, bus.calls) == ([], [])
        bus.is_there.set()
        await until(lambda: len(resyncs) == 1)

    assert drive(scenario).calls == ["Subscribe", "AddMatch"]


def test_a_bus_that_is_not_there_is_tried_until_it_is() -> None:
    resyncs: list[None] = []

    async def scenario(bus: Bus, system: SystemBus) -> None:
        bus.refusals = 3
        await system.start_signals(lambda: resyncs.append(None), DEADLINE)
        assert bus.refusals == 0
        assert resyncs == []  # nothing can have been missed

    drive(scenario)


async def echo(system: SystemBus, *values: str) -> list[str]:
    answer: list[str] = await system.call("a.b", "/c", "d.Echo", [("s" * len(values), values)])
    return answer


def test_a_call_that_is_not_answered_holds_up_nothing_but_calls() -> None:
    async def scenario(bus: Bus, system: SystemBus) -> None:
        waiting = asyncio.create_task(system.call("a.b", "/c", "d.Wait", []))
        await until(bus.waits.is_set)
        gone = asyncio.create_task(system.call("a.b", "/c", "d.NeverBegun", []))
        after = asyncio.create_task(echo(system, "x", "y"))
        await asyncio.sleep(0)
        gone.cancel()
        bus.gate.set()
        assert await waiting == []
        assert await after == ["x", "y"]

    assert drive(scenario).calls == ["Wait", "Echo"]


def test_whoever_asks_and_goes_leaves_the_next_its_own_answer() -> None:
    async def scenario(bus: Bus, system: SystemBus) -> None:
        waiting = asyncio.create_task(system.call("a.b", "/c", "d.Wait", [("s", ("old",))]))
        await until(bus.waits.is_set)
        waiting.cancel()
        after = asyncio.create_task(echo(system, "new"))
        await asyncio.sleep(0)
        bus.gate.set()
        assert await after == ["new"]

    drive(scenario)


def test_a_process_that_ends_is_started_again_and_told_what_is_watched() -> None:
    seen: list[str] = []
    resyncs: list[None] = []

    async def scenario(bus: Bus, system: SystemBus) -> None:
        await system.start_signals(lambda: resyncs.append(None), DEADLINE)
        system.watch_properties(path_of(1), (STATE,), lambda changed: seen.append(changed[STATE]))
        waiting = asyncio.create_task(system.call("a.b", "/c", "d.Wait", []))
        await until(bus.waits.is_set)
        bus.workers[0].kill()
        with pytest.raises(BusError, match="has ended") as caught:
            await waiting
        assert caught.value.gone
        bus.gate.set()
        # waits for the next one
        assert await echo(system, "again") == ["again"]
        await until(lambda: len(resyncs) == 1)
        assert bus.listening is not None
        bus.listening.signal(Message(path_of(1), state="failed"))
        await until(lambda: bool(seen))
        assert seen == ["failed"]

    drive(scenario)


def test_what_is_read_is_read_again_by_the_next_process() -> None:
    async def scenario(bus: Bus, system: SystemBus) -> None:
        bus.reads_wait = True
        reading = asyncio.create_task(system.get_property("a.b", "/c", "d.Name"))
        await until(bus.waits.is_set)
        bus.reads_wait = False
        bus.workers[0].kill()
        bus.gate.set()
        assert await reading == ["d", "Name"]
        assert len(bus.workers) == 2

    drive(scenario)


def test_what_is_no_message_is_an_error_and_the_process_stays() -> None:
    async def scenario(bus: Bus, system: SystemBus) -> None:
        with pytest.raises(BusError, match="Error: "):
            await system.call("a.b", "/c", "d.Echo", [("as", (7,))])
        assert await echo(system, "fine") == ["fine"]
        assert len(bus.workers) == 1

    drive(scenario)


def test_the_process_itself_starts_answers_and_ends_with_the_daemon() -> None:
    """Whether there is a bus here or not."""

    async def main() -> None:
        processes: list[asyncio.subprocess.Process] = []

        async def start(end: socket.socket) -> Worker:
            script = (
                f"import sys; sys.path.insert(0, {sys.path[0]!r})\nfrom hypemand.systemd import busworker"
            )
            argv = [sys.executable, "-I", "-c", f"{script}\nbusworker.main()"]
            environment = {**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/nonexistent"}
            processes.append(await asyncio.create_subprocess_exec(*argv, stdin=end.fileno(), env=environment))
            return processes[-1]

        system = SystemBus(start)
        system.start()
        try:
            with pytest.raises(BusError, match="cannot reach the system bus") as caught:
                await system.call("org.freedesktop.DBus", "/", "org.freedesktop.DBus.GetId", [])
            assert caught.value.gone
        finally:
            await system.close()
        assert [process.returncode for process in processes] == [-9]

    asyncio.run(main())


def test_a_process_that_cannot_be_started_is_tried_again() -> None:
    tries: list[None] = []

    async def start(end: socket.socket) -> Worker:
        tries.append(None)
        raise OSError(errno.EAGAIN, "no")

    async def main() -> None:
        system = SystemBus(start)
        system.start()
        await until(lambda: len(tries) == 3)
        await system.close()

    asyncio.run(main())


@pytest.mark.parametrize("unit", ["hypeman-vm-web.service", "9a.b", "", "\u00fc_", "A-Z09~"])
def test_the_path_of_a_unit_is_that_of_sd_bus(unit: str) -> None:
    from pystemd.dbuslib import path_encode

    assert unit_path(unit) == path_encode(b"/org/freedesktop/systemd1/unit", unit.encode()).decode()
