# SPDX-License-Identifier: Apache-2.0
"""Templates for warm starts as the API answers them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Template:
    """A template. `memory_bytes`: of a VM that starts from it; `size_bytes`: that it takes on the disk."""

    id: str
    memory_bytes: int = 0
    vcpus: int = 0
    disks: int = 0
    network: bool = False
    size_bytes: int = 0
    created_at: str | None = None
    last_used_at: str | None = None
    outdated: bool = False
