# SPDX-License-Identifier: Apache-2.0
"""The guest's console in the journal during a boot, read in steps of bounded time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Protocol

from hypemand.budget import Budget, Turn
from hypemand.systemd.journal import JournalLine
from hypemand.vm.retry import Backoff
from hypemand.vm.tracker import BootTracker

_log = logging.getLogger(__name__)
PERIOD = 0.1
"""Seconds from look to look."""
_LINES_AT_ONCE = 16
_LINES_TO_CATCH_UP = 20_000
# seconds for the stages of a boot to be in the journal, from when all was seen that Running needs
_STAGES_DEADLINE = 10.0


class Journal(Protocol):
    """The journal of one run: `hypemand.systemd.journal.BootJournal`."""

    def read(self, limit: int) -> list[JournalLine]: ...
    def reopen(self) -> None: ...
    def close(self) -> None: ...


OpenJournal = Callable[[str], Journal]


class Console:
    """Reads the journal of one boot, until it is closed.

    With `catch_up` it goes on behind the markers: to what the guest said of its kernel headers while no
    daemon listened, as far as the first lines of the boot have it.
    """

    def __init__(
        self,
        name: str,
        tracker: BootTracker,
        budget: Budget,
        open_journal: OpenJournal,
        *,
        catch_up: bool,
    ) -> None:
        self.is_open = True
        self._name = name
        self._tracker = tracker
        self._budget = budget
        self._open_journal = open_journal
        self._journal: Journal | None = None
        self._to_catch_up = _LINES_TO_CATCH_UP if catch_up else 0
        self._stages_until: float | None = None
        self._due = 0.0
        self._backoff = Backoff()
        self._told = False

    @property
    def wait_time(self) -> float:
        """Seconds until it is to be looked into again."""
        return max(self._due - time.monotonic(), self._backoff.wait_time)

    def read(self, *, has_port: bool) -> bool:
        """Read for a turn at most: what is more waits for the next. True: it told something new. `has_port`:
        what comes from now on is said on the report port too.

        Never raises: another try is made later, and the other witnesses go on.
        """
        started = time.monotonic()
        self._due = started + PERIOD
        try:
            return self._read(has_port=has_port)
        except Exception as error:
            self._backoff.fail()
            if not self._told:
                self._told = True
                _log.warning("VM %s: cannot read the journal of its boot, retrying: %s", self._name, error)
            return False
        finally:
            self._budget.spend((time.monotonic() - started) * 1000)

    def _read(self, *, has_port: bool) -> bool:
        if self._journal is None:
            self._journal = self._open_journal(self._tracker.run)
        elif self._backoff.has_failed:
            self._journal.reopen()
        turn = Turn()
        changed, count, at_end = False, 0, False
        while not at_end and not turn.is_over:
            lines = self._journal.read(_LINES_AT_ONCE)
            for line in lines:
                changed |= self._tracker.take_line(line.message, line.monotonic)
            count += len(lines)
            at_end = len(lines) < _LINES_AT_ONCE
        self._backoff.succeed()
        self._to_catch_up = max(self._to_catch_up - count, 0)
        if self._to_catch_up == 0 or (count == 0 and has_port) or self._tracker.headers.state.is_settled:
            self._to_catch_up = 0
        return changed

    def has_all(self) -> bool:
        """Has all been read that is of use, of a boot that has shown what Running needs? That is what
        `catch_up` asked for, and the stages: init reports them behind the rest, and of those that it reported
        before the report port was connected there is nothing but the journal. They are not waited for long.
        """
        if self._stages_until is None:
            self._stages_until = time.monotonic() + _STAGES_DEADLINE
        has_stages = self._tracker.has_stages or time.monotonic() >= self._stages_until
        return has_stages and self._to_catch_up == 0

    def close(self) -> None:
        """Close the journal's files."""
        self.is_open = False
        if self._journal is not None:
            self._journal.close()
            self._journal = None
