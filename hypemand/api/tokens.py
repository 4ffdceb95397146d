# SPDX-License-Identifier: Apache-2.0
"""Tokens of the API over TCP and their permissions: bearer tokens, stored as hashes.

A token is 256 random bits, so one round of SHA-256 is enough: a slow hash makes guessing dear where there is
something to guess, as with passwords, and would only make each request slow here.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import hmac
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hypemand.atomic import write_all, write_file
from hypemand.config.names import NAME_RULE, is_name
from hypemand.config.tags import is_tag
from hypemand.errors import AlreadyExists, HostNotReady, HypemandError, InvalidRequest, NotFound
from hypemand.model.tokens import Scope
from hypemand.recordfile import BadRecord, encode_record, load_record
from hypemand.run import is_disk_full
from hypemand.workers import Pool, run_in

MAX_TOKENS = 256
MAX_NAME = 64
MAX_VMS = 32
MAX_TAGS = 8
# The beginning of a token by which people tell it from others; the rest has 226 bits.
PREFIX_LENGTH = 8
# Of the time of last use: a token in use costs a write in this many seconds, and no more.
USED_GRAIN = 3600.0
RETRY_SECONDS = 60.0
_MARK = "hm-"
_VERSION = 2
NAME_PATTERN = rf"[A-Za-z0-9][A-Za-z0-9._@-]{{0,{MAX_NAME - 1}}}"
_NAME = re.compile(NAME_PATTERN)

log = logging.getLogger(__name__)


class TokenExists(AlreadyExists):
    """A token of that name exists."""


class TooManyTokens(HypemandError):
    """The maximum number of tokens exists."""

    code = "insufficient_resources"
    status = 409


@dataclass(frozen=True, slots=True)
class Token:
    """What is kept of a token. Times in seconds since the epoch; `expires_at` None: never; `last_used_at`
    is exact to the hour. `vms` (names) and `tags` (pairs) say for which VMs it is good, if either does: those
    that are named, and those that have all of the tags. `expired`: was found to be, which lasts."""

    name: str
    prefix: str
    sha256: str
    scope: Scope
    created_at: float
    expires_at: float | None
    last_used_at: float | None
    vms: tuple[str, ...] = ()
    tags: tuple[tuple[str, str], ...] = ()
    expired: bool = False

    def is_expired(self, now: float) -> bool:
        """Is it not valid any more? A clock that is set back does not make it valid again."""
        return self.expired or (self.expires_at is not None and now >= self.expires_at)

    @property
    def is_selective(self) -> bool:
        """Is it restricted to some VMs, and so not valid for the host?"""
        return bool(self.vms or self.tags)

    def covers(self, name: str, tags: Mapping[str, str]) -> bool:
        """Is it valid for the VM of that name, with those tags?"""
        if not self.is_selective or name in self.vms:
            return True
        return bool(self.tags) and set(self.tags) <= set(tags.items())


def hash_token(text: str) -> str:
    """The hash of a token's text, which is what is stored."""
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


