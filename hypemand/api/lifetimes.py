# SPDX-License-Identifier: Apache-2.0
"""ttl and expires_at of requests."""

from __future__ import annotations

import time

from hypemand.api.fields import InvalidField
from hypemand.model.lifetime import Lifetime


def derive_lifetime(ttl: float | None, expires_at: float | None) -> Lifetime | None:
    """The lifetime that a request gives a VM or a snapshot; None: it says nothing. Raises InvalidField."""
    if ttl is not None and expires_at is not None:
        raise InvalidField("ttl", "cannot be given together with expires_at", "omit one of them")
    if expires_at is not None and expires_at <= time.time():
        raise InvalidField("expires_at", "is not in the future")
    return None if ttl is None and expires_at is None else Lifetime(ttl or 0.0, expires_at)
