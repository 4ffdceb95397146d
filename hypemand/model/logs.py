# SPDX-License-Identifier: Apache-2.0
"""Lines of a VM's log."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class LogSource(StrEnum):
    """app: the guest's console; vmm: QEMU's own words; hypeman: the daemon's entries on the VM."""

    APP = "app"
    VMM = "vmm"
    HYPEMAN = "hypeman"


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line. `time` is seconds since the epoch as journald stamped it."""

    time: float
    text: str
    invocation_id: str | None
