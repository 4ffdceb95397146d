# SPDX-License-Identifier: Apache-2.0
"""An event as the API answers it. The time is RFC 3339 in UTC, with milliseconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hypemand.model.events import EventKind


@dataclass(frozen=True, slots=True)
class HostEvent:
    """`cursor`: the events after it can be asked for with that; `vm` and `vm_id` None: it is of no VM.
    `details`: the fields of the class of its kind in `hypemand.model.events`."""

    cursor: str = ""
    time: str | None = None
    kind: EventKind | str = ""
    vm: str | None = None
    vm_id: str | None = None
    message: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
