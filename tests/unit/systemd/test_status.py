# SPDX-License-Identifier: Apache-2.0
"""What systemd says of a VM's unit, and which units there are."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import pytest

from hypemand.systemd.bus import SystemBus
from hypemand.systemd.units import Units
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
    """systemd with one unit, or whose list of units is `rows`."""

    def __init__(self, load: str, active: str, rows: Sequence[tuple[str, ...]] = (), **more: Any) -> None:
        self._values = {**NONE, f"{UNIT}.LoadState": load, f"{UNIT}.ActiveState": active}
        self._values |= {f"{SERVICE}.{name}": value for name, value in more.items()}
        self._rows = rows

    def call_method(
        self, _service: bytes, _path: bytes, _interface: bytes, method: bytes, arguments: Any
    ) -> Message:
        if method == b"ListUnitsByPatterns":
            return Message(self._rows)
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


class ChangingBus(Bus):
    """The unit goes from "auto-restart" to "dead" between the answer on the one and that on the other."""

    def __init__(self) -> None:
        super().__init__("loaded", "activating")
        self._values[f"{UNIT}.SubState"] = "auto-restart"
        self.asked = 0

    def call_method(
        self, _service: bytes, _path: bytes, _interface: bytes, method: bytes, arguments: Any
    ) -> Message:
        if arguments[1][1] == "SubState":
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
