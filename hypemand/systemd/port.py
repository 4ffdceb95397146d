# SPDX-License-Identifier: Apache-2.0
"""What is asked of the system bus and of systemd's notification socket: the seam for tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from hypemand.systemd.busframes import Part

Notify = Callable[..., None]
"""`hypemand.systemd.notify.notify_for`: the pid of the sender, then the assignments. Raises OSError."""


class Bus(Protocol):
    """The system bus: `hypemand.systemd.bus.SystemBus`, whose methods say what each of these does. Calls
    raise BusError."""

    def start(self) -> None: ...
    async def close(self) -> None: ...

    async def call(self, service: str, path: str, member: str, arguments: Sequence[Part]) -> Any: ...
    async def get_property(self, service: str, path: str, name: str) -> Any: ...
    async def get_unit_properties(self, unit: str, names: Sequence[str]) -> list[Any] | None: ...

    def watch_properties(
        self, path: str, names: Sequence[str], callback: Callable[[dict[str, Any]], None]
    ) -> None: ...
    def unwatch_properties(self, path: str) -> None: ...
    async def start_signals(self, on_reconnect: Callable[[], None], patience: float) -> None: ...
