# SPDX-License-Identifier: Apache-2.0
"""Tokens of the API over TCP."""

from __future__ import annotations

from enum import StrEnum


class Scope(StrEnum):
    """The permissions of a token; docs/api.md lists the routes of each. READ: read only. OPERATE: also start
    and stop VMs, and access to their guests. ADMIN: all except what is reserved for root on the host."""

    READ = "read"
    OPERATE = "operate"
    ADMIN = "admin"
