# SPDX-License-Identifier: Apache-2.0
"""Records: what goes in comes out, and nothing else is taken."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypemand.protocol.records import ProtocolError, encode_records, parse_records

LETTERS = "abcdefghijklmnopqrstuvwxyz"
KEYS = st.builds(str.__add__, st.sampled_from(LETTERS), st.text(f"{LETTERS}0123456789_", max_size=8))
VALUES = st.text(st.characters(codec="utf-8", exclude_characters="\0"))


@given(st.lists(st.tuples(KEYS, VALUES)))
def test_round_trip_keeps_order_and_repetition(pairs: list[tuple[str, str]]) -> None:
    parsed = parse_records(encode_records(pairs))
    assert [(key, value.decode()) for key, value in parsed.pairs] == pairs


@given(st.binary())
def test_any_bytes_are_records_or_a_protocol_error(data: bytes) -> None:
    try:
        parsed = parse_records(data)
    except ProtocolError:
        return
    assert b"".join(b"%s=%s\0" % (key.encode(), value) for key, value in parsed.pairs) == data


@pytest.mark.parametrize(
    "data", [b"a=1", b"a\0", b"A=1\0", b"=1\0", b"1a=1\0", b"a=1\0\0", b"a-b=1\0", b"\0"]
)
def test_malformed_records_make_the_whole_unreadable(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_records(b"good=1\0" + data)


def test_a_key_that_may_come_once_is_refused_twice() -> None:
    with pytest.raises(ProtocolError, match="2 times"):
        parse_records(b"code=1\0code=2\0").get("code")


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ProtocolError, match="record code is missing"):
        parse_records(b"").get("code")


@pytest.mark.parametrize("text", ["", "-1", "256", "1.0", " 1", "0x1", "\u0661", "9" * 5000])
def test_a_number_out_of_bounds_or_in_disguise_is_refused(text: str) -> None:
    with pytest.raises(ProtocolError, match="number from 0 to 255"):
        parse_records(f"code={text}\0".encode()).get_int("code", 0, 255)


def test_bytes_of_a_file_name_survive() -> None:
    assert encode_records([("arg", "caf\udce9")]) == b"arg=caf\xe9\0"


@pytest.mark.parametrize("pair", [("arg", "a\0b"), ("Arg", "a"), ("", "a")])
def test_what_cannot_be_a_record_is_not_written(pair: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="cannot be a record"):
        encode_records([pair])
