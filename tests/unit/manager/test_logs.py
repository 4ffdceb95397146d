# SPDX-License-Identifier: Apache-2.0
"""The log of a VM while it is being written."""

from __future__ import annotations

import time
from functools import partial

import pytest

from hypemand.model.logs import LogSource
from hypemand.tasks import Tasks
from tests.fakes.host import FakeHost, drive


@pytest.mark.parametrize("since", [None, 60.0])
@pytest.mark.parametrize("tail", [None, 1])
def test_a_line_that_was_counted_and_not_yet_linked_is_shown_without_another_one(
    tail: int | None, since: float | None
) -> None:
    async def scenario(host: FakeHost) -> None:
        await host.run()
        run = host.vm().run
        assert run is not None
        host.journal.unlinked = 0
        shown: list[str] = []

        async def follow() -> None:
            begin = None if since is None else time.time() - since
            app = LogSource.APP
            log = host.manager.logs("web", source=app, tail=tail, follow=True, sentinels=False, since=begin)
            async for line in log:
                shown.append(line.text)  # noqa: PERF401 - looked at meanwhile

        async with Tasks("the test") as tasks:
            tasks.start("log", follow())
            await host.until_true(lambda: bool(host.journal.open_logs))
            for number in range(3):
                text = f"line {number}"
                host.log("web", text, _SYSTEMD_INVOCATION_ID=run)
                # it has been looked for by then, and not been found
                await host.until_true(lambda: all(log.is_blind for log in host.journal.open_logs))
                assert text not in shown
                host.journal.unlinked = len(host.journal.entries)
                host.journal.wake()
                await host.until_true(partial(shown.__contains__, text))
        assert [text for text in shown if text.startswith("line ")] == ["line 0", "line 1", "line 2"]

    drive(scenario)
