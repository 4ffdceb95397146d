# SPDX-License-Identifier: Apache-2.0
"""Text to value and back: spans of time, signals, sizes, moments. Nothing here does I/O."""

from __future__ import annotations

import math
import re
import signal
import time
from collections.abc import Mapping
from datetime import UTC, datetime

from hypemand.config.durations import parse_duration
from hypemand.model.compression import CompressionState

_CURSOR = re.compile(r"[0-9a-f]{8}-[0-9]{1,15}")
_COMPRESSIONS: Mapping[str, str] = {
    CompressionState.COMPRESSING: "being compressed",
    CompressionState.COMPRESSED: "compressed",
    CompressionState.ERROR: "compression failed",
}
_UNITS = ("B", "K", "M", "G", "T", "P")
_MAX_NOTE = 100


def parse_span(text: str) -> float:
    """Seconds of `90`, `1min 30s`, `500ms`; `infinity` is infinite. ValueError says what is right."""
    seconds = parse_duration(text)
    return math.inf if seconds is None else seconds


def parse_since(text: str) -> float:
    """Seconds since the epoch of a moment, `2026-03-01T10:00` in local time or with its zone, or of so long
    ago: `10min`."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        pass
    try:
        span = parse_span(text)
    except ValueError:
        raise ValueError(f"not a time: {text!r}; use 2026-03-01T10:00, or 10min for so long ago") from None
    return 0.0 if math.isinf(span) else max(time.time() - span, 0.0)


def format_utc(seconds: float) -> str:
    """Seconds since the epoch as the API takes a moment."""
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def parse_position(text: str) -> str | float:
    """A cursor of an event as it is, or what `parse_since` understands."""
    return text if _CURSOR.fullmatch(text) else parse_since(text)


def parse_signal(text: str) -> int:
    """Number of `TERM`, `SIGTERM` or `15`."""
    if text.isdecimal():
        number = int(text)
        if 1 <= number <= signal.NSIG - 1:
            return number
    else:
        name = text.upper()
        member = signal.Signals.__members__.get(name if name.startswith("SIG") else f"SIG{name}")
        if member is not None:
            return int(member)
    raise ValueError(f"not a signal: {text!r}; use TERM, SIGTERM or 15")


def parse_count(text: str) -> int:
    """A whole number from 0 up."""
    if not text.isdecimal():
        raise ValueError(f"not an integer: {text!r}")
    return int(text)


def parse_lines(text: str) -> int | None:
    """A number of lines; None for `all`."""
    return None if text == "all" else parse_count(text)


def parse_pair(text: str) -> tuple[str, str]:
    """`KEY=VALUE`."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise ValueError(f"not KEY=VALUE: {text!r}")
    return key, value


def parse_moment(value: object) -> datetime | None:
    """A moment as the API writes it: RFC 3339, or seconds since the epoch. None for anything else."""
    try:
        if isinstance(value, str):
            moment = datetime.fromisoformat(value)
            return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return datetime.fromtimestamp(value, UTC)
    except (ValueError, OverflowError, OSError):
        return None
    return None


def describe_compression(state: str | None) -> str:
    """How saved memory is stored, in words; "": as it was saved."""
    return _COMPRESSIONS.get(state or "", "")


def format_bytes(value: object) -> str:
    """A size as people read it; text that says a size already stays as it is."""
    if isinstance(value, str):
        return value
    if not isinstance(value, int | float) or isinstance(value, bool):
        return "-"
    number, unit = float(value), "B"
    for unit in _UNITS:
        if number < 1024 or unit == _UNITS[-1]:
            break
        number /= 1024
    return f"{number:.0f}{unit}" if number == int(number) or unit == "B" else f"{number:.1f}{unit}"


def format_milliseconds(value: object) -> str:
    """`612ms`, `1.40s`, `2min5s`: one word, as in all cells of tables; `-` for none."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return "-"
    if value < 1000:
        return f"{value:.0f}ms"
    if value < 60_000:
        return f"{value / 1000:.2f}s"
    return format_seconds(value / 1000, "")


def format_minute(value: object, otherwise: str = "-") -> str:
    """A moment of the API's in local time: `2026-03-01T10:00`."""
    moment = parse_moment(value)
    return otherwise if moment is None else f"{moment.astimezone():%Y-%m-%dT%H:%M}"


def format_second(value: object, otherwise: str = "-") -> str:
    """The same with seconds: `2026-03-01T10:00:07`."""
    moment = parse_moment(value)
    return otherwise if moment is None else f"{moment.astimezone():%Y-%m-%dT%H:%M:%S}"


def format_seconds(seconds: float, between: str = " ") -> str:
    """The two greatest units: `3min 2s`, `2h 5min`, `4d 1h`."""
    left = max(0, int(seconds))
    parts = []
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        number, left = divmod(left, size)
        if number:
            parts.append(f"{number}{unit}")
    return between.join(parts[:2]) or "0s"


def format_tags(tags: Mapping[str, str]) -> str:
    """`KEY=VALUE,...` as one word: blanks in it are escaped; `-` for none."""
    return ",".join(f"{key}={value}" for key, value in tags.items()).replace(" ", "\\x20") or "-"


def shorten_note(text: str) -> str:
    """The last column of a table: what a guest or an error says may be long."""
    return text if len(text) <= _MAX_NOTE else f"{text[: _MAX_NOTE - 1]}…"


def escape_controls(text: str) -> str:
    """`text` with all that is not printable written as an escape: it came from a guest."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def escape_line(text: str) -> str:
    """A line of a guest's console for a terminal: tabs become spaces, the CR of a CR LF is dropped, and all
    else that is not printable is escaped (C0 and C1 controls, bidirectional overrides, line separators)."""
    return escape_controls(text.expandtabs().rstrip("\r"))
