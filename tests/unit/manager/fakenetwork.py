# SPDX-License-Identifier: Apache-2.0
"""A host's networks in memory, which behave as `NetworkHost` says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from hypemand.errors import HypemandError
from hypemand.model.counters import Connections, Counters
from hypemand.network.port import BridgePlan, NetworkStatus, PortPlan
from hypemand.network.wire import NOT_APPLIED


@dataclass
class FakeNetworkHost:
    """`bridges` and `taps` are what is on the host. `problems`: of networks, by name. `away`: raised by all;
    `refuse`: by attach, `refuse_detach`: by detach. `gate`: attach waits for it after it has made the device,
    and sets `made`. `restart` makes it a service that has just started."""

    bridges: dict[str, BridgePlan] = field(default_factory=dict)
    taps: dict[str, PortPlan] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    away: HypemandError | None = None
    refuse: HypemandError | None = None
    refuse_detach: HypemandError | None = None
    gate: asyncio.Event | None = None
    made: asyncio.Event = field(default_factory=asyncio.Event)
    asked: list[str] = field(default_factory=list)
    knows: bool = False
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def restart(self) -> None:
        self.knows = False

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Look again at each request, and when it has had its effect."""
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    def _ask(self, what: str, *, knowing: bool = True) -> None:
        self.asked.append(what)
        self._changed.set()
        if self.away is not None:
            raise self.away
        if knowing and not self.knows:
            raise HypemandError("it knows nothing yet", code=NOT_APPLIED)

    async def apply(
        self, bridges: tuple[BridgePlan, ...], ports: tuple[PortPlan, ...], *, prune: bool
    ) -> tuple[NetworkStatus, ...]:
        self._ask(f"apply{'' if prune else ' without prune'}", knowing=False)
        await asyncio.sleep(0)
        self.knows = True
        wanted = {bridge.network: bridge for bridge in bridges}
        taps = {port.tap: port for port in ports}
        self.bridges = wanted if prune else self.bridges | wanted
        self.taps = taps if prune else self.taps | taps
        self._changed.set()
        return tuple(NetworkStatus(name, self.problems.get(name, "")) for name in wanted)

    async def attach(self, port: PortPlan) -> int:
        self._ask(f"attach {port.vm}")
        self.taps[port.tap] = port
        self.made.set()
        if self.gate is not None:
            await self.gate.wait()
        if self.refuse is not None:
            del self.taps[port.tap]
            raise self.refuse
        return 7

    async def detach(self, port: PortPlan) -> None:
        self._ask(f"detach {port.vm}")
        if self.refuse_detach is not None:
            raise self.refuse_detach
        self.taps.pop(port.tap, None)
        self._changed.set()

    async def counters(self) -> Mapping[str, Counters]:
        self._ask("counters", knowing=False)
        return {tap: Counters(100, 1, 200, 2, 0) for tap in self.taps}

    async def connections(self) -> Mapping[str, Connections]:
        self._ask("connections", knowing=False)
        return {tap: Connections(3, 4) for tap in self.taps}
