# SPDX-License-Identifier: Apache-2.0
"""Reads requests of clients: the VM that the path names, the JSON body, and the query."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import TypeVar

from aiohttp import web

from hypemand.api.bodies.instances import Nothing
from hypemand.api.fields import read_form, read_words
from hypemand.config.names import is_name
from hypemand.config.templates import parse_file_name
from hypemand.errors import InvalidRequest, NotFound

MAX_BODY = 1024 * 1024

F = TypeVar("F")


def parse_ref(request: web.Request) -> str:
    """The VM that the path names. What no VM can be called is not found, like any other stranger."""
    ref = request.match_info["ref"]
    if not is_name(ref):  # ids and their beginnings are of the same characters
        hint = "an id or a name has only a-z, 0-9 and '-'"
        name = parse_file_name(ref)
        if name.instance and is_name(name.vm):
            hint = f"the VM that {ref}.yaml defines is named {name.vm}"
        raise NotFound(f"there is no VM {ref[:80]!r}", hint=hint)
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
    """The body as a JSON object; no body counts as an empty one. It must come within `deadline` seconds. A
    route that has a body has no parameters, and is refused some."""
    refuse_query(request)
    try:
        async with asyncio.timeout(deadline):
            body = await request.read()
    except TimeoutError:
        raise InvalidRequest(f"the body did not arrive within {deadline:g} s") from None
    return parse_object(body) if body else {}


async def read_body(request: web.Request, form: type[F], deadline: float) -> F:
    """The body, as the form that `hypemand.api.bodies` has for the route. Raises InvalidRequest."""
    return read_form(form, await read_object(request, deadline))


def read_query(request: web.Request, form: type[F]) -> F:
    """The parameters of the query, as the form that `hypemand.api.bodies` has for the route."""
    return read_words(form, request.query.items())


def refuse_query(request: web.Request) -> None:
    """Raise InvalidRequest where a route that has no parameters is given some."""
    read_query(request, Nothing)
