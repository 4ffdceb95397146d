# SPDX-License-Identifier: Apache-2.0
"""Lines of what runs in a host, as they come: tests/host/command.py."""

from __future__ import annotations

import os
import time

import pytest

from tests.host.command import read_lines


def test_lines_come_whole_and_the_last_may_have_no_end() -> None:
    reading, writing = os.pipe()
    with open(reading, "rb") as pipe:
        lines = read_lines(pipe, time.monotonic() + 60)
        os.write(writing, b"one\ntw")
        assert next(lines) == "one"
        os.write(writing, b"o\n\nb\xffd\nrest")
        assert [next(lines), next(lines), next(lines)] == ["two", "", "b\ufffdd"]
        os.close(writing)
        assert list(lines) == ["rest"]


def test_a_pipe_that_is_silent_is_given_up() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"no end")
    with open(reading, "rb") as pipe:
        lines = read_lines(pipe, time.monotonic() + 0.05)
        with pytest.raises(TimeoutError):
            next(lines)
    os.close(writing)
