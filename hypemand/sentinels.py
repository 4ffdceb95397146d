# SPDX-License-Identifier: Apache-2.0
"""Sentinels: the lines by which a guest tells on its console how far it is (docs/protocol.md).

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

from hypemand.config.definition import Mode

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


Sentinel = ProgramStart | AgentReady | HeadersStart | HeadersReady | HeadersFailed | Emergency | Exit | Stage


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
    moment = datetime.strptime(found[1].decode("ascii"), "%Y-%m-%dT%H:%M:%S").replace(tzinfo=UTC)
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
        b"HEADERS-START": (HeadersStart, {"ts": _TS}),
        b"HEADERS-READY": (HeadersReady, {"ts": _TS}),
        b"HEADERS-FAILED": (HeadersFailed, {"ts": _TS, "error": _TEXT}),
        b"EMERGENCY": (Emergency, {"ts": _TS, "state": _Codec(_parse_emergency, str)}),
        b"EXIT": (Exit, {"code": _Codec(_parse_code, str), "message": _TEXT}),
        b"STAGE": (Stage, {"name": _Codec(_parse_stage_name, _format_name), "start": _AT, "end": _AT}),
    }
)
_KINDS = {sentinel: kind for kind, (sentinel, _) in _GRAMMAR.items()}

_VALUE = rb'(?:[^\s"]+|"(?:[^"\\\x00-\x1f\x7f]|\\["\\])*")'
_PREFIX = rb"HYPEMAN-(" + b"|".join(_GRAMMAR) + rb")(?=[ \t]|$)"
_LINE = re.compile(_PREFIX + rb"((?:[ \t]+[a-z][a-z0-9_]*=" + _VALUE + rb")*)")
_FIELD = re.compile(rb"[ \t]+([a-z][a-z0-9_]*)=(" + _VALUE + rb")")
_MALFORMED = re.compile(_PREFIX + rb"(?:[ \t]*$|[ \t]+[a-z][a-z0-9_]*=)")
_ESCAPE = re.compile(rb'\\(["\\])')
_BLANK = b" \t\r\n\v\f"


def parse_sentinel(line: bytes | str) -> Sentinel | None:
    """The sentinel that `line` is or ends with; None for all else. Never raises.

    Noise before the prefix is passed over, blanks and CR around the line too. A malformed, missing or
    repeated field makes it None; well-formed fields that are not known are passed over, so that a newer
    guest can say more.
    """
    found = _find_sentinel(line)
    return None if found is None else found[0]


def is_sentinel_line(line: bytes | str) -> bool:
    """Is `line` to be kept from users' logs?

    True for what parse_sentinel takes, and for a line that begins as a sentinel does (a known kind, then a
    `key=` or nothing) though it is malformed: a torn sentinel is no output of the program either.
    """
    data = _to_bytes(line)
    if data is None:
        return False
    return _MALFORMED.match(data.strip(_BLANK)) is not None or _find_sentinel(line) is not None


def derive_user_text(line: str) -> str | None:
    """What users see of a console line; None: nothing.

    A program that ends without a newline has its last words on the line of the sentinel: they are kept.
    """
    found = _find_sentinel(line)
    if found is not None:
        return found[1].decode("utf-8", "replace") or None
    return None if is_sentinel_line(line) else line


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


def _find_sentinel(line: bytes | str) -> tuple[Sentinel, bytes] | None:
    """The first sentinel that reaches to the line's end, and the noise before it."""
    data = _to_bytes(line)
    if data is None:
        return None
    data = data.rstrip(_BLANK)
    start = data.find(b"HYPEMAN-")
    while start >= 0:
        found = _LINE.fullmatch(data, start)
        sentinel = None if found is None else _parse_fields(found[1], found[2])
        if sentinel is not None:
            return sentinel, data[:start].lstrip(_BLANK)
        start = data.find(b"HYPEMAN-", start + 1)
    return None


def _parse_fields(kind: bytes, text: bytes) -> Sentinel | None:
    sentinel, codecs = _GRAMMAR[kind]
    raw: dict[str, bytes] = {}
    for found in _FIELD.finditer(text):
        key = found[1].decode("ascii")
        if key in raw:
            return None
        raw[key] = _unquote(found[2])
    try:
        values = {_attribute(key): codec.parse(raw[key]) for key, codec in codecs.items()}
        result = sentinel(boot=_parse_boot(raw["boot"]), **values)
    except (KeyError, ValueError):
        return None
    if isinstance(result, Stage) and result.end < result.start:
        return None
    return result


def _unquote(value: bytes) -> bytes:
    return _ESCAPE.sub(rb"\1", value[1:-1]) if value.startswith(b'"') else value
