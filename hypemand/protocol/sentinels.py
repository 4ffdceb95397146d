# SPDX-License-Identifier: Apache-2.0
"""Sentinels: the lines on the console with which a guest reports its progress (docs/protocol.md).

One table, `_GRAMMAR`, feeds the parser and the formatter. What comes in is hostile: it is bounded, matched
whole, and whatever is wrong with it makes it no sentinel, never an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from hypemand.config.mode import Mode

MAX_LINE = 4096
MAX_MESSAGE = 512
MAX_NAME = 64


@dataclass(frozen=True, slots=True)
class ProgramStart:
    """The program (exec mode) or the image's init (systemd mode) is about to run. `ts_ns`: nanoseconds
    since the epoch on the guest's clock."""

    boot: str
    ts_ns: int
    mode: Mode


@dataclass(frozen=True, slots=True)
class AgentReady:
    """The agent serves its channel."""

    boot: str
    ts_ns: int


@dataclass(frozen=True, slots=True)
class Ready:
    """The check of the definition (`ready`) has succeeded."""

    boot: str
    ts_ns: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """The check of the definition has not succeeded so far, and why."""

    boot: str
    ts_ns: int
    reason: str


@dataclass(frozen=True, slots=True)
class HeadersStart:
    """The set-up of the kernel headers has begun."""

    boot: str
    ts_ns: int


@dataclass(frozen=True, slots=True)
class HeadersReady:
    """The kernel headers can be used."""

    boot: str
    ts_ns: int


@dataclass(frozen=True, slots=True)
class HeadersFailed:
    """The set-up of the kernel headers has failed."""

    boot: str
    ts_ns: int
    error: str


class EmergencyState(StrEnum):
    """Has emergency mode begun, or is it over?"""

    ENTERED = "entered"
    LEFT = "left"


@dataclass(frozen=True, slots=True)
class Emergency:
    """The guest's systemd has reached emergency.target, or has left it."""

    boot: str
    ts_ns: int
    state: EmergencyState


@dataclass(frozen=True, slots=True)
class Exit:
    """How the program ended; `code` is 0 to 255."""

    boot: str
    code: int
    message: str


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of the guest's boot, in seconds since its kernel started."""

    boot: str
    name: str
    start: float
    end: float


Sentinel = (
    ProgramStart
    | AgentReady
    | Ready
    | Waiting
    | HeadersStart
    | HeadersReady
    | HeadersFailed
    | Emergency
    | Exit
    | Stage
)


@dataclass(frozen=True, slots=True)
class _Codec:
    """How one field is read (ValueError: malformed) and written (as it stands on the line)."""

    parse: Callable[[bytes], Any]
    format: Callable[[Any], str]


_BOOT = re.compile(rb"[0-9a-f]{32}")
_TIMESTAMP = re.compile(rb"([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]{1,9}))?Z")
_CODE = re.compile(rb"[0-9]{1,3}")
_SECONDS = re.compile(rb"[0-9]{1,9}(?:\.[0-9]{1,9})?")
_STAGE_NAME = re.compile(rb"[!-~]{1,%d}" % MAX_NAME)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# C0 controls and DEL never stand in a value on the wire; C1 controls are UTF-8 that a terminal may obey.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f]")


def _match(pattern: re.Pattern[bytes], value: bytes) -> re.Match[bytes]:
    found = pattern.fullmatch(value)
    if found is None:
        raise ValueError(value)
    return found


def _parse_boot(value: bytes) -> str:
    return _match(_BOOT, value)[0].decode("ascii")


def _parse_timestamp(value: bytes) -> int:
    found = _match(_TIMESTAMP, value)
    moment = datetime.fromisoformat(found[1].decode("ascii")).replace(tzinfo=UTC)
    fraction = (found[2] or b"").decode("ascii").ljust(9, "0")
    return (moment - _EPOCH) // timedelta(seconds=1) * 1_000_000_000 + int(fraction)


def _format_timestamp(ts_ns: int) -> str:
    seconds, fraction = divmod(ts_ns, 1_000_000_000)
    moment = (_EPOCH + timedelta(seconds=seconds)).replace(tzinfo=None)
    return f"{moment.isoformat(timespec='seconds')}.{fraction:09d}Z"


def _parse_mode(value: bytes) -> Mode:
    mode = Mode(value.decode("ascii"))
    if mode is Mode.AUTO:
        raise ValueError(value)
    return mode


