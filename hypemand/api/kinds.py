# SPDX-License-Identifier: Apache-2.0
"""The kinds of values in bodies and queries."""

from __future__ import annotations

import re
import signal as signals
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Generic

from hypemand.api.entries import parse_guest_path
from hypemand.api.fields import E, F, InvalidField, Kind, Schema, describe_form, is_whole, read_form, show
from hypemand.config.definition import GIB
from hypemand.config.durations import parse_duration
from hypemand.config.sizes import parse_size

MAX_SIGNAL = 64
MAX_SECONDS = 1e9
_OWNER = re.compile(r"([0-9]{1,10}):([0-9]{1,10})")
_MODE = re.compile(r"[0-7]{1,5}")
_MAX_ID = 2**32 - 2  # (uid_t) -1 is no user
_MAX_MODE = 0o7777


@dataclass(frozen=True, slots=True)
class Flag(Kind[bool]):
    """true or false."""

    def read(self, value: object, key: str) -> bool:
        if not isinstance(value, bool):
            raise InvalidField(key, f"{show(value)} is neither true nor false")
        return value

    def read_word(self, word: str, key: str) -> bool:
        return self.read({"true": True, "false": False}.get(word, word), key)

    def schema(self) -> Schema:
        return {"type": "boolean"}


@dataclass(frozen=True, slots=True)
class Whole(Kind[int]):
    """An integer from `low` to `high`. `note`: what a message adds to the range."""

    low: int
    high: int
    note: str = ""

    def read(self, value: object, key: str) -> int:
        if not is_whole(value, self.low, self.high):
            raise InvalidField(key, f"must be a whole number from {self.low} to {self.high}{self.note}")
        assert isinstance(value, int)
        return value

    def read_word(self, word: str, key: str) -> int:
        digits = word.isascii() and word.isdecimal() and len(word) <= len(str(self.high))
        return self.read(int(word) if digits else None, key)

    def schema(self) -> Schema:
        return {"type": "integer", "minimum": self.low, "maximum": self.high}


