# SPDX-License-Identifier: Apache-2.0
"""Streams tar archives from and to the API. A transfer has no deadline, but a stalled one has."""

from __future__ import annotations

import contextlib
import http.client
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from hypemand.atomic import replace_file, write_all
from hypemand.cli.client import (
    ApiError,
    Client,
    Connection,
    Json,
    Unreachable,
    build_target,
    explain_broken,
    parse_answer,
    parse_error,
)
from hypemand.cli.terminal import LiveLine
from hypemand.errors import InvalidRequest, NotFound
from hypemand.tar import ERROR_BYTES, find_error

STALL_SECONDS = 120.0
_PIECE = 128 * 1024
_TYPE = "application/x-tar"
STREAM = "-"
"""In place of a file: standard input or output."""


def download(client: Client, ref: str, query: Mapping[str, str]) -> Iterator[bytes]:
    """The archive of a path of a VM. Raises ApiError, also for an aborted one."""
    return download_from(client, build_target("instances", ref, "archive", query=query))


def download_from(client: Client, target: str, *, begin: float = STALL_SECONDS) -> Iterator[bytes]:
    """The archive at a target of the API, which begins within `begin` seconds."""
    connection = Connection(client.path, begin)
    with contextlib.closing(connection):
        try:
            connection.request("GET", target)
            response = connection.getresponse()
            if response.status != 200:
                raise parse_error(response.status, response.read())
            if connection.sock is not None:
                connection.sock.settimeout(STALL_SECONDS)
        except (OSError, http.client.HTTPException) as error:
            raise _explain(error) from None
        yield from _read_whole(response)


def save(pieces: Iterable[bytes], file: str, what: str) -> None:
    """Write what is exported into a file, whole or not at all, or to STREAM. InvalidRequest."""
    if file == STREAM:
        for piece in pieces:
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
        return
    try:
        with replace_file(Path(file), mode=0o600) as fd, LiveLine(f"exporting {what}"):
            for piece in pieces:
                write_all(fd, piece)
    except OSError as error:
        raise InvalidRequest(f"cannot write {file}: {error.strerror or os.strerror(5)}") from None


def open_source(path: str) -> BinaryIO:
    """A file that is imported. NotFound, InvalidRequest."""
    try:
        return open(path, "rb")
    except FileNotFoundError:
        raise NotFound(f"there is no {path}") from None
    except OSError as error:
        raise InvalidRequest(f"cannot read {path}: {error.strerror}") from None


def read_pieces(source: BinaryIO) -> Iterator[bytes]:
    """What is imported, as it is sent."""
    while piece := source.read(_PIECE):
        yield piece


def _read_whole(response: http.client.HTTPResponse) -> Iterator[bytes]:
    tail = bytearray()
    while True:
        try:
            piece = response.read1(_PIECE)
        except (OSError, http.client.HTTPException, ValueError) as error:
            words = find_error(tail)
            raise (ApiError(words, code="guest_error") if words else _explain(error)) from None
        if not piece:
            return
        tail += piece[-ERROR_BYTES:]
        del tail[:-ERROR_BYTES]
        yield piece


def upload(client: Client, ref: str, query: Mapping[str, str], pieces: Iterable[bytes]) -> Json:
    """Send an archive into a VM; the answer. Raises ApiError."""
    return upload_to(client, "PUT", build_target("instances", ref, "archive", query=query), pieces)


def upload_to(
    client: Client, method: str, target: str, pieces: Iterable[bytes], *, answer: float = STALL_SECONDS
) -> Json:
    """Send an archive to a target of the API; the answer, which comes within `answer` seconds."""
    connection = Connection(client.path, STALL_SECONDS)
    with contextlib.closing(connection):
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                # An answer that comes before all was sent says why.
                connection.request(
                    method,
                    target,
                    body=_join(pieces),
                    headers={"Content-Type": _TYPE},
                )
            if connection.sock is not None:
                connection.sock.settimeout(answer)
            response = connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise _explain(error) from None
    if response.status not in (200, 201):
        raise parse_error(response.status, content)
    return parse_answer(content)


def _join(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Fewer and larger pieces: each is a chunk of HTTP."""
    joined = bytearray()
    for piece in pieces:
        joined += piece
        if len(joined) >= _PIECE:
            yield bytes(joined)
            joined.clear()
    if joined:
        yield bytes(joined)


def _explain(error: Exception) -> ApiError:
    if isinstance(error, TimeoutError):
        return Unreachable(f"no data for {STALL_SECONDS:g} s")
    if isinstance(error, ApiError):
        return error
    if isinstance(error, http.client.IncompleteRead):
        return Unreachable("the copy was aborted", hint="see: journalctl -u hypemand")
    return explain_broken(error)
