# SPDX-License-Identifier: Apache-2.0
"""Signals of systemd, whatever the number of VMs and whatever happens to the bus."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from hypemand.systemd.bus import BusError, SystemBus, unit_path
from hypemand.systemd.dbuslib import DBusBaseError
from hypemand.systemd.units import unit_name

UNIT = "org.freedesktop.systemd1.Unit"
DEADLINE = 20.0


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
        self, _service: bytes, _path: bytes, _interface: bytes, method: bytes, _args: Any
    ) -> None:
        self.bus.calls.append(method.decode())
        if method == b"AddMatch" and self.bus.refuses_rules:
            raise DBusBaseError(-errno.ENOBUFS)

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
        self.refuses_rules = False

    def connect(self) -> Any:
        self.connections.append(Connection(self))
        return self.connections[-1]


def path_of(number: int) -> str:
    return unit_path(unit_name(f"vm-{number}"))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not condition():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.005)


def drive(scenario: Callable[[Bus, SystemBus], Any]) -> Bus:
    async def main() -> None:
        system = SystemBus(bus.connect)
        try:
            await scenario(bus, system)
        finally:
            system.close()
            for connection in bus.connections:
                connection.close()

    bus = Bus()
    asyncio.run(main())
    return bus


def test_a_thousand_vms_take_one_match_rule_and_get_their_signals() -> None:
    seen: dict[int, str] = {}

    def watch(system: SystemBus, number: int) -> None:
        system.watch_properties(
            path_of(number),
            UNIT,
            ("ActiveState",),
            lambda changed: seen.update({number: changed["ActiveState"]}),
        )

    async def scenario(bus: Bus, system: SystemBus) -> None:
        for number in range(999):
            watch(system, number)
        await system.start_signals(lambda: None, DEADLINE)
        watch(system, 999)
        foreign = Message("/org/freedesktop/systemd1/unit/ssh_2eservice", state="active")
        other = Message(path_of(5), "org.freedesktop.systemd1.Service", "active")
        bus.connections[0].signal(
            Message(path_of(0), state="failed"), foreign, other, Message(path_of(999), state="active")
        )
        await until(lambda: len(seen) == 2)
        assert seen == {0: "failed", 999: "active"}
        assert not foreign.parsed

    assert drive(scenario).calls == ["Subscribe", "AddMatch"]


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


def test_a_path_that_is_not_watched_any_more_is_told_nothing() -> None:
    seen: list[str] = []

    async def scenario(bus: Bus, system: SystemBus) -> None:
        await system.start_signals(lambda: None, DEADLINE)
        for number in (1, 2):
            system.watch_properties(
                path_of(number), UNIT, ("ActiveState",), lambda c: seen.append(c["ActiveState"])
            )
        system.unwatch_properties(path_of(1))
        system.unwatch_properties(path_of(1))
        bus.connections[0].signal(Message(path_of(1), state="failed"), Message(path_of(2), state="active"))
        await until(lambda: bool(seen))
        assert seen == ["active"]

    drive(scenario)


def test_a_bus_that_does_not_answer_holds_up_nobody_and_is_looked_at_when_it_is_there() -> None:
    answers = threading.Event()
    bus = Bus()

    def open_slowly() -> Any:
        answers.wait(DEADLINE)
        return bus.connect()

    async def main() -> None:
        system = SystemBus(open_slowly)
        turns, resyncs = 0, 0

        def count() -> None:
            nonlocal resyncs
            resyncs += 1

        async def turn() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0.005)

        turning = asyncio.create_task(turn())
        await system.start_signals(count, 0.1)
        assert turns > 2
        assert (resyncs, bus.calls) == (0, [])
        answers.set()
        await until(lambda: resyncs == 1)
        turning.cancel()
        system.close()
        for connection in bus.connections:
            connection.close()

    asyncio.run(main())
    assert bus.calls == ["Subscribe", "AddMatch"]


def test_a_bus_that_is_not_there_is_tried_until_it_is() -> None:
    bus = Bus()
    tries: list[None] = []
    resyncs: list[None] = []

    def open_later() -> Any:
        tries.append(None)
        if len(tries) < 3:
            raise BusError("cannot reach the system bus", errno.ENOTCONN)
        return bus.connect()

    async def main() -> None:
        system = SystemBus(open_later)
        await system.start_signals(lambda: resyncs.append(None), DEADLINE)
        await until(lambda: len(resyncs) == 1)
        system.close()
        for connection in bus.connections:
            connection.close()

    asyncio.run(main())
    assert len(tries) == 3
