# SPDX-License-Identifier: Apache-2.0
"""Names of VMs: file names, unit names and host names at once."""

from __future__ import annotations

import re

NAME_PATTERN = "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
VOLUME_PATTERN = f"({NAME_PATTERN}/)?{NAME_PATTERN}"
"""The name or id of a volume, behind that of its pool if it is in one."""
NAME_RULE = "1 to 63 characters of a-z, 0-9 and '-', not starting or ending with '-', for example web-1"
_NAME = re.compile(NAME_PATTERN)


def is_name(text: str) -> bool:
    """Can a VM have this name?"""
    return _NAME.fullmatch(text) is not None


def parse_name(text: str) -> str:
    """`text` when it can be a VM's name. Raises ValueError that says the rule."""
    if not is_name(text):
        raise ValueError(f"{text[:80]!r} cannot be the name of a VM; use {NAME_RULE}")
    return text
