# SPDX-License-Identifier: Apache-2.0
"""Plain netlink(7), where pyroute2 is too slow or lacks a feature."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Mapping

NETLINK_SOCK_DIAG = 4
NETLINK_NETFILTER = 12
F_REQUEST, F_ACK, F_DUMP = 0x1, 0x4, 0x300
NESTED = 0x8000
_TYPE_MASK = 0x3FFF
_ERROR, _DONE = 2, 3
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_BUFFER = 256 * 1024
_TIMEOUT = 5.0


def pack_attribute(kind: int, data: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    length = _ATTRIBUTE.size + len(data)
    return _ATTRIBUTE.pack(length, kind) + data + bytes(-length % 4)


def parse_attributes(data: bytes) -> Mapping[int, bytes]:
    """The attributes in `data` by their kind; the last of a kind counts."""
    found = {}
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if length < _ATTRIBUTE.size:
            break
        found[kind & _TYPE_MASK] = data[_ATTRIBUTE.size : length]
        data = data[(length + 3) & ~3 :]
    return found


class Netlink:
    """A netlink socket that is asked one thing after the other. Raises OSError with the kernel's errno."""

    def __init__(self, protocol: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._socket.settimeout(_TIMEOUT)
        self._socket.bind((0, 0))
        self._sequence = 0

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def request(self, kind: int, payload: bytes) -> None:
        """Ask for something to be done."""
        for _ in self._exchange(kind, F_REQUEST | F_ACK, payload):
            pass

    def dump(self, kind: int, payload: bytes) -> list[bytes]:
        """All entries, without their netlink headers."""
        return list(self._exchange(kind, F_REQUEST | F_DUMP, payload))

    def _exchange(self, kind: int, flags: int, payload: bytes) -> Iterator[bytes]:
        self._sequence += 1
        header = _HEADER.pack(_HEADER.size + len(payload), kind, flags, self._sequence, 0)
        self._socket.send(header + payload)
        while True:
            data = self._socket.recv(_BUFFER)
            while len(data) >= _HEADER.size:
                length, answer, _, sequence, _ = _HEADER.unpack_from(data)
                if length < _HEADER.size:
                    raise OSError(errno.EBADMSG, os.strerror(errno.EBADMSG))
                body, data = data[_HEADER.size : length], data[(length + 3) & ~3 :]
                if sequence != self._sequence:
                    continue  # of a request that was given up
                if answer in (_ERROR, _DONE):
                    _raise_error(body)
                    return
                yield body


def _raise_error(body: bytes) -> None:
    number = -struct.unpack_from("=i", body)[0] if len(body) >= 4 else 0
    if number > 0:
        raise OSError(number, os.strerror(number))
