# SPDX-License-Identifier: Apache-2.0
"""Parses requests of clients. Every field is bounded and typed, and rejected if it is unknown."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Collection, Mapping
from enum import StrEnum
from typing import TypeVar

from aiohttp import web

from hypemand.config.durations import parse_duration
from hypemand.errors import InvalidRequest, NotFound

MAX_BODY = 1024 * 1024

# Ids and names alike, and the beginnings of ids.
_REF = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")

E = TypeVar("E", bound=StrEnum)


def parse_ref(request: web.Request) -> str:
    """The VM that the path names. What no VM can be called is not found, like any other stranger."""
    ref = request.match_info["ref"]
    if _REF.fullmatch(ref) is None:
        raise NotFound(f"there is no VM {ref[:80]!r}", hint="an id or a name has only a-z, 0-9 and '-'")
    return ref


def parse_object(text: str | bytes, what: str = "the body") -> dict[str, object]:
    """A JSON object. Refuses what is not JSON by the letter: NaN, a key twice, lone surrogates."""
    try:
        value: object = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique)
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeError:
        raise InvalidRequest(f"{what} is not UTF-8") from None
    except ValueError as error:
        raise InvalidRequest(f"{what} is not JSON: {error}") from None
    except RecursionError:
        raise InvalidRequest(f"{what} is nested too deeply") from None
    if not isinstance(value, dict):
        raise InvalidRequest(f"{what} is not a JSON object")
    return value


def _refuse_constant(word: str) -> object:
    raise ValueError(f"{word} is not a JSON number")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = next(key for key in counts if counts[key] > 1)
        raise ValueError(f"the key {twice[:80]!r} is there twice")
    return found


async def read_object(request: web.Request, deadline: float) -> dict[str, object]:
    """The body as a JSON object; no body counts as an empty one. It must come within `deadline` seconds."""
    try:
        async with asyncio.timeout(deadline):
            body = await request.read()
    except TimeoutError:
        raise InvalidRequest(f"the body did not arrive within {deadline:g} s") from None
    return parse_object(body) if body else {}


def refuse_unknown(given: Collection[str], known: Collection[str], what: str = "field") -> None:
    """Raise InvalidRequest that names the keys that nobody reads."""
    strange = sorted(key[:80] for key in given if key not in known)
    if strange:
        wanted = f"allowed: {', '.join(known)}" if known else f"none is allowed here, omit the {what}"
        raise InvalidRequest(f"unknown {what}: {', '.join(strange)}", hint=wanted)


def read_query(request: web.Request, *known: str) -> Mapping[str, str]:
    """The query's parameters. Unknown ones and repeated ones are refused."""
    refuse_unknown(request.query.keys(), known, "parameter")
    for key in known:
        if len(request.query.getall(key, [])) > 1:
            raise InvalidRequest(f"{key}: given more than once")
    return request.query


def want_bool(query: Mapping[str, str], key: str, default: bool) -> bool:
    """`true` or `false`."""
    word = query.get(key)
    if word is None:
        return default
    if word not in ("true", "false"):
        raise InvalidRequest(f"{key}: {word[:40]!r} is neither true nor false")
    return word == "true"


def parse_choice(query: Mapping[str, str], key: str, kind: type[E], default: E) -> E:
    """A word of a closed set."""
    word = query.get(key)
    if word is None:
        return default
    try:
        return kind(word)
    except ValueError:
        raise InvalidRequest(f"{key}: {word[:40]!r} is not known", hint=f"one of {', '.join(kind)}") from None


def parse_positive_duration(text: str, key: str, code: str = "invalid_timeout") -> float:
    """Seconds of `30s`, `1m30s`, `500ms`. Zero, infinity and what is no time span are refused."""
    try:
        seconds = parse_duration(text)
    except ValueError:
        seconds = None
    if seconds is None or seconds <= 0:
        raise InvalidRequest(
            f"{key}: {text[:40]!r} is not a time above zero",
            hint="write it like 30s, 1m30s or 500ms",
            code=code,
        )
    return seconds
