# SPDX-License-Identifier: Apache-2.0
"""Environment files as systemd reads them, and errors with their line where that passes over a mistake."""

from __future__ import annotations

import pytest

from hypemand.config.envfile import MAX_BYTES, MAX_VALUE_BYTES, parse_env_file
from hypemand.errors import InvalidDefinition


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", {}),
        ("A=1\nB=2", {"A": "1", "B": "2"}),
        ("# a\n; b\n\n  \t\n A = 1 \r\n", {"A": "1"}),
        ("A=\nB=", {"A": "", "B": ""}),
        ("A=1\nA=2", {"A": "2"}),
        ("A=one two  # no comment", {"A": "one two  # no comment"}),
        ("A='one  two' ", {"A": "one  two"}),
        ("A=\"a 'b'\"'c \"d\"'e", {"A": "a 'b'c \"d\"e"}),
        ('A=it\'s "so"', {"A": 'it\'s "so"'}),
        ('A="\\$x \\"q\\" \\\\ \\` \\n"', {"A": '$x "q" \\ ` \\n'}),
        ("A='no \\n \\' B=1", {"A": "no \\n \\B=1"}),
        ("A=one\\\ntwo \\\n three", {"A": "onetwo  three"}),
        ('A="one\\\ntwo\nthree"\nB=1', {"A": "onetwo\nthree", "B": "1"}),
        ("A=x\\ \nB=\\a\\\\", {"A": "x ", "B": "a\\"}),
        ("A=$B %n ${C}", {"A": "$B %n ${C}"}),
        ("# a \\\nA=1", {"A": "1"}),
        ("\ufeffÄ=1\n".replace("Ä", "A"), {"A": "1"}),
        ("A=ö=b", {"A": "ö=b"}),
    ],
)
def test_values_are_those_of_systemd(text: str, found: dict[str, str]) -> None:
    assert parse_env_file(text.encode(), "x.env") == found


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"A=1\nB\nC=3\n9=x", ["x.env:2:1: has no '=' after 'B'", "x.env:4:1: '9' is not the name"]),
        (b"\n\nexport A=1", ["x.env:3:1: 'export A' is not a name; write A=, without export"]),
        (b"A=1\nB='x\ny\n", ["x.env:2:1: B: has a quote that is not closed"]),
        (b'A="\\', ["x.env:1:1: A: has a quote that is not closed"]),
        (b"A=1\nB=\xff", ["x.env:2:1: is not valid UTF-8"]),
        (b"A=a\0b", ["x.env:1:1: A: has a control character"]),
        (b"A=" + b"x" * MAX_VALUE_BYTES, ["x.env:1:1: A: is too long"]),
        (b"#" * (MAX_BYTES + 1), ["x.env: is larger than 1M"]),
        (b"=1", ["x.env:1:1: '' is not the name"]),
    ],
)
def test_a_mistake_is_told_with_its_line(data: bytes, words: list[str]) -> None:
    with pytest.raises(InvalidDefinition) as caught:
        parse_env_file(data, "x.env")
    told = [str(problem) for problem in caught.value.problems]
    assert len(told) == len(words)
    assert all(line.startswith(word) for line, word in zip(told, words, strict=True)), told


def test_many_mistakes_are_few_words() -> None:
    with pytest.raises(InvalidDefinition) as caught:
        parse_env_file(b"x\n" * 100_000, "x.env")
    assert len(caught.value.problems) == 20
