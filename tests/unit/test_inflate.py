# SPDX-License-Identifier: Apache-2.0
"""A gzip stream is all of its members, or an error."""

import contextlib
import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypemand.inflate import Inflater, InvalidGzip


def inflate(data: bytes, step: int) -> bytes:
    inflater = Inflater()
    pieces = [piece for at in range(0, len(data), step) for piece in inflater.feed(data[at : at + step])]
    inflater.finish()
    return b"".join(pieces)


@given(st.lists(st.binary(max_size=300), min_size=1), st.integers(1, 50), st.integers(0, 30))
def test_all_members_are_given_however_they_are_cut(members: list[bytes], step: int, padding: int) -> None:
    stream = b"".join(map(gzip.compress, members)) + bytes(padding)
    assert inflate(stream, step) == b"".join(members)


def test_what_it_grows_to_comes_in_pieces() -> None:
    size = 64 * 1024 * 1024
    sizes = [len(piece) for piece in Inflater().feed(gzip.compress(bytes(size), mtime=0))]
    assert sum(sizes) == size
    assert max(sizes) <= 256 * 1024


@pytest.mark.parametrize("step", [1, 7, 10_000])
@pytest.mark.parametrize(
    "tail", [b"\x1f", b"\x1f\x8b", gzip.compress(b"more", mtime=0)[:-1], b"x", b"\0x", b"\0\x1f"]
)
def test_what_follows_and_is_no_whole_member_is_an_error(tail: bytes, step: int) -> None:
    with pytest.raises(InvalidGzip):
        inflate(gzip.compress(b"one", mtime=0) + tail, step)


@pytest.mark.parametrize(
    "stream",
    [b"", b"\x1f", b"no gzip", gzip.compress(b"one", mtime=0)[:-8], b"\0" + gzip.compress(b"", mtime=0)],
)
def test_what_is_none_is_an_error(stream: bytes) -> None:
    with pytest.raises(InvalidGzip):
        inflate(stream, 3)


@given(st.binary(max_size=300))
def test_any_bytes_are_taken_or_refused(data: bytes) -> None:
    for stream in (data, gzip.compress(b"", mtime=0) + data, b"\x1f\x8b\x08" + data):
        with contextlib.suppress(InvalidGzip):
            inflate(stream, 11)
