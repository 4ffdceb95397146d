# SPDX-License-Identifier: Apache-2.0
"""Logs of several VMs as one: a stream for each, merged."""

from __future__ import annotations

import heapq
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from hypemand.cli.client import Client

# lines that were read and not yet shown: who reads slowly holds up the streams
_PENDING = 256

Line: TypeAlias = tuple[str, Mapping[str, Any]]


def read_several(
    client: Client, names: Sequence[str], query: Mapping[str, str], *, follow: bool
) -> Iterator[Line]:
    """The VM's name with each event of a log, which has to be an object. Raises ApiError, also for a VM that
    there is not before anything of the others is given."""
    streams = [_Stream(client, name, query) for name in names]
    if follow:
        return _read_as_they_come(streams)
    return heapq.merge(*streams, key=lambda line: str(line[1].get("time") or ""))


class _Stream:
    """The log of one VM. It is asked for when the first line is wanted."""

    def __init__(self, client: Client, name: str, query: Mapping[str, str]) -> None:
        self._client = client
        self._name = name
        self._query = query

    def __iter__(self) -> Iterator[Line]:
        with self._client.events("instances", self._name, "logs", query=self._query) as events:
            for event in events:
                yield self._name, event


def _read_as_they_come(streams: Sequence[_Stream]) -> Iterator[Line]:
    """A thread for each stream; they end with the program."""
    found: queue.Queue[Line | Exception | None] = queue.Queue(_PENDING)

    def read(stream: _Stream) -> None:
        try:
            for line in stream:
                found.put(line)
        except Exception as error:
            found.put(error)
        else:
            found.put(None)

    for stream in streams:
        threading.Thread(target=read, args=(stream,), daemon=True).start()
    left = len(streams)
    while left:
        line = found.get()
        if isinstance(line, Exception):
            raise line
        if line is None:
            left -= 1
        else:
            yield line
