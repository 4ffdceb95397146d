# SPDX-License-Identifier: Apache-2.0
"""Records: the `key=value NUL` lists of docs/protocol.md, on the config disk and in frames."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from hypemand.errors import GuestError

_KEY = re.compile(rb"[a-z][a-z0-9_]*")


class ProtocolError(GuestError):
    """Bytes that docs/protocol.md does not allow. Whoever sees them closes the channel."""

    code = "protocol_error"


@dataclass(frozen=True, slots=True)
class Records:
    """Parsed records, in the order of the wire."""

    pairs: tuple[tuple[str, bytes], ...]

    def find(self, key: str) -> str | None:
        """The value of a key that may be there once. Bytes that are no UTF-8 are replaced."""
        values = self.all(key)
        if len(values) > 1:
            raise ProtocolError(f"record {key} is there {len(values)} times instead of once")
        return values[0].decode(errors="replace") if values else None

    def get(self, key: str) -> str:
        """The value of a key that must be there once."""
        value = self.find(key)
        if value is None:
            raise ProtocolError(f"record {key} is missing")
        return value

    def get_int(self, key: str, low: int, high: int) -> int:
        """The decimal value of a key that must be there once, `low` to `high`."""
        text = self.get(key)
        if not (text.isascii() and text.isdigit() and len(text) <= 20 and low <= int(text) <= high):
            raise ProtocolError(f"record {key} is not a number from {low} to {high}: {text[:40]!r}")
        return int(text)

    def all(self, key: str) -> tuple[bytes, ...]:
        """Every value of a key, in order."""
        return tuple(value for name, value in self.pairs if name == key)


def parse_records(data: bytes) -> Records:
    """Read records; ProtocolError when one has no `=`, a bad key, or lacks its NUL."""
    if not data:
        return Records(())
    if data[-1]:
        raise ProtocolError("the last record has no NUL at its end")
    pairs = []
    for number, item in enumerate(data[:-1].split(b"\0"), start=1):
        key, equals, value = item.partition(b"=")
        if not equals or not _KEY.fullmatch(key):
            raise ProtocolError(f"record {number} does not begin with key= : {item[:40]!r}")
        pairs.append((key.decode("ascii"), value))
    return Records(tuple(pairs))


def encode_fields(fields: Iterable[tuple[str, str]]) -> str:
    """The value of a record that has fields of its own."""
    return ",".join(f"{key}={value.replace('%', '%25').replace(',', '%2C')}" for key, value in fields)


def encode_records(pairs: Iterable[tuple[str, str]]) -> bytes:
    """Write records. A NUL in a value or a bad key is the caller's mistake: ValueError."""
    parts = []
    for key, value in pairs:
        raw = value.encode("utf-8", "surrogateescape")
        if b"\0" in raw or not _KEY.fullmatch(key.encode()):
            raise ValueError(f"cannot be a record: {key}={value!r}")
        parts.append(b"%s=%s\0" % (key.encode(), raw))
    return b"".join(parts)
