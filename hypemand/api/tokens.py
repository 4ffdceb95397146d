# SPDX-License-Identifier: Apache-2.0
"""Who may use the API over TCP: bearer tokens, of which only a hash is kept.

A token is 256 random bits, so one round of SHA-256 is enough: a slow hash makes guessing dear where there is
something to guess, as with passwords, and would only make each request slow here.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from hypemand.atomic import write_all, write_file
from hypemand.errors import AlreadyExists, HostNotReady, HypemandError, InvalidRequest, NotFound
from hypemand.run import is_disk_full

MAX_TOKENS = 256
MAX_NAME = 64
# The beginning of a token by which people tell it from others; the rest has 226 bits.
PREFIX_LENGTH = 8
# Of the time of last use: a token in use costs a write in this many seconds, and no more.
USED_GRAIN = 3600.0
_MARK = "hm-"
_MAX_FILE = 1024 * 1024
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._@-]{{0,{MAX_NAME - 1}}}")

log = logging.getLogger(__name__)


class TokenExists(AlreadyExists):
    """A token of that name is there."""


class TooManyTokens(HypemandError):
    """There is no room for another."""

    code = "insufficient_resources"
    status = 409


@dataclass(frozen=True, slots=True)
class Token:
    """What is kept of a token. Times in seconds since the epoch; `expires_at` None: never; `last_used_at`
    is exact to the hour."""

    name: str
    prefix: str
    sha256: str
    read_only: bool
    created_at: float
    expires_at: float | None
    last_used_at: float | None

    def is_expired(self, now: float) -> bool:
        """Is it good no more?"""
        return self.expires_at is not None and now >= self.expires_at


def hash_token(text: str) -> str:
    """What is kept of a token's text."""
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


class TokenStore:
    """The tokens, in a file that only root can read. What is changed counts at once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = asyncio.Lock()
        self._tokens: dict[str, Token] | None = None
        # names that were revoked, which the file still has
        self._unsaved: set[str] = set()

    async def list_tokens(self) -> list[Token]:
        """All, by name; also those that have expired."""
        async with self._lock:
            tokens = await self._load()
            return [tokens[name] for name in sorted(tokens)]

    async def create(self, name: str, *, read_only: bool, expires_in: float | None) -> tuple[Token, str]:
        """A new token, and its text, which is known to nobody afterwards."""
        if _NAME.fullmatch(name) is None:
            raise InvalidRequest(
                f"name: {name[:80]!r} cannot be the name of a token",
                hint=f"use letters, digits and . _ @ -, at most {MAX_NAME}",
            )
        text = _MARK + secrets.token_urlsafe(32)
        now = time.time()
        async with self._lock:
            tokens = await self._load()
            if name in tokens:
                raise TokenExists(
                    f"there is a token {name} already", hint="revoke it first, or choose another"
                )
            if len(tokens) >= MAX_TOKENS:
                raise TooManyTokens(f"there are {MAX_TOKENS} tokens already", hint="revoke some")
            token = Token(
                name=name,
                prefix=text[:PREFIX_LENGTH],
                sha256=hash_token(text),
                read_only=read_only,
                created_at=now,
                expires_at=None if expires_in is None else now + expires_in,
                last_used_at=None,
            )
            await self._store(tokens | {name: token})
        return token, text

    async def revoke(self, name: str) -> None:
        """It is good no more, also when that cannot be written: then HostNotReady says so, and the file is
        written with the next change, or when it is revoked again."""
        async with self._lock:
            tokens = await self._load()
            if name not in tokens and name not in self._unsaved:
                raise NotFound(f"there is no token {name[:80]}", hint="hypemanctl token list shows them")
            left = {key: token for key, token in tokens.items() if key != name}
            self._tokens = left
            self._unsaved.add(name)
            try:
                await self._store(left, in_place=True)
            except HostNotReady as error:
                raise HostNotReady(
                    f"the token {name} is revoked, but only until hypemand restarts: {error.message}",
                    hint="free space on that file system, then revoke it again",
                ) from None

    async def find(self, text: str) -> Token | None:
        """The token of that text, if it is good now. How long it takes does not tell which it nearly was."""
        wanted = hash_token(text)
        async with self._lock:
            tokens = await self._load()
            found: Token | None = None
            for token in tokens.values():
                if hmac.compare_digest(token.sha256, wanted):
                    found = token
            now = time.time()
            if found is None or found.is_expired(now):
                return None
            if now - (found.last_used_at or 0) > USED_GRAIN:
                await self._note_use(tokens, found, now)
            return found

    async def _note_use(self, tokens: dict[str, Token], token: Token, now: float) -> None:
        used = tokens | {token.name: replace(token, last_used_at=now)}
        try:
            await self._store(used)
        except HostNotReady as error:
            self._tokens = used  # who has a good token is not refused for that
            log.warning("%s", error)

    async def _load(self) -> dict[str, Token]:
        """All, by name. A file that cannot be understood is never written over."""
        if self._tokens is None:
            self._tokens = await asyncio.to_thread(self._read)
        return self._tokens

    def _read(self) -> dict[str, Token]:
        try:
            with self._path.open("rb") as file:
                data = json.loads(file.read(_MAX_FILE))
            return {token.name: token for token in _parse_tokens(data)}
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise HostNotReady(f"{self._path} cannot be read: {error.strerror}") from None
        except (ValueError, TypeError, KeyError, RecursionError):
            raise HostNotReady(
                f"{self._path} does not hold tokens as they are written here",
                hint="restore it, or remove it and make the tokens anew",
            ) from None

    async def _store(self, tokens: dict[str, Token], *, in_place: bool = False) -> None:
        content = json.dumps({"version": 1, "tokens": [asdict(token) for token in tokens.values()]}, indent=1)
        data = content.encode() + b"\n"
        try:
            try:
                await asyncio.to_thread(write_file, self._path, data, mode=0o600)
            except OSError as error:
                if not in_place or not is_disk_full(error):
                    raise
                await asyncio.to_thread(_overwrite, self._path, data)
        except OSError as error:
            raise HostNotReady(f"{self._path} cannot be written: {error.strerror}") from None
        self._tokens = tokens
        self._unsaved.clear()


def _overwrite(path: Path, data: bytes) -> None:
    """Make `path` hold `data`, which is shorter, in the blocks that it has: a full disk has no room for
    another file. A crash in the middle leaves a file that is no tokens, so that none is accepted."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        size = os.fstat(fd).st_size
        if len(data) > size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(path))
        # white space after the end is nothing to JSON
        write_all(fd, data.ljust(size))
        os.fsync(fd)
    finally:
        os.close(fd)


_TYPES: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "prefix": (str,),
    "sha256": (str,),
    "read_only": (bool,),
    "created_at": (int, float),
    "expires_at": (int, float, type(None)),
    "last_used_at": (int, float, type(None)),
}


def _parse_tokens(data: Any) -> Iterator[Token]:
    """Raises ValueError, TypeError or KeyError for what is none."""
    if data["version"] != 1:
        raise ValueError("another version")
    for item in data["tokens"]:
        values = {field.name: item[field.name] for field in fields(Token)}
        if not all(isinstance(value, _TYPES[key]) for key, value in values.items()):
            raise ValueError("a value of another type")
        yield Token(**values)
