# SPDX-License-Identifier: Apache-2.0
"""Tokens as the API answers them. Times are RFC 3339 in UTC."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class TokenInfo:
    """A token, without its text, which is not kept, and its hash, which no client needs."""

    name: str
    prefix: str | None = None
    scope: str | None = None
    vms: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    created_at: str | None = None
    expires_at: str | None = None
    expired: bool = False
    last_used_at: str | None = None


@dataclass(frozen=True, slots=True)
class NewToken(TokenInfo):
    """One that has just been made, with its text."""

    token: str = ""