def _parse_emergency(value: bytes) -> EmergencyState:
    return EmergencyState(value.decode("ascii"))


def _parse_code(value: bytes) -> int:
    code = int(_match(_CODE, value)[0])
    if code > 255:
        raise ValueError(value)
    return code


def _parse_seconds(value: bytes) -> float:
    return round(float(_match(_SECONDS, value)[0]), 6)


def _parse_stage_name(value: bytes) -> str:
    return _match(_STAGE_NAME, value)[0].decode("ascii")


def _clean_text(text: str) -> str:
    """At most MAX_MESSAGE bytes of UTF-8, cut between characters, without control characters."""
    data = _CONTROLS.sub("?", text).encode("utf-8", "replace")
    return data[:MAX_MESSAGE].decode("utf-8", "ignore")


def _parse_text(value: bytes) -> str:
    return _clean_text(value.decode("utf-8", "replace"))


def _quote(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _format_text(text: str) -> str:
    return _quote(_clean_text(text))


def _format_name(name: str) -> str:
    return _quote(name) if '"' in name else name


_TS = _Codec(_parse_timestamp, _format_timestamp)
_TEXT = _Codec(_parse_text, _format_text)
_AT = _Codec(_parse_seconds, "{:.6f}".format)

# Kind → class and its fields, in the order in which they are written. `ts` stands for the attribute `ts_ns`.
_GRAMMAR: Mapping[bytes, tuple[type[Sentinel], Mapping[str, _Codec]]] = MappingProxyType(
    {
        b"PROGRAM-START": (ProgramStart, {"ts": _TS, "mode": _Codec(_parse_mode, str)}),
        b"AGENT-READY": (AgentReady, {"ts": _TS}),
        b"READY": (Ready, {"ts": _TS}),
        b"WAITING": (Waiting, {"ts": _TS, "reason": _TEXT}),
        b"HEADERS-START": (HeadersStart, {"ts": _TS}),
        b"HEADERS-READY": (HeadersReady, {"ts": _TS}),
        b"HEADERS-FAILED": (HeadersFailed, {"ts": _TS, "error": _TEXT}),
        b"EMERGENCY": (Emergency, {"ts": _TS, "state": _Codec(_parse_emergency, str)}),
        b"EXIT": (Exit, {"code": _Codec(_parse_code, str), "message": _TEXT}),
        b"STAGE": (Stage, {"name": _Codec(_parse_stage_name, _format_name), "start": _AT, "end": _AT}),
    }
)
_KINDS = {sentinel: kind for kind, (sentinel, _) in _GRAMMAR.items()}

# A key has one codec, whatever the kind of its line: so its value is read once, however many kinds are tried.
_CODECS = {key.encode("ascii"): codec for _, codecs in _GRAMMAR.values() for key, codec in codecs.items()}
_CODECS[b"boot"] = _Codec(_parse_boot, str)

_PREFIX = b"HYPEMAN-"
_MAX_PREFIX = len(_PREFIX) + max(map(len, _GRAMMAR))
_KEY = re.compile(rb"[a-z][a-z0-9_]*")
# The last field of what is left of a line, read backwards: that way there is but one way to read it. A quote
# within quotes has a backslash before it, and before the one that opens them is the `=`.
_QUOTED_BACKWARDS = re.compile(rb'"((?:["\\]\\|[^"\\\x00-\x1f\x7f])*+)"=([a-z0-9_]*[a-z])[ \t]+')
_PLAIN_BACKWARDS = re.compile(rb'([^\s"]+)[ \t]+')
_BEGINNING = re.compile(
    _PREFIX + rb"(?:" + b"|".join(_GRAMMAR) + rb")(?=[ \t]|$)(?:[ \t]*$|[ \t]+[a-z][a-z0-9_]*=)"
)
_ESCAPE = re.compile(rb'\\(["\\])')
_BLANK = b" \t\r\n\v\f"


def parse_sentinel(line: bytes | str) -> Sentinel | None:
    """The sentinel that `line` is or ends with; None for all else. Never raises.

    Noise before the prefix is passed over, blanks and CR around the line too. A malformed, missing or
    repeated field makes it None; well-formed fields that are not known are passed over, so that a newer
    guest can say more.
    """
    data = _to_bytes(line)
    found = None if data is None else _find_sentinel(data)
    return None if found is None else found[0]


def is_sentinel_line(line: bytes | str) -> bool:
    """Is `line` to be kept from users' logs?

    True for what parse_sentinel takes, and for a line that begins as a sentinel does (a known kind, then a
    `key=` or nothing) though it is malformed: a torn sentinel is no output of the program either.
    """
    data = _to_bytes(line)
    if data is None:
        return False
    return _is_beginning(data) or _find_sentinel(data) is not None


def derive_user_text(line: bytes) -> bytes | None:
    """What users see of a console line; None: nothing.

    A program that ends without a newline has its last words on the line of the sentinel: they are kept.
    """
    if len(line) > MAX_LINE:
        return line
    found = _find_sentinel(line)
    if found is not None:
        return found[1] or None
    return None if _is_beginning(line) else line


def format_sentinel(sentinel: Sentinel) -> str:
    """The line, without its newline. Text is cut to MAX_MESSAGE bytes, its control characters become `?`."""
    kind = _KINDS[type(sentinel)]
    words = [f"HYPEMAN-{kind.decode('ascii')}"]
    for key, codec in _GRAMMAR[kind][1].items():
        words.append(f"{key}={codec.format(getattr(sentinel, _attribute(key)))}")
    words.append(f"boot={sentinel.boot}")
    return " ".join(words)


def _attribute(key: str) -> str:
    return "ts_ns" if key == "ts" else key


def _to_bytes(line: bytes | str) -> bytes | None:
    """The line as bytes; None when it is longer than a sentinel may be."""
    if len(line) > MAX_LINE:
        return None
    data = line.encode("utf-8", "surrogatepass") if isinstance(line, str) else line
    return None if len(data) > MAX_LINE else data


def _is_beginning(data: bytes) -> bool:
    return _BEGINNING.match(data.strip(_BLANK)) is not None


def _find_sentinel(data: bytes) -> tuple[Sentinel, bytes] | None:
    """The first sentinel that reaches to the line's end, and the noise before it.

    Takes time linear in the line's length: fields are read once, from the last one back, and each place where
    a prefix ends there is a candidate. To try the prefixes one after the other, each up to the line's end,
    would be quadratic.
    """
    if _PREFIX not in data:
        return None
    data = data.rstrip(_BLANK)
    backwards = data[::-1]
    found: tuple[Sentinel, int] | None = None
    values: dict[bytes, Any] = {}
    end = len(data)
    while (field := _read_last_field(backwards, len(data) - end)) is not None:
        key, value, end = field
        if key in values:
            break  # and in all that begin before it
        values[key] = _parse_value(key, value)
        start = data.rfind(_PREFIX, max(end - _MAX_PREFIX, 0), end)
        kind = data[start + len(_PREFIX) : end] if start >= 0 else b""
        if kind in _GRAMMAR and (sentinel := _make_sentinel(kind, values)) is not None:
            found = sentinel, start
    return None if found is None else (found[0], data[: found[1]])


def _read_last_field(backwards: bytes, at: int) -> tuple[bytes, bytes, int] | None:
    """Key and value of the field that ends at an offset of the reversed line, and how much of the line is
    before the blanks in front of it."""
    quoted = _QUOTED_BACKWARDS.match(backwards, at)
    if quoted is not None:
        value = _ESCAPE.sub(rb"\1", quoted[1][::-1])
        return quoted[2][::-1], value, len(backwards) - quoted.end()
    plain = _PLAIN_BACKWARDS.match(backwards, at)
    if plain is None:
        return None
    key, _, value = plain[1][::-1].partition(b"=")
    if not value or not _KEY.fullmatch(key):
        return None
    return key, value, len(backwards) - plain.end()


def _parse_value(key: bytes, value: bytes) -> Any:
    """The parsed value; None: unknown or malformed."""
    codec = _CODECS.get(key)
    try:
        return None if codec is None else codec.parse(value)
    except ValueError:
        return None


def _make_sentinel(kind: bytes, values: Mapping[bytes, Any]) -> Sentinel | None:
    """A sentinel of these values, if all are there that its kind needs."""
    sentinel, codecs = _GRAMMAR[kind]
    arguments: dict[str, Any] = {
        _attribute(key): values.get(key.encode("ascii")) for key in ("boot", *codecs)
    }
    if None in arguments.values():
        return None
    result = sentinel(**arguments)
    if isinstance(result, Stage) and result.end < result.start:
        return None
    return result
