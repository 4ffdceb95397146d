# SPDX-License-Identifier: Apache-2.0
"""Who has asked for what the current task does."""

from __future__ import annotations

from contextvars import ContextVar

CALLER: ContextVar[str] = ContextVar("caller", default="hypemand")
"""In words, for people. A request of the API sets it; all else is hypemand's own."""