@dataclass(frozen=True, slots=True)
class Seconds(Kind[float]):
    """A number of seconds, from 0 up."""

    def read(self, value: object, key: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_SECONDS:
            raise InvalidField(key, "must be a non-negative number of seconds")
        return float(value)

    def schema(self) -> Schema:
        return {"type": "number", "minimum": 0, "maximum": MAX_SECONDS}


@dataclass(frozen=True, slots=True)
class SignalNumber(Kind[int]):
    """The number of a signal that can be sent to a process."""

    def read(self, value: object, key: str) -> int:
        if not is_whole(value, 1, MAX_SIGNAL) or value not in signals.valid_signals():
            raise InvalidField(key, "must be the number of a signal", "9 is SIGKILL, 15 is SIGTERM")
        assert isinstance(value, int)
        return value

    def schema(self) -> Schema:
        return {"type": "integer", "minimum": 1, "maximum": MAX_SIGNAL}


@dataclass(frozen=True, slots=True)
class Owner(Kind[tuple[int, int]]):
    """UID:GID, in numbers."""

    def read(self, value: object, key: str) -> tuple[int, int]:
        found = _OWNER.fullmatch(value) if isinstance(value, str) else None
        if found is None or max(int(found[1]), int(found[2])) > _MAX_ID:
            raise InvalidField(key, f"is not UID:GID, two numbers of at most {_MAX_ID}, such as 1000:1000")
        return int(found[1]), int(found[2])

    def schema(self) -> Schema:
        return {"type": "string", "pattern": f"^{_OWNER.pattern.replace('(', '').replace(')', '')}$"}


@dataclass(frozen=True, slots=True)
class FileMode(Kind[int]):
    """The mode of a file, in octal digits."""

    def read(self, value: object, key: str) -> int:
        found = _MODE.fullmatch(value) if isinstance(value, str) else None
        if found is None or int(found[0], 8) > _MAX_MODE:
            raise InvalidField(key, 'is not a string of octal digits up to 7777, such as "0750"')
        return int(found[0], 8)

    def schema(self) -> Schema:
        return {"type": "string", "pattern": f"^{_MODE.pattern}$"}


@dataclass(frozen=True, slots=True)
class Text(Kind[str]):
    """A string without NUL bytes. `pattern`: what the owner of the value checks."""

    may_be_empty: bool = False
    pattern: str = ""

    def read(self, value: object, key: str) -> str:
        if not self.may_be_empty:
            if not isinstance(value, str) or not value or "\0" in value:
                raise InvalidField(key, "must be a string that is not empty")
            return value
        return read_string(value, key)

    def schema(self) -> Schema:
        if self.pattern:
            return {"type": "string", "pattern": f"^{self.pattern}$"}
        return {"type": "string"} if self.may_be_empty else {"type": "string", "minLength": 1}


def read_string(value: object, key: str) -> str:
    """A string, which may be empty, without NUL bytes. Raises InvalidField."""
    if not isinstance(value, str):
        raise InvalidField(key, f"{show(value)} is not a string")
    if "\0" in value:
        raise InvalidField(key, "a string contains a NUL byte")
    return value


@dataclass(frozen=True, slots=True)
class Word(Kind[E]):
    """A word of a closed set."""

    words: type[E]

    def read(self, value: object, key: str) -> E:
        hint = f"one of {', '.join(self.words)}"
        if value is None:
            raise InvalidField(key, "is missing", hint)
        if not isinstance(value, str) or value not in list(self.words):
            raise InvalidField(key, f"{show(value)} is not known", hint)
        return self.words(value)

    def schema(self) -> Schema:
        return {"type": "string", "enum": list(map(str, self.words))}


@dataclass(frozen=True, slots=True)
class Constant(Kind[E]):
    """One word, which distinguishes a body from others."""

    word: E

    def read(self, value: object, key: str) -> E:
        if value != self.word:
            raise InvalidField(key, f"must be {self.word}")
        return self.word

    def schema(self) -> Schema:
        return {"const": str(self.word)}


@dataclass(frozen=True, slots=True)
class Texts(Kind[tuple[str, ...]]):
    """A list of strings. `command`: of a command, whose first one is not empty. `maximum`: of strings, which
    the owner of the value checks."""

    command: bool = False
    maximum: int = 0

    def read(self, value: object, key: str) -> tuple[str, ...]:
        if not isinstance(value, list) or (self.command and not value):
            wanted = "at least one string" if self.command else "strings"
            raise InvalidField(key, f"must be a list of {wanted}")
        words = tuple(read_string(word, key) for word in value)
        if self.command and not words[0]:
            raise InvalidField(key, "its first word is empty")
        return words

    def schema(self) -> Schema:
        schema: Schema = {"type": "array", "items": {"type": "string"}}
        if self.command:
            schema["minItems"] = 1
        return schema | ({"maxItems": self.maximum} if self.maximum else {})


@dataclass(frozen=True, slots=True)
class Words(Kind[tuple[str, ...]]):
    """Strings in one parameter of a query, with commas between them. None of them is empty, or has one."""

    def read(self, value: object, key: str) -> tuple[str, ...]:
        words = tuple(read_string(value, key).split(","))
        if not all(words):
            raise InvalidField(key, "must be names with commas between them")
        return words

    def schema(self) -> Schema:
        return {"type": "string", "pattern": "^[^,]+(,[^,]+)*$"}


@dataclass(frozen=True, slots=True)
class WordList(Kind[tuple[E, ...]]):
    """Members of an enumeration in one parameter of a query, with commas between them."""

    kind: type[E]

    def read(self, value: object, key: str) -> tuple[E, ...]:
        words = read_string(value, key).split(",")
        try:
            return tuple(self.kind(word) for word in words)
        except ValueError:
            raise InvalidField(key, f"must be of {', '.join(self.kind)}, with commas between them") from None

    def schema(self) -> Schema:
        one = f"({'|'.join(self.kind)})"
        return {"type": "string", "pattern": f"^{one}(,{one})*$"}


@dataclass(frozen=True, slots=True)
class TextMap(Kind[Mapping[str, str]]):
    """An object of strings. `variables`: its keys are names of environment variables; `maximum`: of keys,
    which the owner of the value checks."""

    is_map = True

    variables: bool = False
    maximum: int = 0

    def read(self, value: object, key: str) -> Mapping[str, str]:
        if not isinstance(value, dict):
            raise InvalidField(key, "must be an object of strings")
        if self.variables:
            for name in value:
                if not name or "=" in name or "\0" in name:
                    raise InvalidField(key, f"{name[:80]!r} cannot be the name of a variable")
        return {name: read_string(word, f"{key}.{name[:80]}") for name, word in value.items()}

    def schema(self) -> Schema:
        bounds = {"maxProperties": self.maximum} if self.maximum else {}
        return {"type": "object", "additionalProperties": {"type": "string"}} | bounds


@dataclass(frozen=True, slots=True)
class Part(Kind[F | None], Generic[F]):
    """An object with fields of its own, or an empty one, which counts as omitted."""

    form: type[F]

    def read(self, value: object, key: str) -> F | None:
        if not isinstance(value, dict):
            raise InvalidField(key, "is not an object")
        return read_form(self.form, value, key) if value else None

    def schema(self) -> Schema:
        return {key: word for key, word in describe_form(self.form).items() if key != "required"}


@dataclass(frozen=True, slots=True)
class Referred(Kind[dict[str, object]]):
    """An object that `schema_name` of openapi.yaml describes, and whose owner reads it."""

    schema_name: str
    hint: str

    def read(self, value: object, key: str) -> dict[str, object]:
        if not isinstance(value, dict):
            raise InvalidField(key, "is not an object", self.hint)
        return value

    def schema(self) -> Schema:
        return {"$ref": f"#/components/schemas/{self.schema_name}"}


@dataclass(frozen=True, slots=True)
class Refused(Kind[None]):
    """A field of the published client that cannot be done. `map`: it is an object, and may be empty."""

    is_refused = True

    problem: str
    hint: str
    map: bool = False

    def read(self, value: object, key: str) -> None:
        if value is not None and not (self.map and value == {}):
            raise InvalidField(key, self.problem, self.hint)

    def schema(self) -> Schema:
        return {"type": "object", "maxProperties": 0} if self.map else {"type": "null"}


@dataclass(frozen=True, slots=True)
class Gigabytes(Kind[int]):
    """A whole number of GiB, as bytes."""

    def read(self, value: object, key: str) -> int:
        return _GIGABYTES.read(value, key) * GIB

    def read_word(self, word: str, key: str) -> int:
        return _GIGABYTES.read_word(word, key) * GIB

    def schema(self) -> Schema:
        return _GIGABYTES.schema()


_GIGABYTES = Whole(1, 999_999_999)


@dataclass(frozen=True, slots=True)
class Size(Kind[int]):
    """Bytes: `512M`, `10G`, or a number."""

    def read(self, value: object, key: str) -> int:
        try:
            if isinstance(value, bool) or not isinstance(value, str | int):
                raise ValueError("is neither a string nor a number")
            return parse_size(value)
        except ValueError as error:
            raise InvalidField(key, str(error), "write it like 512M or 10G") from None

    def schema(self) -> Schema:
        return {"type": ["string", "integer"]}


@dataclass(frozen=True, slots=True)
class TimeSpan(Kind[float]):
    """Seconds above zero: `30s`, `1m30s`, `500ms`. `or_number`: or a number of seconds, from 0 up."""

    or_number: bool = False

    def read(self, value: object, key: str) -> float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if self.or_number and value == 0 and is_number:
            return 0.0
        if isinstance(value, str) or (self.or_number and is_number):
            try:
                seconds = parse_duration(str(value))
            except ValueError:
                seconds = None
            if seconds is not None and seconds > 0:
                return seconds
        hint = "write it like 30s, 1m30s or 500ms"
        raise InvalidField(key, f"{show(value)} is not a time above zero", hint, "invalid_timeout")

    def schema(self) -> Schema:
        return {"type": ["string", "number"], "minimum": 0} if self.or_number else {"type": "string"}


@dataclass(frozen=True, slots=True)
class Lifespan(Kind[float]):
    """Seconds, from 0 up: `90s`, `1h30m`, `0s`."""

    def read(self, value: object, key: str) -> float:
        seconds = None
        if isinstance(value, str):
            with suppress(ValueError):
                seconds = parse_duration(value)
        if seconds is None:
            raise InvalidField(key, f"{show(value)} is not a time of 0 or more", "write it like 90s or 1h30m")
        return seconds

    def schema(self) -> Schema:
        return {"type": "string"}


@dataclass(frozen=True, slots=True)
class Moment(Kind[float]):
    """A moment with its time zone, as RFC 3339 has it, in seconds since the epoch."""

    def read(self, value: object, key: str) -> float:
        moment = None
        if isinstance(value, str):
            with suppress(ValueError):
                moment = datetime.fromisoformat(value)
        if moment is None or moment.tzinfo is None:
            hint = "write it like 2030-01-31T12:00:00Z"
            raise InvalidField(key, f"{show(value)} is not a time with a time zone", hint)
        return moment.timestamp()

    def schema(self) -> Schema:
        return {"type": "string", "format": "date-time"}


@dataclass(frozen=True, slots=True)
class Tail(Kind[int | None]):
    """A number of lines, or all of them: None."""

    maximum: int

    def read(self, value: object, key: str) -> int | None:
        if value == "all":
            return None
        if not isinstance(value, str) or not value.isdecimal() or len(value) > 7 or int(value) > self.maximum:
            hint = f"from 0 to {self.maximum}, or all"
            raise InvalidField(key, f"{show(value)} is not a number of lines", hint)
        return int(value)

    def schema(self) -> Schema:
        return {"type": "string", "pattern": "^([0-9]{1,7}|all)$"}


@dataclass(frozen=True, slots=True)
class GuestPath(Kind[str]):
    """An absolute path in the guest."""

    def read(self, value: object, key: str) -> str:
        return parse_guest_path(value, key)

    def schema(self) -> Schema:
        return {"type": "string", "pattern": "^/"}


@dataclass(frozen=True, slots=True)
class HostPath(Kind[str]):
    """An absolute path on the host, perhaps with the type of what is there before it."""

    def read(self, value: object, key: str) -> str:
        path = Text().read(value, key)
        kind, colon, rest = path.partition(":")
        plain = rest if colon and kind in _PATH_TYPES else path
        if not plain.startswith("/"):
            raise InvalidField(key, "must be absolute", "write it from / on")
        return path

    def schema(self) -> Schema:
        return {"type": "string", "pattern": f"^(({'|'.join(_PATH_TYPES)}):)?/"}


_PATH_TYPES = ("oci", "docker-archive", "dir")
