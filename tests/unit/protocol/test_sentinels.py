# SPDX-License-Identifier: Apache-2.0
"""Sentinels: what is one, what is none, and what users get to see of a line."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hypemand.config.mode import Mode
from hypemand.protocol.sentinels import (
    MAX_LINE,
    MAX_MESSAGE,
    AgentReady,
    Emergency,
    EmergencyState,
    Exit,
    HeadersFailed,
    HeadersReady,
    HeadersStart,
    ProgramStart,
    Ready,
    Sentinel,
    Stage,
    Waiting,
    derive_user_text,
    format_sentinel,
    is_sentinel_line,
    parse_sentinel,
)

BOOT = "0123456789abcdef0123456789abcdef"
TS = "2026-02-03T04:05:06.000000007Z"
TS_NS = 1770091506_000000007
START = f"HYPEMAN-PROGRAM-START ts={TS} mode=exec boot={BOOT}"

boots = st.text("0123456789abcdef", min_size=32, max_size=32)
times = st.integers(min_value=0, max_value=250_000_000_000 * 10**9)
words = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=MAX_MESSAGE // 4)
names = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=64)
micros = st.integers(min_value=0, max_value=10**11)
sentinels: st.SearchStrategy[Sentinel] = st.one_of(
    st.builds(ProgramStart, boots, times, st.sampled_from([Mode.EXEC, Mode.SYSTEMD])),
    st.builds(AgentReady, boots, times),
    st.builds(Ready, boots, times),
    st.builds(Waiting, boots, times, words),
    st.builds(HeadersStart, boots, times),
    st.builds(HeadersReady, boots, times),
    st.builds(HeadersFailed, boots, times, words),
    st.builds(Emergency, boots, times, st.sampled_from(EmergencyState)),
    st.builds(Exit, boots, st.integers(min_value=0, max_value=255), words),
    st.builds(
        lambda boot, name, start, more: Stage(boot, name, start / 10**6, (start + more) / 10**6),
        boots,
        names,
        micros,
        micros,
    ),
)


@given(sentinels)
def test_what_is_written_is_read_back(sentinel: Sentinel) -> None:
    line = format_sentinel(sentinel)
    assert parse_sentinel(line) == sentinel
    assert parse_sentinel(line.encode() + b"\r\n") == sentinel
    assert len(line.encode()) <= MAX_LINE


@given(sentinels, st.text(st.characters(exclude_characters="H", exclude_categories=["Cs"]), max_size=200))
def test_noise_before_the_prefix_is_passed_over_and_kept_for_users(sentinel: Sentinel, noise: str) -> None:
    line = noise + format_sentinel(sentinel)
    assert parse_sentinel(line) == sentinel
    assert is_sentinel_line(line)
    assert (derive_user_text(line.encode()) or b"") == noise.encode()


@given(st.binary(max_size=300))
def test_no_bytes_raise(data: bytes) -> None:
    parse_sentinel(data)
    is_sentinel_line(data)
    parse_sentinel(b"HYPEMAN-EXIT " + data)
    parse_sentinel(START.encode() + b" x=" + data)


@given(st.text(st.characters(), max_size=300))
def test_no_text_raises_half_surrogates_included(text: str) -> None:
    parse_sentinel(text)
    is_sentinel_line(f"HYPEMAN-EXIT {text}")
    derive_user_text(text.encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize(
    ("line", "sentinel"),
    [
        (START, ProgramStart(BOOT, TS_NS, Mode.EXEC)),
        (f"HYPEMAN-AGENT-READY boot={BOOT} ts={TS}", AgentReady(BOOT, TS_NS)),
        (f"HYPEMAN-READY ts={TS} boot={BOOT}", Ready(BOOT, TS_NS)),
        (
            f'HYPEMAN-WAITING ts={TS} boot={BOOT} reason="http: status 503"',
            Waiting(BOOT, TS_NS, "http: status 503"),
        ),
        (f"HYPEMAN-HEADERS-START ts={TS} boot={BOOT}", HeadersStart(BOOT, TS_NS)),
        (f"HYPEMAN-HEADERS-READY ts={TS} boot={BOOT}", HeadersReady(BOOT, TS_NS)),
        (
            f'HYPEMAN-HEADERS-FAILED ts={TS} boot={BOOT} error="a \\"b\\" \\\\"',
            HeadersFailed(BOOT, TS_NS, 'a "b" \\'),
        ),
        (f'HYPEMAN-EXIT code=137 message="out of memory" boot={BOOT}', Exit(BOOT, 137, "out of memory")),
        (f"HYPEMAN-EXIT \t code=0   message=gone\tboot={BOOT} \r", Exit(BOOT, 0, "gone")),
        (f"HYPEMAN-STAGE name=root start=0.25 end=1.000001 boot={BOOT}", Stage(BOOT, "root", 0.25, 1.000001)),
        (f"HYPEMAN-AGENT-READY ts=1970-01-01T00:00:00Z boot={BOOT}", AgentReady(BOOT, 0)),
        (f"HYPEMAN-AGENT-READY ts=1970-01-01T00:00:00.5Z boot={BOOT}", AgentReady(BOOT, 500_000_000)),
        (f'{START} cpu=3 note="of a newer guest"', ProgramStart(BOOT, TS_NS, Mode.EXEC)),
        (f'[ 1.2] HYPEMAN-STAGE name=x HYPEMAN-EXIT code=1 message="" boot={BOOT}', Exit(BOOT, 1, "")),
        (f'HYPEMAN-EXIT code=1 message="{START}" boot={BOOT}', Exit(BOOT, 1, START)),
    ],
)
def test_lines_that_are_sentinels(line: str, sentinel: Sentinel) -> None:
    assert parse_sentinel(line) == sentinel


@pytest.mark.parametrize(
    "line",
    [
        "",
        "HYPEMAN-",
        "HYPEMAN-PROGRAM-START",
        START + " and more",
        START + "\nmore",
        START.replace("mode=exec", "mode=auto"),
        START.replace("mode=exec", "mode="),
        START.replace("mode=exec", ""),
        START.replace(" mode", "mode"),
        START.replace("START", "STARTED"),
        START.replace("HYPEMAN", "hypeman"),
        START.replace("T04", " 04"),
        START.replace("02-03", "02-30"),
        START.replace("Z", "+00:00"),
        START.replace("007Z", "0077Z"),
        START + " mode=exec",
        START + " x=1 x=2",
        START + " X=1",
        START + " x",
        START[:-1],
        START + "0",
        START.replace("abcdef", "ABCDEF"),
        f'HYPEMAN-EXIT code=256 message="" boot={BOOT}',
        f'HYPEMAN-EXIT code=-1 message="" boot={BOOT}',
        f'HYPEMAN-EXIT code=\u0661 message="" boot={BOOT}',
        f'HYPEMAN-EXIT code=1 message="open boot={BOOT}',
        f'HYPEMAN-EXIT code=1 message="a\\n" boot={BOOT}',
        f'HYPEMAN-EXIT code=1 message="a\x1b[31m" boot={BOOT}',
        f'HYPEMAN-EXIT code=1 message="a"b boot={BOOT}',
        f"HYPEMAN-EXIT code=1 boot={BOOT}",
        f"HYPEMAN-STAGE name=a start=2.0 end=1.0 boot={BOOT}",
        f"HYPEMAN-STAGE name=a start=-1 end=1.0 boot={BOOT}",
        f"HYPEMAN-STAGE name=a start=nan end=inf boot={BOOT}",
        f"HYPEMAN-STAGE name={'a' * 65} start=0 end=1 boot={BOOT}",
        f'HYPEMAN-STAGE name="" start=0 end=1 boot={BOOT}',
        f'HYPEMAN-STAGE name="a b" start=0 end=1 boot={BOOT}',
    ],
)
def test_lines_that_are_none(line: str) -> None:
    assert parse_sentinel(line) is None


def test_a_line_beyond_the_bound_is_none() -> None:
    fits = "x" * (MAX_LINE - len(START)) + START
    assert parse_sentinel(fits) is not None
    assert parse_sentinel("x" + fits) is None
    assert parse_sentinel("é" + fits[1:]) is None
    assert not is_sentinel_line("x" + fits)


def test_bad_utf8_in_a_message_is_replaced_and_elsewhere_makes_it_none() -> None:
    line = f'HYPEMAN-EXIT code=1 message="a?b" boot={BOOT}'.encode()
    assert parse_sentinel(line.replace(b"?", b"\xff")) == Exit(BOOT, 1, "a\ufffdb")
    assert parse_sentinel(line.replace(b"code=1", b"code=\xff")) is None


def test_messages_are_cut_between_characters_and_cleaned_of_controls() -> None:
    long = Exit(BOOT, 1, "a" + "é" * 400)
    cut = "a" + "é" * 255
    assert parse_sentinel(format_sentinel(long)) == Exit(BOOT, 1, cut)
    assert parse_sentinel(f'HYPEMAN-EXIT code=1 message="{long.message}" boot={BOOT}') == Exit(BOOT, 1, cut)
    dirty = format_sentinel(Exit(BOOT, 1, "a\nHYPEMAN-EXIT\x1b[2J\x9b\x7f\ud800"))
    assert "\n" not in dirty
    assert parse_sentinel(dirty) == Exit(BOOT, 1, "a?HYPEMAN-EXIT?[2J???")


@pytest.mark.parametrize(
    ("line", "seen"),
    [
        ("hello", "hello"),
        ("", ""),
        (START, None),
        (f"hello{START}", "hello"),
        ("HYPEMAN-EXIT", None),
        ("  HYPEMAN-STAGE name=ro", None),
        ("HYPEMAN-EXIT is what it prints at last", "HYPEMAN-EXIT is what it prints at last"),
        ("HYPEMAN-OTHER code=1", "HYPEMAN-OTHER code=1"),
        ("see HYPEMAN-EXIT code=1", "see HYPEMAN-EXIT code=1"),
    ],
)
def test_users_see_what_is_theirs(line: str, seen: str | None) -> None:
    assert derive_user_text(line.encode()) == (None if seen is None else seen.encode())
    assert is_sentinel_line(line) == (seen != line)


_FIELD = r'[ \t]+([a-z][a-z0-9_]*)=([^\s"]+|"(?:[^"\\\x00-\x1f\x7f]|\\["\\])*")'
pieces = st.sampled_from(
    [
        *("HYPEMAN-EXIT", "HYPEMAN-AGENT-READY", "HYPEMAN-", "=", "x", "\n", "\x01"),
        *(" ", "\t", '"', "\\", '\\"', " a=", " b=", ' a="HYPEMAN-EXIT', ' c="'),
        *(" code=0", " code=999", ' message="x y"', ' message=""', f" ts={TS}", f" boot={BOOT}"),
    ]
)


@example(parts=["HYPEMAN-EXIT", " code=0", "HYPEMAN-EXIT", ' message="x y"', f" boot={BOOT}"], ends=False)
@given(st.lists(pieces, max_size=12), st.booleans())
def test_the_first_prefix_from_which_the_line_is_a_sentinel_counts(parts: list[str], ends: bool) -> None:
    """As a reader would that tries one prefix after the other, for which each line takes quadratic time."""
    line = "".join(parts) + f' code=0 message="" ts={TS} boot={BOOT}' * ends
    expected = None
    for prefix in re.finditer("HYPEMAN-(EXIT|AGENT-READY)", line.rstrip()):
        rest = line.rstrip()[prefix.end() :]
        if re.fullmatch(f"(?:{_FIELD})*", rest) is None:
            continue
        fields = [(key, value) for key, value in re.findall(_FIELD, rest)]
        values = dict(fields)
        wanted = ("code", "message") if prefix[1] == "EXIT" else ("ts",)
        if len(values) == len(fields) and "boot" in values and all(key in values for key in wanted):
            whole = f"HYPEMAN-{prefix[1]}" + rest
            if values.get("code", "0") == "0" and values["boot"] == BOOT and values.get("ts", TS) == TS:
                expected = whole
                break
    found = parse_sentinel(line)
    assert (found is None) == (expected is None)
    if expected is not None:
        assert found == parse_sentinel(expected)
