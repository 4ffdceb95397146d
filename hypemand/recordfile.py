# SPDX-License-Identifier: Apache-2.0
"""Reads records of hypemand that may have been replaced: by a FIFO, a directory, garbage, or a huge file.

Whoever reads one before the daemon serves, or in a thread that others wait for, must get an answer: opening a
FIFO waits for a writer, and a device may have no end.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

MAX_RECORD = 4 * 1024 * 1024
"""Bytes: more than any record here can have."""


def read_regular(path: Path, limit: int = MAX_RECORD) -> bytes:
    """What a regular file holds. OSError for anything else, and for one of more than `limit` bytes."""
    # O_NONBLOCK: open(2) of a FIFO waits for a writer without it
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", os.fspath(path))
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), os.fspath(path))
    return data


def read_json(path: Path, limit: int = MAX_RECORD) -> Any:
    """The JSON document in a file. OSError as `read_regular`; ValueError for what is none, also where it is
    nested so deeply that Python's parser gives up."""
    return parse_json(read_regular(path, limit))


def parse_json(data: bytes) -> Any:
    """A JSON document. ValueError for what is none."""
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