class TokenStore:
    """The tokens, in a file that only root can read. Changes take effect at once. `on_end`: called with the
    name of a token that is revoked."""

    def __init__(self, path: Path) -> None:
        self.on_end: Callable[[str], None] = lambda _name: None
        self._path = path
        self._lock = asyncio.Lock()
        self._tokens: dict[str, Token] | None = None
        # when to try again to write what the file has not; None: it has all
        self._retry_at: float | None = None
        # names that were revoked, which the file still has
        self._unsaved: set[str] = set()

    async def list_tokens(self) -> list[Token]:
        """All tokens, by name, including expired ones."""
        async with self._lock:
            tokens = await self._load()
            return [tokens[name] for name in sorted(tokens)]

    async def create(
        self,
        name: str,
        *,
        scope: Scope = Scope.ADMIN,
        vms: Sequence[str] = (),
        tags: Mapping[str, str] | None = None,
        expires_in: float | None,
    ) -> tuple[Token, str]:
        """Create a token; returns it and its text, which is not stored. InvalidRequest, TokenExists."""
        if _NAME.fullmatch(name) is None:
            raise InvalidRequest(
                f"name: {name[:80]!r} cannot be the name of a token",
                hint=f"use letters, digits and . _ @ -, at most {MAX_NAME}",
            )
        _check_selection(scope, vms, tags or {})
        text = _MARK + secrets.token_urlsafe(32)
        now = time.time()
        async with self._lock:
            tokens = await self._load()
            if name in tokens:
                raise TokenExists(
                    f"the token {name} already exists", hint="revoke it first, or choose another name"
                )
            if len(tokens) >= MAX_TOKENS:
                raise TooManyTokens(f"there are already {MAX_TOKENS} tokens", hint="revoke some")
            token = Token(
                name=name,
                prefix=text[:PREFIX_LENGTH],
                sha256=hash_token(text),
                scope=scope,
                created_at=now,
                expires_at=None if expires_in is None else now + expires_in,
                last_used_at=None,
                vms=tuple(dict.fromkeys(vms)),
                tags=tuple(sorted((tags or {}).items())),
            )
            await self._store(tokens | {name: token})
        return token, text

    async def revoke(self, name: str) -> None:
        """End a token, and what goes on under it. That counts at once: HostNotReady when it cannot be written
        down, and so would not last over a restart of the daemon. It is tried again as tokens are used, and
        when the token is revoked again."""
        async with self._lock:
            tokens = await self._load()
            if name not in tokens and name not in self._unsaved:
                raise NotFound(f"there is no token {name[:80]}", hint="hypemanctl token list shows them")
            left = {key: token for key, token in tokens.items() if key != name}
            self._tokens = left
            self._unsaved.add(name)
            self.on_end(name)
            try:
                await self._store(left, in_place=True)
            except HostNotReady as error:
                self._retry_at = time.monotonic() + RETRY_SECONDS
                raise HostNotReady(
                    f"the token {name} is revoked, but only until hypemand restarts: {error.message}",
                    hint="free space on that file system, then revoke it again",
                ) from None

    async def find(self, text: str) -> Token | None:
        """The valid token with that text, or None. Takes the same time for all texts."""
        wanted = hash_token(text)
        async with self._lock:
            tokens = await self._load()
            found: Token | None = None
            for token in tokens.values():
                if hmac.compare_digest(token.sha256, wanted):
                    found = token
            now = time.time()
            changed = {t.name: replace(t, expired=True) for t in tokens.values() if _has_just_expired(t, now)}
            if found is not None and not found.is_expired(now) and _is_long_unused(found, now):
                changed[found.name] = replace(found, last_used_at=now)
            is_due = self._retry_at is not None and time.monotonic() >= self._retry_at
            if changed or (found is not None and is_due):
                await self._note(tokens | changed)
            return None if found is None or found.is_expired(now) else found

    async def _note(self, tokens: dict[str, Token]) -> None:
        """Keep what has come about by itself. Nobody with a valid token is refused where that fails."""
        self._tokens = tokens
        try:
            await self._store(tokens)
        except HostNotReady as error:
            self._retry_at = time.monotonic() + RETRY_SECONDS
            log.warning("%s", error)

    async def _load(self) -> dict[str, Token]:
        """All, by name. A file that cannot be understood is never written over."""
        if self._tokens is None:
            self._tokens = await run_in(Pool.TOKENS, self._read)
        return self._tokens

    def _read(self) -> dict[str, Token]:
        try:
            return load_record(self._path, _parse_tokens, versions=(1, _VERSION))
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise HostNotReady(f"{self._path} cannot be read: {error.strerror}") from None
        except BadRecord:
            raise HostNotReady(
                f"{self._path} is not a valid token file",
                hint="restore it, or remove it and create the tokens again",
            ) from None

    async def _store(self, tokens: dict[str, Token], *, in_place: bool = False) -> None:
        document = {"version": _VERSION, "tokens": [asdict(token) for token in tokens.values()]}
        data = encode_record(document, indent=1)
        try:
            try:
                await run_in(Pool.TOKENS, write_file, self._path, data, mode=0o600)
            except OSError as error:
                if not in_place or not is_disk_full(error):
                    raise
                await run_in(Pool.TOKENS, _overwrite, self._path, data)
        except OSError as error:
            raise HostNotReady(f"{self._path} cannot be written: {error.strerror}") from None
        self._tokens = tokens
        self._retry_at = None
        self._unsaved.clear()


def _has_just_expired(token: Token, now: float) -> bool:
    return not token.expired and token.is_expired(now)


def _is_long_unused(token: Token, now: float) -> bool:
    return abs(now - (token.last_used_at or 0)) > USED_GRAIN


def _check_selection(scope: Scope, vms: Sequence[str], tags: Mapping[str, str]) -> None:
    """Raise InvalidRequest for VMs that a token cannot be for."""
    if scope is Scope.ADMIN and (vms or tags):
        raise InvalidRequest(
            "scope: admin cannot be restricted to some VMs",
            hint="omit vms and tags, or use the scope operate",
        )
    if len(vms) > MAX_VMS or len(tags) > MAX_TAGS:
        raise InvalidRequest(f"a token is for at most {MAX_VMS} named VMs and {MAX_TAGS} tags")
    for vm in vms:
        if not is_name(vm):
            raise InvalidRequest(f"vms: {vm[:80]!r} cannot be the name of a VM", hint=f"use {NAME_RULE}")
    for key, value in tags.items():
        if not is_tag(key, value):
            raise InvalidRequest(f"tags: {key[:80]!r} with that value cannot be a tag of a VM")


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
    "scope": (str,),
    "created_at": (int, float),
    "expires_at": (int, float, type(None)),
    "last_used_at": (int, float, type(None)),
    "vms": (list,),
    "tags": (list,),
    "expired": (bool,),
}


def _parse_tokens(data: Any) -> dict[str, Token]:
    """All, by name. Version 1 had no scopes."""
    tokens = {}
    for kept in data["tokens"]:
        item = kept
        if data["version"] == 1:
            scope = Scope.READ if kept["read_only"] else Scope.ADMIN
            item = {"vms": [], "tags": [], "expired": False} | kept | {"scope": scope.value}
        values = {key: item[key] for key in _TYPES}
        if not all(isinstance(value, _TYPES[key]) for key, value in values.items()):
            raise ValueError("a value of another type")
        vms, tags = tuple(map(str, values["vms"])), tuple((str(k), str(v)) for k, v in values["tags"])
        token = Token(**values | {"scope": Scope(values["scope"]), "vms": vms, "tags": tags})
        tokens[token.name] = token
    return tokens
