# SPDX-License-Identifier: Apache-2.0
"""gzip streams (RFC 1952), decompressed piece by piece. A stream may have several members in a row."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

GZIP = b"\x1f\x8b"
_PIECE = 256 * 1024
# What follows the end of a member is copied once for each member: small steps keep that linear.
_STEP = 4096


class InvalidGzip(ValueError):
    """The stream is broken, cut off, or followed by something else."""


class Inflater:
    """Takes a stream in pieces of any size. Zero bytes may follow the last member, as tapes are padded."""

    def __init__(self) -> None:
        self._member: zlib._Decompress | None = None
        self._head = b""
        self._padded = False
        self._begun = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What `data` decompresses to, in pieces of bounded size; all of it must be asked for."""
        for at in range(0, len(data), _STEP):
            yield from self._feed_step(data[at : at + _STEP])

    def _feed_step(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._member is None:
                data = self._begin_member(data)
            else:
                member = self._member
                yield from _inflate(member, data)
                data = member.unused_data
                if member.eof:
                    self._member = None

    def _begin_member(self, data: bytes) -> bytes:
        """Pass over the padding between members; the rest, of which a member has begun if it is not empty."""
        if self._begun and not self._head:
            kept = data.lstrip(b"\0")
            self._padded = self._padded or len(kept) < len(data)
            data = kept
        head = self._head + data
        if len(head) < len(GZIP) and GZIP.startswith(head):
            self._head = head
            return b""
        if not head.startswith(GZIP) or self._padded:
            raise InvalidGzip("something else follows its end" if self._begun else "it is none")
        self._head, self._begun = b"", True
        self._member = zlib.decompressobj(16 + zlib.MAX_WBITS)
        return head

    def finish(self) -> None:
        """The stream has ended. InvalidGzip when that is within a member."""
        if self._member is not None or self._head or not self._begun:
            raise InvalidGzip("it breaks off")


def _inflate(member: zlib._Decompress, data: bytes) -> Iterator[bytes]:
    full = True
    while (data or full) and not member.eof:
        try:
            piece = member.decompress(data, _PIECE)
        except zlib.error as error:
            raise InvalidGzip(str(error)) from None
        data, full = member.unconsumed_tail, len(piece) == _PIECE
        if piece:
            yield piece
