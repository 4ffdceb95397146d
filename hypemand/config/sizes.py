# SPDX-License-Identifier: Apache-2.0
"""Sizes in bytes as people write them.

`K M G T P` and `KiB MiB …` (also `Ki`, `KB` …) count in powers of 1024, as everywhere in systemd and QEMU;
no suffix or `B`: bytes.
"""

from __future__ import annotations

import re

SIZE_EXAMPLES = "512M, 1.5G, 1GiB or a number of bytes"
MAX_SIZE = 2**60

_SIZE = re.compile(r"([0-9]{1,19})(?:\.([0-9]{1,9}))?\s*(?:([KMGTP])(?:I?B|I)?|B)?", re.IGNORECASE)
_POWERS: dict[str, int] = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}


def parse_size(value: str | int) -> int:
    """Bytes of `512M`, `1GiB`, `1.5G`, `1048576`. Raises ValueError that shows examples.

    Must come out as a whole number of bytes, at most MAX_SIZE.
    """
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"{value!r} is not a size; write {SIZE_EXAMPLES}")
    text = str(value).strip()
    found = _SIZE.fullmatch(text) if text.isascii() else None
    if found is None:
        raise ValueError(f"{text[:40]!r} is not a size; write {SIZE_EXAMPLES}")
    fraction = found[2] or ""
    unit = 1 << 10 * _POWERS[(found[3] or "").upper()]
    size, rest = divmod(int(found[1] + fraction) * unit, int("1" + "0" * len(fraction)))
    if rest:
        raise ValueError(f"{text!r} is not a whole number of bytes; write {SIZE_EXAMPLES}")
    if size > MAX_SIZE:
        raise ValueError(f"{text!r} is more than 1024 PiB; write {SIZE_EXAMPLES}")
    return size


def format_size(size: int) -> str:
    """The shortest exact spelling: `512M`, `10G`, `1000`. parse_size reads it back to the same number."""
    for suffix in ("P", "T", "G", "M", "K"):
        unit = 1 << 10 * _POWERS[suffix]
        if size >= unit and size % unit == 0:
            return f"{size // unit}{suffix}"
    return str(size)
