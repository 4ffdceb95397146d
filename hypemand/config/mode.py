# SPDX-License-Identifier: Apache-2.0
"""How a guest runs an image. (A module of its own: the commands of a unit's end import it, which are to start
at once.)"""

from __future__ import annotations

from enum import StrEnum


class Mode(StrEnum):
    """How the guest runs the image. AUTO decides by the image's command."""

    AUTO = "auto"
    EXEC = "exec"
    SYSTEMD = "systemd"
