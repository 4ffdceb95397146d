# SPDX-License-Identifier: Apache-2.0
"""YAML to values: read as editors read it, bounded, and every fault with its place."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypemand.config.source import MAX_BYTES, Place, parse_source, read_source
from hypemand.errors import InvalidDefinition


def faults(text: str) -> list[str]:
    try:
        problems = parse_source(text, "f").problems
    except InvalidDefinition as error:
        problems = error.problems
    assert problems
    return [str(problem) for problem in problems]


def test_values_and_their_places() -> None:
    source = parse_source("a: 1\nb:\n  - x\n  - {c: 'no'}\n", "f")
    assert source.data == {"a": 1, "b": ["x", {"c": "no"}]}
    assert source.keys[("b",)] == Place(2, 1)
    assert source.values[("b", 1, "c")] == Place(4, 9)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("Yes", "Yes"),
        ("true", True),
        ("FALSE", False),
        ("12:30", "12:30"),
        ("2026-01-02", "2026-01-02"),
        ("1_000", "1_000"),
        ("010", 10),
        ("0x10", 16),
        ("0o10", 8),
        ("-5", -5),
        ("1.10", 1.1),
        ("1e3", 1000.0),
        (".inf", ".inf"),
        ("~", None),
        ("", None),
        ("null", None),
        ("'5'", "5"),
        ("!!str 5", "5"),
        ("=", "="),
    ],
)
def test_scalars_are_read_as_yaml_1_2_has_them(text: str, value: object) -> None:
    source = parse_source(f"k: {text}\n", "f")
    assert source.data == {"k": value}
    assert isinstance(source.data, dict)
    assert type(source.data["k"]) is type(value)


def test_numbers_keep_their_text() -> None:
    assert parse_source("a: 1.10", "f").texts == {("a",): "1.10"}


def test_an_empty_text_is_nothing() -> None:
    assert parse_source("# nothing\n", "f").data is None


def test_aliases_are_followed() -> None:
    assert parse_source("a: &x [1]\nb: *x\n", "f").data == {"a": [1], "b": [1]}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a: 1\nb: 2\na: 3\n", "f:3:1: a: is there twice, first in line 1; remove one of the two"),
        ("a:\n  b: 1\n  b: 2\n", "f:3:3: a.b: is there twice, first in line 2; remove one of the two"),
        ("5: x\n", 'f:1:1: 5: is a key that is not a string; quote it: "5"'),
        ("? [a]\n: x\n", "f:1:3: has a key that is a list or a mapping; write a text as key"),
        ("a:\n\tb: 1\n", "f:2:1: is indented with a tab, which YAML does not allow; indent with blanks"),
        (
            "a: 1\n---\nb: 2\n",
            "f:2:1: has a second document; write one definition in one file, without a further '---' line",
        ),
        (
            "a: x\x01\n",
            (
                "f:1:5: has the character U+0001, which YAML does not allow; "
                "remove it, or write it as an escape in double quotes"
            ),
        ),
        (
            "a: !!python/object:os.system x\n",
            (
                "f:1:4: a: has the tag tag:yaml.org,2002:python/object:os.system, which is not valid here; "
                "remove the tag"
            ),
        ),
        (
            "a: !!set {x: }\n",
            "f:1:4: a: has the tag tag:yaml.org,2002:set, which is not known; remove the tag",
        ),
        (
            "a: !!int x\n",
            "f:1:4: a: has the tag tag:yaml.org,2002:int, which is not valid here; remove the tag",
        ),
        (f"a: {'9' * 5000}\n", "f:1:4: a: is a number of 5000 digits; quote it when it is a text"),
    ],
)
def test_faults_have_place_and_cure(text: str, fault: str) -> None:
    assert faults(text) == [fault]


@pytest.mark.parametrize("text", ["a: [1", "a: 'x", "a: b: c", "*x", "- a\nb: c", "%", "a: |x\n  y", "@"])
def test_what_is_no_yaml_is_told_with_its_line(text: str) -> None:
    (fault,) = faults(text)
    assert fault.startswith("f:")
    assert "is not YAML" in fault


def test_all_faults_are_told_by_place() -> None:
    assert [f.split(":")[1] for f in faults("a: 1\na: 2\n7: x\na: 3\n")] == ["2", "3", "4"]


def test_aliases_cannot_blow_up() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    (fault,) = faults("\n".join(lines))
    assert "more than 100000 values" in fault


def test_aliases_cannot_run_in_circles() -> None:
    (fault,) = faults("a: &a [*a]\n")
    assert "nested too deeply" in fault


@pytest.mark.parametrize("depth", [40, 5000])
def test_depth_is_bounded(depth: int) -> None:
    (fault,) = faults("a: " + "[" * depth + "]" * depth)
    assert "nested too deeply" in fault


@given(st.text(alphabet="ab:-[]{}&*!|>'\"#%@, \n\t\x000159.~?", max_size=60))
def test_any_text_gives_values_or_placed_faults(text: str) -> None:
    try:
        found: tuple[object, ...] = (parse_source(text, "f"),)
    except InvalidDefinition as error:
        found = error.problems
    assert found


@given(st.binary(max_size=60))
def test_any_file_gives_values_or_faults(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(data)
    try:
        found: tuple[object, ...] = (read_source(path),)
    except InvalidDefinition as error:
        found = error.problems
    assert found


def fault_of(path: Path) -> str:
    with pytest.raises(InvalidDefinition) as caught:
        read_source(path)
    return str(caught.value).removeprefix(str(path))


def test_a_file_that_is_not_utf8_is_told_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes("a: é\nb: ".encode() + b"\xe9\n")
    assert fault_of(path) == ":2:4: is not valid UTF-8; save the file in UTF-8"


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert read_source(path).data == {"a": 1}


def test_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"#" * (MAX_BYTES + 1))
    assert "larger than 1M; make it smaller" in fault_of(path)


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert "not a regular file" in fault_of(tmp_path / "fifo")
    (tmp_path / "dir").mkdir()
    assert "directory" in fault_of(tmp_path / "dir")
    assert "No such file" in fault_of(tmp_path / "gone")
