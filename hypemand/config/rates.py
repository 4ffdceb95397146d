# SPDX-License-Identifier: Apache-2.0
"""Rates of networks and disks as people write them.

`kbit Mbit Gbit` count bits in powers of 1000, as tc(8) has them; `kB/s MB/s GB/s` count bytes. `Mbps` is not
taken: it is megabytes to tc, and megabits to everybody else.
"""

from __future__ import annotations

import re

RATE_EXAMPLES = "500kbit, 20Mbit, 1Gbit or 2.5MB/s"

_RATE = re.compile(r"([0-9]{1,12})(?:\.([0-9]{1,9}))?\s*([KMG]?)(?:(BIT)(?:/S)?|B/S)", re.IGNORECASE)
_AMBIGUOUS = re.compile(r"([0-9.]+)\s*([KMG]?)BPS", re.IGNORECASE)
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


def parse_rate(text: str, examples: str = RATE_EXAMPLES) -> int:
    """Bytes per second of `20Mbit`, `1Gbit/s`, `2.5MB/s`. Raises ValueError that shows examples.

    Must come out as a whole number of bytes.
    """
    plain = text.strip()
    ambiguous = _AMBIGUOUS.fullmatch(plain)
    if ambiguous is not None:
        amount = f"{ambiguous[1][:20]}{ambiguous[2]}"
        hint = f"write {amount}bit or {amount}B/s"
        raise ValueError(f"{plain[:40]!r} is ambiguous: bytes in tc(8), bits elsewhere; {hint}")
    found = _RATE.fullmatch(plain) if plain.isascii() else None
    if found is None:
        raise ValueError(f"{plain[:40]!r} is not a rate; write {examples}")
    fraction = found[2] or ""
    unit = _UNITS[found[3].upper()]
    parts = int("1" + "0" * len(fraction)) * (8 if found[4] else 1)
    rate, rest = divmod(int(found[1] + fraction) * unit, parts)
    if rest:
        raise ValueError(f"{plain!r} is not a whole number of bytes per second; write {examples}")
    return rate


def format_rate(rate: int) -> str:
    """Bytes per second in bits, the shortest exact spelling: `20Mbit`. parse_rate reads it back."""
    return f"{_format_number(rate * 8)}bit"


def format_byte_rate(rate: int) -> str:
    """Bytes per second, the shortest exact spelling: `100MB/s`. parse_rate reads it back."""
    return f"{_format_number(rate)}B/s"


def _format_number(number: int) -> str:
    for prefix, unit in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= unit and number % unit == 0:
            return f"{number // unit}{prefix}"
    return str(number)
