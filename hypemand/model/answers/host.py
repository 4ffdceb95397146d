# SPDX-License-Identifier: Apache-2.0
"""What the API answers on the daemon itself."""

from __future__ import annotations

from dataclasses import dataclass

from hypemand.errors import Problem


@dataclass(frozen=True, slots=True)
class Health:
    """It answers."""

    status: str
    version: str | None = None


@dataclass(frozen=True, slots=True)
class ReloadReport:
    """What a reload of the definition files has found: names of VMs, and what is wrong in files."""

    defined: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()
