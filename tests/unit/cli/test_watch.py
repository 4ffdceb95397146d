# SPDX-License-Identifier: Apache-2.0
"""How long a start is waited for."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

from hypemand.cli.client import Client, parse
from hypemand.cli.watch import wait_until_started
from hypemand.model.answers.instance import Instance
from hypemand.model.state import State
from tests.unit.cli.canned import make_instance


class Boot(Client):
    """Of a VM that is Running after all. `patience`: how long its events were to be waited for."""

    def __init__(self) -> None:
        super().__init__("")
        self.patience: list[float | None] = []

    @contextlib.contextmanager
    def events(
        self, *parts: str, query: Mapping[str, str] | None = None, timeout: float | None = None
    ) -> Iterator[Any]:
        self.patience.append(timeout)
        full = "Initializing: its disk cannot be written: the file system is full"
        yield iter([make_instance("web", "Initializing", status_text=full), make_instance("web")])


def test_a_boot_is_waited_for_as_long_as_systemd_lets_it_boot_unless_a_time_is_given() -> None:
    client, instance = Boot(), parse(Instance, make_instance("web", "Initializing"))
    assert wait_until_started(client, instance, None).state is State.RUNNING
    assert client.patience == [math.inf]
    wait_until_started(client, instance, 5.0)
    assert client.patience[1] is not None
    assert client.patience[1] <= 5.0
