# SPDX-License-Identifier: Apache-2.0
"""Time spans as systemd.time(7) has them: `90s`, `1min 30s`, `infinity`, a number of seconds."""

from __future__ import annotations

import re
from functools import lru_cache

DURATION_EXAMPLES = "90s, 1min 30s, infinity or a number of seconds"
INFINITY = "infinity"
MAX_DURATION = 100 * 365.25 * 86400.0

_UNITS = {
    "us": 1, "usec": 1, "µs": 1, "μs": 1,
    "ms": 10**3, "msec": 10**3,
    "": 10**6, "s": 10**6, "sec": 10**6, "second": 10**6, "seconds": 10**6,
    "m": 60 * 10**6, "min": 60 * 10**6, "minute": 60 * 10**6, "minutes": 60 * 10**6,
    "h": 3600 * 10**6, "hr": 3600 * 10**6, "hour": 3600 * 10**6, "hours": 3600 * 10**6,
    "d": 86400 * 10**6, "day": 86400 * 10**6, "days": 86400 * 10**6,
    "w": 604800 * 10**6, "week": 604800 * 10**6, "weeks": 604800 * 10**6,
}  # fmt: skip
_PART = re.compile(r"\s*([0-9]{1,12})(?:\.([0-9]{1,9}))?\s*([a-zµμ]*)\s*")
_FORMAT = (
    ("d", 86400 * 10**6),
    ("h", 3600 * 10**6),
    ("min", 60 * 10**6),
    ("s", 10**6),
    ("ms", 10**3),
    ("us", 1),
)


def parse_duration(value: str | int | float) -> float | None:
    """Seconds, to the microsecond; None for `infinity`. Raises ValueError that shows examples."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{value!r} is not a time span; write {DURATION_EXAMPLES}")
    if not isinstance(value, str):
        return _check(float(value) if abs(value) <= MAX_DURATION else float("inf"), str(value)[:40])
    text = value.strip()
    if text == INFINITY:
        return None
    micros, position = 0, 0
    while position < len(text):
        found = _PART.match(text, position)
        if found is None or found[3] not in _UNITS:
            break
        fraction = found[2] or ""
        micros += int(found[1] + fraction) * _UNITS[found[3]] // 10 ** len(fraction)
        position = found.end()
    if not text or position < len(text):
        raise ValueError(f"{text[:40]!r} is not a time span; write {DURATION_EXAMPLES}")
    return _check(micros / 10**6, text[:40])


def _check(seconds: float, text: str) -> float:
    if not 0 <= seconds <= MAX_DURATION:
        raise ValueError(f"{text!r} is not between 0 and 100 years; write {DURATION_EXAMPLES}")
    return round(seconds, 6)


def format_duration(seconds: float | None) -> str:
    """As systemd would show it: `1min 30s`, `500ms`, `0s`, `infinity`. parse_duration reads it back."""
    if seconds is None:
        return INFINITY
    micros = round(seconds * 10**6)
    words = []
    for unit, size in _FORMAT:
        count, micros = divmod(micros, size)
        if count:
            words.append(f"{count}{unit}")
    return " ".join(words) or "0s"


@lru_cache(64)
def format_go_duration(seconds: float) -> str:
    """As the published clients write it: `1m30s`, `100ms`, `10m`, `0s`. parse_duration reads it back."""
    micros = round(seconds * 10**6)
    words = []
    for unit, size in (("h", 3_600_000_000), ("m", 60_000_000), ("s", 1_000_000), ("ms", 1_000), ("us", 1)):
        count, micros = divmod(micros, size)
        if count:
            words.append(f"{count}{unit}")
    return "".join(words) or "0s"
