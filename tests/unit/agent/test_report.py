# SPDX-License-Identifier: Apache-2.0
"""Lines of the report port."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypemand.agent.report import MAX_LINE, LineSplitter, open_report
from hypemand.budget import BURST, PER_SECOND, Budget, Price, Reserve
from hypemand.errors import GuestError
from tests.unit.agent.support import in_loop, listening


@given(st.lists(st.binary(max_size=60)), st.integers(1, 50))
def test_lines_survive_any_cutting(lines: list[bytes], size: int) -> None:
    lines = [line.replace(b"\n", b"").replace(b"\r", b"") for line in lines]
    data = b"".join(line + b"\r\n" for line in lines)
    splitter = LineSplitter()
    got = [line for at in range(0, len(data), size) for line in splitter.feed(data[at : at + size])]
    assert got == [line for line in lines if line] or [line for line in got if line] == [
        line for line in lines if line
    ]


def test_a_line_of_the_greatest_length_is_kept_and_a_longer_one_left_out() -> None:
    splitter = LineSplitter()
    long = b"x" * MAX_LINE
    assert splitter.feed(long + b"\n" + long + b"y\nafter\n") == [long, b"after"]


def test_a_line_without_an_end_is_not_kept() -> None:
    splitter = LineSplitter()
    for _ in range(100):
        assert splitter.feed(b"x" * MAX_LINE) == []
    assert splitter.feed(b"x\nafter\n") == [b"after"]


@in_loop
async def test_lines_come_until_the_vmm_goes(tmp_path: Path) -> None:
    path = tmp_path / "report.sock"
    async with listening(path) as guests, open_report(path, Budget()) as lines:
        guest = await guests.get()
        guest.send(b"HYPEMAN-AGENT-READY ts=1 boot=2\n")
        assert await anext(lines) == b"HYPEMAN-AGENT-READY ts=1 boot=2"
        guest.send(b"two\nno end")
        guest.writer.close()
        assert [line async for line in lines] == [b"two"]


@in_loop
async def test_a_flood_of_lines_waits_for_the_vms_budget(tmp_path: Path) -> None:
    budget = Budget()
    budget.spend(BURST - Reserve.LINES)
    path = tmp_path / "report.sock"
    async with listening(path) as guests, open_report(path, budget) as lines:
        guest = await guests.get()
        guest.send(b"x\n" * 21)
        guest.writer.close()
        loop = asyncio.get_running_loop()
        started = loop.time()
        assert len([line async for line in lines]) == 21
        assert loop.time() - started > 20 * Price.LINE / PER_SECOND * 0.9


@in_loop
async def test_no_socket_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(GuestError, match=r"report\.sock: No such file"):
        async with open_report(tmp_path / "report.sock", Budget()):
            pass
