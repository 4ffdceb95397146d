# SPDX-License-Identifier: Apache-2.0
"""The frame parser against whatever bytes."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypemand.protocol.frames import (
    MAX_NOISE,
    MAX_PAYLOAD,
    Channel,
    Frame,
    FrameParser,
    FrameType,
    HelloFinder,
)
from hypemand.protocol.records import ProtocolError
from tests.unit.agent.support import DATA, GREETING, HELLO, pack, records

FRAMES = st.builds(
    Frame,
    st.sampled_from(FrameType),
    st.integers(0, 2**32 - 1),
    st.sampled_from(Channel),
    st.binary(max_size=300),
)


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    """Cut bytes at places."""
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(places)]


@given(st.lists(FRAMES), st.lists(st.integers(0, 10**6)))
def test_frames_survive_any_cutting(frames: list[Frame], cuts: list[int]) -> None:
    parser = FrameParser()
    pieces = split(b"".join(frame.encode() for frame in frames), cuts)
    assert [frame for piece in pieces for frame in parser.feed(piece)] == frames


@given(st.lists(st.binary(max_size=200)))
def test_any_bytes_give_frames_or_a_protocol_error(pieces: list[bytes]) -> None:
    parser = FrameParser()
    finder = HelloFinder()
    try:
        for piece in pieces:
            finder.feed(piece)
        for piece in pieces:
            parser.feed(piece)
    except ProtocolError:
        pass


def test_encoding_is_that_of_the_protocol() -> None:
    frame = Frame(FrameType.DATA, 0x01020304, Channel.STDERR, b"ab")
    assert frame.encode() == b"\x02\0\0\0\x04\x03\x02\x01\x07\x02\0\0ab"


def test_a_length_beyond_the_bound_is_refused_before_its_payload_comes() -> None:
    with pytest.raises(ProtocolError, match="65537 bytes"):
        FrameParser().feed(struct.pack("<IIBBH", MAX_PAYLOAD + 1, 1, DATA, 1, 0))


def test_the_longest_frame_is_taken() -> None:
    [frame] = FrameParser().feed(pack(DATA, 1, bytes(MAX_PAYLOAD), 1))
    assert len(frame.payload) == MAX_PAYLOAD


@pytest.mark.parametrize(
    "header", [(0, 1, 0, 0, 0), (0, 1, 23, 0, 0), (0, 1, DATA, 3, 0), (0, 1, DATA, 1, 1)]
)
def test_an_impossible_header_is_refused(header: tuple[int, int, int, int, int]) -> None:
    with pytest.raises(ProtocolError):
        FrameParser().feed(struct.pack("<IIBBH", *header))


def test_a_payload_that_no_frame_carries_is_the_callers_mistake() -> None:
    with pytest.raises(ValueError, match="65536"):
        Frame(FrameType.DATA, 1, payload=bytes(MAX_PAYLOAD + 1)).encode()


@given(st.binary(max_size=200), st.lists(st.integers(0, 10**6)))
def test_hello_is_found_behind_what_was_under_way_before(noise: bytes, cuts: list[int]) -> None:
    finder = HelloFinder()
    tail = pack(DATA, 9, b"later", 1)
    found = None
    for piece in split(noise + GREETING + tail, cuts):
        found = finder.feed(piece) if found is None else found + piece
    assert found is not None
    assert found.endswith(GREETING + tail)


def test_a_hello_that_lacks_a_record_is_not_waited_past() -> None:
    broken = pack(HELLO, 0, records(("version", "1")))
    assert HelloFinder().feed(broken) == broken


def test_noise_without_a_hello_has_an_end() -> None:
    finder = HelloFinder()
    for _ in range(MAX_NOISE // 4096):
        assert finder.feed(b"\1" * 4096) is None
    with pytest.raises(ProtocolError, match="no HELLO"):
        finder.feed(b"\1" * 4096)
