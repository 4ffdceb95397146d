# SPDX-License-Identifier: Apache-2.0
"""Tags of VMs, volumes and images: labels that users choose. The schema of definitions has the same rules."""

from __future__ import annotations

import re
from collections.abc import Mapping

from hypemand.errors import InvalidRequest

MAX_TAGS = 64
KEY_PATTERN = r"[A-Za-z0-9 _.:/=+@-]{1,128}"
VALUE_PATTERN = r"[^\x00-\x1f\x7f]{0,256}"
TAG_RULE = (
    "keys have 1 to 128 letters, digits, spaces and '_.:/=+@-', and values at most 256 characters in one line"
)
_KEY = re.compile(KEY_PATTERN)
_VALUE = re.compile(VALUE_PATTERN)


def is_tag(key: str, value: str) -> bool:
    """Can there be such a tag?"""
    return _KEY.fullmatch(key) is not None and _VALUE.fullmatch(value) is not None


def check_tags(tags: Mapping[str, str]) -> None:
    """Raise InvalidRequest for tags that are not valid."""
    if len(tags) > MAX_TAGS:
        raise InvalidRequest(f"tags: there are {len(tags)}", hint=f"at most {MAX_TAGS}")
    for key, value in tags.items():
        if not is_tag(key, value):
            raise InvalidRequest(f"tags: {key[:80]!r}: {value[:80]!r} is not a valid tag", hint=TAG_RULE)
