# SPDX-License-Identifier: Apache-2.0
"""How long a VM, or a snapshot, lives, until it is deleted by itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Lifetime:
    """Until `at`, in seconds since the epoch, or for `ttl` seconds; 0, or neither: for ever."""

    ttl: float = 0.0
    at: float | None = None

    def derive_end(self, now: float) -> float | None:
        """When it is over, counted from `now`; both in seconds since the epoch. None: never."""
        return self.at if self.at is not None else now + self.ttl if self.ttl else None
