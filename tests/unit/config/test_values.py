# SPDX-License-Identifier: Apache-2.0
"""Sizes, time spans, names and unit properties: the values that definitions are made of."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypemand.config.durations import DURATION_EXAMPLES, MAX_DURATION, format_duration, parse_duration
from hypemand.config.names import is_name, parse_name
from hypemand.config.sizes import MAX_SIZE, SIZE_EXAMPLES, format_size, parse_size
from hypemand.config.unitprops import parse_unit_value


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        (1048576, 2**20),
        ("1048576", 2**20),
        ("1000B", 1000),
        ("512M", 2**29),
        ("512m", 2**29),
        ("1G", 2**30),
        ("1GiB", 2**30),
        ("1GB", 2**30),
        ("1Gi", 2**30),
        (" 1 G ", 2**30),
        ("1.5G", 3 * 2**29),
        ("0.5K", 512),
        ("2T", 2**41),
        ("1P", 2**50),
    ],
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "M",
        "-1",
        -1,
        "1X",
        "1GG",
        "1iB",
        "1.5",
        "0.3K",
        "1,5G",
        "1e9",
        "\u0661",
        "1 0M",
        "1025P",
        "9" * 30,
        True,
        None,
        1.5,
    ],
)
def test_what_is_no_size_is_refused_with_examples(text: Any) -> None:
    with pytest.raises(ValueError, match=SIZE_EXAMPLES.replace(".", r"\.")):
        parse_size(text)


@given(st.integers(min_value=0, max_value=MAX_SIZE))
def test_sizes_are_read_back_as_written(size: int) -> None:
    assert parse_size(format_size(size)) == size


@given(st.text(max_size=40))
def test_any_text_is_a_size_or_a_clear_error(text: str) -> None:
    try:
        size, said = parse_size(text), SIZE_EXAMPLES
    except ValueError as error:
        size, said = 0, str(error)
    assert 0 <= size <= MAX_SIZE
    assert SIZE_EXAMPLES in said


def test_sizes_are_written_short() -> None:
    assert [format_size(n) for n in (0, 1000, 1536 * 2**20, 2**30)] == ["0", "1000", "1536M", "1G"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90.0),
        ("90", 90.0),
        (90, 90.0),
        (1.5, 1.5),
        ("1min 30s", 90.0),
        ("1min30s", 90.0),
        ("2 h", 7200.0),
        ("1.5min", 90.0),
        ("500ms", 0.5),
        ("5us", 0.000005),
        ("1d 2h", 93600.0),
        ("2weeks", 1209600.0),
        ("0", 0.0),
        ("infinity", None),
    ],
)
def test_time_spans(text: str | float, seconds: float | None) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "s",
        "-1s",
        -1,
        "1 fortnight",
        "1,5s",
        "90S",
        "Infinity",
        "1min foo",
        "1000y",
        float("nan"),
        10**400,
        1e300,
        True,
        None,
        [],
    ],
)
def test_what_is_no_time_span_is_refused_with_examples(text: Any) -> None:
    with pytest.raises(ValueError, match=DURATION_EXAMPLES):
        parse_duration(text)


@given(st.integers(min_value=0, max_value=int(MAX_DURATION)), st.integers(min_value=0, max_value=999_999))
def test_time_spans_are_read_back_as_written(seconds: int, micros: int) -> None:
    span = parse_duration(f"{seconds}s {micros}us") if seconds < MAX_DURATION else float(seconds)
    assert parse_duration(format_duration(span)) == span


def test_time_spans_are_written_as_systemd_does() -> None:
    written = [format_duration(s) for s in (0, 0.5, 90.0, 93600.25, None)]
    assert written == ["0s", "500ms", "1min 30s", "1d 2h 250ms", "infinity"]


@pytest.mark.parametrize("name", ["a", "0", "web-1", "a--b", "a" * 63])
def test_names(name: str) -> None:
    assert is_name(name)
    assert parse_name(name) == name


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a_b", "a.b", "a/b", "a\n", "ä", "a" * 64, "../x"])
def test_what_is_no_name_is_refused_with_the_rule(name: str) -> None:
    assert not is_name(name)
    with pytest.raises(ValueError, match="1 to 63 characters of a-z"):
        parse_name(name)


NICE = {"kind": "integer", "minimum": -20, "maximum": 19}
WEIGHT = {"kind": "weight", "minimum": 1, "maximum": 10000, "words": ["idle"]}


@pytest.mark.parametrize(
    ("rule", "value", "words"),
    [
        ({"kind": "units"}, "a.service b@x.socket", ("a.service", "b@x.socket")),
        ({"kind": "units"}, ["a.service", "alert@%n.service"], ("a.service", "alert@%n.service")),
        ({"kind": "units"}, r"dev-disk-by\x2duuid.device", (r"dev-disk-by\x2duuid.device",)),
        ({"kind": "paths"}, "/srv /var/lib", ("/srv", "/var/lib")),
        ({"kind": "uris"}, "man:foo(8) https://x.org/a", ("man:foo(8)", "https://x.org/a")),
        ({"kind": "cpus"}, "0-3,5 7", ("0-3", "5", "7")),
        ({"kind": "cpus"}, 3, ("3",)),
        ({"kind": "cpus"}, [0, "2-3"], ("0", "2-3")),
        (NICE, -20, ("-20",)),
        (NICE, 5.0, ("5",)),
        (WEIGHT, "idle", ("idle",)),
        (WEIGHT, "0100", ("100",)),
        ({"kind": "limit"}, "512M", ("536870912",)),
        ({"kind": "limit"}, 4096, ("4096",)),
        ({"kind": "limit"}, "80%", ("80%",)),
        ({"kind": "limit"}, "infinity", ("infinity",)),
        ({"kind": "duration"}, 90, ("1min 30s",)),
        ({"kind": "duration"}, "infinity", ("infinity",)),
        ({"kind": "text"}, " The shop ", ("The shop",)),
    ],
)
def test_unit_properties_become_words_of_systemd(
    rule: dict[str, Any], value: object, words: tuple[str, ...]
) -> None:
    assert parse_unit_value(rule, value) == words


@pytest.mark.parametrize(
    ("rule", "value"),
    [
        ({"kind": "units"}, "foo"),
        ({"kind": "units"}, "a/b.service"),
        ({"kind": "units"}, ""),
        ({"kind": "units"}, []),
        ({"kind": "units"}, ["a.service\nExecStart=/bin/sh"]),
        ({"kind": "units"}, "a" * 250 + ".service"),
        ({"kind": "units"}, ["a.service"] * 300),
        ({"kind": "paths"}, "srv"),
        ({"kind": "uris"}, "ftp://x"),
        ({"kind": "cpus"}, "3-1"),
        ({"kind": "cpus"}, "0-99999"),
        ({"kind": "cpus"}, "-1"),
        (NICE, 20),
        (NICE, "x"),
        (WEIGHT, "0"),
        (WEIGHT, "busy"),
        ({"kind": "limit"}, "101%"),
        ({"kind": "limit"}, "lots"),
        ({"kind": "duration"}, "soon"),
        ({"kind": "text"}, ""),
        ({"kind": "text"}, "a\nb"),
        ({"kind": "text"}, "a" * 2000),
    ],
)
def test_bad_unit_properties_are_refused_with_a_cure(rule: dict[str, Any], value: object) -> None:
    with pytest.raises(ValueError, match="; "):
        parse_unit_value(rule, value)


@pytest.mark.parametrize("module", ["names", "sizes", "durations", "definition"])
def test_values_are_imported_without_yaml_and_jsonschema(module: str) -> None:
    script = (
        f"import sys, hypemand.config.{module}; sys.exit(bool({{'yaml', 'jsonschema'}} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=30).returncode == 0
