# SPDX-License-Identifier: Apache-2.0
"""What systemd says of a VM's unit, and which units there are."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import pytest

from hypemand.systemd.bus import SystemBus
from hypemand.systemd.dbuslib import DBusBaseError
from hypemand.systemd.units import Units, UnitStatus, UnitWatch
from tests.unit.systemd.busthread import in_thread

UNIT, SERVICE = "org.freedesktop.systemd1.Unit", "org.freedesktop.systemd1.Service"
NONE = {
    f"{UNIT}.Job": (0, "/"),
    f"{UNIT}.SubState": "dead",
    f"{UNIT}.InvocationID": [],
    f"{UNIT}.StateChangeTimestamp": 0,
    f"{UNIT}.StateChangeTimestampMonotonic": 0,
    f"{SERVICE}.MainPID": 0,
    f"{SERVICE}.ExecMainStartTimestampMonotonic": 0,
    f"{SERVICE}.ExecMainStartTimestamp": 0,
    f"{SERVICE}.BindPaths": [],
    f"{SERVICE}.BindReadOnlyPaths": [],
}


class Message:
    """An answer."""

    def __init__(self, body: Any) -> None:
        self.body = body


class Bus:
    """systemd with one unit, or whose list of units is `rows`. `load` "": it has not loaded the unit."""

    def __init__(self, load: str, active: str, rows: Sequence[tuple[str, ...]] = (), **more: Any) -> None:
        self._values = {**NONE, f"{UNIT}.LoadState": load, f"{UNIT}.ActiveState": active}
        self._values |= {f"{SERVICE}.{name}": value for name, value in more.items()}
        self._rows = rows

    def call_method(
        self, _service: bytes, _path: bytes, _interface: bytes, method: bytes, arguments: Any
    ) -> Message:
        if method == b"ListUnitsByPatterns":
            return Message(self._rows)
        if method == b"GetUnit":
            if not self._values[f"{UNIT}.LoadState"]:
                raise DBusBaseError(-errno.ENOENT)
            return Message("/a/unit")
        assert method == b"Get"
        return Message(self._values[".".join(value for _, value in arguments)])

    def close(self) -> None:
        """Nothing is open."""


def ask(bus: Bus, question: Callable[[Units], Coroutine[None, None, Any]]) -> Any:
    async def main() -> Any:
        system = SystemBus(in_thread(lambda: bus))
        system.start()
        try:
            return await question(Units(system))
        finally:
            await system.close()

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("load", "active", "there"),
    [
        ("loaded", "active", True),
        ("loaded", "inactive", True),
        ("not-found", "inactive", False),
        # its file was lost, and systemd has reloaded since
        ("not-found", "active", True),
        ("not-found", "deactivating", True),
        ("not-found", "failed", True),
        ("error", "active", True),
    ],
)
def test_a_unit_is_there_while_systemd_has_its_file_or_it_lives(
    load: str, active: str, *, there: bool
) -> None:
    status = ask(Bus(load, active), lambda units: units.status("hypeman-vm-web.service"))
    assert status.active_state == (active if there else None)
    rows = [("hypeman-vm-web.service", "", load, active), ("ssh.service", "", "loaded", "active")]
    listed = ask(Bus(load, active, rows), lambda units: units.list_vms())
    assert listed == ({"web": active} if there else {})


def test_a_unit_that_is_not_loaded_is_asked_for_nothing() -> None:
    """systemd would load it for each answer."""
    asked: list[bytes] = []

    class Asked(Bus):
        def call_method(self, *call: Any) -> Message:
            asked.append(call[3])
            return super().call_method(*call)

    assert not ask(Asked("", ""), lambda units: units.status("hypeman@web.service")).is_live
    assert ask(Asked("", ""), lambda units: units.bound_files("hypeman-vm-web.service")) == {}
    assert asked == [b"GetUnit", b"GetUnit"]


class ChangingBus(Bus):
    """The unit goes from "auto-restart" to "dead" between the answer on the one and that on the other."""

    def __init__(self) -> None:
        super().__init__("loaded", "activating")
        self._values[f"{UNIT}.SubState"] = "auto-restart"
        self.asked = 0

    def call_method(
        self, _service: bytes, _path: bytes, _interface: bytes, method: bytes, arguments: Any
    ) -> Message:
        if method == b"Get" and arguments[1][1] == "SubState":
            self.asked += 1
            self._values |= {f"{UNIT}.ActiveState": "inactive", f"{UNIT}.SubState": "dead"}
            self._values[f"{UNIT}.StateChangeTimestampMonotonic"] = 17
        return super().call_method(_service, _path, _interface, method, arguments)


def test_what_is_said_of_a_unit_is_of_one_moment() -> None:
    bus = ChangingBus()
    status = ask(bus, lambda units: units.status("hypeman-vm-web.service"))
    assert (status.active_state, status.sub_state, bus.asked) == ("inactive", "dead", 2)


def test_the_files_of_a_unit_and_which_it_may_write_to() -> None:
    read, write = [("/usr", "/usr", False, 0)], [("/srv/a", "/self/disk", False, 0)]
    bus = Bus("loaded", "active", BindReadOnlyPaths=read, BindPaths=write)
    assert ask(bus, lambda units: units.bound_files("x")) == {Path("/usr"): False, Path("/srv/a"): True}
    assert ask(Bus("not-found", "inactive"), lambda units: units.bound_files("x")) == {}


def said(active: str, stamp: int, **more: Any) -> dict[str, Any]:
    """As a signal of the interface that these are of."""
    return {f"{UNIT}.ActiveState": active, f"{UNIT}.StateChangeTimestampMonotonic": stamp, **more}


def answered(active: str, stamp: int) -> UnitStatus:
    return UnitStatus(active, answered=said(active, stamp))


class Watching:
    """Who watches a unit, and what he was called with."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.watch = UnitWatch(self.told.append)

    def ask(self, answer: UnitStatus, during: Sequence[dict[str, Any]] = ()) -> None:
        with self.watch.asking():
            for signalled in during:
                self.watch.take_signal(signalled)
            self.watch.take_answer(answer)
            assert not self.told


