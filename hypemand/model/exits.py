# SPDX-License-Identifier: Apache-2.0
"""How runs end. (A module of its own: the commands of a unit's end import it, which are to start at once.)"""

from __future__ import annotations

from enum import StrEnum


class ExitKind(StrEnum):
    """How a run ended. SUCCESS, FAILURE: by the exit code of its program; REQUESTED: it was asked to end;
    STANDBY: it was put into that; REBOOT, POWER_OFF: from inside; BOOT_TIMEOUT, STOP_TIMEOUT: systemd's;
    UNHEALTHY: its watchdog's; MEMORY: the unit's limit; VMM: that has failed or was killed. LOST: the host
    went down with it; UNKNOWN: nothing says how."""

    SUCCESS = "success"
    FAILURE = "failure"
    REQUESTED = "requested"
    STANDBY = "standby"
    REBOOT = "reboot"
    POWER_OFF = "power-off"
    PANIC = "panic"
    BOOT_TIMEOUT = "boot-timeout"
    STOP_TIMEOUT = "stop-timeout"
    UNHEALTHY = "unhealthy"
    MEMORY = "memory"
    VMM = "vmm"
    LOST = "lost"
    UNKNOWN = "unknown"
