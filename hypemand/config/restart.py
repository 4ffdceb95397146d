# SPDX-License-Identifier: Apache-2.0
"""When systemd restarts a VM."""

from __future__ import annotations

from enum import StrEnum


class Restart(StrEnum):
    """Restart= of the VM's unit; the words are systemd's."""

    NO = "no"
    ON_FAILURE = "on-failure"
    ALWAYS = "always"
