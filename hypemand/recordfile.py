# SPDX-License-Identifier: Apache-2.0
"""Records of hypemand: JSON documents that outlast the daemon.

`store_record` writes one so that a crash leaves the old or the new one. `load_record` reads one that may have
been replaced: by a FIFO, a directory, garbage, or a huge file. Whoever reads one before the daemon serves, or
in a thread that others wait for, must get an answer: opening a FIFO waits for a writer, and a device may have
no end.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from hypemand.atomic import write_file
from hypemand.errors import HypemandError

T = TypeVar("T")
MAX_RECORD = 4 * 1024 * 1024
"""Bytes: more than any record here can have."""


class BadRecord(ValueError):
    """A record that is there and cannot be understood: the text says why, `path` which. It is left as it is:
    its content may be needed to repair it."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(problem)
        self.path = path


def encode_record(document: Any, *, indent: int | None = None) -> bytes:
    """The content of a record's file."""
    return json.dumps(document, indent=indent).encode() + b"\n"


def store_record(path: Path, document: Any, *, indent: int | None = None, mode: int = 0o600) -> None:
    """Have the file hold the document, which lasts when this returns. Blocks; OSError."""
    write_file(path, encode_record(document, indent=indent), mode=mode)


def load_record(
    path: Path, parse: Callable[[Any], T], *, versions: tuple[int, ...] = (), limit: int = MAX_RECORD
) -> T:
    """What `parse` makes of the document in a file; `versions`: those that it may say, if it has to. Blocks.

    OSError where there is none that can be read (FileNotFoundError: nothing is there), and BadRecord where it
    cannot be understood: `parse` may raise what comes of looking into a document of another shape.
    """
    try:
        document = parse_json(read_regular(path, limit))
        if versions and document["version"] not in versions:
            raise ValueError(f"version is not {' or '.join(map(str, versions))}")
        return parse(document)
    except KeyError as error:
        raise BadRecord(path, f"{error} is missing") from error
    except (ValueError, LookupError, TypeError, AttributeError, HypemandError) as error:
        raise BadRecord(path, str(error)) from error


def read_regular(path: Path, limit: int = MAX_RECORD) -> bytes:
    """What a regular file holds. OSError for anything else, and for one of more than `limit` bytes."""
    data = read_beginning(path, limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), os.fspath(path))
    return data


def read_beginning(path: Path, most: int) -> bytes:
    """The first bytes of a regular file, at most so many. OSError for anything else."""
    # O_NONBLOCK: open(2) of a FIFO waits for a writer without it
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", os.fspath(path))
        return file.read(most)


def parse_json(data: bytes) -> Any:
    """A JSON document. ValueError for what is none."""
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
