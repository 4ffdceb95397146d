# SPDX-License-Identifier: Apache-2.0
"""Values as text."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest

from hypemand.cli import values
from hypemand.cli.exitcode import MEANINGS, ExitCode, derive_exit_code
from hypemand.cli.names import generate_name
from hypemand.config.names import is_name


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0B"),
        (512, "512B"),
        (1024, "1K"),
        (512 * 1024**2, "512M"),
        (1.5 * 1024**3, "1.5G"),
        ("512M", "512M"),
        (None, "-"),
        (True, "-"),
    ],
)
def test_sizes_are_short(size: object, text: str) -> None:
    assert values.format_bytes(size) == text


@pytest.mark.parametrize(
    ("ms", "text"), [(0, "0ms"), (612.4, "612ms"), (1400, "1.40s"), (125_000, "2min5s"), (None, "-")]
)
def test_durations_are_short(ms: object, text: str) -> None:
    assert values.format_milliseconds(ms) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59, "59s"), (182, "3min 2s"), (7500, "2h 5min"), (350_000, "4d 1h")]
)
def test_ages_show_two_units(seconds: float, text: str) -> None:
    assert values.format_seconds(seconds) == text


def test_spans_may_be_infinite() -> None:
    assert values.parse_span("infinity") == math.inf
    assert values.parse_span("1m30s") == 90


@pytest.mark.parametrize(
    "value", ["2026-03-01T10:00:00Z", "2026-03-01T11:00:00+01:00", "2026-03-01T10:00:00", 1772359200]
)
def test_moments_are_read_in_every_spelling(value: object) -> None:
    assert values.parse_moment(value) == datetime(2026, 3, 1, 10, tzinfo=UTC)


@pytest.mark.parametrize("value", [None, "", "soon", True, 1e30, [], math.nan])
def test_what_is_no_moment_is_none(value: object) -> None:
    assert values.parse_moment(value) is None


def test_nothing_of_a_guest_drives_the_terminal() -> None:
    hostile = "a\x1b[31mb\x07\x9b\u202e\u2028\ud800\rc\nd\tü✓"
    shown = values.escape_controls(hostile)
    assert shown.isprintable()
    assert shown.startswith("a\\x1b[31mb\\x07")
    assert shown.endswith("ü✓")


def test_plain_text_is_left_alone() -> None:
    assert values.escape_controls("grün, 3 °C") == "grün, 3 °C"


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("not_found", 10),
        ("ambiguous", 10),
        ("image_not_found", 10),
        ("invalid_state", 11),
        ("already_exists", 11),
        ("timed_out", 12),
        ("unreachable", 13),
        ("invalid_definition", 8),
        ("invalid_timeout", 8),
        ("insufficient_resources", 9),
        ("host_not_ready", 9),
        ("stopping", 13),
        ("internal_error", 1),
        ("never heard of", 1),
    ],
)
def test_errors_are_told_apart_by_exit_status(code: str, status: int) -> None:
    assert derive_exit_code(code) == status


def test_every_exit_status_that_is_told_has_a_meaning() -> None:
    assert set(MEANINGS) == set(ExitCode) - {ExitCode.BROKEN_PIPE}


def test_no_exit_status_is_one_that_systemd_shows_by_another_name() -> None:
    """systemd.exec(5): 2 to 7 of the LSB, 64 to 78 of the BSDs, 200 to 245 of systemd. 2 is what it says, and
    3 is systemctl's for a unit that is not active."""
    named = {*range(2, 8), *range(64, 79), *range(200, 246)}
    assert named & set(ExitCode) == {ExitCode.USAGE, ExitCode.NOT_RUNNING}
    assert (ExitCode.USAGE, ExitCode.NOT_RUNNING) == (2, 3)


def test_made_up_names_are_valid_and_differ() -> None:
    names = {generate_name() for _ in range(200)}
    assert len(names) > 150
    assert all(is_name(name) for name in names)
