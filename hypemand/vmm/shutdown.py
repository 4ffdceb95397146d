# SPDX-License-Identifier: Apache-2.0
"""Why a VMM ends. Apart from `driver`, since the unit's commands need no more of it."""

from __future__ import annotations

from enum import StrEnum


class Shutdown(StrEnum):
    """The reason, where the guest has asked for it. Records have these words (boot.json)."""

    POWER_OFF = "guest-shutdown"
    RESET = "guest-reset"