def test_a_signal_of_what_was_answered_before_or_after_it_was_sent_says_nothing() -> None:
    watching = Watching()
    watching.ask(answered("activating", 5), during=[said("inactive", 0), said("activating", 5)] * 9)
    watching.watch.take_signal(said("inactive", 0))
    watching.watch.take_signal(said("activating", 5))
    assert watching.told == []


def test_what_is_newer_than_the_answer_is_told_after_the_question() -> None:
    watching = Watching()
    watching.ask(answered("activating", 5), during=[said("active", 7)])
    assert watching.told == ["active"]
    watching.watch.take_signal({f"{SERVICE}.MainPID": 4})
    assert watching.told == ["active", "active"]


def test_what_another_interface_has_signalled_is_told_beside_what_is_old() -> None:
    watching = Watching()
    watching.ask(answered("active", 7), during=[said("activating", 5), {f"{SERVICE}.MainPID": 4}])
    assert watching.told == ["active"]


def test_a_question_that_fails_has_answered_nothing() -> None:
    watching = Watching()

    def fail() -> None:
        with watching.watch.asking():
            watching.watch.take_answer(answered("active", 7))
            watching.watch.take_signal(said("active", 7))
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        fail()
    assert watching.told == ["active"]


def test_a_unit_that_is_made_anew_is_told_of_from_its_first_signal_on() -> None:
    watching = Watching()
    watching.ask(answered("active", 7))
    watching.ask(UnitStatus(None))
    watching.watch.take_signal(said("inactive", 0))
    assert watching.told == ["inactive"]


def test_an_answer_has_what_the_signal_of_the_same_moment_has() -> None:
    watching = Watching()
    bus = Bus("loaded", "active")
    watching.ask(ask(bus, lambda units: units.status("hypeman-vm-web.service")))
    watching.watch.take_signal(said("active", 0, **{f"{UNIT}.Job": (0, "/"), f"{UNIT}.SubState": "dead"}))
    watching.watch.take_signal({f"{SERVICE}.MainPID": 0})
    assert watching.told == []
