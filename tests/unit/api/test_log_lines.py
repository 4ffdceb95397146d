# SPDX-License-Identifier: Apache-2.0
"""Lines of a log: what the guest wrote comes as it was, and what is missing is counted."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from hypemand.model.logs import MAX_LINE
from tests.unit.api.harness import Api, drive

RUN = "cd" * 16


async def read(api: Api, query: str = "tail=all&json=true") -> list[Any]:
    return [data for _, data in (await api.ask("GET", f"/instances/a/logs?{query}")).events]


def test_lines_that_are_missing_are_told_in_their_place(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        await api.host.put("a")
        api.host.log("a", "1", HYPEMAN_LINE="1")
        api.host.log("a", "2")
        api.host.log("a", None, HYPEMAN_STAGE="HYPEMAN-STAGE name=x")
        # by a service's output, which has no numbers
        api.host.log("a", "helper", _TRANSPORT="stdout")
        api.host.log("a", "17", HYPEMAN_LINE="17")
        notice = "hypeman-console: 40 lines (400 bytes) were not kept: they were more than its limit"
        api.host.log("a", notice, HYPEMAN_DROPPED="40")
        api.host.log("a", "58")
        api.host.log("a", None, HYPEMAN_LINE="65")
        # the first lines of the next run, and what a guest says is not counted
        api.host.log("a", "6", HYPEMAN_LINE="6", _SYSTEMD_INVOCATION_ID=RUN)
        api.host.log("a", notice, _SYSTEMD_INVOCATION_ID=RUN)
        api.host.log("a", None, HYPEMAN_LINE="8", _SYSTEMD_INVOCATION_ID=RUN)
        events = await read(api)
        told = [(event["text"].partition(" were")[0], event["missing"]) for event in events]
        assert told == [
            ("1", 0),
            ("2", 0),
            ("helper", 0),
            ("hypemand: 13 lines", 13),
            ("17", 0),
            ("hypeman-console: 40 lines (400 bytes)", 40),
            ("58", 0),
            ("hypemand: 6 lines", 6),
            ("hypemand: 5 lines", 5),
            ("6", 0),
            ("hypeman-console: 40 lines (400 bytes)", 0),
        ]
        strings = await read(api, "tail=all")
        assert strings[3] == "hypemand: 13 lines were not kept: journald has dropped them"
        exact = await read(api, "tail=all&exact=true")
        assert (exact[0], exact[3]["missing"]) == ("1", 13)
        # of what was before the first line that is read nothing is known
        assert [event["missing"] for event in await read(api, "tail=2&json=true")] == [0, 0]

    drive(tmp_path, scenario)


def test_a_file_of_the_journal_that_was_removed_is_no_loss(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        await api.host.put("a")
        api.host.log("a", "the oldest that is left", HYPEMAN_LINE="3201")
        assert [event["missing"] for event in await read(api)] == [0]

    drive(tmp_path, scenario)


def test_a_line_is_exact_or_says_what_it_is(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        await api.host.put("a")
        marker = b'HYPEMAN-EXIT code=0 message="" boot=' + b"ab" * 16
        lines = [b"", b"  x \r", b"a\0b", b"\xff", b"x" * MAX_LINE, b"rest", b" last " + marker]
        for line in lines:
            api.host.log("a", line)
        events = await read(api)
        said = [
            base64.b64decode(event["base64"]) if event["base64"] else event["text"].encode()
            for event in events
        ]
        assert said == [*lines[:-1], b" last "]
        assert [event["partial"] for event in events] == [False] * 4 + [True, False, True]
        kinds = [type(event) for event in await read(api, "tail=all&exact=true")]
        assert kinds == [str, str, str, dict, dict, str, dict]
        assert await read(api, "tail=3") == ["x" * MAX_LINE, "rest", " last "]
        with_markers = await read(api, "tail=1&sentinels=true&json=true")
        assert (with_markers[0]["text"], with_markers[0]["partial"]) == (lines[-1].decode(), False)
        api.host.log("a", "of a terminal", HYPEMAN_CR="1")
        assert await read(api, "tail=1") == ["of a terminal\r"]

    drive(tmp_path, scenario)


def test_stages_of_a_boot_are_shown_with_the_markers(tmp_path: Path) -> None:
    async def scenario(api: Api) -> None:
        await api.host.put("a")
        stage = "HYPEMAN-STAGE name=root start=0.1 end=0.2 boot=" + "ab" * 16
        api.host.log("a", None, HYPEMAN_STAGE=stage)
        assert await read(api, "tail=all") == []
        assert await read(api, "tail=all&sentinels=true") == [stage]

    drive(tmp_path, scenario)
