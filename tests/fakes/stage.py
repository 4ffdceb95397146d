# SPDX-License-Identifier: Apache-2.0
"""What the scenarios of contract.py are written in: for any systemd, with nothing of pytest and its like."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, NamedTuple, Protocol

from hypemand.systemd.bus import BusError, unit_path
from hypemand.systemd.busframes import PROPERTIES, Part
from hypemand.systemd.port import Bus
from hypemand.systemd.units import MANAGER, SERVICE, Units, UnitStatus
from hypemand.unitnames import unit_name

DEADLINE = 60.0
U = unit_name("contract")
OTHER = unit_name("contract-other")
ABSENT = unit_name("contract-absent")
SECOND = 1_000_000


class Script(NamedTuple):
    """What a process does. It marks that it has begun as `mark`, with $SERVICE_RESULT, $EXIT_CODE and
    $EXIT_STATUS; then it waits until that mark is released, unless `waits` is false; then it ends with
    `status`. SIGTERM ends it at once: with `on_term`, or by the signal; -1: it does not hear it."""

    mark: str
    waits: bool = True
    status: int = 0
    on_term: int | None = None


class World(Protocol):
    """A systemd, and how its processes are written and watched."""

    bus: Bus

    def command(self, script: Script) -> tuple[str, list[str], bool]:
        """A command for ExecStart= and its like."""

    def marks(self, mark: str) -> list[str]:
        """What scripts have said under this mark, oldest first."""

    def release(self, mark: str) -> None:
        """Let one script that waits end."""

    def notify(self, pid: int, *assignments: str) -> None:
        """Tell systemd something in the name of a process."""

    async def reexecute(self) -> None:
        """`systemctl daemon-reexec`."""

    async def clean(self) -> None:
        """Remove units and marks."""


class Stage:
    """One scenario's view of a world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.bus = world.bus
        self.units = Units(world.bus)

    async def begin(
        self,
        start: Script | None = None,
        stop: Script | None = None,
        post: Script | None = None,
        *,
        unit: str = U,
        **properties: tuple[str, object],
    ) -> None:
        """StartTransientUnit of a unit as VMs have them; further properties with their signatures."""
        values: dict[str, tuple[str, object]] = {
            "Type": ("s", "notify"),
            "NotifyAccess": ("s", "main"),
            "ExecStart": ("a(sasb)", [self.world.command(start or Script("main"))]),
        }
        if stop is not None:
            values["ExecStop"] = ("a(sasb)", [self.world.command(stop)])
        if post is not None:
            values["ExecStopPost"] = ("a(sasb)", [self.world.command(post)])
        values |= properties
        listed = [(key, signature, value) for key, (signature, value) in values.items()]
        parts: tuple[Part, ...] = (("ss", (unit, "fail")), (PROPERTIES, listed), ("a(sa(sv))", ([],)))
        await self.bus.call(SERVICE, MANAGER, f"{SERVICE}.Manager.StartTransientUnit", parts)

    async def order(self, method: str, *values: object, unit: str = U) -> None:
        """A method of systemd's that takes a unit's name first."""
        signature = "s" + "".join("i" if isinstance(value, int) else "s" for value in values)
        await self.bus.call(SERVICE, MANAGER, f"{SERVICE}.Manager.{method}", [(signature, (unit, *values))])

    async def refused(self, work: Awaitable[object]) -> int:
        """The errno of a call that has to fail."""
        try:
            await work
        except BusError as error:
            return error.number
        raise AssertionError("was not refused")

    async def get(self, name: str, unit: str = U) -> Any:
        """A property of the unit, as Service.Result."""
        return await self.bus.get_property(SERVICE, unit_path(unit), f"{SERVICE}.{name}")

    async def until(self, *states: str | None, unit: str = U) -> UnitStatus:
        """Wait until the unit is in one of these: an ActiveState, one with its SubState, or None."""
        status: UnitStatus | None = None
        try:
            async with asyncio.timeout(DEADLINE):
                while True:
                    status = await self.units.status(unit)
                    if status.active_state in states or state(status) in states:
                        return status
                    await asyncio.sleep(0.005)
        except TimeoutError:
            raise AssertionError(f"{unit} is not {states}, but {status}") from None

    async def until_marked(self, mark: str, count: int = 1) -> list[str]:
        """Wait until scripts have said something under this mark."""
        async with asyncio.timeout(DEADLINE):
            while len(said := self.world.marks(mark)) < count:  # noqa: ASYNC110 - polled on both
                await asyncio.sleep(0.005)
        return said

    async def begun(self, *, unit: str = U) -> UnitStatus:
        """Wait until its main process runs."""
        await self.until_marked("main")
        async with asyncio.timeout(DEADLINE):
            while (status := await self.units.status(unit)).main_pid is None:  # noqa: ASYNC110 - polled on both
                await asyncio.sleep(0.005)
        return status

    async def ready(self, *, unit: str = U) -> UnitStatus:
        """Say READY=1 for its main process, and wait for what that does."""
        status = await self.begun(unit=unit)
        assert status.main_pid is not None
        self.world.notify(status.main_pid, "READY=1")
        return await self.until("active", unit=unit)


def same(found: object, wanted: object) -> None:
    """They are; pytest is not there to say what they are otherwise."""
    if found != wanted:
        raise AssertionError(f"{found!r} is not {wanted!r}")


def state(status: UnitStatus) -> str:
    """Both states."""
    return f"{status.active_state}/{status.sub_state}"
